"""Where blobs lie: in a local folder, or at any fsspec URL whose puts are atomic. A name is there whole, or not at all.

A shelf neither knows what a blob holds nor whether it is damaged: blobs.py does.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from coordinator.errors import CoordinatorError
from coordinator.together import Together

ATOMIC = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""fsspec's names of stores in which a put is there whole or not at all, and durable when it returns.

fsspec's own local files are not among them, it does not sync them: `file://` is served by Folder, which does."""
S3_SECONDS_MAX = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}}
UNREADABLE = (errno.EIO, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EUCLEAN)
"""What a local file says that will not be read the next time either: it is damaged, and its store is not away."""


class Shelf(Protocol):
    """Each method raises OSError where the store is away or full."""

    def put(self, name: str, blob: bytes) -> None:
        """Durable and whole when it returns; before that, what was there."""

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError, and CoordinatorError where this one cannot be read and others may be."""

    def has(self, name: str) -> bool:
        """Whether it is there already, where that costs less than another put."""

    def names(self, prefix: str) -> list[str]: ...

    def delete(self, name: str) -> None: ...

    def sync(self, prefix: str = "") -> None:
        """What was put or deleted of names that begin so is on disk."""

    def where(self, name: str) -> str: ...


def shelf_at(place: Path | str) -> Shelf:
    """A folder, or a URL. Raises CoordinatorError where a URL cannot be used."""
    if folder := folder_at(place):
        return Folder(folder)
    scheme, _, path = str(place).partition("://")
    if not path:
        raise CoordinatorError(f"blobs cannot be kept at {place}: it names no bucket and no folder")
    if scheme not in ATOMIC:
        known = ", ".join(f"{name}://" for name in ("file", *ATOMIC))
        raise CoordinatorError(f"blobs cannot be kept at {without_password(str(place))}: use one of {known}")
    return Bucket(str(place))


def folder_at(place: Path | str) -> Path | None:
    """None: it is no local folder."""
    scheme, is_url, path = str(place).partition("://")
    if not is_url:
        return Path(place)
    return Path(path) if path and scheme in ("file", "local") else None


def digests_at(place: Path | str) -> set[str]:
    """Of what lies there, which need be no place for blobs yet and does not become one. Raises as shelf_at does."""
    folder = folder_at(place)
    names = [path.name for path in folder.glob("*.safetensors")] if folder else shelf_at(place).names("")
    return {digest_in(name) for name in names}


def read_at(place: Path | str, name: str) -> bytes | None:
    """What lies there under a name that no blob has. The same holds."""
    folder = folder_at(place)
    with suppress(FileNotFoundError):
        return (folder / name).read_bytes() if folder else shelf_at(place).get(name)
    return None


def digest_in(name: str) -> str:
    """DIGEST.safetensors, or DIGEST.EDITION.safetensors, also where it lies aside."""
    return name.rpartition("/")[2].partition(".")[0]


def without_password(url: str) -> str:
    """As it is shown, and kept."""
    return re.sub(r"^(\w+://[^:/@]*):[^@]*@", r"\1@", url)


class Folder:
    """Write, fsync, rename, fsync the folder: once for all who wait."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._arriving = folder.with_name(f"{folder.name}-arriving")
        self._sync = Together(self._sync_folder)
        for needed in (folder, self._arriving):
            needed.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        for torn in self._arriving.iterdir():  # a folder of its own: nothing here looks at every blob there is
            torn.unlink(missing_ok=True)

    def put(self, name: str, blob: bytes) -> None:
        handle, part = tempfile.mkstemp(suffix=".part", dir=self._arriving)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, self._path(name))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        self.sync()

    def get(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            self._must_be_there()
            if error.errno not in UNREADABLE:
                raise
            raise CoordinatorError(
                f"{self.where(name)} is damaged: it cannot be read ({error.strerror}):"
                " restore it from a copy of this home"
            ) from None

    def _must_be_there(self) -> None:
        """Raises OSError where all of it is away (not mounted, or closed to us), which is the fault of no blob."""
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise OSError(f"{self.folder} cannot be read: {error.strerror}") from None

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def names(self, prefix: str) -> list[str]:
        return [f"{prefix}{path.name}" for path in self._path(prefix).glob("*.safetensors")]

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def sync(self, prefix: str = "") -> None:
        if not prefix:
            self._sync(None)
        elif (beside := self._path(prefix)).is_dir():
            sync_folder(beside)

    def where(self, name: str) -> str:
        return str(self._path(name))

    def _path(self, name: str) -> Path:
        """aside/x lies beside the folder, which holds blobs and whose they are."""
        beside, _, own = name.rpartition("/")
        return (self.folder.with_name(f"{self.folder.name}-{beside}") if beside else self.folder) / own

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


class Bucket:
    """Any store of fsspec's with atomic puts. Nothing is cached: others write here too."""

    def __init__(self, url: str):
        import fsspec

        self.url = without_password(url).rstrip("/")
        scheme = url.partition("://")[0]
        options = {"config_kwargs": S3_SECONDS_MAX} if scheme.startswith("s3") else {}
        try:
            self._files, self._root = fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False, **options)
        except ImportError as error:
            raise CoordinatorError(f"blobs at {self.url} need one more package: {error}") from None

    def put(self, name: str, blob: bytes) -> None:
        with _Away(self.url):
            self._files.pipe_file(self._path(name), blob)

    def get(self, name: str) -> bytes:
        with _Away(self.url):
            return self._files.cat_file(self._path(name))

    def has(self, name: str) -> bool:
        return False  # to read it and compare costs as much as to put it again

    def names(self, prefix: str) -> list[str]:
        found: list[str] = []
        with suppress(FileNotFoundError), _Away(self.url):
            self._files.invalidate_cache()
            found = self._files.ls(self._path(prefix), detail=False)
        return [prefix + path.rpartition("/")[2] for path in found if path.endswith(".safetensors")]

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), _Away(self.url):
            self._files.rm_file(self._path(name))

    def sync(self, prefix: str = "") -> None:
        """Every call is durable when it returns."""

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


class _Away:
    """Whatever a store's own library raises becomes OSError."""

    def __init__(self, url: str):
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise OSError(f"{self._url}: {type(error).__name__}: {error}") from None
