"""Where this machine keeps what took long to find out. Nothing is lost with it.

$FEDSHARE_CACHE, else `fedshare` in the user's cache folder; where the variable is empty, nothing is kept.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

CACHE = "FEDSHARE_CACHE"
PART = ".part"


def cache_folder() -> Path | None:
    named = os.environ.get(CACHE)
    if named is None:
        return user_cache_path("fedshare")
    return Path(named) if named else None


def was_read(file: Path) -> None:
    """So that it stays longer."""
    with suppress(OSError):  # a folder that others fill
        os.utime(file)


def keep(file: Path, content: bytes, *, entries_max: int, bytes_max: int) -> None:
    """Whole or not at all. Of the files of its kind beside it, what was not read for longest goes when there are more.

    Where the disk does not take it nothing is kept, and nobody is told.
    """
    part = file.with_suffix(f".{os.getpid()}{PART}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.write_bytes(content)
        os.replace(part, file)
        _make_room(file, entries_max, bytes_max)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _make_room(newest: Path, entries: int, room: int) -> None:
    """What a process that was killed left half-written counts, and goes, too."""
    others = [f for f in newest.parent.iterdir() if f.suffix in (newest.suffix, PART) and f != newest]
    entries, room = entries - 1, room - newest.stat().st_size
    for stat, file in sorted(((f.stat(), f) for f in others), key=lambda found: -found[0].st_mtime):
        entries, room = entries - 1, room - stat.st_size
        if min(entries, room) < 0:
            file.unlink(missing_ok=True)
