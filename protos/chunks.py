"""A blob on a stream: cut on one side, joined on the other, within bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

CHUNK_BYTES_MAX = 1 << 20
BLOB_BYTES_MAX = 1 << 30
"""The largest blob that either side accepts, and the most it ever holds for one."""
TRANSFER_SECONDS_MAX = 600.0
"""Either side gives a transfer up that takes longer."""


def digest_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def cut(blob: bytes) -> Iterator[bytes]:
    for start in range(0, len(blob), CHUNK_BYTES_MAX):
        yield blob[start : start + CHUNK_BYTES_MAX]


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
