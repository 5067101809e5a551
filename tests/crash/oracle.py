"""What must hold when all is quiet again: nothing lost, nothing doubled, every version what it says.

Read from the files and tables as they lie there. What a version should be, and what every verdict, is worked out from
the order of the journal and the adapters that were made, by hand (expected.py): no merge, no basis, no policy is asked.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from parts import dense_adapter
from sqlalchemy import select

from coordinator import soundness, sweep
from coordinator.catalog import Version
from coordinator.journal import MERGEABLE, Decision, Position
from coordinator.replay import compare
from coordinator.tables import versions as version_rows
from coordinator.verdicts import Outcome
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb

from .contents import ROUNDING, Contents
from .expected import Expected, Verdict
from .formulas import norm, of_adapter, off, total
from .here import Here
from .runs import World

FINAL = (
    pb.OUTCOME_MERGED, pb.OUTCOME_REVERTED, pb.OUTCOME_ERASED, pb.OUTCOME_BUFFERED, pb.OUTCOME_SUPERSEDED,
    pb.OUTCOME_TOO_STALE, pb.OUTCOME_QUARANTINED, pb.OUTCOME_REJECTED,
)  # fmt: skip
OF_COMMANDS = (pb.OUTCOME_DONE, pb.OUTCOME_SKIPPED)
Entries = list[tuple[Position, Decision]]
Past = dict[int, list[Decision]]
"""All verdicts on a position in order, the present one last."""


def check(world: World) -> dict[str, int]:
    """Raises AssertionError. Returns what there was."""
    with world._coordinator() as here:
        assert here is not None
        entries = list(here.journal.every())
        versions = list(here.catalog.every())
        past = {p.position: [*here.journal.past(p.position), d] for p, d in entries}
        made_for = _made_for(here, versions)
    _journal(entries)
    _nothing_lost(world, entries)
    _told(world, entries, past)
    _chain(versions, made_for)
    expected = Expected(world, past, made_for)
    expected.walk(entries)
    _verdicts(entries, past, expected)
    _gone(versions, expected)
    _upkeep(world, entries, versions, made_for)
    _blobs(world, here, entries)
    contents, commands = Contents(here, expected), _commands(world, entries)
    checked = sum(contents.check(version, commands) for version in versions if not version.gone)
    _mergeable(world, here, entries)
    _whole(here, versions)
    _outboxes(world)
    return _counts(world, entries, versions, past) | {"tasks read": checked}


def _made_for(here: Here, versions: list[Version]) -> dict[int, Version]:
    with here.home.engine.connect() as connection:
        rows = connection.execute(select(version_rows.c.position, version_rows.c.version)).all()
    return {position: versions[number] for position, number in rows if position is not None}


def _journal(entries: Entries) -> None:
    """No gaps, no id twice, a verdict for each."""
    assert [p.position for p, _ in entries] == list(range(1, len(entries) + 1)), "positions have gaps"
    ids = [p.submission.update_id for p, _ in entries]
    assert len(ids) == len(set(ids)), "an update is journaled twice"
    for position, decision in entries:
        name = f"position {position.position} ({Outcome.Name(decision.outcome)})"
        assert decision.outcome in (OF_COMMANDS if position.command else FINAL), f"{name} has no verdict: {decision}"
        assert decision.reason or decision.outcome == pb.OUTCOME_MERGED, f"{name}: no reason"
        assert "internal error" not in decision.reason, f"{name}: {decision.reason}"


def _nothing_lost(world: World, entries: Entries) -> None:
    """What a worker has finished is in the journal, or was refused with a reason and is kept aside."""
    journaled = {p.submission.update_id for p, _ in entries}
    for update_id in world.told:
        assert update_id in journaled, f"{update_id} has a receipt and is lost"
    for update_id in world.parcels:
        kept = list(world.folder.glob(f"**/refused/{update_id}/header.json"))
        assert update_id in journaled or kept, f"{update_id} was finished and is lost"
    assert world.commands.keys() <= journaled, "a command is lost"
    assert not journaled & set(world.fenced), "one that was replaced has written"


def _told(world: World, entries: Entries, past: Past) -> None:
    """One position for all receipts of an update; a verdict that was told is its verdict, or was until a command."""
    for position, _ in entries:
        verdicts = {(d.outcome, d.version) for d in past[position.position]} | {(pb.OUTCOME_QUEUED, 0)}
        for receipt in world.told.get(position.submission.update_id, []):
            assert receipt.position == position.position, "two positions for one update"
            assert (receipt.outcome, receipt.version) in verdicts, f"a verdict has changed by itself: {receipt}"


def _chain(versions: list[Version], made_for: dict[int, Version]) -> None:
    assert [v.version for v in versions] == list(range(len(versions))), "versions have gaps"
    assert all(later.parent == earlier.version for earlier, later in pairwise(versions)), "a parent is another's"
    assert len({v.digest for v in versions}) == len(versions)
    order = [made_for[position].version for position in sorted(made_for)]
    assert order == list(range(1, len(versions))), "versions are not in the order of the journal"
    merged = [r.position for v in versions for r in v.records if r.kind == pb.VERSION_KIND_MERGE]
    assert len(merged) == len(set(merged)), "an update is merged twice"


def _verdicts(entries: Entries, past: Past, expected: Expected) -> None:
    """Every verdict that there ever was on an entry, with its version, is what it should have been."""
    for position, _ in entries:
        update_id = position.submission.update_id
        found = _without_a_wait([(d.outcome, d.version) for d in past[position.position]])
        wanted = _without_a_wait(expected.verdicts[update_id])
        assert found == wanted, f"position {position.position} went through {_named(found)}, not {_named(wanted)}"


def _without_a_wait(verdicts: list[Verdict]) -> list[Verdict]:
    """Whether an update was told to be buffered before its buffer was full depends on where a batch ended."""
    waited = (pb.OUTCOME_BUFFERED, 0)
    later = [*verdicts[1:], (pb.OUTCOME_UNSPECIFIED, 0)]
    return [v for v, then in zip(verdicts, later, strict=True) if v != waited or then[0] != pb.OUTCOME_MERGED]


def _named(verdicts: list[Verdict]) -> str:
    return ", ".join(f"{Outcome.Name(outcome)} {version}" for outcome, version in verdicts)


def _gone(versions: list[Version], expected: Expected) -> None:
    found = {v.version: v.gone for v in versions if v.gone}
    assert found == expected.gone, f"gone are {found}, and should be {expected.gone}"


def _upkeep(world: World, entries: Entries, versions: list[Version], made_for: dict[int, Version]) -> None:
    """What a budget and a number of versions ask for was asked for."""
    budget, kept = world.spec.budget, world.spec.versions_kept
    compactions = [p.position for p, _ in entries if p.command and p.command.HasField("compact")]
    for position, version in made_for.items():
        last = version.records[-1]
        if budget.columns_max and last.kind == pb.VERSION_KIND_MERGE:
            is_over = max(last.basis_out, last.basis_in) > budget.columns_max
            assert not is_over or max(compactions, default=0) > position, (
                f"version {version.version} is over its budget"
            )
    readable = sum(not v.gone for v in versions[1:])
    assert not kept or readable <= kept + 1, f"{readable} versions can be read, and {kept} should be"


def _blobs(world: World, here: Here, entries: Entries) -> None:
    digests = sweep.named(here.home.engine)
    for digest in digests:
        file = here.home.blobs.path(digest)
        assert file.exists() and digest_of(file.read_bytes()) == digest, (
            f"{file.name} is named and not there, or damaged"
        )
    for position, decision in entries:
        if decision.outcome == pb.OUTCOME_ERASED:
            digest = position.submission.digest
            left = [str(file) for file in (world.folder / "home").rglob(f"{digest}*")]
            assert digest in digests or not left, f"position {position.position} is erased, and {left} is there"
    assert list((world.folder / "home" / "blobs-arriving").iterdir()) == [], "something torn is left"


def _mergeable(world: World, here: Here, entries: Entries) -> None:
    """What may be merged yet, or again, can be read, and is what was sent."""
    for position, decision in entries:
        if position.command is None and decision.outcome in MERGEABLE:
            made = world.made_of(position.submission.update_id)
            arrived = here.history.arrived(position, 0)
            wanted, found = of_adapter(made.adapter), of_adapter(arrived.adapter)
            if position.stand_in and made.began:
                wanted = total((1.0, wanted), (-1.0, made.began))
            assert off(wanted, found) < ROUNDING * max(norm(wanted), norm(dense_adapter(made.adapter))), (
                f"position {position.position} cannot be merged any more as it was sent"
            )


def _whole(here: Here, versions: list[Version]) -> None:
    """As `fedshare check` and `fedshare replay` say it. Two tasks on one column are a tie, which a stand-in's rounding
    decides: what a compaction leaves is looked at in contents.py."""
    found, head = soundness.check(here.history, here.home.engine), here.catalog.head().version
    assert (found.bad, found.sound) == ((), head), f"damaged: {found}"
    replayed = compare(here.history, here.home.spec)
    is_cut = any(record.kind == pb.VERSION_KIND_COMPACT for version in versions for record in version.records)
    off = max(replayed.task.value, replayed.basis.value)
    assert is_cut or off < ROUNDING, f"replay makes something else: {replayed}"


def _commands(world: World, entries: Entries) -> dict[str, pb.CommandRequest]:
    """Also those that the coordinator gave itself."""
    own = {p.submission.update_id: p.command for p, _ in entries if p.command is not None}
    return own | world.commands


def _outboxes(world: World) -> None:
    assert world.outboxes() == [], "something is left in an outbox"


def _counts(world: World, entries: Entries, versions: list[Version], past: Past) -> dict[str, int]:
    kinds = Counter(record.kind for version in versions for record in version.records)
    told = Counter(d.outcome for p, _ in entries if p.command is None for d in past[p.position])
    done = Counter(
        p.command.WhichOneof("command") for p, d in entries if p.command is not None and d.outcome == pb.OUTCOME_DONE
    )
    merges = [v for v in versions[1:] if v.records[-1].kind == pb.VERSION_KIND_MERGE]
    own = [p for p, _ in entries if p.command is not None and p.submission.update_id not in world.commands]
    return {
        "updates": len(world.parcels),
        "entries": len(entries),
        "versions": len(versions),
        "versions taken back": kinds[pb.VERSION_KIND_ROLLBACK] + kinds[pb.VERSION_KIND_FORGET],
        "versions erased": sum(v.gone == "erased" for v in versions),
        "versions collected": sum(v.gone == "collected" for v in versions),
        "compactions": kinds[pb.VERSION_KIND_COMPACT],
        "judgements": done["judge"],
        "collections": done["collect"],
        "commands of its own": len(own),
        "batches": sum(len(v.records) > 1 for v in merges),
        "weighted": sum(r.weight != 1.0 for v in merges for r in v.records),
        "stated anew": sum(p.stand_in is not None for p, _ in entries),
        **{
            name: told[Outcome.Value(f"OUTCOME_{name.upper().replace(' ', '_')}")]
            for name in ("buffered", "superseded", "too stale", "quarantined", "rejected", "reverted", "erased")
        },
    }
