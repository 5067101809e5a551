"""Derived columns that took long stay on this machine's disk: for the next start, and for every other process.

FOLDER/KEY.safetensors    KEY: SHA-256 of all that the columns follow from
FOLDER/KEY.lock           held by the one process that derives them, while others wait for it

FOLDER is cache_folder.py's. What is missing, damaged, or finds no room is derived.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from share_algo.cache_folder import cache_folder, keep, was_read
from share_algo.fingerprint import fingerprint
from share_algo.types import Directions

CACHE_BYTES_MAX = 8 << 30
ENTRIES_MAX = 1 << 16
"""What was not read for longest goes first."""
WAIT_SECONDS_MAX = 300.0
"""For another process that derives the same columns: longer than any module takes."""


def kept(said: Sequence[object], make: Callable[[], Directions]) -> Directions:
    """What `make` gives, made at most once on this machine. said: all that it follows from."""
    if (folder := cache_folder()) is None:
        return make()
    file = folder / f"{hashlib.sha256(json.dumps(said).encode()).hexdigest()}.safetensors"
    if found := _read(file):
        return found
    with _turn(file) as is_ours:
        if found := _read(file):
            return found
        made = make()
        if is_ours:
            _write(file, made)
        return made


@contextmanager
def _turn(file: Path) -> Iterator[bool]:
    """Nobody else derives it now; False where that cannot be had."""
    lock = FileLock(file.with_suffix(".lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire(timeout=WAIT_SECONDS_MAX)
    except (OSError, NotImplementedError, Timeout):  # a folder or a file system that takes no lock; one that hangs
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _read(file: Path) -> Directions | None:
    """None where it is not there whole."""
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
            out_KN, in_LD = (opened.get_tensor(side) for side in ("out_KN", "in_LD"))
        if said != _fingerprints(out_KN=out_KN, in_LD=in_LD):
            return None
    except (OSError, SafetensorError):
        return None
    was_read(file)
    return Directions(out_KN.T, in_LD.T)


def _write(file: Path, made: Directions) -> None:
    sides = {"out_KN": made.out_NK.T.contiguous(), "in_LD": made.in_DL.T.contiguous()}
    keep(file, save(sides, _fingerprints(**sides)), entries_max=ENTRIES_MAX, bytes_max=CACHE_BYTES_MAX)


def _fingerprints(**sides):
    return {side: fingerprint(columns) for side, columns in sides.items()}
