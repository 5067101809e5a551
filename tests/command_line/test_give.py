"""A command that nobody waits for any longer, or that waits: what is said of it, and what becomes of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import fedshare
from parts import Coordinator, RawWorker, flip_a_byte, random_adapter, small_home, until

from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import Client
from workers.errors import WorkerError

ID = "c0" * 16


@dataclass
class Stuck:
    """A coordinator of versions 1 and 2 that merges nothing, as a block of its head is damaged."""

    coordinator: Coordinator
    block: Path
    whole: Path

    def mend(self) -> None:
        shutil.copy(self.whole, self.block)


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Stuck]:
    with Coordinator(small_home(tmp_path / "home"), "--no-lineage") as coordinator:
        with RawWorker(coordinator.address) as raw:
            for seed in range(2):
                raw.teach(random_adapter(raw.spec, seed), task=f"{seed}")
                coordinator.drained()
            digest = raw.client.fetch(None, manifest_only=True)[0].blocks[-1].digest
        assert coordinator.stop() == 0
        block = coordinator.home / "blobs" / f"{digest}.safetensors"
        whole = shutil.copy(block, tmp_path / "whole")
        flip_a_byte(block)
        coordinator.start()
        yield Stuck(coordinator, block, whole)


class Given:
    """`fedshare ARGS`, running."""

    def __init__(self, folder: Path, address: str, *args: object):
        self._errors = folder / "stderr"
        with self._errors.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedshare", *map(str, args), "-c", address],
                stdout=subprocess.PIPE,
                stderr=file,
            )

    def said(self) -> list[str]:
        return self._errors.read_text().splitlines()

    def stopped(self) -> str:
        """Its last words after Ctrl-C."""
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate(timeout=30)
        assert (self._process.returncode, out) == (130, b"")
        return self.said()[-1]

    def ended(self) -> str:
        out, _ = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, self.said()
        return out.decode()


def journaled(command_id: str) -> str:
    return (
        f"the command {command_id} is journaled and will be carried out: ask with `fedshare story {command_id[:12]}`,"
        f" or give it again with --command-id {command_id} to wait for it"
    )


def test_command_that_is_stopped_after_its_receipt_says_that_it_will_be_carried_out(stuck: Stuck, tmp_path: Path):
    address = stuck.coordinator.address
    given = Given(tmp_path, address, "forget", "--task", "0", "--erase")
    [waits] = until(given.said, "it says that it waits")
    [command_id] = re.findall(r"[0-9a-f]{32}", waits.partition(":")[0])
    assert given.stopped() == f"stopped; {journaled(command_id)}"
    stuck.mend()
    stuck.coordinator.drained()
    assert "the command to forget" in fedshare("story", command_id[:12], "-c", address).stdout
    again = fedshare("forget", "--task", "0", "--erase", "--command-id", command_id, "-c", address)
    assert (again.returncode, again.stderr) == (0, "") and again.stdout.startswith("version 3: as if 1 updates")
    assert len(stuck.coordinator.versions()) == 3


def test_command_that_is_stopped_before_its_receipt_says_that_nobody_knows(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given = Given(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}", "rollback", 1, "--command-id", ID)
        silent.settimeout(30)
        with silent.accept()[0]:
            assert given.stopped() == (
                f"stopped; whether the command {ID} is journaled is not known: given again with --command-id {ID}"
                " it is carried out once"
            )


def test_command_that_is_stopped_while_it_imports_ends_with_130_and_one_sentence(tmp_path: Path):
    stops = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10)\n"
    (tmp_path / "typer.py").write_text(stops)  # found before the real one
    ended = subprocess.run(
        [sys.executable, "-m", "fedshare", "status"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "stopped; what was finished is kept: give the same command to go on\n"


def test_command_that_waits_says_why_and_goes_on_waiting(stuck: Stuck, tmp_path: Path):
    given = Given(tmp_path, stuck.coordinator.address, "rollback", 1, "--command-id", ID)
    [waits] = until(given.said, "it says that it waits")
    assert waits == (
        f"command {ID} is journaled, and not carried out yet: {stuck.block} is damaged: its bytes do not have the"
        " digest that is its name: restore it from a copy of this home"
    )
    stuck.mend()
    assert given.ended().startswith("version 3: equals version 1")
    assert given.said() == [waits]


def test_command_whose_coordinator_goes_away_or_takes_too_long_is_journaled_all_the_same(stuck: Stuck, tmp_path: Path):
    given = Given(tmp_path, stuck.coordinator.address, "rollback", 1, "--command-id", ID)
    until(given.said, "it says that it waits")
    stuck.coordinator.kill()
    until(lambda: len(given.said()) > 1, "it gives up")
    assert given.said()[-1].startswith("no coordinator answers at ")
    assert given.said()[-1].endswith(f"; {journaled(ID)}")
    stuck.coordinator.start()
    with pytest.MonkeyPatch.context() as patch, Client(stuck.coordinator.address) as client:
        patch.setattr("workers.client.SLOW_SECONDS", 0.1)
        patch.setattr("workers.client.COMMAND_SECONDS_MAX", 0.1)
        told = list[str]()
        order = client.order(pb.CommandRequest(command_id=ID, rollback=pb.Rollback(version=1)))
        with pytest.raises(WorkerError, match=r"^not carried out within 0 s$"):
            client.carried_out(order, told.append)
        assert len(told) == 1 and str(stuck.block) in told[0]
