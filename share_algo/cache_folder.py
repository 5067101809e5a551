"""Where this machine keeps what took long to find out. Nothing is lost with it.

$FEDSHARE_CACHE, else `fedshare` in the user's cache folder; where the variable is empty, nothing is kept.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

CACHE = "FEDSHARE_CACHE"


def cache_folder() -> Path | None:
    named = os.environ.get(CACHE)
    if named is None:
        return user_cache_path("fedshare")
    return Path(named) if named else None
