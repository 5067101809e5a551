"""What waits is merged into one version, and each entry gets a verdict. What is unlike the others is kept aside."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from parts import (
    CoordinatorHere,
    RawWorker,
    flip_a_byte,
    honest_blob,
    journal_blob,
    journal_one,
    order,
    random_adapter,
    small_home,
    small_spec,
)

from coordinator.batch import BATCH_MAX
from coordinator.catalog import Catalog
from coordinator.home import open_home
from coordinator.members import Members
from coordinator.quarantine import NORMAL, unlike
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis, Factors

RULE = pb.Quarantine(deviations_max=5, updates_min=4)


def queue(home: Path, *tasks: str, worker: str = "") -> list[pb.UpdateHeader]:
    """Updates that are journaled while nobody merges, each of a worker of its own unless one is named."""
    with open_home(home) as opened:
        Catalog(opened.engine).ensure_root(opened.spec.federation_id, 0.0)
        headers = []
        for seed, task in enumerate(tasks):
            who = worker or f"{task}-{seed}"
            incarnation = Members(opened.engine).join(who, task, 1.0)
            blob = honest_blob(opened.spec, random_adapter(opened.spec, seed), Basis())
            headers.append(journal_blob(opened, blob, worker=who, task=task, incarnation=incarnation))
        return headers


def verdicts(coordinator: CoordinatorHere, headers: list[pb.UpdateHeader]) -> list[pb.Verdict]:
    coordinator.drained()
    with coordinator.client() as client:
        return [client.story(header.update_id).verdict for header in headers]


def test_updates_that_wait_become_one_version_with_a_record_for_each(tmp_path: Path):
    home = small_home(tmp_path / "home")
    headers = queue(home, "a", "b", "c")
    with CoordinatorHere(home) as coordinator:
        assert [(v.outcome, v.version) for v in verdicts(coordinator, headers)] == [(pb.OUTCOME_MERGED, 1)] * 3
        assert [(r.version, r.task) for r in coordinator.versions()] == [(1, "a"), (1, "b"), (1, "c")]
        with coordinator.client() as client:
            assert client.replay().task.value < 1e-5
        order(coordinator, rollback=pb.Rollback(version=0))
        assert {v.outcome for v in verdicts(coordinator, headers)} == {pb.OUTCOME_REVERTED}


def test_version_takes_in_no_more_than_its_bound(tmp_path: Path):
    home = small_home(tmp_path / "home")
    headers = queue(home, *(f"t{n}" for n in range(BATCH_MAX + 1)))
    with CoordinatorHere(home) as coordinator:
        versions = [v.version for v in verdicts(coordinator, headers)]
    assert max(versions.count(v) for v in set(versions)) <= BATCH_MAX and max(versions) >= 2


def test_one_that_cannot_be_merged_disturbs_nobody_in_its_batch(tmp_path: Path):
    home = small_home(tmp_path / "home")
    headers = queue(home, "a", "b", "c")
    flip_a_byte(home / "blobs" / f"{headers[1].digest}.safetensors")
    with CoordinatorHere(home) as coordinator:
        told = verdicts(coordinator, headers)
    assert [v.outcome for v in told] == [pb.OUTCOME_MERGED, pb.OUTCOME_SKIPPED, pb.OUTCOME_MERGED]
    assert "is damaged" in told[1].reason and told[0].version == told[2].version == 1


def test_what_a_worker_overtook_itself_is_superseded_by_name(tmp_path: Path):
    home = small_home(tmp_path / "home")
    old, new = journal_one(home, seed=1), journal_one(home, seed=2)
    with CoordinatorHere(home) as coordinator:
        told = verdicts(coordinator, [old, new])
        assert [r.update_id for r in coordinator.versions()] == [new.update_id]
    assert [v.outcome for v in told] == [pb.OUTCOME_SUPERSEDED, pb.OUTCOME_MERGED]
    assert new.update_id in told[0].reason


def test_update_that_cannot_be_merged_supersedes_nothing(tmp_path: Path):
    home = small_home(tmp_path / "home")
    old, new = journal_one(home, seed=1), journal_one(home, seed=2)
    flip_a_byte(home / "blobs" / f"{new.digest}.safetensors")
    with CoordinatorHere(home) as coordinator:
        told = verdicts(coordinator, [old, new])
    assert [v.outcome for v in told] == [pb.OUTCOME_MERGED, pb.OUTCOME_SKIPPED]


# ---- quarantine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "aside"), [(1.0, False), (1.5, False), (100.0, True), (0.01, True), (0.0, True)])
def test_what_is_far_from_the_median_is_unlike(norm: float, aside: bool):
    assert bool(unlike(norm, [0.9, 1.0, 1.0, 1.1], RULE)) == aside


def test_deviations_are_those_of_median_and_mad():
    norms = [math.exp(x) for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    edge = 5 * NORMAL * 0.5
    assert unlike(math.exp(edge - 1e-6), norms, RULE) == ""
    assert "5.0 robust deviations above 1" in unlike(math.exp(edge + 1e-6), norms, RULE)


def test_nothing_is_judged_before_enough_was_merged_or_when_it_is_switched_off():
    assert unlike(1e6, [1.0] * 3, RULE) == "" and unlike(1e6, [1.0] * 9, pb.Quarantine(updates_min=1)) == ""


def scaled(adapter: Adapter, by: float) -> Adapter:
    return Adapter({m: Factors(by * f.B_NR, f.A_RD) for m, f in adapter.factors.items()}, adapter.head)


def test_loud_update_is_kept_aside_makes_no_room_for_the_next_and_can_be_accepted(tmp_path: Path):
    spec = small_spec()
    spec.quarantine.CopyFrom(RULE)
    with CoordinatorHere(small_home(tmp_path / "home", spec)) as coordinator:
        for seed in range(4):
            with RawWorker(coordinator.address, f"w{seed}", f"t{seed}") as raw:
                raw.teach(random_adapter(raw.spec, seed), 0)
        coordinator.drained()
        with RawWorker(coordinator.address, "loud", "loud") as raw:
            loud = [raw.teach(scaled(random_adapter(raw.spec, n), 1000.0), 0) for n in (7, 8)]
        coordinator.drained()
        with coordinator.client() as client:
            told = [client.story(receipt.update_id).verdict for receipt in loud]
        assert [v.outcome for v in told] == [pb.OUTCOME_QUARANTINED] * 2 and "robust deviations above" in told[0].reason
        assert coordinator.status().quarantined == 2 and "loud" not in {r.task for r in coordinator.versions()}
        order(coordinator, judge=pb.Judge(update_id=loud[1].update_id, accept=True))
        assert coordinator.versions()[-1].update_id == loud[1].update_id
