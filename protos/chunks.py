"""A blob, or a long answer, on a stream: cut on one side, joined on the other, within bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

CHUNK_BYTES_MAX = 1 << 20
ENTRY_BYTES = 8
"""What a list takes for an entry beside the entry itself: its tag and its length."""
BLOB_BYTES_MAX = 1 << 30
"""The largest blob that either side accepts, and the most it ever holds for one."""
TRANSFER_SECONDS_MAX = 600.0
"""Either side gives a transfer up that takes longer."""


def digest_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def cut(blob: bytes) -> Iterator[bytes]:
    for start in range(0, len(blob), CHUNK_BYTES_MAX):
        yield blob[start : start + CHUNK_BYTES_MAX]


def in_pieces(whole: M) -> Iterator[M]:
    """Messages that `joined` makes it of again, none larger than a chunk but for one entry that is so by itself.

    What may be long is a list of messages in it.
    """
    if whole.ByteSize() <= CHUNK_BYTES_MAX:
        yield whole
        return
    lists = [field.name for field, value in whole.ListFields() if hasattr(value, "add")]
    piece = type(whole)()
    piece.CopyFrom(whole)
    for name in lists:
        piece.ClearField(name)
    nbytes = piece.ByteSize()
    for name in lists:
        for entry in getattr(whole, name):
            more = entry.ByteSize() + ENTRY_BYTES
            if nbytes + more > CHUNK_BYTES_MAX:
                yield piece
                piece, nbytes = type(whole)(), 0
            getattr(piece, name).append(entry)
            nbytes += more
    yield piece


def joined(whole: M, pieces: Iterable[M]) -> M:
    """whole: an empty message, which is filled."""
    for piece in pieces:
        whole.MergeFrom(piece)
    return whole


class Joiner:
    """Collects the chunks of one announced blob. Takes memory for what has come, however small its chunks are, and
    none for what is only announced."""

    def __init__(self, digest: str, nbytes: int):
        """Raises ValueError when more is announced than is ever held."""
        if nbytes > BLOB_BYTES_MAX:
            raise ValueError(f"a blob of {nbytes} bytes; at most {BLOB_BYTES_MAX} are allowed")
        self.digest, self.nbytes = digest, nbytes
        self._have = bytearray()

    def add(self, chunk: bytes) -> None:
        """Raises ValueError as soon as more comes than was announced (nothing beyond that is held), or nothing."""
        if not chunk:
            raise ValueError("an empty chunk")
        if len(chunk) > CHUNK_BYTES_MAX:
            raise ValueError(f"a chunk of {len(chunk)} bytes; at most {CHUNK_BYTES_MAX} are allowed")
        if len(self._have) + len(chunk) > self.nbytes:
            raise ValueError(f"more than the announced {self.nbytes} bytes")
        self._have += chunk

    @property
    def complete(self) -> bool:
        return len(self._have) == self.nbytes

    def blob(self) -> bytes:
        """The joined bytes. Raises ValueError when they are not what was announced."""
        blob = bytes(self._have)
        if len(blob) != self.nbytes:
            raise ValueError(f"{len(blob)} of the announced {self.nbytes} bytes came")
        if digest_of(blob) != self.digest:
            raise ValueError("the bytes do not have the announced digest")
        return blob
