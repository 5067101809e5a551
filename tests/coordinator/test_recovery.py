"""A damaged or missing blob is named, the last good version is served, and with the blob back the work goes on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from forks import fedshare
from learning import Learning
from parts import (
    CoordinatorHere,
    RawWorker,
    dense,
    dense_adapter,
    flip_a_byte,
    honest_header,
    journal_one,
    one_sentence,
    random_adapter,
    receiver_of,
    relative_error,
    small_home,
    until,
)

from coordinator import batch
from coordinator.catalog import Catalog
from coordinator.home import open_home
from protos.fedshare.v1 import federation_pb2 as pb


@pytest.fixture
def stopped(tmp_path: Path) -> CoordinatorHere:
    """A coordinator that has merged the tasks 0, 1 and 2 into versions 1, 2 and 3, and was stopped."""
    with CoordinatorHere(small_home(tmp_path / "home")) as coordinator:
        with RawWorker(coordinator.address) as raw:
            for seed in range(3):
                raw.teach(random_adapter(raw.spec, seed), task=f"{seed}")
                coordinator.drained()
        assert coordinator.stop() == 0
    return coordinator


def blob_of_head(coordinator: CoordinatorHere, part: str) -> Path:
    """The file of the newest block, or of the coefficients of the newest task."""
    with coordinator as running, running.client() as client:
        manifest, _ = client.fetch(3, tasks=["2"], manifest_only=True)
    digest = manifest.blocks[-1].digest if part == "block" else manifest.tasks[0].entry.digest
    return coordinator.home / "blobs" / f"{digest}.safetensors"


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def make_unreadable(file: Path) -> None:
    """As it is on a bad sector, but for the number of the error."""
    file.unlink()
    file.mkdir()


def bring_back(copy: Path, file: Path) -> None:
    if file.is_dir():
        file.rmdir()
    shutil.copy(copy, file)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip_a_byte,
    "cut": cut_in_half,
    "missing": Path.unlink,
    "unreadable": make_unreadable,
}


def test_update_that_cannot_be_stored_is_skipped_and_nothing_of_it_stays(
    here: CoordinatorHere, monkeypatch: pytest.MonkeyPatch
):
    learning = Learning(here)
    learning.learn("a", base=0)
    before = learning.everything()[0].blocks
    with monkeypatch.context() as patch:
        patch.setattr(batch, "encoded", lambda learned: 1 / 0)
        learning.learn("b", base=0)
    assert learning.verdict("b").reason == "internal error: ZeroDivisionError: division by zero"
    learning.learn("c", base=0)
    assert [learning.outcome(task) for task in "abc"] == [
        pb.OUTCOME_MERGED, pb.OUTCOME_SKIPPED, pb.OUTCOME_MERGED]  # fmt: skip
    assert len(learning.everything()[0].blocks) == len(before) + 1 and sorted(learning.dense()) == ["a", "c"]


def test_writer_that_meets_a_mistake_of_ours_says_so_and_goes_on(
    here: CoordinatorHere, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def mistaken(*_: object) -> NoReturn:
        raise ZeroDivisionError("a mistake")

    with RawWorker(here.address) as raw:
        with monkeypatch.context() as broken:
            broken.setattr("coordinator.integrate.RETRY_SECONDS", 0.05)
            broken.setattr(Catalog, "publish", mistaken)
            receipt = raw.teach(random_adapter(raw.spec, 1))
            waiting = until(lambda: here.status().waiting, "it says what it waits for")
            assert waiting == "internal error: ZeroDivisionError: a mistake"
            assert (here.status().head, here.status().queued) == (0, 1)
        assert here.drained().merged == 1 and here.status().waiting == ""
    assert [r.update_id for r in here.versions()] == [receipt.update_id]
    assert "test_recovery.py" in caplog.text  # with its traceback: it is ours to mend


@pytest.mark.parametrize("damage", DAMAGES)
def test_last_good_version_is_served_while_a_block_of_the_head_is_bad(
    stopped: CoordinatorHere, damage: str, caplog: pytest.LogCaptureFixture
):
    block = blob_of_head(stopped, "block")
    copy = shutil.copy(block, stopped.home / "copy")
    DAMAGES[damage](block)
    with stopped, RawWorker(stopped.address) as raw:
        manifest, blobs = raw.client.fetch(None, every_task=True)
        assert (manifest.version, sorted(t.task for t in manifest.tasks)) == (2, ["0", "1"])
        status = stopped.status()
        assert block.name in status.waiting and (status.head, status.queued) == (3, 0)
        assert f"version 2 is served, nothing is merged: {block}" in caplog.text
        assert next(raw.client.watch()).version == 2
        receipt = raw.teach(random_adapter(raw.spec, 9), task="late")  # made for version 2, and safe
        assert stopped.status().queued == 1
        bring_back(copy, block)
        until(lambda: stopped.status().merged == 4, "merging goes on")
        assert stopped.status().waiting == ""
        assert [r.update_id for r in stopped.versions()][-1] == receipt.update_id
        manifest, blobs = raw.client.fetch(None, every_task=True)
    for task, seed in {"0": 0, "1": 1, "2": 2, "late": 9}.items():
        wanted = dense_adapter(random_adapter(raw.spec, seed))
        assert relative_error(wanted, dense(manifest, blobs, task)) < 2e-5


def test_update_for_a_version_of_which_a_block_is_bad_comes_again_when_the_file_is_back(stopped: CoordinatorHere):
    block = blob_of_head(stopped, "block")
    with stopped, RawWorker(stopped.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 9))
        stopped.stop()
    copy = shutil.copy(block, stopped.home / "copy")
    flip_a_byte(block)
    with stopped, RawWorker(stopped.address) as raw:
        header = raw.header(blob, base, task="late")
        receipt = raw.submit(header, blob)
        assert (base, receipt.outcome, receipt.is_transient) == (3, pb.OUTCOME_RETRY_STORE, True)
        assert receipt.reason.startswith(f"{block} is damaged: ") and "\n" not in receipt.reason
        shutil.copy(copy, block)
        assert raw.submit(header, blob).outcome == pb.OUTCOME_QUEUED


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_task_that_only_a_bad_head_has_is_refused_with_the_reason_and_what_can_be_had(
    stopped: CoordinatorHere, damage: str, tmp_path: Path
):
    block = blob_of_head(stopped, "block")
    DAMAGES[damage](block)
    why = {
        "flipped": f"{block} is damaged: its bytes do not have the digest that is its name:",
        "missing": f"{block} is missing:",
    }
    export = ("export", "--task", "2", "--to", tmp_path / "lora")
    with stopped:
        said = one_sentence(fedshare(*export, "-c", stopped.address))
        of_old = one_sentence(fedshare(*export, "--version", 1, "-c", stopped.address))
    assert said == (
        f"version 3 cannot be read ({why[damage]} restore it from a copy of this home); version 2, which is served"
        " meanwhile, has no task '2'; it has: 0, 1"
    )
    assert of_old == "version 1 has no task '2'; it has: 0"


def test_check_names_what_is_bad_and_the_newest_version_that_is_whole(stopped: CoordinatorHere):
    entry = blob_of_head(stopped, "entry")
    found = fedshare("check", "--home", stopped.home)
    assert (found.returncode, found.stdout) == (0, "9 blobs read, 0 bad; head 3, newest whole version 3\n")
    flip_a_byte(entry)
    found = fedshare("check", "--home", stopped.home)
    assert found.returncode == 1
    assert f"task 2 from version 3 on: {entry} is damaged" in found.stdout
    assert found.stdout.endswith("9 blobs read, 1 bad; head 3, newest whole version 2\n")
    [bad] = json.loads(fedshare("check", "--home", stopped.home, "--json").stdout)["bad"]
    assert bad["digest"] == entry.stem


def test_check_needs_a_home_that_nobody_uses(stopped: CoordinatorHere):
    with stopped:
        assert one_sentence(fedshare("check", "--home", stopped.home)).startswith("another coordinator (")


def test_merging_goes_on_where_only_a_tasks_coefficients_are_bad(stopped: CoordinatorHere):
    entry = blob_of_head(stopped, "entry")
    flip_a_byte(entry)
    with stopped, RawWorker(stopped.address) as raw:
        assert raw.teach(random_adapter(raw.spec, 2), task="2", base_version=3).outcome == pb.OUTCOME_QUEUED
        assert stopped.drained().merged == 4 and stopped.status().waiting == ""
        manifest, blobs = raw.client.fetch(None, every_task=True)
    assert relative_error(dense_adapter(random_adapter(raw.spec, 2)), dense(manifest, blobs, "2")) < 2e-5


def test_damaged_update_is_skipped_with_its_file_named_and_comes_again_whole(stopped: CoordinatorHere):
    with stopped, RawWorker(stopped.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 5))
        header = raw.header(blob, base, task="5")

    with open_home(stopped.home) as home:
        receiver_of(home).accept(honest_header(home.spec, blob, **fields(header)), blob)
        flip_a_byte(home.blobs.path(header.digest))
    with stopped, RawWorker(stopped.address) as raw:
        assert stopped.drained().skipped == 1
        assert f"{header.digest}.safetensors is damaged" in raw.client.story(header.update_id).verdict.reason
        again = raw.submit(raw.header(blob, base, task="5"), blob)
        assert again.outcome == pb.OUTCOME_QUEUED and stopped.drained().merged == 4


def test_nothing_is_skipped_while_the_folder_of_blobs_is_away(here: CoordinatorHere, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coordinator.integrate.RETRY_SECONDS", 0.05)
    blobs, away, gate = here.home / "blobs", here.home / "away", threading.Event()
    consider = batch.Batch.draft

    def later(self: batch.Batch, positions: object) -> object:
        gate.wait(30)
        return consider(self, positions)  # type: ignore[arg-type]

    monkeypatch.setattr(batch.Batch, "draft", later)
    with RawWorker(here.address) as raw:
        raw.teach(random_adapter(raw.spec, 1))
    blobs.rename(away)
    gate.set()
    waiting = until(lambda: here.status().waiting, "it says what it waits for")
    assert waiting == f"{blobs} cannot be read: No such file or directory"
    assert (here.status().skipped, here.status().queued) == (0, 1)
    away.rename(blobs)
    assert here.drained().merged == 1


def test_update_that_cannot_be_read_is_skipped_with_its_file_named_and_the_next_is_merged(tmp_path: Path):
    home = small_home(tmp_path / "home")
    header = journal_one(home, 1)
    file = home / "blobs" / f"{header.digest}.safetensors"
    make_unreadable(file)
    with CoordinatorHere(home) as coordinator, RawWorker(coordinator.address, "other", "other") as raw:
        raw.teach(random_adapter(raw.spec, 3))
        status = coordinator.drained()
        assert (status.merged, status.skipped, status.waiting) == (1, 1, "")
        reason = raw.client.story(header.update_id).verdict.reason
        assert f"{file} is damaged: it cannot be read (Is a directory): restore it from a copy of this home" in reason


def fields(header: pb.UpdateHeader) -> dict[str, object]:
    return {"update_id": header.update_id, "task": header.task, "base_version": header.base_version, "incarnation": 2}
