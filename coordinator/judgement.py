"""What somebody says of an update in quarantine: merge it now, lifted with its own basis, or reject it for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coordinator.draft import Draft
from coordinator.errors import CoordinatorError
from coordinator.journal import Journal, Position
from coordinator.verdicts import Ruling
from protos.fedshare.v1 import federation_pb2 as pb


def judgement(journal: Journal, position: Position, command: pb.Judge, accepted: Callable[[Position], Draft]) -> Draft:
    """accepted: what merging the update changes. Raises CoordinatorError where nothing can be judged."""
    update = _in_quarantine(journal, command.update_id)
    name = f"update {command.update_id[:12]} for task {update.submission.task}"
    if not command.accept:
        rejected = Ruling(update.position, pb.OUTCOME_REJECTED, reason="was quarantined, and somebody rejected it")
        return _done(position, Draft(position.position, later=(rejected,)), f"{name} was rejected")
    draft = accepted(update)
    [own] = [ruling for ruling in draft.later if ruling.position == update.position]
    if own.outcome == pb.OUTCOME_SKIPPED:
        raise CoordinatorError(f"{name} stays in quarantine: it cannot be merged: {own.reason}")
    told = replace(own, reason=own.reason or "was quarantined, and somebody accepted it")
    others = tuple(ruling for ruling in draft.later if ruling is not own)
    return _done(position, replace(draft, later=(*others, told)), f"{name} was accepted")


def _in_quarantine(journal: Journal, update_id: str) -> Position:
    found = journal.find(update_id)
    if not found or found[0][0].command is not None:
        raise CoordinatorError(f"there is no update {update_id}")
    position, decision = found[0]
    if decision.outcome != pb.OUTCOME_QUARANTINED:
        now = pb.Outcome.Name(decision.outcome).removeprefix("OUTCOME_").lower()
        raise CoordinatorError(f"update {update_id} is not in quarantine: it is {now}")
    return position


def _done(position: Position, draft: Draft, note: str) -> Draft:
    done = Ruling(position.position, pb.OUTCOME_DONE, reason=note)
    return replace(draft, position=position.position, first=(done,))
