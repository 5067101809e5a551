"""Derived columns that took long stay on this machine's disk: for the next start, and for every other process.

FOLDER/KEY.safetensors    KEY: SHA-256 of all that the columns follow from
FOLDER/KEY.lock           held by the one process that derives them, while others wait for it

FOLDER is cache_folder.py's. What is missing, damaged, or finds no room is derived.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from share_algo.cache_folder import cache_folder
from share_algo.fingerprint import fingerprint
from share_algo.types import Directions

CACHE_BYTES_MAX = 8 << 30
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
    with suppress(OSError):  # a folder that others fill
        os.utime(file)
    return Directions(out_KN.T, in_LD.T)


def _write(file: Path, made: Directions) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    sides = {"out_KN": made.out_NK.T.contiguous(), "in_LD": made.in_DL.T.contiguous()}
    try:
        save_file(sides, part, metadata=_fingerprints(**sides))
        os.replace(part, file)
        _make_room(file)
    except (OSError, SafetensorError):
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _fingerprints(**sides):
    return {side: fingerprint(columns) for side, columns in sides.items()}


def _make_room(newest: Path) -> None:
    """Also what a process that was killed left half-written counts, and goes."""
    others = [f for f in newest.parent.iterdir() if f.suffix in (".safetensors", ".part") and f != newest]
    room = CACHE_BYTES_MAX - newest.stat().st_size
    for stat, file in sorted(((f.stat(), f) for f in others), key=lambda found: -found[0].st_mtime):
        room -= stat.st_size
        if room < 0:
            file.unlink(missing_ok=True)
