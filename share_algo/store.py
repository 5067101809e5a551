"""A subspace in a folder: immutable blobs named by their SHA-256, and one index that is written last.

    index.json                what there is: task names are keys in it, never file names
    blobs/DIGEST.safetensors  one for each block of the basis and for each task

Durable before visible: blobs are on disk before the index is renamed into place, so a reader sees the old subspace
or the new one. Writers take a lock in turn; what the index no longer names is deleted under it. No pickle.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import load, save

from share_algo.certificate import Certificate
from share_algo.codec import decode_block, decode_entry, encode_block, encode_entry, metadata_of
from share_algo.errors import AlgebraError
from share_algo.files import read_bytes
from share_algo.forms import FORMS, in_form
from share_algo.names import check_task_name
from share_algo.subspace import FLOAT32, Subspace
from share_algo.types import Basis

INDEX, BLOBS, LOCK = "index.json", "blobs", ".lock"
FORMAT = "share_algo subspace 1"
INDEX_BYTES_MAX = 1 << 28
DIGEST = re.compile(r"[0-9a-f]{64}")


def save_subspace(subspace: Subspace, folder: Path) -> None:
    """Write or replace. A crash leaves what was there before. Cost: all tensors are encoded and hashed."""
    (folder / BLOBS).mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        blocks = [_put(folder, _in_form(encode_block(b), subspace.form)) for b in subspace.basis.blocks]
        tasks: dict[str, Any] = {}
        for task, entry in subspace.tasks.items():
            check_task_name(task)
            tasks[task] = {"entry": _put(folder, _in_form(encode_entry(entry), subspace.form))}
            if found := subspace.certificates.get(task):
                tasks[task]["certificate"] = found.__dict__
        index = {"format": FORMAT, "form": subspace.form, "base_model": subspace.base_model, "blocks": blocks}
        _write(folder / INDEX, json.dumps({**index, "tasks": tasks}, indent=1).encode())
        _prune(folder, {*blocks, *(task["entry"] for task in tasks.values())})


def load_subspace(folder: Path) -> Subspace:
    """What the index names, every digest checked. AlgebraError names the file or task and the reason."""
    while True:
        blob = read_bytes(folder / INDEX, INDEX_BYTES_MAX)
        try:
            return _read(_index(folder, blob), folder)
        except FileNotFoundError as error:  # a writer replaced the index meanwhile, or the blob is really gone
            if read_bytes(folder / INDEX, INDEX_BYTES_MAX) == blob:
                raise AlgebraError(f"{error.filename}: the index names this file, but it is missing") from None


def _read(index: dict[str, Any], folder: Path) -> Subspace:
    blocks = tuple(decode_block(_get(folder, digest)) for digest in index["blocks"])
    basis = Basis(blocks)
    widths = basis.widths()
    tasks, certificates = {}, {}
    for task, said in index["tasks"].items():
        check_task_name(task)
        tasks[task] = decode_entry(_get(folder, said["entry"]))
        for module, c in tasks[task].coefficients.items():
            K, L = widths.get(module, (-1, -1))
            if c.widths[0] > K or c.widths[1] > L:
                raise AlgebraError(f"{task}: {module}: coefficients for {c.widths} columns, the basis has {(K, L)}")
        if "certificate" in said:
            certificates[task] = _certificate(task, said["certificate"])
    return Subspace(basis, MappingProxyType(tasks), MappingProxyType(certificates), index["base_model"], index["form"])


def _certificate(task: str, said: object) -> Certificate:
    if not isinstance(said, dict) or said.keys() != Certificate.__dataclass_fields__.keys():
        raise AlgebraError(f"{task}: a certificate must hold {', '.join(Certificate.__dataclass_fields__)}")
    if not all(isinstance(value, int | float) and value >= 0 for value in said.values()):
        raise AlgebraError(f"{task}: a certificate must hold numbers that are not negative")
    return Certificate(**said)


def _index(folder: Path, blob: bytes) -> dict[str, Any]:
    try:
        index = json.loads(blob, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise AlgebraError(f"{folder / INDEX}: {error}") from None
    kinds = {"format": str, "form": str, "base_model": str, "blocks": list, "tasks": dict}
    if not isinstance(index, dict) or not all(isinstance(index.get(k), kind) for k, kind in kinds.items()):
        raise AlgebraError(f"{folder / INDEX}: must hold {', '.join(kinds)}")
    if index["format"] != FORMAT or index["form"] not in FORMS:
        raise AlgebraError(f"{folder / INDEX}: unknown format {index['format'][:80]!r}, {index['form'][:80]!r}")
    if not all(isinstance(task, dict) and "entry" in task for task in index["tasks"].values()):
        raise AlgebraError(f"{folder / INDEX}: each task must have an entry")
    return index


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _in_form(blob: bytes, form: str) -> bytes:
    return blob if form == FLOAT32 else save(in_form(load(blob), form), metadata_of(blob) or None)


def _put(folder: Path, blob: bytes) -> str:
    digest = hashlib.sha256(blob).hexdigest()
    path = folder / BLOBS / f"{digest}.safetensors"
    if not path.exists() or path.stat().st_size != len(blob):
        _write(path, blob)
    return digest


def _get(folder: Path, digest: object) -> bytes:
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise AlgebraError(f"{folder / INDEX}: {str(digest)[:80]!r} is no digest")
    path = folder / BLOBS / f"{digest}.safetensors"
    blob = path.read_bytes()
    if hashlib.sha256(blob).hexdigest() != digest:
        raise AlgebraError(f"{path}: the content is not what its name says: damaged or changed")
    return blob


def _write(path: Path, blob: bytes) -> None:
    """Whole and durable under its name, or not there."""
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with open(handle, "wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _prune(folder: Path, named: set[str]) -> None:
    for path in (folder / BLOBS).iterdir():
        if path.suffix == ".part" or (DIGEST.fullmatch(path.stem) and path.stem not in named):
            path.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
