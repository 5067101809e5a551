"""Content-addressed blobs. One is visible under its digest only when all of it is on disk.

Nothing that a stopped process may still delete is what another one relies on, also where the store cannot rename. A
sweep looks what is there, then what is named, then asks for the token, then deletes, however much later: what it had
seen, and only that. Where a coordinator begins while a sweep of an earlier one may not have ended, it and all after it
put blobs under names of a new edition (blob_place.py), which that sweep cannot have seen. So where A is stopped,
and B has taken over meanwhile:

before it asks for the token   A is Fenced, and deletes nothing
after it, at any deletion      no row named that blob while A led, nor did A hold it: if one of B's does, B has put it
                               anew, under another name

This holds as long as a sweep is wanted in the database from before it looks until it has ended (sweep.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from coordinator.errors import CoordinatorError
from coordinator.shelves import digest_in, shelf_at
from protos.chunks import digest_of

ASIDE = "aside/"
"""Where older releases set aside what they were about to delete. It is still found here, and swept like the others."""


class Blobs:
    """`put` is idempotent and durable; `get` never returns bytes that are not what the name says.

    place: a folder, or an fsspec URL. editions: of the names that blobs were put under, beside the first; the newest
    comes first, and is put under.
    """

    def __init__(self, place: Path | str, editions: Sequence[int] = ()):
        self._shelf = shelf_at(place)
        self._editions = (*editions, 0)
        self._lock = Lock()
        self._held: list[str] = []
        self._spared: set[str] | None = None  # during a sweep: held since it began

    def put(self, blob: bytes) -> str:
        """On disk when it returns. A damaged one is mended. Raises OSError (a full disk) with nothing left behind."""
        digest = digest_of(blob)
        name = _names(digest, self._editions)[0]
        if self._shelf.has(name) and self._is_whole(name):
            self._shelf.sync()  # whoever put it there may not have come so far
        else:
            self._shelf.put(name, blob)
        return digest

    def get(self, digest: str) -> bytes:
        """Raises CoordinatorError when the blob is missing or is not what its name says."""
        bad: list[CoordinatorError] = []
        for name in self._where_it_may_be(digest):
            try:
                return self._whole(name)
            except FileNotFoundError:
                continue
            except CoordinatorError as error:
                bad.append(error)
        if bad:
            raise bad[0]
        raise CoordinatorError(f"{self.where(digest)} is missing: restore it from a copy of this home")

    def _where_it_may_be(self, digest: str) -> Iterator[str]:
        yield from _names(digest, self._editions)
        yield from (aside for aside in self._shelf.names(ASIDE) if digest_in(aside) == digest)

    def _is_whole(self, name: str) -> bool:
        with suppress(CoordinatorError, FileNotFoundError):
            self._whole(name)
            return True
        return False

    def _whole(self, name: str) -> bytes:
        """Raises FileNotFoundError, and CoordinatorError where it is damaged."""
        blob = self._shelf.get(name)
        if digest_of(blob) != digest_in(name):
            raise CoordinatorError(
                f"{self._shelf.where(name)} is damaged: its bytes do not have the digest that is its name:"
                " restore it from a copy of this home"
            )
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

    def sweep(self, named: Callable[[], set[str]], must_be_ours: Callable[[], object]) -> int:
        """Delete every blob that is neither named nor held. Returns how many. One sweep at a time.

        `must_be_ours` raises Fenced where another coordinator has taken over. It is asked after looking and before
        deleting: see above.
        """
        with self._lock:
            self._spared = set(self._held)
        try:
            found = [name for prefix in ("", ASIDE) for name in self._shelf.names(prefix)]
            kept = named()
            must_be_ours()
            deleted = sum(self._deleted(name) for name in found if digest_in(name) not in kept)
        finally:
            with self._lock:
                self._spared = None
        for prefix in ("", ASIDE):  # what was erased does not come back with a power cut
            self._shelf.sync(prefix)
        return deleted

    def _deleted(self, name: str) -> bool:
        """Unless it is held by now."""
        with self._lock:
            if goes := digest_in(name) not in (self._spared or ()):
                self._shelf.delete(name)
        return goes

    def where(self, digest: str) -> str:
        names = _names(digest, self._editions)
        return self._shelf.where(next(filter(self._shelf.has, names), names[0]))

    def path(self, digest: str) -> Path:
        """Of one in a local folder."""
        return Path(self.where(digest))


def _names(digest: str, editions: Sequence[int]) -> list[str]:
    return [f"{digest}.{edition}.safetensors" if edition else f"{digest}.safetensors" for edition in editions]
