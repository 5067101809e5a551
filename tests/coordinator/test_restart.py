"""A coordinator that starts reads the head, and not the whole of what ever happened."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from parts import history_of, honest_blob, journal_blob, random_adapter, small_home
from sqlalchemy import event
from sqlalchemy.engine import Engine

from coordinator.blobs import Blobs
from coordinator.catalog import Catalog
from coordinator.draft import BlobName, Draft, Kept
from coordinator.home import open_home
from coordinator.integrate import Integrator
from coordinator.members import Members
from coordinator.transition import Record
from coordinator.verdicts import Ruling
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis, Certificate

STEPS = 10
"""Of SQLite's machine, between two counts."""


def old_home(folder: Path, updates: int) -> Path:
    """So many tasks were learned, all with the same function, and one update more is queued."""
    with open_home(small_home(folder)) as home:
        catalog = Catalog(home.engine)
        catalog.ensure_root(home.spec.federation_id, time.time())
        Members(home.engine).join("raw", "task", time.time())
        blob = honest_blob(home.spec, random_adapter(home.spec, 1), Basis())
        name, head = BlobName(home.blobs.put(blob), len(blob)), catalog.head()
        for n in range(1, updates + 1):
            header = journal_blob(home, blob, task=f"task-{n}")
            draft = Draft(
                position=n,
                records=(Record(n, header.task, "raw", header.update_id),),
                blocks=(name,) if n == 1 else (),
                entries={header.task: Kept(name, ["no", "yes"], Certificate(1.0, 0.0))},
                first=(Ruling(n, pb.OUTCOME_MERGED),),
            )
            head = catalog.publish(head, draft, time.time())
        journal_blob(home, blob, task="queued")
    return folder


def cost_of_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """(counts of SQLite's steps, blobs read, version at the head)"""
    steps, blobs = [], []

    def count(connection: object, record: object) -> None:
        connection.set_progress_handler(lambda: steps.append(1), STEPS)

    get = Blobs.get
    with monkeypatch.context() as patch:
        patch.setattr(Blobs, "get", lambda self, digest: blobs.append(digest) or get(self, digest))
        event.listen(Engine, "connect", count)
        try:
            with open_home(folder) as home:
                history = history_of(home)
                history.catalog.ensure_root(home.spec.federation_id, time.time())
                integrator = Integrator(home.spec, home.engine, history, lambda announcement: None)
                assert [p.submission.task for p in history.journal.after(integrator.announcement.consumed, 2)] == [
                    "queued"
                ]
        finally:
            event.remove(Engine, "connect", count)
    return len(steps), len(blobs), integrator.announcement.head.version


def test_start_costs_the_same_however_much_was_journaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = cost_of_start(old_home(tmp_path / "few", 5), monkeypatch)
    many = cost_of_start(old_home(tmp_path / "many", 250), monkeypatch)
    assert (few[1:], many[1:]) == ((1, 5), (1, 250))
    assert 0 < many[0] < 1.3 * few[0]
