"""What is in quarantine waits for somebody; then it is merged like any other update, or never."""

from __future__ import annotations

import time

import pytest
from learning import SENT_IS_KEPT, WHY, Learning, keep_aside, learned
from parts import (
    CoordinatorHere,
    dense_adapter,
    order,
    relative_error,
)

from protos.fedshare.v1 import federation_pb2 as pb
from workers.errors import Refusal


@pytest.fixture
def learning(here: CoordinatorHere) -> Learning:
    return learned(here)


def judge(learning: Learning, update_id: str, accept: bool) -> pb.Verdict:
    return order(learning.coordinator, judge=pb.Judge(update_id=update_id, accept=accept))


def waiting(learning: Learning) -> list[pb.Aside]:
    with learning.coordinator.client() as client:
        return client.quarantined()


def test_quarantined_update_is_listed_and_in_no_version(learning: Learning):
    update_id = keep_aside(learning)
    [aside] = waiting(learning)
    assert (aside.update_id, aside.worker, aside.task, aside.position) == (update_id, "odd-worker", "odd", 5)
    assert aside.reason == WHY and abs(aside.received_at - time.time()) < 60
    status = learning.coordinator.status()
    assert (status.quarantined, status.queued, status.merged, status.head) == (1, 0, 4, 4)
    assert "odd" not in learning.dense()


def test_accepted_update_is_merged_as_its_own_merge_lifted_with_its_own_basis(learning: Learning):
    update_id = keep_aside(learning)
    order(learning.coordinator, compact=pb.Compact(size=5))
    verdict = judge(learning, update_id, accept=True)
    assert (verdict.outcome, verdict.version) == (pb.OUTCOME_DONE, 6)
    assert relative_error(dense_adapter(learning.adapters["odd"]), learning.dense()["odd"]) < SENT_IS_KEPT
    record = learning.coordinator.versions()[-1]
    assert (record.kind, record.task, record.update_id) == (pb.VERSION_KIND_MERGE, "odd", update_id)
    assert (record.base_version, record.staleness) == (2, 3)
    own = learning.verdict("odd")
    assert (own.outcome, own.position, own.version) == (pb.OUTCOME_MERGED, 5, 6)
    assert [e.what for e in learning.story("odd").events] == ["received", "quarantined", "merged"]
    assert waiting(learning) == [] and learning.coordinator.status().quarantined == 0


def test_accepted_update_is_rolled_back_forgotten_and_replayed_like_any_other(learning: Learning):
    judge(learning, keep_aside(learning), accept=True)
    reply = learning.replay()
    assert reply.versions == 6 and max(reply.task.value, reply.basis.value) < 1e-4
    order(learning.coordinator, rollback=pb.Rollback(version=4))
    assert learning.outcome("odd") == pb.OUTCOME_REVERTED
    order(learning.coordinator, rollback=pb.Rollback(version=5))
    assert learning.outcome("odd") == pb.OUTCOME_MERGED
    order(learning.coordinator, forget=pb.Forget(task="a"))
    assert sorted(learning.dense()) == ["b", "c", "odd"]
    order(learning.coordinator, forget=pb.Forget(task="odd"))
    assert sorted(learning.dense()) == ["b", "c"] and learning.outcome("odd") == pb.OUTCOME_REVERTED


def test_rejected_update_is_never_merged(learning: Learning):
    update_id = keep_aside(learning)
    verdict = judge(learning, update_id, accept=False)
    assert (verdict.outcome, verdict.version) == (pb.OUTCOME_DONE, 0)
    assert (learning.outcome("odd"), learning.coordinator.status().head) == (pb.OUTCOME_REJECTED, 4)
    assert [e.what for e in learning.story("odd").events] == ["received", "quarantined", "rejected"]
    again = judge(learning, update_id, accept=True)
    assert again.outcome == pb.OUTCOME_SKIPPED
    assert again.reason == f"update {update_id} is not in quarantine: it is rejected"
    order(learning.coordinator, forget=pb.Forget(task="a"))
    assert sorted(learning.dense()) == ["b", "c"]


def test_judging_what_is_not_in_quarantine_is_skipped_with_one_sentence(learning: Learning):
    update_id = keep_aside(learning)
    assert judge(learning, update_id, accept=True).outcome == pb.OUTCOME_DONE
    twice = judge(learning, update_id, accept=True)
    assert (twice.outcome, twice.reason) == (
        pb.OUTCOME_SKIPPED, f"update {update_id} is not in quarantine: it is merged")  # fmt: skip
    nobody = judge(learning, "0" * 32, accept=False)
    assert (nobody.outcome, nobody.reason) == (pb.OUTCOME_SKIPPED, f"there is no update {'0' * 32}")
    assert learning.coordinator.status().head == 5
    with pytest.raises(Refusal, match="32 hex digits"):
        judge(learning, update_id[:8], accept=True)


def test_judgement_given_twice_is_carried_out_once(learning: Learning):
    update_id, id = keep_aside(learning), "1" * 32
    verdicts = [order(learning.coordinator, id, judge=pb.Judge(update_id=update_id, accept=True)) for _ in range(2)]
    assert verdicts[0] == verdicts[1] and verdicts[0].outcome == pb.OUTCOME_DONE
    assert learning.coordinator.status().head == 5


def test_update_stays_acceptable_when_its_base_version_is_collected(learning: Learning):
    update_id = keep_aside(learning)
    order(learning.coordinator, compact=pb.Compact(size=5))
    assert order(learning.coordinator, collect=pb.Collect(keep=1)).outcome == pb.OUTCOME_DONE
    assert judge(learning, update_id, accept=True).outcome == pb.OUTCOME_DONE
    assert relative_error(dense_adapter(learning.adapters["odd"]), learning.dense()["odd"]) < SENT_IS_KEPT


def test_quarantined_update_of_an_erased_worker_cannot_be_accepted(learning: Learning):
    update_id = keep_aside(learning)
    order(learning.coordinator, forget=pb.Forget(worker="odd-worker", erase=True))
    assert waiting(learning) == []
    verdict = judge(learning, update_id, accept=True)
    assert (verdict.outcome, verdict.reason[-9:]) == (pb.OUTCOME_SKIPPED, "is erased")
