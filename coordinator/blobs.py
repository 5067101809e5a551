"""Content-addressed blobs. One is visible under its digest only when all of it is on disk."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from coordinator.errors import CoordinatorError
from coordinator.shelves import shelf_at
from protos.chunks import digest_of

ASIDE = "aside/"
"""What a sweep is about to delete, each name with its sweep's own number. It is still found here."""


class Blobs:
    """`put` is idempotent and durable; `get` never returns bytes that are not what the name says.

    place: a folder, or an fsspec URL.
    """

    def __init__(self, place: Path | str):
        self._shelf = shelf_at(place)
        self._lock = Lock()
        self._held: list[str] = []
        self._spared: set[str] | None = None  # during a sweep: held since it began

    def put(self, blob: bytes) -> str:
        """On disk when it returns. A damaged one is mended. Raises OSError (a full disk) with nothing left behind."""
        digest = digest_of(blob)
        name = _name(digest)
        if self._shelf.has(name) and digest_of(self._shelf.get(name)) == digest:
            self._shelf.sync()  # whoever put it there may not have come so far
        else:
            self._shelf.put(name, blob)
        return digest

    def get(self, digest: str) -> bytes:
        """Raises CoordinatorError when the blob is missing or is not what its name says."""
        try:
            blob = self._found(_name(digest))
        except FileNotFoundError:
            raise CoordinatorError(f"{self.where(digest)} is missing: restore it from a copy of this home") from None
        if digest_of(blob) != digest:
            raise CoordinatorError(
                f"{self.where(digest)} is damaged: its bytes do not have the digest that is its name:"
                " restore it from a copy of this home"
            )
        return blob

    def _found(self, name: str) -> bytes:
        try:
            return self._shelf.get(name)
        except FileNotFoundError:
            for aside in self._shelf.names(ASIDE):
                if _from_aside(aside) == name:
                    return self._shelf.get(aside)
            raise

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

    def sweep(self, named: Callable[[], set[str]], must_be_ours: Callable[[], object]) -> int:
        """Delete every blob that is neither named nor held. Returns how many. One sweep at a time.

        `must_be_ours` raises Fenced where another coordinator has taken over. It is asked between setting blobs aside
        and deleting them: what another has put since then it has put anew, under the name from which they are gone.
        """
        with self._lock:
            self._spared = set(self._held)
        try:
            self._put_back(self._shelf.names(ASIDE))  # of a sweep that was cut off
            aside = self._set_aside({_name(digest) for digest in named()}, uuid.uuid4().hex)
        finally:
            with self._lock:
                self._spared = None
        try:
            must_be_ours()
        except BaseException:
            self._put_back(aside)
            raise
        for name in aside:
            self._shelf.delete(name)
        for prefix in ("", ASIDE):  # what was erased does not come back with a power cut
            self._shelf.sync(prefix)
        return len(aside)

    def _set_aside(self, kept: set[str], number: str) -> list[str]:
        aside = []
        for name in self._shelf.names(""):
            if name in kept:
                continue
            with self._lock:
                if name.partition(".")[0] not in (self._spared or ()):
                    aside.append(_to_aside(name, number))
                    self._shelf.move(name, aside[-1])
        return aside

    def _put_back(self, aside: Iterable[str]) -> None:
        for name in aside:
            self._shelf.move(name, _from_aside(name))

    def where(self, digest: str) -> str:
        return self._shelf.where(_name(digest))

    def path(self, digest: str) -> Path:
        """Of one in a local folder."""
        return Path(self.where(digest))


def _name(digest: str) -> str:
    return f"{digest}.safetensors"


def _to_aside(name: str, number: str) -> str:
    return f"{ASIDE}{name.partition('.')[0]}.{number}.safetensors"


def _from_aside(name: str) -> str:
    return _name(name.removeprefix(ASIDE).partition(".")[0])
