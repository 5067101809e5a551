"""What waits is merged into one version, each entry with a verdict of its own: of several workers, tasks and policies,
with commands between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forks import fedshare
from learning import SAME, SENT_IS_KEPT, Learning
from parts import (
    Coordinator,
    CoordinatorHere,
    dense_adapter,
    flip_a_byte,
    history_of,
    honest_blob,
    journal_blob,
    order,
    random_adapter,
    relative_error,
    small_home,
    small_spec,
)

from coordinator import batch, integrate
from coordinator.batch import BATCH_MAX
from coordinator.home import open_home
from coordinator.integrate import GATHER_SECONDS_MAX, QUIET_SECONDS, Integrator
from coordinator.journal import Journal
from coordinator.members import Members
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis

MERGED, SKIPPED, SUPERSEDED = pb.OUTCOME_MERGED, pb.OUTCOME_SKIPPED, pb.OUTCOME_SUPERSEDED


def queue(folder: Path, *keys: str) -> dict[str, pb.UpdateHeader]:
    """Journal an update for each TASK@WORKER#N, in this order, with nobody there to merge them."""
    found = {}
    with open_home(folder) as home:
        history_of(home).catalog.ensure_root(home.spec.federation_id, time.time())
        for key in keys:
            task, _, worker = key.partition("#")[0].partition("@")
            incarnation = Members(home.engine).join(worker, task, time.time())
            blob = honest_blob(home.spec, random_adapter(home.spec, seed_of(key)), Basis())
            found[key] = journal_blob(home, blob, task=task, worker=worker, incarnation=incarnation)
    return found


def seed_of(key: str) -> int:
    return int.from_bytes(key.encode()) % 10**6


class Backlog(Learning):
    """What was queued, merged by a coordinator that started afterwards."""

    def must_hold(self, key: str) -> None:
        task = key.partition("@")[0]
        wanted = dense_adapter(random_adapter(small_spec(), seed_of(key)))
        assert relative_error(wanted, self.dense()[task]) < SENT_IS_KEPT

    def records(self) -> list[tuple[int, str, str]]:
        return [(r.version, r.task, r.worker) for r in self.coordinator.versions()]

    def must_replay(self) -> None:
        reply = self.replay()
        assert max(reply.task.value, reply.basis.value) < SAME


@contextmanager
def merged(home: Path, headers: dict[str, pb.UpdateHeader]) -> Iterator[Backlog]:
    with CoordinatorHere(home) as coordinator:
        coordinator.drained()
        yield Backlog(coordinator, {key: pb.Receipt(update_id=h.update_id) for key, h in headers.items()})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return small_home(tmp_path / "home")


def home_with(folder: Path, **policy: object) -> Path:
    spec = small_spec()
    spec.policies.add(**policy)
    return small_home(folder, spec)


def damage(home: Path, header: pb.UpdateHeader) -> None:
    """It can never be merged."""
    flip_a_byte(home / "blobs" / f"{header.digest}.safetensors")


def test_updates_that_wait_become_one_version_with_a_record_for_each(home: Path):
    keys = ("a@w", "b@v", "c@u")
    with merged(home, queue(home, *keys)) as found:
        assert found.records() == [(1, "a", "w"), (1, "b", "v"), (1, "c", "u")]
        assert [(found.verdict(key).outcome, found.verdict(key).version) for key in keys] == [(MERGED, 1)] * 3
        found.must_replay()
        order(found.coordinator, rollback=pb.Rollback(version=0))
        assert {found.outcome(key) for key in keys} == {pb.OUTCOME_REVERTED}


def test_version_takes_in_no_more_than_its_bound(home: Path):
    with merged(home, queue(home, *(f"t{n}@w{n}" for n in range(BATCH_MAX + 1)))) as found:
        versions = [version for version, _, _ in found.records()]
    assert len(versions) == BATCH_MAX + 1
    assert max(versions.count(v) for v in set(versions)) <= BATCH_MAX and max(versions) >= 2


def test_one_that_cannot_be_merged_disturbs_nobody_in_its_batch(home: Path):
    headers = queue(home, "a@w", "b@v", "c@u")
    damage(home, headers["b@v"])
    with merged(home, headers) as found:
        assert [found.outcome(key) for key in headers] == [MERGED, SKIPPED, MERGED]
        assert "is damaged" in found.verdict("b@v").reason
        assert found.records() == [(1, "a", "w"), (1, "c", "u")]


def test_update_that_cannot_be_merged_supersedes_nothing(home: Path):
    headers = queue(home, "a@w#1", "a@w#2")
    damage(home, headers["a@w#2"])
    with merged(home, headers) as found:
        assert [found.outcome(key) for key in headers] == [MERGED, SKIPPED]


def test_what_would_have_been_overtaken_stays_below_what_others_sent_after_it(home: Path):
    headers = queue(home, "a@w#1", "a@other#1", "a@w#2")
    damage(home, headers["a@w#2"])
    with merged(home, headers) as found:
        assert [found.outcome(key) for key in headers] == [MERGED, MERGED, SKIPPED]
        assert found.records() == [(1, "a", "w"), (1, "a", "other")]
        found.must_hold("a@other#1")


def test_other_workers_update_is_merged_too_so_that_the_task_can_fall_back_to_it(home: Path):
    with merged(home, queue(home, "a@first#1", "a@second#1")) as found:
        assert found.records() == [(1, "a", "first"), (1, "a", "second")]
        found.must_hold("a@second#1")
        found.must_replay()
        order(found.coordinator, forget=pb.Forget(worker="second"))
        found.must_hold("a@first#1")


def test_of_many_updates_of_one_worker_the_newest_is_merged_and_names_itself(home: Path):
    with merged(home, queue(home, "a@w#1", "b@v#1", "a@w#2", "a@w#3")) as found:
        assert [found.outcome(f"a@w#{n}") for n in (1, 2, 3)] == [SUPERSEDED, SUPERSEDED, MERGED]
        assert found.coordinator.status().superseded == 2
        verdict = found.verdict("a@w#1")
        assert verdict.reason == f"by update {found.receipts['a@w#3'].update_id} of the same worker"
        assert verdict.version == 0 and len(found.records()) == 2
        found.must_hold("a@w#3")


def test_batch_ends_when_its_time_is_up_and_the_rest_comes_next(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "BATCH_SECONDS_MAX", -1.0)
    with merged(home, queue(home, "a@w#1", "b@v#1", "a@w#2")) as found:
        assert [version for version, _, _ in found.records()] == [1, 2, 3]
        found.must_hold("a@w#2")
        found.must_replay()


def test_stale_ones_in_a_batch_disturb_nobody(tmp_path: Path):
    home = home_with(tmp_path / "home", task="a", staleness_max=0)
    with merged(home, queue(home, "b@v#1")):
        pass
    with merged(home, queue(home, "a@w#1", "b@v#2")) as found:
        assert [found.outcome(k) for k in ("a@w#1", "b@v#2")] == [pb.OUTCOME_TOO_STALE, MERGED]
        found.must_hold("b@v#2")


def test_batch_with_nothing_to_merge_makes_no_version(tmp_path: Path):
    home = home_with(tmp_path / "home", kind=pb.POLICY_KIND_FEDBUFF, mixing=1, buffer_size=9)
    with merged(home, queue(home, "a@w#1", "a@v#1")) as found:
        status = found.coordinator.status()
        assert (status.head, status.buffered, status.queued) == (0, 2, 0)


def test_buffer_that_fills_twice_fills_two_versions(tmp_path: Path):
    home = home_with(tmp_path / "home", kind=pb.POLICY_KIND_FEDBUFF, mixing=1, buffer_size=2)
    with merged(home, queue(home, "b@x#1", *(f"a@w{n}#1" for n in range(5)))) as found:
        assert found.records() == [(1, "a", "w0"), (1, "a", "w1"), (2, "a", "w2"), (2, "a", "w3")]
        assert [e.what for e in found.story("a@w0#1").events] == ["received", "merged"]  # it never had to wait
        status = found.coordinator.status()
        assert (status.merged, status.buffered, status.queued) == (4, 2, 0)
        found.must_replay()


def test_updates_of_a_fedasync_task_are_mixed_in_one_after_the_other(tmp_path: Path):
    home = home_with(tmp_path / "home", kind=pb.POLICY_KIND_FEDASYNC, mixing=0.5)
    keys = ("a@w#1", "a@w#2", "a@v#1")
    with merged(home, queue(home, *keys)) as found:
        assert [version for version, _, _ in found.records()] == [1, 1, 1]
        assert [r.weight for r in found.coordinator.versions()] == [1.0, 0.5, 0.5]
        one, two, three = (dense_adapter(random_adapter(small_spec(), seed_of(key))) for key in keys)
        wanted = {m: 0.25 * one[m] + 0.25 * two[m] + 0.5 * three[m] for m in one}
        assert relative_error(wanted, found.dense()["a"]) < 5 * SENT_IS_KEPT
        found.must_replay()


def test_command_in_the_backlog_has_its_turn_between_the_updates(home: Path):
    before = queue(home, "a@w#1", "b@v#1")
    with open_home(home) as opened:
        asked = pb.CommandRequest(command_id="c" * 32, forget=pb.Forget(task="a"))
        Journal(opened.engine).command(asked, time.time())
    with merged(home, {**before, **queue(home, "a@w#2", "c@u#1")}) as found:
        versions = [(version, task or "forget") for version, task, _ in found.records()]
        assert versions == [(1, "a"), (1, "b"), (2, "forget"), (3, "a"), (3, "c")]
        found.must_hold("a@w#2")


def test_batch_that_the_disk_did_not_take_is_made_again(home: Path, monkeypatch: pytest.MonkeyPatch):
    keys = [f"t{n}@w{n}#1" for n in range(4)]
    publish, failed = integrate.Integrator._publish, []

    def second(self: integrate.Integrator, *args: object) -> None:
        if not failed:
            failed.append(1)
            raise OSError(28, "No space left on device")
        publish(self, *args)

    headers = queue(home, *keys)
    monkeypatch.setattr(integrate.Integrator, "_publish", second)
    monkeypatch.setattr(integrate, "RETRY_SECONDS", 0.05)
    with merged(home, headers) as found:
        assert failed and [found.outcome(key) for key in keys] == [MERGED] * 4
        assert [version for version, _, _ in found.records()] == [1] * 4


def test_commands_and_mlflow_show_every_update_of_a_version(home: Path):
    from mlflow import MlflowClient

    queue(home, *(f"t{n}@w{n}#1" for n in range(3)))
    with Coordinator(home) as coordinator:
        coordinator.drained()
        shown = fedshare("versions", "--coordinator", coordinator.address).stdout
        assert [line.split()[:3] for line in shown.splitlines()[1:]] == [["1", f"t{n}", f"w{n}"] for n in range(3)]
        assert all(f"w{n}" in fedshare("show", "1", "--coordinator", coordinator.address).stdout for n in range(3))
        assert coordinator.stop() == 0
    client = MlflowClient(f"sqlite:///{(home / 'lineage' / 'mlflow.db').absolute()}")
    runs = client.search_runs([client.get_experiment_by_name("small/versions").experiment_id])
    assert sorted(run.data.tags["fedshare.task"] for run in runs) == ["t0", "t1", "t2"]
    assert {(run.data.tags["fedshare.version"], run.data.metrics["weight"]) for run in runs} == {("1", 1.0)}


class Storm:
    """A clock that moves only while the writer sleeps; each time another update arrives."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, batch_max: int):
        self.now = 0.0
        monkeypatch.setattr(integrate, "monotonic", lambda: self.now)
        monkeypatch.setattr(integrate, "sleep", self._sleep)
        with open_home(home) as opened:
            history = history_of(opened)
            self._writer = Integrator(opened.spec, opened.engine, history, lambda _: None, batch_max=batch_max)
            self._writer.wake(0)
            self._writer._next()
            self.consumed = history.journal.consumed()

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self._writer.wake(0)


def test_arrivals_go_before_a_merge_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = small_home(tmp_path / "home")
    queue(home, "a@one")
    storm = Storm(home, monkeypatch, batch_max=2)
    assert storm.consumed == 1
    assert GATHER_SECONDS_MAX <= storm.now < GATHER_SECONDS_MAX + 2 * QUIET_SECONDS


def test_merge_waits_for_nobody_when_its_batch_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = small_home(tmp_path / "home")
    queue(home, "a@one", "b@two")
    storm = Storm(home, monkeypatch, batch_max=2)
    assert (storm.consumed, storm.now) == (2, 0.0)
