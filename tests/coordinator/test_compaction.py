"""A compaction makes room, says truly what it cost every task, and stands in nobody's way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from learning import SAME, SENT_IS_KEPT, Learning, learned, same
from parts import (
    CoordinatorHere,
    RawWorker,
    dense_adapter,
    history_of,
    honest_blob,
    journal_blob,
    order,
    random_adapter,
    receiver_of,
    relative_error,
    small_home,
)
from sqlalchemy import update

from coordinator.home import open_home
from coordinator.tables import entries, writer
from protos.fedshare.v1 import federation_pb2 as pb
from workers.errors import Refusal

ROUNDING = 5e-6
"""Relative, of float32 through a merge and compactions: what a claimed error may be off by."""


@pytest.fixture
def learning(here: CoordinatorHere) -> Learning:
    return learned(here)


def compacted(learning: Learning, **how: float) -> pb.VersionRecord:
    verdict = order(learning.coordinator, compact=pb.Compact(**how))
    assert verdict.outcome == pb.OUTCOME_DONE, verdict.reason
    record = learning.coordinator.versions()[-1]
    assert (record.kind, record.version) == (pb.VERSION_KIND_COMPACT, verdict.version)
    return record


def claims(learning: Learning, version: int | None = None) -> dict[str, tuple[float, float, bool]]:
    """By task: (claimed error, error measured against the adapter that arrived last, is it a bound)."""
    manifest, found = learning.everything(version)[0], learning.dense(version)
    newest = {key.partition("@")[0]: adapter for key, adapter in learning.adapters.items()}
    return {
        ref.task: (ref.relative_error, relative_error(dense_adapter(newest[ref.task]), found[ref.task]), ref.is_bound)
        for ref in manifest.tasks
    }


def must_be_true(claimed: dict[str, tuple[float, float, bool]]) -> None:
    for task, (said, measured, is_bound) in claimed.items():
        assert measured <= said + ROUNDING, task
        assert is_bound or measured >= said - ROUNDING, task


def test_compaction_makes_a_generation_of_at_most_that_many_columns(learning: Learning):
    before = learning.everything()[0]
    record = compacted(learning, size=5)
    manifest, _ = learning.everything()
    assert (record.basis_out, record.basis_in) == (5, 5)
    assert (record.generation, manifest.generation) == (before.generation + 1, before.generation + 1)
    assert [t.task for t in manifest.tasks] == ["a", "b", "c"]
    assert sum(b.nbytes for b in manifest.blocks) < sum(b.nbytes for b in before.blocks)
    assert "8 and 8 columns became 5 and 5; 3 tasks" in record.note


def test_error_that_a_version_claims_is_the_measured_one_or_bounds_it(learning: Learning):
    must_be_true(claims(learning))
    first = compacted(learning, size=5)
    exact = claims(learning)
    assert not any(is_bound for _, _, is_bound in exact.values()) and max(m for _, m, _ in exact.values()) > 0.01
    must_be_true(exact)
    learning.learn("d", base=4)
    compacted(learning, size=4)
    composed = claims(learning)
    assert any(is_bound for _, _, is_bound in composed.values())
    must_be_true(composed)
    for record in learning.coordinator.versions():
        said = [error for error, _, _ in claims(learning, record.version).values()]
        assert record.largest_error == pytest.approx(max(said), rel=1e-12)
    assert first.note.endswith(f"each within {first.largest_error:.1e} of what was merged")


def test_two_compactions_in_a_row_claim_both_errors(learning: Learning):
    compacted(learning, size=5)
    once = {task: error for task, (error, _, _) in claims(learning).items()}
    compacted(learning, size=4)
    twice = claims(learning)
    must_be_true(twice)
    assert all(twice[task][0] > once[task] + 0.01 for task in once)


def test_tolerance_bounds_what_every_task_loses(learning: Learning):
    record = compacted(learning, tolerance=0.3)
    found = claims(learning)
    must_be_true(found)
    assert record.basis_out < 8 and 1e-3 < max(measured for _, measured, _ in found.values()) <= 0.3


def test_task_that_is_replaced_after_a_compaction_is_exact_again_and_the_largest_error_falls(learning: Learning):
    record = compacted(learning, size=2)
    assert record.largest_error > 0.1
    for task in "abc":
        learning.learn(f"{task}@again", base=0)
    assert learning.coordinator.versions()[-1].largest_error < SENT_IS_KEPT
    must_be_true(claims(learning))


def test_versions_before_the_compaction_are_what_they_were(learning: Learning):
    before = {version: learning.dense(version) for version in range(5)}
    compacted(learning, size=3)
    for version, tasks in before.items():
        assert same(tasks, learning.dense(version))


def test_update_for_a_version_of_an_older_generation_is_lifted_with_its_own_basis(learning: Learning):
    compacted(learning, size=4)
    learning.learn("old", base=4)
    compacted(learning, size=5)
    learning.learn("older", base=3)
    learning.learn("new", base=5)
    found = learning.dense()
    for task in ("older", "new"):
        assert relative_error(dense_adapter(learning.adapters[task]), found[task]) < SENT_IS_KEPT
    must_be_true(claims(learning))
    assert learning.coordinator.versions()[-1].generation == 2


def test_update_that_is_in_flight_while_a_compaction_happens_is_merged_whole(learning: Learning):
    with RawWorker(learning.coordinator.address, "slow", "slow") as raw:
        adapter = random_adapter(raw.spec, 77)
        base, blob = raw.blob(adapter)

        def chunks() -> Iterator[bytes]:
            yield blob[:100]
            compacted(learning, size=4)
            yield blob[100:]

        assert raw.submit(raw.header(blob, base), chunks()).outcome == pb.OUTCOME_QUEUED
    learning.coordinator.drained()
    assert (base, learning.coordinator.versions()[-1].base_version) == (4, 4)
    assert relative_error(dense_adapter(adapter), learning.dense()["slow"]) < SENT_IS_KEPT


def test_update_queued_behind_a_compaction_is_merged_into_its_generation(learning: Learning):
    """Both are journaled before the first of them is carried out."""
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        receiver_of(home).command(pb.CommandRequest(command_id="c" * 32, compact=pb.Compact(size=4)))
        adapter = random_adapter(home.spec, 78)
        blob = honest_blob(home.spec, adapter, history_of(home).bases.of(2))
        journal_blob(home, blob, worker="a-worker", task="queued", base_version=2)
    learning.coordinator.start()
    learning.coordinator.drained()
    assert [r.kind for r in learning.coordinator.versions()[-2:]] == [pb.VERSION_KIND_COMPACT, pb.VERSION_KIND_MERGE]
    assert relative_error(dense_adapter(adapter), learning.dense()["queued"]) < SENT_IS_KEPT


def test_watcher_is_told_of_a_compaction_and_fetches_the_new_blocks(learning: Learning):
    with learning.coordinator.client() as client:
        _, have = client.fetch(4, every_task=True)
        notices = client.watch()
        next(notices)
        compacted(learning, size=4)
        notice = next(notices)
        notices.close()
        assert (notice.version, notice.parent, notice.task) == (5, 4, "")
        manifest, blobs = client.fetch(None, every_task=True, have=have)
    assert blobs.keys() == {ref.digest for ref in manifest.blocks} | {t.entry.digest for t in manifest.tasks}


def test_compaction_that_would_change_nothing_is_skipped_and_says_so(learning: Learning):
    record = compacted(learning, tolerance=1e-5)
    assert (record.basis_out, record.basis_in) == (6, 6)  # of 8: two were for what b was before
    for how, words in (({"size": 6}, "to 6 a side"), ({"tolerance": 1e-5}, "within a tolerance of 1e-05")):
        verdict = order(learning.coordinator, compact=pb.Compact(**how))
        assert verdict.outcome == pb.OUTCOME_SKIPPED
        assert verdict.reason == f"nothing to compact {words}: the basis has 6 and 6 columns"
    assert learning.coordinator.status().head == 5


NO_COMPACTIONS = [{}, {"size": 3, "tolerance": 0.1}, {"tolerance": 1.0}, {"tolerance": -0.1}, {"tolerance": np.nan}]


@pytest.mark.parametrize("compact", NO_COMPACTIONS, ids=str)
def test_compaction_says_a_size_or_a_tolerance(learning: Learning, compact: dict[str, float]):
    with pytest.raises(Refusal, match=r"compact either to a size of|a tolerance is between 0 and 1"):
        order(learning.coordinator, compact=pb.Compact(**compact))


def test_home_that_kept_no_certificates_counts_its_tasks_as_exact_from_then_on(learning: Learning):
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home, writer(home.engine).begin() as connection:
        connection.execute(update(entries).values(norm=0, error=0, loose=0, is_bound=False))
    learning.coordinator.start()
    compacted(learning, size=5)
    found = claims(learning)
    assert max(measured for _, measured, _ in found.values()) > 0.01
    must_be_true(found)


def test_rollback_goes_to_before_a_compaction_and_to_after_it(learning: Learning):
    compacted(learning, size=4)
    learning.learn("d")
    for target in (4, 5, 4):
        assert order(learning.coordinator, rollback=pb.Rollback(version=target)).outcome == pb.OUTCOME_DONE
        assert same(learning.dense(target), learning.dense())
        assert claims(learning) == claims(learning, target)


def test_forget_rebuilds_with_the_compactions_at_their_places(learning: Learning, tmp_path: Path):
    compacted(learning, size=3)
    learning.learn("d", base=4)
    compacted(learning, size=4)
    learning.learn("e", base=6)
    assert order(learning.coordinator, forget=pb.Forget(task="b")).outcome == pb.OUTCOME_DONE
    with CoordinatorHere(small_home(tmp_path / "never")) as coordinator:
        never = Learning(coordinator)
        for key, seed in (("a", 0), ("c", 2)):
            never.learn(key, base=0, seed=seed)
        order(coordinator, compact=pb.Compact(size=3))
        never.learn("d", base=0, seed=4)
        order(coordinator, compact=pb.Compact(size=4))
        never.learn("e", base=0, seed=5)
        forgot, innocent = learning.dense(), never.dense()
    assert forgot.keys() == innocent.keys() == {"a", "c", "d", "e"}
    assert max(relative_error(innocent[task], forgot[task]) for task in forgot) < SAME
    assert claims(learning)["a"][1] > 0.01
    must_be_true(claims(learning))


def test_forget_after_a_rollback_to_before_a_compaction_does_not_compact(learning: Learning):
    compacted(learning, size=2)
    order(learning.coordinator, rollback=pb.Rollback(version=4))
    assert order(learning.coordinator, forget=pb.Forget(task="a")).outcome == pb.OUTCOME_DONE
    assert max(measured for _, measured, _ in claims(learning).values()) < SENT_IS_KEPT


def test_replay_gives_what_is_stored_through_compactions_rollbacks_and_forgets(learning: Learning):
    compacted(learning, size=3)
    learning.learn("d", base=4)
    compacted(learning, tolerance=0.6)
    order(learning.coordinator, rollback=pb.Rollback(version=5))
    learning.learn("e", base=7)
    order(learning.coordinator, forget=pb.Forget(task="a"))
    order(learning.coordinator, rollback=pb.Rollback(version=7))
    reply = learning.replay()
    assert (reply.first, reply.versions) == (0, 12)
    assert reply.tasks >= 15 and max(reply.task.value, reply.basis.value) < SAME
