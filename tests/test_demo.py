"""The demo, as a newcomer runs it: real MiniLM, real Ray, a killed worker, a late joiner, a table at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedshare.demo.tasks import DEMO_TASKS
from workers.base_model import MINILM_PACKAGE

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        find_spec(MINILM_PACKAGE) is None, reason="needs the demo extra, which carries MiniLM's weights"
    ),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("demo") / "home"
    command = [sys.executable, "-m", "fedshare", "demo", "--home", str(home), "--json"]
    return home, subprocess.run(command, capture_output=True, text=True, timeout=550)


def test_it_ends_well_with_a_table_and_a_picture(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, done = demo
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy over versions" in done.stderr and "mlflow server" in done.stderr
    assert "mean, total" in done.stderr
    assert (home / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_every_task_is_learned_and_none_is_forgotten(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    results = json.loads(demo[1].stdout)
    assert {t["task"] for t in results["tasks"]} == set(DEMO_TASKS) and results["failed"] == {}
    for task in results["tasks"]:
        assert task["accuracy_at_head"] == task["accuracy_when_learned"]
        assert task["accuracy_at_head"] > 0.8
        assert task["logits_difference"] <= 1e-4
    assert results["bytes_sent"] * 3 <= results["bytes_lora"]


def test_the_killed_worker_comes_back(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    shown = demo[1].stderr
    assert "colour-worker was killed at" in shown
    assert "colour-worker is back, as incarnation 2" in shown


def test_mlflow_shows_one_run_per_update_with_its_origin(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{demo[0] / 'lineage' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo/versions")
    runs = client.search_runs([experiment.experiment_id])
    # two tasks that end together may be merged in one version
    assert sorted(r.data.tags["fedshare.task"] for r in runs) == sorted(DEMO_TASKS)
    versions = {int(r.data.tags["fedshare.version"]) for r in runs}
    assert versions == set(range(1, max(versions) + 1))
    for run in runs:
        assert int(run.data.tags["fedshare.parent"]) == int(run.data.tags["fedshare.version"]) - 1
        assert run.data.tags["fedshare.worker"] == f"{run.data.tags['fedshare.task']}-worker"
        assert {"relative_error", "basis_out", "basis_in", "bytes_sent", "bytes_lora"} <= run.data.metrics.keys()
