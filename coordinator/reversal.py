"""Commands that take something back: what the writer makes of a rollback or a forget, ready to be published.

Nothing here changes the database: blobs are written, then one commit (Catalog.publish) does all or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.catalog import Version
from coordinator.draft import Draft, Erasure, LettingGo
from coordinator.errors import CoordinatorError
from coordinator.heirs import noted
from coordinator.history import History
from coordinator.journal import Position
from coordinator.letting_go import ERASED
from coordinator.rebuild import rebuild
from coordinator.retention import letting_go
from coordinator.verdicts import Ruling
from coordinator.whole import changed, ordered, stored
from protos.fedshare.v1 import federation_pb2 as pb

NOTHING_TO_FORGET = "no update of it is journaled: `fedshare status` and `fedshare versions` list what there is"
"""Stored as a verdict, it says no name: who asked has said it, and it may be erased later."""


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
            return _in_vain(position, command)
        alive = journal.alive_at(head.version)
        rebuilt = rebuild(self.history.events(head.version, forgotten), self.spec, self.history.root())
        taken = sorted(forgotten if command.erase else forgotten & (alive | journal.with_outcome(pb.OUTCOME_BUFFERED)))
        outcome, what = (
            (pb.OUTCOME_ERASED, "erased") if command.erase else (pb.OUTCOME_REVERTED, "taken back by a forget")
        )
        note = f"as if {len(taken)} updates had never come, which are {'erased' if command.erase else 'reverted'}"
        erasure, gone = self._erasure(position.position, command, forgotten) if command.erase else (None, None)
        if gone:
            note += f"; {len(gone.versions)} versions can no longer be read"
        note = noted(note, journal.begun_with(forgotten, alive - forgotten))
        draft = replace(
            ordered(position, pb.VERSION_KIND_FORGET, note, rebuilt.basis),
            later=tuple(Ruling(p, outcome, reason=what) for p in taken),
            erasure=erasure,
            letting_go=gone,
        )
        return stored(self.history, rebuilt, head, draft)

    def _erasure(self, position: int, command: pb.Forget, forgotten: frozenset[int]) -> tuple[Erasure, LettingGo]:
        versions = list(self.history.catalog.every())
        held = [v.version for v in versions for record in v.records if record.position in forgotten]
        numbers = frozenset(v.version for v in versions if held and v.version >= min(held) and not v.gone)
        erasure = Erasure(forgotten, command.task, command.worker, position)
        return erasure, letting_go(self.history, numbers, ERASED, without=forgotten)


def _in_vain(position: Position, command: pb.Forget) -> Draft:
    """Nothing of it is journaled. Where it was to be erased, the command must not be what still names it."""
    skipped = Ruling(position.position, pb.OUTCOME_SKIPPED, reason=NOTHING_TO_FORGET)
    erasure = Erasure(frozenset(), command.task, command.worker, position.position) if command.erase else None
    return Draft(position.position, first=(skipped,), erasure=erasure)
