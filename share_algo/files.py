"""Reading a file that somebody else may have written."""

from __future__ import annotations

from pathlib import Path

from share_algo.errors import AlgebraError


def read_bytes(path: Path, at_most: int | None = None) -> bytes:
    """AlgebraError, with the file, where it cannot be read or has more bytes."""
    try:
        if at_most is not None and path.stat().st_size > at_most:
            raise AlgebraError(f"{path}: more than {at_most} bytes")
        return path.read_bytes()
    except OSError as error:
        raise AlgebraError(f"{path}: {error.strerror}") from None
