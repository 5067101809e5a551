"""Content-addressed files. A blob is visible under its digest only when all of it is on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from coordinator.errors import CoordinatorError
from coordinator.together import Together
from protos.chunks import digest_of


class Blobs:
    """`put` is idempotent and durable; `get` never returns bytes that are not what the name says."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = Lock()
        self._held: list[str] = []
        self._spared: set[str] | None = None  # during a sweep: held since it began
        self._sync = Together(self._sync_folder)
        self._arriving = folder.with_name(f"{folder.name}-arriving")
        for needed in (folder, self._arriving):
            needed.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        for torn in self._arriving.iterdir():  # a folder of its own: nothing here looks at every blob there is
            torn.unlink()

    def put(self, blob: bytes) -> str:
        """Write, fsync, rename, fsync the folder. A damaged file is mended.

        Raises OSError (a full disk) with nothing left behind.
        """
        digest = digest_of(blob)
        path = self.path(digest)
        if path.exists() and digest_of(path.read_bytes()) == digest:
            self._sync(None)  # whoever renamed it may not have come so far
            return digest
        handle, part = tempfile.mkstemp(suffix=".part", dir=self._arriving)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        self._sync(None)
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

    @contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """Inside, no sweep deletes this blob; nor does one that has begun by then: a row is about to name it."""
        with self._lock:
            self._held.append(digest)
            if self._spared is not None:
                self._spared.add(digest)
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(digest)

    def sweep(self, named: Callable[[], set[str]]) -> int:
        """Delete every blob that is neither named nor held. Returns how many. One sweep at a time."""
        with self._lock:
            self._spared = set(self._held)
        try:
            kept, found = named(), [path.stem for path in self.folder.glob("*.safetensors")]
            deleted = sum(self._deleted(digest) for digest in found if digest not in kept)
        finally:
            with self._lock:
                self._spared = None
        self._sync(None)
        return deleted

    def _deleted(self, digest: str) -> bool:
        with self._lock:
            if digest in (self._spared or ()):
                return False
            self.path(digest).unlink()
            return True

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def _sync_folder(self, waiting: Sequence[None]) -> Sequence[None]:
        """The names of all who wait are on disk: once for all of them."""
        sync_folder(self.folder)
        return waiting


def sync_folder(folder: Path) -> None:
    """The names in it are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
