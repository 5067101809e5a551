"""A home belongs to one federation and one coordinator; whatever is wrong with it is one sentence and exit code 2."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from forks import fedshare, fedshare_anew
from parts import (
    Coordinator,
    CoordinatorHere,
    RawWorker,
    journal_one,
    one_sentence,
    random_adapter,
    small_home,
    small_spec,
)
from servers import S3

from coordinator.blob_place import MARK, BlobPlace
from coordinator.blobs import Blobs
from coordinator.errors import CoordinatorError
from coordinator.home import open_home
from coordinator.process import serve
from coordinator.service import STOP_SECONDS_MAX
from coordinator.shelves import read_at
from protos.fedshare.v1 import federation_pb2 as pb


def refuses_to_start(home: Path, *options: object) -> str:
    return one_sentence(fedshare("coordinator", "--home", home, "--port", 0, "--no-lineage", *options))


def test_second_coordinator_on_a_home_is_refused_and_the_first_goes_on(shared_small: Coordinator):
    said = refuses_to_start(shared_small.home)
    assert said == (
        f"another coordinator (process {shared_small.pid} on {socket.gethostname()}) is running on {shared_small.home}:"
        " stop it, use another --home, or let a coordinator wait for it with --standby"
    )
    assert (shared_small.home / "address").read_text() == shared_small.address
    assert shared_small.status().head == 0


def test_home_is_free_again_after_its_coordinator_was_killed(shared_small: Coordinator):
    shared_small.kill()
    shared_small.start()
    assert shared_small.status().head == 0


def test_port_in_use_is_refused(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        home = small_home(tmp_path / "home")
        said = one_sentence(fedshare_anew("coordinator", "--home", home, "--port", port, "--no-lineage"))
    assert said == f"cannot listen on 127.0.0.1:{port}: the port is in use; choose another --port"
    assert not (tmp_path / "home" / "address").exists()


def test_port_in_use_is_refused_before_a_home_is_made(federation_toml: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = one_sentence(fedshare("coordinator", federation_toml, "--home", tmp_path / "home", "--port", port))
    assert said.startswith(f"cannot listen on 127.0.0.1:{port}: the port is in use")
    assert not (tmp_path / "home").exists()


def test_host_that_is_not_loopback_is_refused(tmp_path: Path):
    said = one_sentence(fedshare("coordinator", "--home", tmp_path / "home", "--host", "0.0.0.0"))
    assert said.startswith("refusing to listen on 0.0.0.0: ")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("host", ["::", "192.0.2.1", "example.org", "", "127.0.0.1.example.org"])
def test_no_spelling_of_another_host_is_served(tmp_path: Path, host: str):
    with pytest.raises(CoordinatorError, match=f"^refusing to listen on {host}: "):
        serve(tmp_path / "home", small_spec(), host=host, port=0)
    assert not (tmp_path / "home").exists()


def test_loopback_of_ipv6_is_served(tmp_path: Path):
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    with Coordinator(small_home(tmp_path / "home"), "--no-lineage", "--host", "::1") as coordinator:
        assert coordinator.address.startswith("[::1]:")
        assert coordinator.status().spec.name == "small"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def test_folder_that_is_no_home_needs_a_federation_file_and_stays_as_it_was(tmp_path: Path):
    home = tmp_path / "nothing"
    with pytest.raises(
        CoordinatorError, match=f"^{home} is not a coordinator's home: `fedshare coordinator FILE --home"
    ):
        open_home(home)
    assert not home.exists()


@pytest.mark.parametrize("home", ["file", "file/home"])
def test_home_that_is_a_file_or_below_one_is_refused(tmp_path: Path, home: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(CoordinatorError, match=f"^cannot use {tmp_path}/{home} as a home: "):
        open_home(tmp_path / home, small_spec())


def test_what_is_in_the_way_inside_a_home_is_named(tmp_path: Path):
    stray = small_home(tmp_path / "home") / "blobs-arriving" / "stray"
    stray.mkdir(parents=True)
    with pytest.raises(CoordinatorError, match=f"^cannot use {tmp_path}/home as a home: {stray}: "):
        open_home(tmp_path / "home")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A home that was made on a disk which cannot be written any more."""
    small_home(tmp_path / "disk" / "home")
    if os.geteuid():
        (tmp_path / "disk" / "home").chmod(0o500)
        yield tmp_path / "disk" / "home"
        (tmp_path / "disk" / "home").chmod(0o700)
        return
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", tmp_path / "disk", tmp_path / "disk"], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no read-only disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path / "disk" / "home"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_home_that_cannot_be_written_is_refused(read_only: Path):
    assert str(read_only) in refuses_to_start(read_only)


def test_journal_that_is_not_a_database_is_named(tmp_path: Path):
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(CoordinatorError, match=f"^{tmp_path}/journal.sqlite is damaged .file is not a database.: put"):
        open_home(tmp_path)


@pytest.mark.parametrize("table", ["federation", "journal", "versions"])
def test_journal_with_a_torn_page_is_named_and_what_to_do(tmp_path: Path, table: str):
    home = small_home(tmp_path / "home")
    journal_one(home, 1)
    tear(home, table)
    said = f"{home}/journal.sqlite is damaged (database disk image is malformed): put a copy of it in its place, and"
    assert refuses_to_start(home).startswith(said)
    assert one_sentence(fedshare("check", "--home", home)).startswith(said)


def test_journal_that_is_torn_while_it_is_used_asks_for_another_try_and_keeps_nothing(tmp_path: Path):
    home = small_home(tmp_path / "home")
    with CoordinatorHere(home) as coordinator, RawWorker(coordinator.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 1))
        tear(home, "journal")
        refused = raw.submit(raw.header(blob, base), blob)
    assert (refused.outcome, refused.is_transient, refused.position) == (pb.OUTCOME_RETRY_STORE, True, 0)
    assert refused.reason == (
        "the coordinator's store does not answer just now (database disk image is malformed): send it again later"
    )


def tear(home: Path, table: str) -> None:
    """The first page of a table, on the disk."""
    with closing(sqlite3.connect(home / "journal.sqlite")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(page,)] = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table])
        [(size,)] = database.execute("PRAGMA page_size")
    with (home / "journal.sqlite").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


CHANGES = {
    "name": ({"name": "other"}, "name is 'small' there and 'other' here"),
    "base": (
        {"base": pb.BaseModel(name="none", fingerprint="e" * 64)},
        f"base.fingerprint is '{'f' * 64}' there and '{'e' * 64}' here",
    ),
    "modules": (
        {"modules": [pb.TargetModule(name="encoder.a", out_features=12, in_features=10)]},
        "the number of base.target_modules is 2 there and 1 here",
    ),
    "rank": ({"rank": 8}, "subspace.rank is 4 there and 8 here"),
    "tolerance": ({"tolerance": 1.00001e-5}, "subspace.tolerance is 1e-05 there and 1.00001e-05 here"),
    "seed": ({"seed": 8}, "seed is 7 there and 8 here"),
    "start": ({"start": pb.Start(kind="START_KIND_SEED")}, "subspace.start is empty there and seed here"),
    "recipe": (
        {"recipe": pb.Recipe(epochs=2.5, batch_size=4, tokens_max=16)},
        "recipe.epochs is 1.0 there and 2.5 here; recipe.batch_size is 8 there and 4 here",
    ),
}


@pytest.mark.parametrize("field", CHANGES)
def test_home_of_another_federation_is_refused_with_what_differs(tmp_path: Path, field: str):
    home, other = small_home(tmp_path / "home"), small_spec()
    change, differs = CHANGES[field]
    other.ClearField(field)
    other.MergeFrom(pb.FederationSpec(**change))
    with pytest.raises(CoordinatorError) as raised:
        open_home(home, other)
    assert str(raised.value) == (
        f"{home} belongs to the federation 'small', and keeps what it was made with: {differs}:"
        " put that back in the file, start without the file, or use another --home"
    )
    with open_home(home) as opened:
        assert opened.spec.name == "small"


def test_home_of_another_federation_than_the_files_is_refused(tmp_path: Path, federation_toml: Path):
    home = small_home(tmp_path / "home")
    said = one_sentence(fedshare("coordinator", federation_toml, "--home", home, "--port", 0))
    assert said.startswith(
        f"{home} belongs to the federation 'small', and keeps what it was made with: name is 'small'"
    )
    assert "; and 7 more differ: put that back" in said


def test_policies_that_differ_are_told_one_by_one(tmp_path: Path):
    spec, other = small_spec(), small_spec()
    spec.policies.add(task="a", kind="POLICY_KIND_FEDASYNC", mixing=0.5)
    other.policies.add(task="a", kind="POLICY_KIND_FEDBUFF", mixing=0.5, staleness_max=0)
    with pytest.raises(CoordinatorError) as raised:
        open_home(small_home(tmp_path / "home", spec), other)
    assert (
        ": policies.0.kind is fedasync there and fedbuff here;"
        " policies.0.staleness_max is absent there and 0 here: put that back"
    ) in str(raised.value)


def test_home_keeps_its_federation_id_from_start_to_start(tmp_path: Path):
    home = small_home(tmp_path / "home")
    ids = set()
    for _ in range(2):
        with open_home(home, small_spec()) as opened:
            ids.add(opened.spec.federation_id)
    assert len(ids) == 1 and all(len(found) == 32 for found in ids)


# ---- where its blobs are ------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Path, Path]:
    """(home, its blobs): one version is merged, one update waits, and the coordinator was stopped."""
    home, blobs = tmp_path / "home", tmp_path / "elsewhere"
    with open_home(home, small_spec(), blobs=str(blobs)):
        pass
    with CoordinatorHere(home) as coordinator:
        with RawWorker(coordinator.address) as raw:
            raw.teach(random_adapter(raw.spec, 1))
        coordinator.drained()
    journal_one(home, 2)
    return home, blobs


def test_blobs_are_found_where_they_were_kept_before(elsewhere: tuple[Path, Path]):
    home, blobs = elsewhere
    assert fedshare("check", "--home", home).stdout == "4 blobs read, 0 bad; head 1, newest whole version 1\n"
    with CoordinatorHere(home) as coordinator:
        assert coordinator.drained().merged == 2
    assert not (home / "blobs").exists() and len(list(blobs.glob("*.safetensors"))) == 6


def test_another_place_for_blobs_is_refused_and_nothing_is_changed(elsewhere: tuple[Path, Path], tmp_path: Path):
    home, blobs = elsewhere
    before = dump(home)
    for other in (tmp_path / "other", home / "blobs"):
        said = refuses_to_start(home, "--blobs", other)
        assert said == (
            f"the blobs of {home} are at {blobs}, and 4 of them are not at {other}:"
            " leave --blobs out, or copy all of them there first"
        )
        assert one_sentence(fedshare("check", "--home", home, "--blobs", other)) == said
        assert not other.exists() and dump(home) == before
    blobs.rename(tmp_path / "away")
    assert refuses_to_start(home) == (
        f"the blobs of {home} are in {blobs}, which is not there: bring it back, or say with --blobs where they are now"
    )
    assert not blobs.exists() and dump(home) == before


def dump(home: Path) -> list[str]:
    """All that its database says, but of who holds it."""
    with sqlite3.connect(home / "journal.sqlite") as database:
        return [line for line in database.iterdump() if '"lease"' not in line]


def test_place_to_which_all_blobs_were_copied_is_taken_and_kept_in_mind(elsewhere: tuple[Path, Path], tmp_path: Path):
    home, blobs = elsewhere
    shutil.copytree(blobs, tmp_path / "moved")
    with open_home(home, blobs=str(tmp_path / "moved")):
        pass
    shutil.rmtree(blobs)
    with CoordinatorHere(home) as coordinator:
        assert coordinator.drained().merged == 2


def test_home_that_is_copied_with_its_blobs_uses_its_own(tmp_path: Path):
    home = small_home(tmp_path / "home")
    header = journal_one(home, 1)
    shutil.copytree(home, tmp_path / "copy")
    shutil.rmtree(home)
    for options in ({}, {"blobs": str(tmp_path / "copy" / "blobs")}):
        with open_home(tmp_path / "copy", **options) as opened:
            assert opened.blobs.path(header.digest) == tmp_path / "copy" / "blobs" / f"{header.digest}.safetensors"
            assert opened.blobs.get(header.digest)


@pytest.fixture(params=["folder", "bucket"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that two federations are told to use."""
    return str(tmp_path / "shared") if request.param == "folder" else request.getfixturevalue("s3").folder()


def test_second_federation_at_a_place_for_blobs_is_refused_and_takes_nothing(tmp_path: Path, shared: str):
    with open_home(tmp_path / "first", small_spec("first"), blobs=shared) as first:
        digest = first.blobs.put(b"kept")
    with open_home(tmp_path / "second", small_spec("second")):
        pass
    before = dump(tmp_path / "second")
    with pytest.raises(CoordinatorError) as raised:
        open_home(tmp_path / "second", blobs=shared)
    assert str(raised.value) == (
        f"{shared} holds the blobs of another federation, whose sweeps would delete those of {tmp_path}/second:"
        " copy these to a place of their own, without the file 'federation', and say it with --blobs"
    )
    with pytest.raises(CoordinatorError) as raised:
        open_home(tmp_path / "third", small_spec("third"), blobs=shared)
    assert str(raised.value) == f"{shared} holds the blobs of another federation: say another place with --blobs"
    with open_home(tmp_path / "third", small_spec("third")):  # nothing was made of it there
        pass
    with open_home(tmp_path / "first") as first:
        assert first.blobs.sweep(lambda: {digest}, lambda: None) == 0
    assert dump(tmp_path / "second") == before
    with open_home(tmp_path / "first") as first:  # a sweep has not taken the mark away
        assert read_at(shared, MARK) == f"{first.spec.federation_id}\n".encode()


def test_place_that_nobody_has_marked_is_marked_by_the_federation_that_is_there(tmp_path: Path, shared: str):
    """One of an older release, or one that was killed before it had marked its place."""
    with open_home(tmp_path / "first", small_spec("first"), blobs=shared) as first:
        first.blobs.put(b"kept")
        first.blobs._shelf.delete(MARK)
    with pytest.raises(CoordinatorError) as raised:
        open_home(tmp_path / "second", small_spec("second"), blobs=shared)
    assert str(raised.value) == (
        f"{shared} holds blobs already, and does not say whose they are: say another place with --blobs"
    )
    assert read_at(shared, MARK) is None
    with open_home(tmp_path / "first") as first:
        assert read_at(shared, MARK) == f"{first.spec.federation_id}\n".encode()


def test_password_in_the_url_of_blobs_is_not_kept_and_not_shown(tmp_path: Path, s3: S3):
    """s3:// itself takes it for a part of the bucket's name."""
    url, shown = "s3://me:hush@bucket/of/mine/", "s3://me@bucket/of/mine"
    assert BlobPlace("home", tmp_path / "home", url, is_shared=False).to_record == shown
    assert Blobs(url).where("f" * 64) == f"{shown}/{'f' * 64}.safetensors"
    with pytest.raises(CoordinatorError, match=rf"^cannot use the blobs of {tmp_path}/home \({shown}: ") as raised:
        open_home(tmp_path / "home", small_spec(), blobs=url)
    assert "hush" not in str(raised.value) and "hush" not in str(dump(tmp_path / "home"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_coordinator_ends_well_and_takes_its_address_away(small: Coordinator, number: signal.Signals):
    with small.client() as client:
        watch = client.watch()
        assert next(watch).version == 0  # somebody is watching, and is not waited for
        asked = time.monotonic()
        assert small.stop(number) == 0
        assert time.monotonic() - asked < STOP_SECONDS_MAX
    assert not (small.home / "address").exists()
    assert "Traceback" not in small.log()
