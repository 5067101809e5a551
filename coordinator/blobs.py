"""Content-addressed files. A blob is visible under its digest only when all of it is on disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from coordinator.errors import CoordinatorError
from protos.chunks import digest_of


class Blobs:
    """`put` is idempotent and durable; `get` never returns bytes that are not what the name says."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob("*.part"):
            torn.unlink()

    def put(self, blob: bytes) -> str:
        """Write, fsync, rename, fsync the folder. A damaged file is mended.

        Raises OSError (a full disk) with nothing left behind.
        """
        digest = digest_of(blob)
        path = self.path(digest)
        if path.exists() and digest_of(path.read_bytes()) == digest:
            return digest
        handle, part = tempfile.mkstemp(suffix=".part", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        _sync_folder(self.folder)
        return digest

    def get(self, digest: str) -> bytes:
        """Raises CoordinatorError when the file is missing or is not what its name says."""
        path = self.path(digest)
        try:
            blob = path.read_bytes()
        except FileNotFoundError:
            raise CoordinatorError(f"{path} is missing: restore it from a copy of this home") from None
        if digest_of(blob) != digest:
            raise CoordinatorError(f"{path} is damaged: its bytes do not have the digest that is its name")
        return blob

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
