"""The story of one update: what it costs, and in which order it is told."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from parts import small_home
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
