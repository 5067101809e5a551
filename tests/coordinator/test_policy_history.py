"""A federation with all three policies, through forget, erasure, rollback and replay: numpy says what must be there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from learning import SAME, SENT_IS_KEPT, Learning, same
from parts import (
    Coordinator,
    CoordinatorHere,
    RawWorker,
    dense_adapter,
    honest_blob,
    order,
    random_adapter,
    relative_error,
    small_home,
    small_spec,
)

from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis
from share_algo.codec import decode_entry

Dense = Mapping[str, np.ndarray]

MIXED = pb.Policy(task="mixed", kind=pb.POLICY_KIND_FEDASYNC, mixing=0.6, rule=pb.STALENESS_RULE_HINGE, a=2.0, b=1.0)
BUFFERED = pb.Policy(
    task="buffered", kind=pb.POLICY_KIND_FEDBUFF, mixing=0.8, rule=pb.STALENESS_RULE_POLYNOMIAL, a=0.5, buffer_size=2
)


def federation() -> pb.FederationSpec:
    spec = small_spec()
    spec.policies.extend([MIXED, BUFFERED])
    return spec


def added(*parts: tuple[float, Dense]) -> dict[str, np.ndarray]:
    return {m: sum(w * d[m] for w, d in parts) for m in parts[0][1]}


@dataclass
class Walk(Learning):
    """What was sent, with its weight by the formulas; `now` is what each task must be."""

    sent: dict[str, Adapter] = field(default_factory=dict)

    def send(self, key: str, base: int, **changes: object) -> pb.Verdict:
        """key: TASK@WORKER#N."""
        task, _, worker = key.partition("#")[0].partition("@")
        with RawWorker(self.coordinator.address, worker, task) as raw:
            self.sent[key] = random_adapter(raw.spec, len(self.sent) + 10)
            self.receipts[key] = raw.teach(self.sent[key], base, **changes)
        self.coordinator.drained()
        return self.verdict(key)

    def must_be(self, task: str, *parts: tuple[float, str], version: int | None = None) -> None:
        manifest, blobs = self.everything(version)
        wanted = added(*((w, dense_adapter(self.sent[key])) for w, key in parts))
        assert relative_error(wanted, self.dense(version)[task]) < 5 * SENT_IS_KEPT
        [ref] = [t for t in manifest.tasks if t.task == task]
        head = safetensors.torch.load(blobs[ref.entry.digest])["head/classifier.weight"]
        wanted_head = sum(w * self.sent[key].head["classifier.weight"] for w, key in parts)
        assert torch.allclose(head, wanted_head, rtol=1e-4, atol=1e-5)


ROOT = math.sqrt


def walked(coordinator: Coordinator) -> Walk:
    """Versions 1 to 6. Of `buffered` 4 contributions are merged in pairs; a fifth, made for version 6, waits."""
    walk = Walk(coordinator)
    outcomes = [
        walk.send("replaced@r#1", 0),  # version 1
        walk.send("mixed@a#1", 0),  # version 2, staleness 1, taken whole
        walk.send("buffered@x#1", 2),
        walk.send("mixed@b#1", 2),  # version 3, fresh
        walk.send("buffered@y#1", 0),  # version 4: x is 1 version stale, y 3
        walk.send("mixed@a#2", 1),  # version 5, staleness 3: 2 over the hinge
        walk.send("buffered@x#2", 4),
        walk.send("buffered@y#2", 5),  # version 6: x is 1 version stale, y fresh
        walk.send("buffered@x#3", 6),
    ]
    assert [(v.version, v.outcome == pb.OUTCOME_BUFFERED) for v in outcomes] == [
        *((1, False), (2, False), (0, True), (3, False), (4, False), (5, False), (0, True), (6, False), (0, True))
    ]
    return walk


X1, Y1 = 0.8 / 2 / ROOT(2), 0.8 / 2 / ROOT(4)
X2, Y2 = 0.8 / 2 / ROOT(2), 0.8 / 2
MIXED_3 = ((0.4, "mixed@a#1"), (0.6, "mixed@b#1"))
S5 = 0.6 / (2.0 * (3 - 1) + 1)
MIXED_5 = ((0.4 * (1 - S5), "mixed@a#1"), (0.6 * (1 - S5), "mixed@b#1"), (S5, "mixed@a#2"))
BUFFERED_4 = ((X1, "buffered@x#1"), (Y1, "buffered@y#1"))
KEPT_6 = 1 - X2 - Y2
BUFFERED_6 = (
    *((KEPT_6 * X1, "buffered@x#1"), (KEPT_6 * Y1, "buffered@y#1")),
    *((X2, "buffered@x#2"), (Y2, "buffered@y#2")),
)


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    with CoordinatorHere(small_home(tmp_path / "home", federation())) as coordinator:
        yield walked(coordinator)


def test_tasks_are_what_the_formulas_say_each_contribution_against_its_own_base(walk: Walk):
    walk.must_be("replaced", (1.0, "replaced@r#1"))
    walk.must_be("mixed", *MIXED_3, version=3)
    walk.must_be("mixed", *MIXED_5)
    walk.must_be("buffered", *BUFFERED_4, version=4)
    walk.must_be("buffered", *BUFFERED_6)


def test_story_of_a_contribution_has_what_was_measured_until_its_worker_sent_the_next(walk: Walk):
    versions = range(1, 7)
    walk.report("x", "buffered", *versions)
    walk.report("a", "mixed", *versions)
    told = {key: walk.reported(walk.receipts[key].update_id) for key in walk.receipts}
    assert (told["buffered@x#1"], told["buffered@x#2"], told["buffered@x#3"]) == ([4, 5], [6], [])
    assert (told["mixed@a#1"], told["mixed@a#2"], told["mixed@b#1"]) == ([2, 3, 4], [5, 6], [])


def test_records_verdicts_and_stories_say_weights_norms_and_staleness(walk: Walk):
    records = {(r.task, r.worker, r.version): r for r in walk.coordinator.versions()}
    assert len(records) == 8 and len({r.version for r in records.values()}) == 6
    found = {key: (r.staleness, pytest.approx(r.weight, rel=1e-9)) for key, r in records.items()}
    assert found[("buffered", "x", 4)] == (1, 0.8 / ROOT(2)) and found[("buffered", "y", 4)] == (3, 0.4)
    assert found[("buffered", "y", 6)] == (0, 0.8) and found[("mixed", "a", 2)] == (1, 1.0)
    assert found[("mixed", "a", 5)] == (3, S5) and found[("replaced", "r", 1)] == (0, 1.0)
    norm = math.sqrt(sum(np.square(d).sum() for d in dense_adapter(walk.sent["buffered@x#1"]).values()))
    assert records["buffered", "x", 4].norm == pytest.approx(norm, rel=1e-5)
    verdict = walk.verdict("buffered@x#1")
    assert (verdict.outcome, verdict.version, verdict.weight) == (pb.OUTCOME_MERGED, 4, pytest.approx(0.8 / ROOT(2)))
    events = walk.story("buffered@x#1").events
    assert [e.what for e in events] == ["received", "buffered", "merged"]
    assert "with 1 of 2 contributions" in events[1].detail and "weight 0.566" in events[2].detail
    assert "weight" not in walk.story("replaced@r#1").events[1].detail
    status = walk.coordinator.status()
    assert (status.merged, status.buffered, status.queued) == (8, 1, 0)


def test_replay_of_all_three_policies_gives_what_is_stored(walk: Walk):
    reply = walk.replay()
    assert reply.versions == 7 and reply.tasks >= 6 and max(reply.task.value, reply.basis.value) < SAME


def test_buffer_survives_a_kill_in_its_midst(tmp_path: Path):
    with Coordinator(small_home(tmp_path / "home", federation()), "--no-lineage") as coordinator:
        walk = Walk(coordinator)
        walk.send("buffered@x#1", 0)
        coordinator.kill()
        coordinator.start()
        assert walk.verdict("buffered@x#1").outcome == pb.OUTCOME_BUFFERED
        assert walk.send("buffered@y#1", 0).version == 1
        walk.must_be("buffered", (0.4, "buffered@x#1"), (0.4, "buffered@y#1"))


@pytest.mark.parametrize("erase", [False, True], ids=["kept", "erased"])
def test_forgetting_a_contributor_leaves_the_others_with_their_weights_and_their_differences(walk: Walk, erase: bool):
    assert order(walk.coordinator, forget=pb.Forget(worker="y", erase=erase)).outcome == pb.OUTCOME_DONE
    walk.must_be("mixed", *MIXED_5)
    # each buffer of two is one of one; x's second difference is from what the task was when x began, y included
    x2 = 2 * X2
    alone = ((2 * X1 - x2 * X1, "buffered@x#1"), (-x2 * Y1, "buffered@y#1"), (x2, "buffered@x#2"))
    walk.must_be("buffered", *alone)
    again = walk.send("buffered@z#1", 0)  # x's third, made for a version that may be gone, still counts as a difference
    assert again.outcome == pb.OUTCOME_MERGED
    z1, x3, head = 0.4 / ROOT(1 + 7), 0.4 / ROOT(1 + 1), BUFFERED_6
    minus = tuple((-x3 * w, key) for w, key in head)
    both = (*alone, *minus, (x3, "buffered@x#3"), (z1, "buffered@z#1"))
    walk.must_be("buffered", *both)
    assert order(walk.coordinator, forget=pb.Forget(task="replaced", erase=erase)).outcome == pb.OUTCOME_DONE
    walk.must_be("buffered", *both)
    walk.must_be("mixed", *MIXED_5)
    reply = walk.replay()
    assert max(reply.task.value, reply.basis.value) < SAME


def test_forgetting_the_first_of_a_fedasync_task_lets_the_second_be_taken_whole(walk: Walk):
    order(walk.coordinator, forget=pb.Forget(worker="a"))
    walk.must_be("mixed", (1.0, "mixed@b#1"))
    assert walk.verdict("mixed@b#1").outcome == pb.OUTCOME_MERGED


def test_forgotten_contribution_leaves_the_buffer_too(walk: Walk):
    order(walk.coordinator, forget=pb.Forget(worker="x"))
    assert walk.verdict("buffered@x#3").outcome == pb.OUTCOME_REVERTED
    assert walk.send("buffered@y#3", 0).outcome == pb.OUTCOME_BUFFERED


def test_rollback_reverts_what_a_buffer_merged_and_lets_the_waiting_wait(walk: Walk):
    then = walk.dense(3)
    order(walk.coordinator, rollback=pb.Rollback(version=3))
    assert same(then, walk.dense())
    assert walk.verdict("buffered@x#1").outcome == pb.OUTCOME_REVERTED
    assert walk.verdict("buffered@x#3").outcome == pb.OUTCOME_BUFFERED
    assert walk.send("buffered@z#1", 0).outcome == pb.OUTCOME_MERGED
    assert max(walk.replay().task.value, walk.replay().basis.value) < SAME


def test_other_labels_than_the_heads_are_refused_before_the_journal(walk: Walk):
    with RawWorker(walk.coordinator.address, "late", "mixed") as raw:
        blob = honest_blob(raw.spec, random_adapter(raw.spec, 1), Basis())
        refused = raw.submit(raw.header(blob, labels=["yes", "no"]), blob)
        assert (refused.outcome, refused.position) == (pb.OUTCOME_REFUSED_LABELS, 0)
        assert "mean no, yes in this federation, and yes, no in this update" in refused.reason
        other = raw.submit(raw.header(blob, task="replaced", labels=["yes", "no"]), blob)
        assert other.outcome == pb.OUTCOME_QUEUED


def test_what_does_not_fit_those_that_wait_is_skipped_and_they_go_on_waiting(walk: Walk):
    order(walk.coordinator, forget=pb.Forget(task="nothing"))
    order(walk.coordinator, rollback=pb.Rollback(version=3))  # the head no longer says what the labels are
    assert walk.send("buffered@z#1", 0, labels=["x", "y"]).outcome == pb.OUTCOME_SKIPPED
    assert walk.send("buffered@z#2", 0).outcome == pb.OUTCOME_MERGED
    assert walk.verdict("buffered@x#3").outcome == pb.OUTCOME_MERGED


def test_sum_may_have_more_ranks_than_an_update_and_what_begins_with_it_is_taken(walk: Walk):
    with RawWorker(walk.coordinator.address, "w", "mixed") as raw:
        version, basis = raw.basis()
        manifest, blobs = raw.client.fetch(version, tasks=["mixed"])
        now = decode_entry(blobs[manifest.tasks[0].entry.digest])
        assert max(c.P_KR.shape[1] for c in now.coefficients.values()) > raw.spec.rank
        blob = honest_blob(raw.spec, now.adapter(basis), basis)
        receipt = raw.submit(raw.header(blob, version), blob)
        assert receipt.outcome == pb.OUTCOME_QUEUED, receipt.reason
        refused = raw.submit(raw.header(blob, version, task="replaced"), blob)
        assert refused.outcome == pb.OUTCOME_REFUSED_SHAPE
    before = walk.dense()["mixed"]
    walk.coordinator.drained()
    assert relative_error(before, walk.dense()["mixed"]) < SENT_IS_KEPT
