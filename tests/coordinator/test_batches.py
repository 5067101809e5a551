"""What waits is merged into one version, and each entry gets a verdict of its own."""

from __future__ import annotations

from pathlib import Path

from parts import (
    CoordinatorHere,
    flip_a_byte,
    honest_blob,
    journal_blob,
    journal_one,
    order,
    random_adapter,
    small_home,
)

from coordinator.batch import BATCH_MAX
from coordinator.catalog import Catalog
from coordinator.home import open_home
from coordinator.members import Members
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis


def queue(home: Path, *tasks: str) -> list[pb.UpdateHeader]:
    """Updates that are journaled while nobody merges, each of a worker of its own."""
    with open_home(home) as opened:
        Catalog(opened.engine).ensure_root(opened.spec.federation_id, 0.0)
        headers = []
        for seed, task in enumerate(tasks):
            who = f"{task}-{seed}"
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


def test_what_would_have_been_overtaken_stays_below_what_others_sent_after_it(tmp_path: Path):
    home = small_home(tmp_path / "home")
    old = journal_one(home, seed=1)
    with open_home(home) as opened:
        incarnation = Members(opened.engine).join("other", "task", 1.0)
        blob = honest_blob(opened.spec, random_adapter(opened.spec, 7), Basis())
        others = journal_blob(opened, blob, worker="other", incarnation=incarnation)
    bad = journal_one(home, seed=2)
    flip_a_byte(home / "blobs" / f"{bad.digest}.safetensors")
    with CoordinatorHere(home) as coordinator:
        told = verdicts(coordinator, [old, others, bad])
        assert [r.update_id for r in coordinator.versions()] == [old.update_id, others.update_id]
    assert [v.outcome for v in told] == [pb.OUTCOME_MERGED, pb.OUTCOME_MERGED, pb.OUTCOME_SKIPPED]
