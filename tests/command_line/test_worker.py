"""`fedshare worker` from a shell: what it prints, and how Ctrl-C ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import fedshare
from learning import Learning
from parts import Coordinator, CoordinatorHere, Walk, federation_text, one_sentence, small_home, until

from fedshare.federation_file import read_federation_file
from protos.fedshare.v1 import federation_pb2 as pb


@pytest.fixture(scope="module")
def endless(tiny_base: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """Of a federation whose fits take for ever."""
    folder = tmp_path_factory.mktemp("endless")
    (folder / "federation.toml").write_text(federation_text(tiny_base, tasks, name="endless", epochs=100_000))
    spec = read_federation_file(folder / "federation.toml").spec()
    with Coordinator(small_home(folder / "home", spec), "--no-lineage") as coordinator:
        yield coordinator


def test_worker_that_is_stopped_while_it_fits_ends_with_130_and_one_sentence(
    endless: Coordinator, tasks: Path, tmp_path: Path
):
    errors = tmp_path / "stderr"
    command = [sys.executable, "-m", "fedshare", "worker", "--task", "colour", "--data", tasks / "colour"]
    with errors.open("wb") as file:
        worker = subprocess.Popen(
            [*command, "-c", endless.address, "--home", tmp_path / "home"],
            stdout=subprocess.PIPE,
            stderr=file,
        )
    until(lambda: "fitting beside version 0" in errors.read_text(), "the worker fits")
    time.sleep(0.5)
    worker.send_signal(signal.SIGINT)
    out, _ = worker.communicate(timeout=30)
    lines = errors.read_text().splitlines()
    assert (worker.returncode, out) == (130, b"")
    assert lines[-1] == "stopped; what was finished is kept: give the same command to go on"
    assert not any("Traceback" in line or "Error" in line for line in lines)
    assert list((tmp_path / "home" / "outbox").iterdir()) == []


def test_worker_says_in_json_how_it_ended(tiny_spec: pb.FederationSpec, tasks: Path, tmp_path: Path):
    with Coordinator(small_home(tmp_path / "home", tiny_spec), "--no-lineage") as coordinator:
        ended = fedshare("worker", "--task", "number", "--data", tasks / "number", "-c", coordinator.address,
                         "--home", tmp_path / "worker", "--name", "me", "--json")  # fmt: skip
        [record] = coordinator.versions()
    assert ended.returncode == 0, ended.stderr
    end = json.loads(ended.stdout)
    assert (end["worker"], end["task"], end["stage"], end["incarnation"]) == ("me", "number", "left", 1)
    assert (end["version"], end["update_id"], record.worker) == (1, record.update_id, "me")
    assert 0 <= end["accuracy"] <= 1
    assert "joined (incarnation 1); fitting beside version 0" in ended.stderr
    assert f"receipt for update {record.update_id}" in ended.stderr


def test_worker_whose_update_is_in_quarantine_says_each_time_how_it_comes_out(
    tiny_spec: pb.FederationSpec, tasks: Path, tmp_path: Path
):
    spec = pb.FederationSpec()
    spec.CopyFrom(tiny_spec)
    spec.quarantine.deviations_max, spec.quarantine.updates_min = 3, 2
    given = ("worker", "--task", "number", "--data", tasks / "number", "--home", tmp_path / "worker")
    with CoordinatorHere(small_home(tmp_path / "home", spec)) as coordinator:
        learning = Learning(coordinator)
        for seed in (1, 2):
            learning.learn(f"loud-{seed}", seed=seed)
        first, again = (fedshare(*given, "-c", coordinator.address, "--json") for _ in range(2))
        with coordinator.client() as client:
            [aside] = client.quarantined()
        judged = fedshare("accept", aside.update_id, "-c", coordinator.address)
        last = fedshare(*given, "-c", coordinator.address, "--json")
    id = aside.update_id[:12]
    said = (
        f"update {aside.update_id} waits in quarantine: {aside.reason};"
        f" `fedshare accept {id}` merges it, `fedshare reject {id}` never does"
    )
    for ended in (first, again):
        assert ended.returncode == 0 and ended.stderr.splitlines()[-1] == said
        end = json.loads(ended.stdout)
        assert (end["update_id"], end["version"], end["accuracy"]) == (aside.update_id, 0, None)
        assert (end["waits"], end["detail"]) == (said, "")
    assert judged.returncode == 0
    end = json.loads(last.stdout)
    assert (end["version"], end["waits"]) == (3, "") and end["accuracy"] is not None


def test_mistake_in_the_data_is_one_sentence_and_joins_nothing(walk: Walk, tmp_path: Path):
    home = ("--home", tmp_path / "home", "-c", walk.coordinator.address)
    said = one_sentence(fedshare("worker", "--task", "new", "--data", tmp_path / "nothing", *home))
    assert said.startswith(f"there is no folder {tmp_path}/nothing")
    assert "new-worker" not in {m.worker for m in walk.coordinator.status().members}


@pytest.mark.parametrize("task", ["", "é"])
def test_task_that_is_no_name_is_named_and_not_the_worker_that_is_named_after_it(
    walk: Walk, tasks: Path, tmp_path: Path, task: str
):
    home = ("--home", tmp_path / "home", "-c", walk.coordinator.address)
    said = one_sentence(fedshare("worker", "--task", task, "--data", tasks / "colour", *home))
    assert said.startswith(f"--task {task!r} is not a name: ")
