"""What must hold when all is quiet again: nothing lost, nothing doubled, every version what it says.

Read from the files and tables as they lie there. What a version should be is worked out from the order of the
journal and the adapters that were made, by hand: no merge, no basis, no verdict is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from parts import dense, dense_adapter, relative_error

from coordinator import sweep, views
from coordinator.catalog import Version
from coordinator.journal import Decision, Position
from coordinator.verdicts import Outcome
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb

from .runs import World

KEPT_IS_SENT = 1e-4
FINAL = (pb.OUTCOME_MERGED, pb.OUTCOME_SKIPPED, pb.OUTCOME_REVERTED, pb.OUTCOME_ERASED, pb.OUTCOME_DONE)
Entries = list[tuple[Position, Decision]]


def check(world: World) -> dict[str, int]:
    """Raises AssertionError. Returns what there was."""
    with world._coordinator() as here:
        assert here is not None
        entries = list(here.journal.every())
        versions = list(here.catalog.every())
    _journal(entries)
    _nothing_lost(world, entries)
    _told(world, entries, here.journal.past)
    _chain(versions)
    alive = _alive(world, entries, versions)
    _verdicts(entries, versions, alive)
    _blobs(world, here)
    checked = sum(_contents(world, here, version, alive[version.version]) for version in versions if not version.gone)
    _outboxes(world)
    kinds = [record.kind for version in versions for record in version.records]
    return {
        "updates": len(world.parcels),
        "entries": len(entries),
        "versions": len(versions),
        "versions taken back": kinds.count(pb.VERSION_KIND_ROLLBACK) + kinds.count(pb.VERSION_KIND_FORGET),
        "versions erased": sum(bool(version.gone) for version in versions),
        "tasks read": checked,
    }


def _journal(entries: Entries) -> None:
    """No gaps, no id twice, a verdict for each."""
    assert [p.position for p, _ in entries] == list(range(1, len(entries) + 1)), "positions have gaps"
    ids = [p.submission.update_id for p, _ in entries]
    assert len(ids) == len(set(ids)), "an update is journaled twice"
    for position, decision in entries:
        assert decision.outcome in FINAL, f"position {position.position} has no verdict"
        assert decision.reason or decision.outcome == pb.OUTCOME_MERGED, f"position {position.position}: no reason"


def _nothing_lost(world: World, entries: Entries) -> None:
    """What a worker has finished is in the journal, or was refused with a reason and is kept aside."""
    journaled = {p.submission.update_id for p, _ in entries}
    for update_id in world.told:
        assert update_id in journaled, f"{update_id} has a receipt and is lost"
    for update_id in world.parcels:
        kept = list(world.folder.glob(f"**/refused/{update_id}/header.json"))
        assert update_id in journaled or kept, f"{update_id} was finished and is lost"


def _told(world: World, entries: Entries, past) -> None:  # type: ignore[no-untyped-def]
    """One position for all receipts of an update; a verdict that was told is its verdict, or was until a command."""
    for position, decision in entries:
        verdicts = {(d.outcome, d.version) for d in (*past(position.position), decision)} | {(pb.OUTCOME_QUEUED, 0)}
        for receipt in world.told.get(position.submission.update_id, []):
            assert receipt.position == position.position, "two positions for one update"
            assert (receipt.outcome, receipt.version) in verdicts, f"a verdict has changed by itself: {receipt}"


def _chain(versions: list[Version]) -> None:
    assert [v.version for v in versions] == list(range(len(versions))), "versions have gaps"
    assert all(later.parent == earlier.version for earlier, later in pairwise(versions)), "a parent is another's"
    assert len({v.digest for v in versions}) == len(versions)
    made_for = [record.position for v in versions for record in v.records]
    assert made_for == sorted(set(made_for)), (
        "versions are not in the order of the journal, or made twice for one entry"
    )


def _alive(world: World, entries: Entries, versions: list[Version]) -> dict[int, list[str]]:
    """By version the updates that it is made of, in order: a naive fold over the records."""
    alive: dict[int, list[str]] = {0: []}
    ids = {p.position: p.submission.update_id for p, _ in entries}
    for v in versions[1:]:
        before, record = alive[v.version - 1], v.records[-1]
        if record.kind == pb.VERSION_KIND_MERGE:
            alive[v.version] = [*before, *(ids[r.position] for r in v.records)]
        elif record.kind == pb.VERSION_KIND_ROLLBACK:
            alive[v.version] = alive[world.commands[record.update_id].rollback.version]
        else:
            forget = world.commands[record.update_id].forget
            alive[v.version] = [one for one in before if not _is_of(world, one, forget)]
    return alive


def _is_of(world: World, update_id: str, forget: pb.Forget) -> bool:
    made = world.made_of(update_id)
    return made.task == forget.task if forget.task else made.worker == forget.worker


def _verdicts(entries: Entries, versions: list[Version], alive: dict[int, list[str]]) -> None:
    """Merged is what is in the head, in exactly one version's record; nothing else is."""
    head = alive[versions[-1].version]
    assert len(head) == len(set(head)), "an update is in the head twice"
    merges = [r.position for v in versions for r in v.records if r.kind == pb.VERSION_KIND_MERGE]
    for position, decision in entries:
        if position.command is not None:
            continue
        here = position.submission.update_id in head
        outcome = Outcome.Name(decision.outcome)
        assert here == (decision.outcome == pb.OUTCOME_MERGED), f"{outcome}, but in the head: {here}"
        assert merges.count(position.position) == int(decision.outcome != pb.OUTCOME_SKIPPED) or not _made_a_version(
            decision
        ), f"position {position.position} ({outcome}) is in {merges.count(position.position)} versions"


def _made_a_version(decision: Decision) -> bool:
    return decision.outcome in (pb.OUTCOME_MERGED, pb.OUTCOME_REVERTED)


def _blobs(world: World, here) -> None:  # type: ignore[no-untyped-def]
    for digest in sweep.named(here.home.engine):
        file = here.home.blobs.path(digest)
        assert file.exists() and digest_of(file.read_bytes()) == digest, (
            f"{file.name} is named and not there, or damaged"
        )
    assert list((world.folder / "home" / "blobs-arriving").iterdir()) == [], "something torn is left"


def _contents(world: World, here, version: Version, alive: list[str]) -> int:  # type: ignore[no-untyped-def]
    """Every task of the version is the function of its newest update; there is no other."""
    expected = {world.made_of(update_id).task: update_id for update_id in alive}
    request = pb.FetchRequest(version=version.version, every_task=True)
    manifest = views.manifest(here.catalog, request)
    assert [t.task for t in manifest.tasks] == sorted(expected), f"version {version.version} holds other tasks"
    blobs = {name: here.home.blobs.path(name).read_bytes() for name in _names(manifest)}
    for task, update_id in expected.items():
        wanted = dense_adapter(world.made_of(update_id).adapter)
        error = relative_error(wanted, dense(manifest, blobs, task))
        assert error < KEPT_IS_SENT, f"version {version.version}: {task} is off by {error:.1e}"
    return len(expected)


def _names(manifest: pb.Manifest) -> Iterator[str]:
    yield from (ref.digest for ref in manifest.blocks)
    yield from (ref.entry.digest for ref in manifest.tasks)


def _outboxes(world: World) -> None:
    assert world.outboxes() == [], "something is left in an outbox"
