"""MLflow shows where every version came from, once; and when it is away nothing waits for it."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from parts import Coordinator, RawWorker, history_of, order, random_adapter, small_home, until

from coordinator import lineage
from coordinator.home import open_home
from coordinator.lineage import DRAIN_SECONDS_MAX
from coordinator.measured import Measured
from coordinator.members import Members
from coordinator.service import STOP_SECONDS_MAX
from protos.fedshare.v1 import federation_pb2 as pb

LEARNED = {"a": 0, "b": 1, "c": 0}
"""Task, and the version it was made for."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a coordinator that learned two tasks without MLflow and one with it, was killed, and has run again."""
    home = small_home(tmp_path_factory.mktemp("lineage") / "home")
    with Coordinator(home, "--no-lineage") as coordinator:
        learn(coordinator, "a", 0)
        learn(coordinator, "b", 1)
        assert coordinator.stop() == 0
    with Coordinator(home) as coordinator:
        learn(coordinator, "c", 0)
        until(lambda: not coordinator.status().lineage_behind, "MLflow has everything")
        coordinator.kill()
        coordinator.start()
        assert coordinator.stop() == 0
    return home


def learn(coordinator: Coordinator, task: str, base: int, **header: object) -> None:
    with RawWorker(coordinator.address, f"{task}-worker", task) as raw:
        adapter = random_adapter(raw.spec, ord(task[0]))
        receipt = raw.teach(adapter, base, metrics={"accuracy_when_learned": 0.25}, **header)
        coordinator.drained()
        raw.client.report(f"{task}-worker", raw.joined.incarnation, task, receipt.position, {"accuracy": 0.5})


@pytest.fixture(scope="module")
def mlflow(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home}/lineage/mlflow.db")


def runs(mlflow: MlflowClient, experiment: str) -> list[Run]:
    found = mlflow.get_experiment_by_name(experiment)
    return sorted(mlflow.search_runs([found.experiment_id]), key=lambda run: run.info.run_name)


def test_every_version_has_one_run_also_those_that_mlflow_missed_and_after_a_kill(mlflow: MlflowClient):
    versions = [run.data.tags["fedshare.version"] for run in runs(mlflow, "small/versions")]
    assert versions == ["1", "2", "3"]
    assert {run.info.status for run in runs(mlflow, "small/versions")} == {"FINISHED"}


def test_run_tells_parent_task_worker_base_version_and_update(mlflow: MlflowClient, home: Path):
    for n, (run, (task, base)) in enumerate(zip(runs(mlflow, "small/versions"), LEARNED.items(), strict=True), start=1):
        told = {key.removeprefix("fedshare."): value for key, value in run.data.tags.items()}
        assert (told["parent"], told["task"], told["worker"]) == (str(n - 1), task, f"{task}-worker")
        assert told["base_version"] == str(base)
        assert len(told["update_id"]) == 32 and len(told["digest"]) == 64
        [contributor] = run.inputs.dataset_inputs
        assert contributor.dataset.name == f"{task}@{task}-worker"


def test_run_tells_error_size_and_bytes_as_the_coordinator_does(mlflow: MlflowClient, home: Path):
    with Coordinator(home, "--no-lineage") as coordinator:
        records = coordinator.versions()
    for run, record in zip(runs(mlflow, "small/versions"), records, strict=True):
        for name in ("relative_error", "relative_error_max", "basis_out", "basis_in", "bytes_sent", "staleness"):
            assert run.data.metrics[name] == getattr(record, name)
        assert run.data.metrics["accuracy_when_learned"] == record.metrics["accuracy_when_learned"]
        assert run.data.metrics["basis_out"] > 0 and run.data.metrics["bytes_sent"] > 0


def test_what_workers_measured_is_a_run_of_the_worker_with_the_version_as_step(mlflow: MlflowClient):
    found = {run.info.run_name: run for run in runs(mlflow, "small/workers")}
    assert sorted(found) == ["a@a-worker", "b@b-worker", "c@c-worker"]
    [measured] = mlflow.get_metric_history(found["c@c-worker"].info.run_id, "accuracy")
    assert (measured.value, measured.step) == (0.5, 3)


def test_measurements_are_read_in_batches_of_the_size_asked_for(tmp_path: Path):
    with open_home(small_home(tmp_path / "home")) as home:
        incarnation = Members(home.engine).join("raw", "task", 1.0)
        measured = Measured(home.engine)
        measured.add("raw", incarnation, "task", 1, {f"m{i}": float(i) for i in range(7)}, 2.0)
        first = measured.after(0, 3)
        assert [m.name for m in first] == ["m0", "m1", "m2"]
        assert [m.name for m in measured.after(first[-1].id, 3)] == ["m3", "m4", "m5"]
        assert len(measured.of_task("task")) == 7


@pytest.fixture(params=["refuses", pytest.param("never answers", marks=pytest.mark.slow)])
def away(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a tracking server that is not one."""
    if request.param == "refuses":
        yield "http://127.0.0.1:1"
        return
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_tracking_server_that_is_away_delays_no_merge_and_not_the_end(tmp_path: Path, away: str):
    home = small_home(tmp_path / "home")
    with Coordinator(home, "--tracking-uri", away) as coordinator, RawWorker(coordinator.address) as raw:
        asked = time.monotonic()
        for seed in range(5):
            raw.teach(random_adapter(raw.spec, seed), task=f"task-{seed}")
        assert coordinator.drained().merged == 5
        assert time.monotonic() - asked < 5
        status = coordinator.status()
        assert (status.lineage, status.lineage_behind) == (away, status.head)
        asked = time.monotonic()
        assert coordinator.stop() == 0
        assert time.monotonic() - asked < DRAIN_SECONDS_MAX + STOP_SECONDS_MAX


def test_compactions_and_collections_show_in_mlflow(tmp_path: Path):
    home = small_home(tmp_path / "home")
    with Coordinator(home) as coordinator:
        for n, task in enumerate("abc"):
            learn(coordinator, task, n and n - 1)
        order(coordinator, compact=pb.Compact(size=4))
        until(lambda: not coordinator.status().lineage_behind, "MLflow has everything")
        order(coordinator, collect=pb.Collect(keep=2))
        assert coordinator.stop() == 0
    shown = {
        run.data.tags["fedshare.version"]: (run.info.run_name, run.data.tags["fedshare.gone"])
        for run in runs(MlflowClient(f"sqlite:///{home}/lineage/mlflow.db"), "small/versions")
    }
    assert shown == {"1": ("v1 a", "collected"), "2": ("v2 b", "collected"), "3": ("v3 c", ""), "4": ("v4 compact", "")}
    compaction = runs(MlflowClient(f"sqlite:///{home}/lineage/mlflow.db"), "small/versions")[-1].data
    assert compaction.tags["fedshare.note"].startswith("6 and 6 columns became 4 and 4; 3 tasks")
    assert 0.01 < compaction.metrics["largest_error"] < 1 and compaction.metrics["basis_out"] == 4


def test_mlflows_own_file_holds_no_name_that_was_erased(tmp_path: Path):
    home = small_home(tmp_path / "home")
    with Coordinator(home) as coordinator:
        learn(coordinator, "a", 0)
        learn(coordinator, "heirloom", 1, warm_start="a")
        learn(coordinator, "c", 1, warm_start="heirloom")
        order(coordinator, forget=pb.Forget(task="a"))
        until(lambda: not coordinator.status().lineage_behind, "MLflow has everything")
        assert b"heirloom" in (home / "lineage" / "mlflow.db").read_bytes()
        order(coordinator, forget=pb.Forget(worker="heirloom-worker", erase=True))
        assert coordinator.stop() == 0
    assert [file for file in home.rglob("*") if file.is_file() and b"heirloom" in file.read_bytes()] == []
    shown = [run.data.tags for run in runs(MlflowClient(f"sqlite:///{home}/lineage/mlflow.db"), "small/versions")]
    by_version = {int(tags["fedshare.version"]): tags for tags in shown}
    assert sorted(by_version) == [1, 2, 3, 4, 5]
    assert (by_version[2]["fedshare.task"], by_version[3]["fedshare.warm_start"]) == ("", "(erased)")
    assert by_version[4]["fedshare.note"].endswith("where others began that stay: (erased)")


def test_erasure_that_is_cut_off_after_mlflow_marked_its_runs_is_finished_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = small_home(tmp_path / "home")
    with Coordinator(home) as coordinator:
        learn(coordinator, "a", 0)
        learn(coordinator, "b", 1)
        assert coordinator.stop() == 0
    assert said_of("b-worker", home)
    with Coordinator(home, "--no-lineage") as coordinator:
        order(coordinator, forget=pb.Forget(task="b", erase=True))

    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    with open_home(home) as opened:
        for erase in (locked, lineage.erase_runs):
            assert said_of("b-worker", home)
            monkeypatch.setattr(lineage, "erase_runs", erase)
            reader = lineage.Lineage(opened, history_of(opened).catalog, Measured(opened.engine))
            reader.start()
            reader.stop()
    assert not said_of("b-worker", home)
    mlflow = MlflowClient(f"sqlite:///{home}/lineage/mlflow.db")
    assert [run.info.run_name for run in runs(mlflow, "small/workers")] == ["a@a-worker"]


def said_of(worker: str, home: Path) -> list[Path]:
    return [file for file in (home / "lineage").rglob("*") if file.is_file() and worker.encode() in file.read_bytes()]
