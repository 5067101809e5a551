"""A full disk: an update is kept whole or not at all, a receipt still means kept, and with room the work goes on."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import fedshare
from parts import (
    Coordinator,
    RawWorker,
    dense,
    dense_adapter,
    one_sentence,
    random_adapter,
    relative_error,
    small_home,
    small_spec,
    until,
)
from sqlalchemy import select

from coordinator.errors import CoordinatorError
from coordinator.home import open_home
from coordinator.letting_go import WIPE_WANTED, want
from coordinator.sweep import sweep_if_wanted
from coordinator.tables import cursors, writer
from coordinator.trouble import TROUBLES
from protos.fedshare.v1 import federation_pb2 as pb
from workers.errors import WorkerError

PAGE = 4096
WIDE = {"encoder.a": (20_000, 64)}
"""One module, whose updates have some 160 kB."""


class Ballast:
    """A file that leaves just so much room on its disk."""

    def __init__(self, disk: Path):
        self._file = disk / "ballast"

    def leave(self, pages: int) -> None:
        self._file.unlink(missing_ok=True)
        free = os.statvfs(self._file.parent).f_bavail - pages
        with self._file.open("wb") as file:
            for _ in range(free):
                file.write(b"x" * PAGE)

    def away(self) -> None:
        self._file.unlink()


@pytest.fixture
def wide(tiny_disk: Path) -> Iterator[Coordinator]:
    """A coordinator whose home is on the tiny disk; its log is not."""
    home = small_home(tiny_disk / "home", small_spec("wide", WIDE))
    with Coordinator(home, "--no-lineage", log=tiny_disk.parent / "log") as coordinator:
        yield coordinator


@pytest.fixture
def ballast(tiny_disk: Path) -> Ballast:
    return Ballast(tiny_disk)


def torn(home: Path) -> list[Path]:
    return list(home.rglob("*.part"))


def test_update_that_does_not_fit_may_come_again_and_leaves_nothing(wide: Coordinator, ballast: Ballast):
    with RawWorker(wide.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 1))
        header = raw.header(blob, base)
        ballast.leave(pages=4)
        refused = raw.submit(header, blob)
        assert refused.outcome == pb.OUTCOME_RETRY_DISK_FULL and refused.is_transient and refused.position == 0
        assert "disk is full" in refused.reason
        assert list((wide.home / "blobs").glob("*.safetensors")) == []
        assert wide.status().queued == 0
        ballast.away()
        accepted = raw.submit(header, blob)
        assert (accepted.outcome, accepted.repeated) == (pb.OUTCOME_QUEUED, False)
    assert wide.drained().merged == 1


def test_receipt_is_honest_whatever_room_there_is(wide: Coordinator, ballast: Ballast):
    with RawWorker(wide.address) as raw:
        sent, receipts = {}, {}
        for pages in (0, 1, 2, 4, 8, 40, 45, 50, 60, 80, 100, 130):
            adapter = random_adapter(raw.spec, pages)
            base, blob = raw.blob(adapter, 0)
            ballast.leave(pages)
            header = raw.header(blob, base, task=f"room-for-{pages}")
            sent[header.update_id] = (header, blob, adapter)
            receipts[header.update_id] = raw.submit(header, blob)
            assert receipts[header.update_id].outcome in (pb.OUTCOME_QUEUED, pb.OUTCOME_RETRY_DISK_FULL)
        kept = [id for id, receipt in receipts.items() if receipt.outcome == pb.OUTCOME_QUEUED]
        assert 0 < len(kept) < len(sent)  # both have happened
        ballast.away()
        assert wide.drained().merged == len(kept)
        assert [r.update_id for r in wide.versions()] == kept
        for header, blob, _ in sent.values():
            assert raw.submit(header, blob).repeated == (header.update_id in kept)
        assert wide.drained().merged == len(sent)
        manifest, blobs = raw.client.fetch(None, every_task=True)
    for header, _, adapter in sent.values():
        assert relative_error(dense_adapter(adapter), dense(manifest, blobs, header.task)) < 2e-5
    assert torn(wide.home) == []


def test_merge_waits_for_room_and_happens_once(wide: Coordinator, ballast: Ballast):
    with RawWorker(wide.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 1))
        ballast.leave(pages=len(blob) // PAGE + 20)  # for the update, and not for the version
        receipt = raw.submit(raw.header(blob, base), blob)
        assert receipt.outcome == pb.OUTCOME_QUEUED
        until(lambda: "cannot store a version" in wide.log(), "the merge does not fit")
        assert (wide.status().head, wide.status().queued) == (0, 1)
        ballast.away()
        wide.drained()
    assert [r.update_id for r in wide.versions()] == [receipt.update_id]
    assert torn(wide.home) == []


def test_worker_that_joins_or_reports_is_told_that_the_disk_is_full(wide: Coordinator, ballast: Ballast):
    with RawWorker(wide.address) as raw:
        ballast.leave(pages=0)
        with wide.client() as client:
            for ask in (
                lambda: client.join("new", "task", "", raw.spec.base.fingerprint),
                lambda: client.report("raw", raw.joined.incarnation, "task", 0, {f"m{i}": 1.0 for i in range(99)}),
            ):
                with pytest.raises(WorkerError, match="the coordinator's disk is full") as raised:
                    for _ in range(200):  # some of it finds room in pages that are there
                        ask()
                assert "\n" not in str(raised.value)
        ballast.away()
        assert raw.join().incarnation > raw.joined.incarnation


def test_coordinator_that_starts_on_a_full_disk_says_so_and_ends(tiny_disk: Path, ballast: Ballast):
    home = small_home(tiny_disk / "home")
    ballast.leave(pages=0)
    said = one_sentence(fedshare("coordinator", "--home", home, "--port", 0, "--no-lineage"))
    assert str(home) in said
    with pytest.raises(CoordinatorError, match=str(tiny_disk)):
        open_home(tiny_disk / "new" / "home", small_spec())
    ballast.away()
    with Coordinator(home, "--no-lineage", log=tiny_disk.parent / "log") as coordinator:
        assert coordinator.status().head == 0


def test_journal_that_cannot_be_written_asks_for_another_try_and_keeps_nothing(small: Coordinator):
    """Not a full disk: what SQLite calls a disk I/O error."""
    journal = small.home / "journal.sqlite-wal"
    with RawWorker(small.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 1))
        header = raw.header(blob, base)
        unlimited = resource.prlimit(small.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(small.pid, resource.RLIMIT_FSIZE, (journal.stat().st_size, unlimited[1]))
        refused = raw.submit(header, blob)
        assert (refused.outcome, refused.is_transient, refused.position) == (pb.OUTCOME_RETRY_STORE, True, 0)
        assert refused.reason == (
            "the coordinator's store does not answer just now (disk I/O error): send it again later"
        )
        with small.client() as client, pytest.raises(WorkerError, match="store does not answer just now"):
            client.join("new", "task", "", raw.spec.base.fingerprint)
        resource.prlimit(small.pid, resource.RLIMIT_FSIZE, unlimited)
        assert raw.submit(header, blob).outcome == pb.OUTCOME_QUEUED
    assert small.drained().merged == 1


def test_wipe_that_finds_no_room_is_the_stores_trouble_and_is_done_with_room(tmp_path: Path):
    with open_home(small_home(tmp_path / "home")) as home:
        with writer(home.engine).begin() as connection:
            want(connection, WIPE_WANTED)
            connection.exec_driver_sql("CREATE TABLE wide AS SELECT randomblob(1000000) AS x")  # in the log alone yet
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (home.folder.joinpath("journal.sqlite").stat().st_size, unlimited[1]))
        try:
            with pytest.raises(TROUBLES, match="disk I/O error"):
                sweep_if_wanted(home.engine, home.blobs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        sweep_if_wanted(home.engine, home.blobs)
        assert (home.folder / "journal.sqlite-wal").stat().st_size < PAGE * 10
        with home.engine.connect() as connection:
            assert connection.execute(select(cursors.c.name)).all() == []
