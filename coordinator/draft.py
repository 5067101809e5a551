"""All that one journal entry changes, before it is stored: what `Catalog` commits at once."""

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
class StandIn:
    """An update stated anew for version 0, maybe as a difference. norm: ||dW|| of what was sent; None: not known."""

    blob: BlobName
    norm: float | None


@dataclass(frozen=True)
class Kept:
    """What a version holds of a task: coefficients and head, what the head's rows mean, and how true it is."""

    blob: BlobName
    labels: Sequence[str]
    certificate: Certificate


@dataclass(frozen=True)
class LettingGo:
    """Versions of which only the record is left from now on, and why.

    stand_ins: by position, of updates that may be merged yet, or again, and that could not be read without these
    versions. consumed: every entry up to here has been looked at.
    """

    versions: frozenset[int]
    why: str
    stand_ins: Mapping[int, StandIn]
    consumed: int


@dataclass(frozen=True)
class Erasure:
    """Of these updates everything but their id is deleted. task, worker: whose name is blanked.

    until: commands up to this position do not say it any more; a later one has yet to be carried out.
    """

    positions: frozenset[int]
    task: str
    worker: str
    until: int


@dataclass(frozen=True)
class Draft:
    """All that a new version changes, or, without records, all that changes without one. Its blobs are on disk already.

    position: of the journal entry that it was made for. blocks: appended to the parent's basis, or, with `afresh`, all
    of the basis of a new generation. entries: what is kept of a task from now on; None: nothing any more.
    first, later: verdicts on entries that have none yet, and on those that have one; their version is the new one.
    """

    position: int
    records: tuple[Record, ...] = ()
    blocks: tuple[BlobName, ...] = ()
    afresh: bool = False
    entries: Mapping[str, Kept | None] = field(default_factory=dict)
    first: tuple[Ruling, ...] = ()
    later: tuple[Ruling, ...] = ()
    erasure: Erasure | None = None
    letting_go: LettingGo | None = None
