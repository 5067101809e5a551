"""What a base model is, kept on this machine: to find it out anew, all of it has to be loaded and hashed.

FOLDER/models/KEY.json    KEY: SHA-256 of the files' names, sizes, places and times of change, and of the libraries'
                          releases; a line with the SHA-256 of the next one, which is the description

FOLDER is share_algo/cache_folder.py's. A file that is written to has another time of change, whatever else is made
equal. What is missing, damaged, or finds no room is found out anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ValidationError

from protos.chunks import digest_of
from share_algo.cache_folder import cache_folder, keep, was_read

BYTES_MAX = 1 << 28
ENTRIES_MAX = 1000
"""What was not read for longest goes first."""


class Description(BaseModel, frozen=True):
    """fingerprint: of all weights of the encoder. linear_shapes: (out_features, in_features) of linear layers."""

    fingerprint: str
    linear_shapes: dict[str, tuple[int, int]]


def described(model: Path, find_out: Callable[[], Description]) -> Description:
    """What `find_out` gives for the model in a folder, found out at most once while its files stay as they are."""
    if (folder := cache_folder()) is None:
        return find_out()
    key = _key(model)
    file = folder / "models" / f"{key}.json"
    if found := _read(file):
        return found
    made = find_out()
    if _key(model) == key:
        _write(file, made)
    return made


def _key(model: Path) -> str:
    stats = sorted((file.name, file.stat()) for file in model.iterdir() if file.is_file())
    files = [(name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
    return digest_of(json.dumps([files, [version(package) for package in ("transformers", "torch")]]).encode())


def _read(file: Path) -> Description | None:
    """None where it is not there whole."""
    try:
        digest, _, said = file.read_bytes().partition(b"\n")
        if digest_of(said).encode() != digest:
            return None
        found = Description.model_validate_json(said)
    except (OSError, ValidationError):
        return None
    was_read(file)
    return found


def _write(file: Path, made: Description) -> None:
    said = made.model_dump_json().encode()
    keep(file, digest_of(said).encode() + b"\n" + said, entries_max=ENTRIES_MAX, bytes_max=BYTES_MAX)
