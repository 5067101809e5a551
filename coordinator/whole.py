"""A version that is stored as a whole, in a generation of its own: what a forget or a compaction made.

Blobs are written, then one commit (Catalog.publish) does the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from coordinator.catalog import Version
from coordinator.draft import BlobName, Draft, Kept
from coordinator.history import History
from coordinator.journal import Position
from coordinator.transition import Learned, Record, State
from coordinator.verdicts import Ruling
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis
from share_algo.codec import encode_block, encode_entry

Entries = Mapping[str, Kept | None]


def stored(history: History, state: State, head: Version, draft: Draft) -> Draft:
    """`draft` with the blocks and entries of `state`. What is in the store already is not written again."""
    entries = {task: kept(history, learned, encoded(learned)) for task, learned in state.tasks.items()}
    blocks = tuple(put(history, encode_block(block)) for block in state.basis.blocks)
    return replace(draft, blocks=blocks, entries=changed(history, head, entries), afresh=True)


def ordered(position: Position, kind: pb.VersionKind, note: str, basis: Basis) -> Draft:
    """Of a version that a command makes: its record, and that the command is done."""
    widths: Collection[tuple[int, int]] = basis.widths().values()
    record = Record(
        position=position.position,
        update_id=position.submission.update_id,
        kind=kind,
        note=note,
        basis_out=max((K for K, _ in widths), default=0),
        basis_in=max((L for _, L in widths), default=0),
    )
    done = Ruling(position.position, pb.OUTCOME_DONE, reason=note)
    return Draft(position.position, (record,), afresh=True, first=(done,))


def changed(history: History, head: Version, wanted: Entries) -> Entries:
    """What differs from the head."""
    have = {t.task: t.kept for t in history.catalog.tasks_of(head)}
    lost = dict.fromkeys(have.keys() - wanted.keys())
    return {**lost, **{task: entry for task, entry in wanted.items() if have.get(task) != entry}}


def kept(history: History, learned: Learned, blob: bytes) -> Kept:
    """A task as a version holds it; its blob is on disk."""
    return Kept(put(history, blob), tuple(learned.labels), learned.certificate)


def encoded(learned: Learned) -> bytes:
    return encode_entry(learned.entry, compact_if_exact=True)


def put(history: History, blob: bytes) -> BlobName:
    return BlobName(history.blobs.put(blob), len(blob))
