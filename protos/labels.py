"""What a label may hold, for whoever reads data and for whoever keeps what was learned from it."""

from __future__ import annotations

import re

IN_NO_LABEL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters, which not every database takes (tabs and line ends are none of them), and what is no text."""
