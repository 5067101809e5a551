"""All that one new version changes, before it is stored: what `Catalog.publish` commits at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.transition import Record
from coordinator.verdicts import Ruling
from share_algo import Certificate


@dataclass(frozen=True)
class BlobName:
    digest: str
    nbytes: int


@dataclass(frozen=True)
class Kept:
    """What a version holds of a task: coefficients and head, what the head's rows mean, and how true it is."""

    blob: BlobName
    labels: Sequence[str]
    certificate: Certificate


@dataclass(frozen=True)
class Erasure:
    """What is deleted with a version's commit: of these updates everything but their id, of these versions the blobs.

    stand_ins: by position, of updates that are kept and whose base version is among those. consumed: every entry
    up to here has been looked at. task, worker: whose name is blanked.
    """

    positions: frozenset[int]
    versions: frozenset[int]
    stand_ins: Mapping[int, BlobName]
    consumed: int
    task: str
    worker: str


@dataclass(frozen=True)
class Draft:
    """All that a new version changes. Its blobs must be on disk already.

    position: of the journal entry that it was made for. blocks: appended to the parent's basis, or, with `afresh`, all
    of the basis of a new generation. entries: what is kept of a task from now on; None: nothing any more.
    first, later: verdicts on entries that have none yet, and on those that have one; their version is the new one.
    """

    position: int
    records: tuple[Record, ...]
    blocks: tuple[BlobName, ...] = ()
    afresh: bool = False
    entries: Mapping[str, Kept | None] = field(default_factory=dict)
    first: tuple[Ruling, ...] = ()
    later: tuple[Ruling, ...] = ()
    erasure: Erasure | None = None
