"""A worker's home: one folder, one federation, one worker at a time.

HOME/federation    id of the federation that it belongs to, from its first join on
HOME/outbox/       outbox.py         HOME/blobs/    blobs of versions, by digest: fetched once
HOME/refused/      updates that the coordinator refused       HOME/lock     held while a worker lives here
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from protos.chunks import digest_of
from workers import disk
from workers.errors import WorkerError
from workers.outbox import Outbox, Parcel


class Home:
    """Use as a context manager. Raises WorkerError when another worker lives here, or it cannot be written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._federation = folder / "federation"

    def __enter__(self) -> Home:
        try:
            disk.make_folder(self.folder)
            self._lock = FileLock(self.folder / "lock")
            self._lock.acquire(timeout=0)
            self.outbox = Outbox(self.folder / "outbox")
            self.blobs = BlobCache(self.folder / "blobs")
        except Timeout:
            raise WorkerError(f"another worker lives in {self.folder}: stop it, or use another --home") from None
        except OSError as error:
            raise WorkerError(f"cannot use {self.folder} as a home: {error.strerror or error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def federation_id(self) -> str:
        """Empty before the first join."""
        return self._federation.read_text() if self._federation.exists() else ""

    def must_not_belong_elsewhere(self, federation_id: str) -> None:
        have = self.federation_id()
        if have and have != federation_id:
            raise WorkerError(
                f"{self.folder} belongs to another federation ({have[:8]}, not {federation_id[:8]}): use another --home"
            )

    def belong_to(self, federation_id: str) -> None:
        """From now on. Raises WorkerError when the disk does not take it."""
        if self.federation_id() != federation_id:
            _replace(self._federation, federation_id.encode())

    def set_aside(self, parcel: Parcel) -> Path:
        """A refused update leaves the outbox but is not lost: returns where it is kept.

        Raises WorkerError when the disk does not take it: it stays in the outbox.
        """
        kept = self.folder / "refused" / parcel.folder.name
        try:
            kept.parent.mkdir(exist_ok=True)
            return parcel.folder.rename(kept)
        except OSError as error:
            raise WorkerError(f"cannot keep a refused update in {kept.parent}: {error.strerror}") from None


class BlobCache:
    """Blobs by digest. A cache: what is torn or damaged is removed when it is opened, and fetched again."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if digest_of(path.read_bytes()) != path.stem:
                path.unlink()

    def digests(self) -> list[str]:
        return [path.stem for path in self.folder.glob("*.safetensors")]

    def get(self, digest: str) -> bytes | None:
        path = self._path(digest)
        blob = path.read_bytes() if path.exists() else None
        if blob is not None and digest_of(blob) != digest:
            path.unlink()
            return None
        return blob

    def put(self, digest: str, blob: bytes) -> None:
        """Raises WorkerError, with nothing left behind, when the disk does not take it."""
        _replace(self._path(digest), blob)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, also after a power cut."""
    part = path.with_suffix(".part")
    try:
        disk.write(part, content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WorkerError(f"cannot write {path}: {error.strerror}") from None
