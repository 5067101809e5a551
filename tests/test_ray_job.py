"""The same `fedshare run` as a job on a Ray cluster that is running already. Starts a cluster on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TASKS
from parts import until
from servers import free_port

pytestmark = [pytest.mark.ray_job, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running head's dashboard. Other clusters on this machine are let be."""
    ports = {
        name: free_port()
        for name in ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    }
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, log.open("wb") as out:  # short: it holds sockets
        ray = subprocess.Popen(
            [*command, f"--temp-dir={folder}", *(f"--{name}={port}" for name, port in ports.items())],
            env=_environment(),
            stdout=out,
            stderr=out,
        )
        try:
            until(lambda: ray.poll() is not None or "Ray runtime started" in log.read_text(), "Ray runs", 60)
            assert ray.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{ports['dashboard-port']}"
        finally:
            ray.terminate()
            ray.wait(60)


def test_run_as_a_ray_job_learns_every_task(dashboard: str, federation_toml: Path, tmp_path: Path) -> None:
    done = _submit(dashboard, tmp_path, "run", str(federation_toml), "--home", str(tmp_path / "home"), "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    results = json.loads(line)
    assert {task["task"] for task in results["tasks"]} == set(TASKS)
    assert 1 <= results["head"] <= len(TASKS)  # tasks that end together may be merged in one version
    assert all(task["accuracy_at_head"] == task["accuracy_when_learned"] for task in results["tasks"])


def test_a_failing_run_fails_its_job(dashboard: str, tmp_path: Path) -> None:
    done = _submit(dashboard, tmp_path, "run", str(tmp_path / "none.toml"))
    assert done.returncode != 0
    assert f"error: there is no federation file {tmp_path / 'none.toml'}" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def _submit(dashboard: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--address", dashboard, "--working-dir", str(folder), "--", "fedshare"]
    return subprocess.run([*command, *arguments], env=_environment(), capture_output=True, text=True, timeout=500)


def _environment() -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
