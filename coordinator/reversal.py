"""Commands that take something back: what the writer makes of a rollback or a forget, ready to be published.

Nothing here changes the database: blobs are written, then one commit (Catalog.publish) does all or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.catalog import Version
from coordinator.draft import BlobName, Draft, Erasure
from coordinator.errors import CoordinatorError
from coordinator.history import History
from coordinator.journal import Position
from coordinator.rebuild import rebuild
from coordinator.verdicts import Ruling
from coordinator.whole import changed, ordered, put, stored
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis, append, lift
from share_algo.codec import encode_update

READABLE = (pb.OUTCOME_QUEUED, pb.OUTCOME_MERGED)
"""Outcomes of updates that may still be merged, or merged again."""


@dataclass(frozen=True)
class Reversal:
    """Each method raises CoordinatorError, with the reason for the command's verdict, where it cannot be done."""

    spec: pb.FederationSpec
    history: History

    def rollback(self, position: Position, command: pb.Rollback, head: Version) -> Draft:
        catalog, journal = self.history.catalog, self.history.journal
        target = catalog.get(command.version)
        if target is None:
            raise CoordinatorError(f"there is no version {command.version}: the newest is {head.version}")
        if target.gone:
            raise CoordinatorError(f"version {command.version} was {target.gone}")
        wanted = {t.task: t.kept for t in catalog.tasks_of(target)}
        then, now = journal.alive_at(target.version), journal.alive_at(head.version)
        why = f"by a rollback to version {target.version}"
        later = [Ruling(p, pb.OUTCOME_REVERTED, reason=f"taken back {why}") for p in sorted(now - then)]
        later += [Ruling(p, pb.OUTCOME_MERGED, reason=f"merged again {why}") for p in sorted(then - now)]
        note = f"equals version {target.version}; {len(now - then)} updates reverted, {len(then - now)} merged again"
        draft = ordered(position, pb.VERSION_KIND_ROLLBACK, note, self.history.bases.at(target))
        return replace(
            draft,
            blocks=tuple(catalog.blocks_of(target)),
            entries=changed(self.history, head, wanted),
            later=tuple(later),
        )

    def forget(self, position: Position, command: pb.Forget, head: Version) -> Draft:
        journal = self.history.journal
        forgotten = journal.updates_of(command.task, command.worker, position.position)
        if not forgotten:
            raise CoordinatorError("no such update is journaled")
        alive = journal.alive_at(head.version)
        rebuilt = rebuild(self.history.events(head.version, forgotten), self.spec)
        taken = sorted(forgotten if command.erase else forgotten & alive)
        outcome, what = (
            (pb.OUTCOME_ERASED, "erased") if command.erase else (pb.OUTCOME_REVERTED, "taken back by a forget")
        )
        note = f"as if {len(taken)} updates had never come, which are {'erased' if command.erase else 'reverted'}"
        draft = replace(
            ordered(position, pb.VERSION_KIND_FORGET, note, rebuilt.basis),
            later=tuple(Ruling(p, outcome, reason=what) for p in taken),
            erasure=self._erasure(command, head, forgotten) if command.erase else None,
        )
        return stored(self.history, rebuilt, head, draft)

    def _erasure(self, command: pb.Forget, head: Version, forgotten: frozenset[int]) -> Erasure:
        versions = list(self.history.catalog.every())
        held = [v.version for v in versions for record in v.records if record.position in forgotten]
        numbers = frozenset(v.version for v in versions if held and v.version >= min(held) and not v.gone)
        stand_ins, consumed = {}, 0
        for entry, decision in self.history.journal.every():
            consumed = entry.position
            needed = decision.outcome in READABLE and entry.command is None and entry.position not in forgotten
            if needed and entry.stand_in is None and entry.submission.base_version in numbers:
                stand_ins[entry.position] = self._restated(entry)
        return Erasure(forgotten, numbers, stand_ins, consumed, command.task, command.worker)

    def _restated(self, position: Position) -> BlobName:
        """The same update, made for version 0: whole, so that no other version is needed to read it."""
        arrived = self.history.arrived(position, staleness=0)
        whole = append(Basis(), lift(arrived.update, arrived.base), tolerance=0.0)
        return put(self.history, encode_update(whole.update))
