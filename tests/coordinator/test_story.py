"""The story of one update: what it costs, and in which order it is told."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import pytest
from parts import CoordinatorHere, RawWorker, journal_one, order, small_home
from sqlalchemy import insert

from coordinator import story
from coordinator.catalog import Catalog
from coordinator.home import Home, open_home
from coordinator.journal import Journal
from coordinator.measured import Measured
from coordinator.tables import journal, metrics, verdicts, versions, writer
from coordinator.transition import Record
from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import CALL_SECONDS_MAX

MANY = 3000


def test_story_is_told_in_time_however_often_its_worker_has_learned_and_measured(tmp_path: Path):
    with open_home(small_home(tmp_path / "home")) as home:
        taught(home, MANY)
        began = time.monotonic()
        told = story.tell(update_id(MANY // 2), Journal(home.engine), Catalog(home.engine), Measured(home.engine))
        assert time.monotonic() - began < CALL_SECONDS_MAX / 5
    on_it = [f"m{k} 0.5 on version {MANY // 2}" for k in range(5)]
    assert [e.detail for e in told.events if e.what == "reported"] == on_it


def test_story_keeps_its_order_when_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = small_home(tmp_path / "home")
    header = journal_one(home, 1)
    monkeypatch.setattr("coordinator.integrate.time", lambda: time.time() - 3600)
    monkeypatch.setattr("coordinator.service.time", lambda: time.time() - 7200)
    with CoordinatorHere(home) as coordinator, RawWorker(coordinator.address) as raw:
        coordinator.drained()
        for value in (0.5, 0.75):
            raw.client.report("raw", raw.joined.incarnation, "task", 1, {"accuracy": value})
            monkeypatch.setattr("coordinator.service.time", lambda: time.time() - 9000)
        order(coordinator, rollback=pb.Rollback(version=0))
        events = raw.client.story(header.update_id).events
    reported = ["accuracy 0.5 on version 1", "accuracy 0.75 on version 1"]
    assert [e.detail if e.what == "reported" else e.what for e in events] == [
        "received",
        "merged",
        *reported,
        "reverted",
    ]


def update_id(position: int) -> str:
    return f"{position:032x}"


def taught(home: Home, count: int) -> None:
    """One worker has taught one task so often, and measured five things on each version."""
    Catalog(home.engine).ensure_root(home.spec.federation_id, 0.0)
    every, common = range(1, count + 1), {"worker": "w", "task": "t"}
    said = {**common, "incarnation": 1, "digest": "0" * 64, "nbytes": 1, "labels": [], "metrics": {}}
    decided = {"outcome": pb.OUTCOME_MERGED, "reason": ""}
    made = {"generation": 0, "blocks": 0, "digest": ""}
    with writer(home.engine).begin() as connection:
        connection.execute(
            insert(journal),
            [
                {**said, "position": n, "update_id": update_id(n), "base_version": n - 1, "received_at": n}
                for n in every
            ],
        )
        connection.execute(
            insert(versions),
            [
                {**made, "version": n, "parent": n - 1, "position": n, "record": [record(n)], "created_at": n}
                for n in every
            ],
        )
        connection.execute(insert(verdicts), [{**decided, "position": n, "version": n, "decided_at": n} for n in every])
        connection.execute(
            insert(metrics),
            [{**common, "version": n, "name": f"m{k}", "value": 0.5, "at": n} for n in every for k in range(5)],
        )


def record(position: int) -> dict[str, object]:
    return asdict(Record(position=position, update_id=update_id(position), task="t", worker="w"))
