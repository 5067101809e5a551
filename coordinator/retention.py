"""Which versions are let go, and what must be written first so that nothing that is kept needs them.

An update is read with the basis of its base version. Where that goes, the update is stated anew, whole, for version 0:
a stand-in, which needs no version. A basis outlives its version as long as a later one of its generation is kept.
Version 0 is never let go: adapters from elsewhere are made for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from coordinator.catalog import Outline, Version
from coordinator.draft import Draft, LettingGo, StandIn
from coordinator.errors import CoordinatorError, Refused
from coordinator.history import History
from coordinator.journal import Position, ReadAhead
from coordinator.letting_go import COLLECTED
from coordinator.verdicts import Ruling
from coordinator.whole import put
from protos.fedshare.v1 import federation_pb2 as pb
from protos.policy import gathers, policy_of
from share_algo import AlgebraError, Basis, append, mixed
from share_algo.codec import encode_update


def collection(history: History, position: Position, command: pb.Collect, head: Version) -> Draft:
    """Raises CoordinatorError, with the reason for the command's verdict, where there is nothing to collect."""
    readable = [v.version for v in history.catalog.outlines() if v.version and not v.is_gone]
    numbers = frozenset(readable[: -command.keep])
    if not numbers:
        raise CoordinatorError(f"nothing to collect: {len(readable)} versions can be read, {command.keep} are kept")
    gone = letting_go(history, numbers, COLLECTED)
    note = f"{len(numbers)} versions up to {max(numbers)} were collected; {len(gone.stand_ins)} updates stated anew"
    done = Ruling(position.position, pb.OUTCOME_DONE, reason=note)
    return Draft(position.position, first=(done,), letting_go=gone)


def letting_go(history: History, numbers: frozenset[int], why: str, without: Collection[int] = ()) -> LettingGo:
    """Stand-ins are written for all updates that need one, but those at the positions `without`."""
    return caught_up(history, LettingGo(numbers, why, {}, consumed=0), without)


def caught_up(history: History, going: LettingGo, without: Collection[int] = ()) -> LettingGo:
    """The same with what was journaled since. Cost: one lift for each of these that needs a stand-in."""
    consumed, numbers = history.journal.newest_position(), going.versions
    outlines = {v.version: v for v in history.catalog.outlines()}
    kept = _widest(v for v in outlines.values() if not v.is_gone and v.version not in numbers)
    stand_ins, journaled = dict(going.stand_ins), ReadAhead(history.journal)
    for position, base, task in history.journal.mergeable(going.consumed):
        goes = outlines[base].blocks > kept.get(outlines[base].generation, 0)
        differs = base in numbers and gathers(policy_of(history.spec.policies, task))  # from what the task was there
        if (goes or differs) and position not in without:
            stand_ins |= _restated(history, journaled.at(position))
    return replace(going, stand_ins=stand_ins, consumed=consumed)


def _widest(outlines: Iterable[Outline]) -> dict[int, int]:
    """By generation: most blocks that one of these versions has."""
    widest: dict[int, int] = {}
    for v in outlines:
        widest[v.generation] = max(widest.get(v.generation, 0), v.blocks)
    return widest


def _restated(history: History, position: Position) -> dict[int, StandIn]:
    """By its position the same update, made for version 0: whole, so that no other version is needed to read it.

    Where the task's policy counts differences, that is the difference: in version 0 there was no task. Nothing for what
    was never merged and cannot be: whoever tries finds its base version gone. Raises CoordinatorError, which names it.
    """
    try:
        arrived = history.arrived(position, staleness=0)
        whole = append(Basis(), mixed(arrived.difference(1.0)), tolerance=0.0)
    except (AlgebraError, Refused):
        return {}
    except CoordinatorError as error:
        id = position.submission.update_id[:12]  # no name: this is stored as a verdict, and the task may be erased
        raise CoordinatorError(
            f"update {id} has to be kept, and cannot be read: {error}; or forget its task or its worker with --erase"
            f" (`fedshare story {id}` names them)"
        ) from None
    return {position.position: StandIn(put(history, encode_update(whole.update)), arrived.norm)}
