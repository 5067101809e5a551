"""What looking after a home costs grows with its journal, and no faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from parts import history_of
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.restart import home_with
from coordinator.catalog import Version
from coordinator.history import History
from coordinator.home import open_home
from coordinator.journal import Position, Submission
from coordinator.letting_go import COLLECTED
from coordinator.replay import compare
from coordinator.retention import letting_go
from coordinator.reversal import Reversal
from protos.fedshare.v1 import federation_pb2 as pb

FEW, MANY = 30, 150
STEPS = 10
"""Of SQLite's machine, between two counts."""


def replay(history: History, head: Version) -> None:
    reply = compare(history, history.spec)
    assert reply.versions == head.version + 1 and max(reply.task.value, reply.basis.value) < 1e-5


def forget(history: History, head: Version) -> None:
    command = Position(head.version + 1, Submission("f" * 32, "", 0), 0.0)
    assert Reversal(history.spec, history).forget(command, pb.Forget(task="task-1"), head).entries["task-1"] is None


def state_anew(history: History, head: Version) -> None:
    every = frozenset(range(1, head.version + 1))
    assert len(letting_go(history, every, COLLECTED).stand_ins) == head.version - 1  # the first was made for version 0


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("homes")
    return {updates: home_with(folder / str(updates), updates, tasks=10) for updates in (FEW, MANY)}


@pytest.mark.parametrize("work", [replay, forget, state_anew])
def test_database_does_as_much_for_each_update_however_many_there_are(
    homes: dict[int, Path], work: Callable[[History, Version], None]
):
    few, many = (steps_of(home, work) / updates for updates, home in homes.items())
    assert 0 < many < 1.3 * few


def steps_of(folder: Path, work: Callable[[History, Version], None]) -> int:
    steps: list[int] = []

    def count(connection: object, record: object) -> None:
        connection.set_progress_handler(lambda: steps.append(1), STEPS)  # type: ignore[attr-defined]

    event.listen(Engine, "connect", count)
    try:
        with open_home(folder) as home:
            history = history_of(home)
            head, _ = history.catalog.head(), steps.clear()
            work(history, head)
            return len(steps)
    finally:
        event.remove(Engine, "connect", count)
