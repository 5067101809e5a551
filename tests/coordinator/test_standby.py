"""A second coordinator takes over within seconds when the first dies or hangs; two never both write."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from forks import fedshare, fedshare_process
from parts import Coordinator, RawWorker, honest_blob, one_sentence, random_adapter, small_home, small_spec, until
from servers import S3, Postgres, free_port
from sqlalchemy import Engine

from coordinator.blob_place import BlobPlace
from coordinator.errors import CoordinatorError
from coordinator.home import open_home
from coordinator.lease import LEASE_SECONDS_MAX
from coordinator.process import serve
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis
from workers.client import Client
from workers.errors import WorkerError

TAKES_OVER_SECONDS_MAX = 20.0
"""Far more than it takes: these processes share two cores with other tests."""


class Standing:
    """`fedshare coordinator --standby` at an address of its own; kill -9 ends it."""

    def __init__(self, home: Path, options: list[str], log: Path):
        self.address, self.log_file = f"127.0.0.1:{free_port()}", log
        port = self.address.rpartition(":")[2]
        command = ("coordinator", "--home", home, "--port", port, "--no-lineage", "--standby", *options)
        self.process = fedshare_process(*command, out=log, err=log)

    def serves(self) -> pb.StatusReply | None:
        assert self.process.exitcode is None, self.log_file.read_text()
        try:
            with Client(self.address) as client:
                return client.status()
        except WorkerError:
            return None

    def stands_by(self) -> bool:
        return self.log_file.exists() and "standing by" in self.log_file.read_text()

    def ends_with(self) -> int | None:
        self.process.join(TAKES_OVER_SECONDS_MAX)
        return self.process.exitcode


class Group:
    """Coordinators of one federation, on one home or on homes of their own that share a store."""

    def __init__(self, folder: Path, store: str = ""):
        self.folder, self.store, self.members = folder, store, list[Standing]()
        self._options = ["--store", store, "--blobs", f"file://{folder / 'shared'}"] if store else []
        if store:
            with open_home(folder / "first", small_spec(), store=store, blobs=self._options[-1]):
                pass
        else:
            small_home(folder / "home")

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.process.kill()
            member.process.join()

    def add(self) -> Standing:
        number = len(self.members)
        home = self.folder / (f"home-{number}" if self.store else "home")
        self.members.append(Standing(home, self._options, self.folder / f"log-{number}"))
        return self.members[-1]

    def pair(self) -> tuple[Standing, Standing]:
        """(the one that serves, one that stands by)"""
        first = self.add()
        until(first.serves, "the first serves")
        second = self.add()
        until(second.stands_by, "the second stands by")
        return first, second

    @property
    def addresses(self) -> str:
        return ",".join(member.address for member in self.members)

    def stop_outside_a_transaction(self, standing: Standing) -> None:
        """SIGSTOP. A process that is stopped while it has SQLite's own lock would keep it: nobody could take over."""
        while True:
            os.kill(standing.process.pid, signal.SIGSTOP)
            if self.store or _can_write(self.folder / "home" / "journal.sqlite"):
                return
            os.kill(standing.process.pid, signal.SIGCONT)
            time.sleep(0.05)


def _can_write(database: Path) -> bool:
    connection = sqlite3.connect(database, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        return True
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    store = request.getfixturevalue("postgres").database() if request.param == "postgresql" else ""
    with Group(tmp_path, store) as group:
        yield group


@pytest.fixture
def on_postgres(tmp_path: Path, postgres: Postgres) -> Iterator[Group]:
    with Group(tmp_path, postgres.database()) as group:
        yield group


def test_standby_takes_over_from_one_that_was_killed_and_the_update_in_hand_is_merged_once(group: Group):
    first, second = group.pair()
    sent, done = [], threading.Event()

    def work() -> None:
        """Sends one update after the other, and each twice."""
        with RawWorker(group.addresses) as raw:
            while not done.is_set() or len(sent) < 4:
                blob = honest_blob(raw.spec, random_adapter(raw.spec, len(sent)), Basis())
                header = raw.header(blob, 0, task=f"task-{len(sent)}")
                receipts = [raw.client.submit(header, blob) for _ in range(2)]
                assert receipts[0].position == receipts[1].position and receipts[1].repeated
                sent.append(receipts[0])

    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: len(sent) >= 2, "two receipts")
    first.process.kill()
    began = time.monotonic()
    until(second.serves, "the other serves", TAKES_OVER_SECONDS_MAX)
    assert time.monotonic() - began < TAKES_OVER_SECONDS_MAX
    before = len(sent)
    until(lambda: len(sent) >= before + 2, "two receipts more")
    done.set()
    worker.join(60)
    until(lambda: second.serves().queued == 0, "the queue drains")
    with Client(group.addresses) as client:
        merged = [record.update_id for record in client.versions(1)]
    assert merged == [receipt.update_id for receipt in sent]
    assert [receipt.position for receipt in sent] == list(range(1, len(sent) + 1))


def test_standby_takes_over_from_one_that_hangs_which_then_writes_nothing_and_ends(group: Group):
    first, second = group.pair()
    with RawWorker(first.address) as old:
        blob = honest_blob(old.spec, random_adapter(old.spec, 1), Basis())
        headers = [old.header(blob, 0, task=f"task-{n}") for n in range(2)]
        assert old.submit(headers[0], blob).position == 1
        group.stop_outside_a_transaction(first)
        hanging = old.stub.Submit.future(
            iter([pb.SubmitRequest(header=headers[1]), pb.SubmitRequest(chunk=blob)]), timeout=60
        )
        until(second.serves, "the other serves", LEASE_SECONDS_MAX + TAKES_OVER_SECONDS_MAX)
        os.kill(first.process.pid, signal.SIGCONT)
        with pytest.raises(grpc.RpcError) as refused:
            hanging.result()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert first.ends_with() == 2
    last = first.log_file.read_text().splitlines()[-1]
    assert re.fullmatch(r"error: another coordinator \(process \d+ on .*\) has taken over: this one has ended", last)
    assert "Traceback" not in first.log_file.read_text()
    until(lambda: second.serves().queued == 0, "the queue drains")
    assert second.serves().merged == 1  # what the old one was sent after its time is nowhere
    with Client(second.address) as client:
        assert client.submit(headers[1], blob).position == 2
    if not group.store:
        assert (group.folder / "home" / "address").read_text() == second.address


def test_those_that_stand_by_wait_while_the_first_lives_and_exactly_one_takes_over(group: Group):
    first, second = group.pair()
    third = group.add()
    until(third.stands_by, "the third stands by")
    time.sleep(LEASE_SECONDS_MAX + 1)
    assert first.serves() and not second.serves() and not third.serves()
    first.process.kill()
    winner = until(lambda: [one for one in (second, third) if one.serves()], "one serves", TAKES_OVER_SECONDS_MAX)
    time.sleep(2)
    assert [one for one in (second, third) if one.serves()] == winner
    [loser] = {second, third} - set(winner)
    assert loser.log_file.read_text().count("\n") == 1
    os.kill(loser.process.pid, signal.SIGINT)
    assert loser.ends_with() == 130


def test_one_that_is_overtaken_before_it_serves_writes_nothing_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home, real = small_home(tmp_path / "home"), BlobPlace.find

    def find(place: BlobPlace, engine: Engine) -> str:
        """It was stopped for so long."""
        with closing(sqlite3.connect(home / "journal.sqlite")) as database, database:
            database.execute("UPDATE lease SET token = token + 1, holder = 'process 1 on another'")
        return real(place, engine)

    monkeypatch.setattr(BlobPlace, "find", find)
    (tmp_path / "moved").mkdir()  # which would be written down
    with pytest.raises(CoordinatorError, match=r"^another coordinator \(process 1 on another\) has taken over: "):
        serve(home, None, host="127.0.0.1", port=0, blobs=str(tmp_path / "moved"))


def test_standby_whose_port_is_taken_says_so_before_it_is_needed(small: Coordinator):
    with pytest.raises(CoordinatorError, match=f"^cannot listen on {small.address}: the port is in use"):
        serve(small.home, None, host="127.0.0.1", port=small.port, standby=True)


def test_standby_that_lacks_the_base_model_says_so_before_it_is_needed(small: Coordinator):
    def find(spec: pb.FederationSpec):
        raise CoordinatorError(f"no model for {spec.federation_id}")

    federation = small.status().spec.federation_id
    with pytest.raises(CoordinatorError, match=f"^no model for {federation}$"):
        serve(small.home, None, host="127.0.0.1", port=free_port(), standby=True, find_weights=find)


def test_who_stands_by_a_home_that_is_not_there_yet_prepares_for_what_it_was_told(
    tmp_path: Path, place: dict[str, str]
):
    seen: list[pb.FederationSpec] = []
    for wanted in (small_spec(), None):
        with open_home(tmp_path, wanted, standby=True, prepare=seen.append, **place) as home:
            assert home.spec.federation_id
    assert seen[0] == small_spec() or seen[0] == home.spec  # a database that was copied knows it already
    assert seen[1] == home.spec
    with open_home(tmp_path, prepare=seen.append, **place):
        assert len(seen) == 2


def test_coordinator_outlives_a_database_that_goes_away_and_comes_back(on_postgres: Group, postgres: Postgres):
    first = on_postgres.add()
    until(first.serves, "it serves")
    with RawWorker(first.address) as raw:
        blob = honest_blob(raw.spec, random_adapter(raw.spec, 1), Basis())
        postgres.stop()
        try:
            receipt = raw.submit(raw.header(blob), blob)
            assert (receipt.outcome, receipt.is_transient, receipt.position) == (pb.OUTCOME_RETRY_STORE, True, 0)
            assert receipt.reason.startswith("the coordinator's store does not answer just now (")
            assert "\n" not in receipt.reason
            with Client(first.address) as client, pytest.raises(WorkerError, match="store does not answer just now"):
                client.status()
        finally:
            postgres.start()
        assert raw.client.submit(raw.header(blob), blob).position == 1
        until(lambda: first.serves().merged == 1, "it is merged")
    assert "Traceback" not in first.log_file.read_text()


def test_connections_that_the_database_ends_are_made_anew(on_postgres: Group, postgres: Postgres):
    first = on_postgres.add()
    until(first.serves, "it serves")
    with RawWorker(first.address) as raw:
        for n in range(3):
            postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fedshare'")
            blob = honest_blob(raw.spec, random_adapter(raw.spec, n), Basis())
            assert raw.submit(raw.header(blob, task=f"task-{n}"), blob).position == n + 1  # without any patience
    until(lambda: first.serves().merged == 3, "all are merged")


def test_store_that_cannot_be_used_is_one_sentence_without_its_password(tmp_path: Path):
    for store, said in (
        (f"postgresql://me:hush@127.0.0.1:{free_port()}/db", "cannot use postgresql://me:***@127.0.0.1:"),
        ("mysql://me:hush@127.0.0.1/db", "a --store looks like postgresql://user@host/database"),
        ("somewhere", "a --store looks like postgresql://user@host/database"),
    ):
        with pytest.raises(CoordinatorError) as raised:
            open_home(tmp_path, small_spec(), store=store)
        assert str(raised.value).startswith(said) and "hush" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_bucket_that_is_away_at_the_start_is_one_sentence(tmp_path: Path, s3: S3):
    url, endpoint = s3.folder(), f"http://127.0.0.1:{free_port()}"
    away = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with open_home(tmp_path / "home", small_spec(), blobs=url):
        pass
    started = ("coordinator", "--home", tmp_path / "home", "--blobs", url, "--port", 0, "--no-lineage")
    said = one_sentence(fedshare(*started, **away))
    assert said.startswith(f"cannot use the blobs of {tmp_path}/home ({url}: EndpointConnectionError: ")
    assert endpoint in said and said.endswith("): start again later")


def test_blobs_at_a_url_that_promises_too_little_are_refused(tmp_path: Path):
    for url in ("memory://x", "ftp://host/x", "nonsense://x"):
        with pytest.raises(CoordinatorError, match=f"^blobs cannot be kept at {url}: use one of file://, s3://"):
            open_home(tmp_path, small_spec(), blobs=url)


@pytest.mark.parametrize("url", ["s3://", "file://"])
def test_url_that_names_no_bucket_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CoordinatorError, match=f"^blobs cannot be kept at {url}: it names no bucket and no folder"):
        open_home(tmp_path / "home", small_spec(), blobs=url)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "home"])
