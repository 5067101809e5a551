"""A blob is whole under its digest or not there; damage is found by the digest, and named."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from parts import Coordinator, RawWorker, flip_a_byte, random_adapter, small_home

from coordinator.blobs import Blobs
from coordinator.errors import CoordinatorError
from protos.chunks import digest_of
from workers.errors import WorkerError


def test_blob_is_found_under_its_digest(tmp_path: Path):
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"content")
    assert digest == digest_of(b"content") and blobs.get(digest) == b"content"


def test_same_blob_is_kept_once(tmp_path: Path):
    blobs = Blobs(tmp_path)
    assert blobs.put(b"content") == blobs.put(b"content")
    assert len(list(tmp_path.iterdir())) == 1


def test_flipped_byte_is_found_and_the_file_is_named(tmp_path: Path):
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"content")
    flip_a_byte(blobs.path(digest))
    with pytest.raises(CoordinatorError, match=f"{digest}.safetensors is damaged"):
        blobs.get(digest)


def test_damaged_blob_that_comes_again_is_mended(tmp_path: Path):
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"content")
    flip_a_byte(blobs.path(digest))
    assert blobs.put(b"content") == digest
    assert blobs.get(digest) == b"content"


def test_missing_blob_is_named(tmp_path: Path):
    with pytest.raises(CoordinatorError, match=f"{'a' * 64}.safetensors is missing"):
        Blobs(tmp_path).get("a" * 64)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOTDIR, errno.EUCLEAN])
def test_blob_that_cannot_be_read_is_damaged_and_mended_when_it_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"content")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", partial(says, number))
        with pytest.raises(CoordinatorError, match=rf"{digest}.safetensors is damaged: it cannot be read \("):
            blobs.get(digest)
        blobs.path(digest).write_bytes(b"c0ntent")
        assert blobs.put(b"content") == digest
    assert blobs.get(digest) == b"content"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT])
def test_store_that_cannot_be_read_just_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"content")
    monkeypatch.setattr(Path, "read_bytes", partial(says, number))
    with pytest.raises(OSError, match=os.strerror(number)):
        blobs.get(digest)


def says(number: int, *_: object) -> NoReturn:
    raise OSError(number, os.strerror(number))


def test_blob_is_on_disk_before_it_has_its_name_and_its_name_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    blobs, steps = Blobs(tmp_path / "blobs"), []

    def seen(name: str, what: Callable[..., str]) -> None:
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given: (steps.append(what(*given)), real(*given))[1])

    seen("fsync", lambda handle: f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).suffix or 'folder'}")
    seen("rename", lambda old, new: f"rename {Path(old).suffix} {Path(new).suffix}")
    blobs.put(b"content")
    assert steps == ["fsync .part", "rename .part .safetensors", "fsync folder"]
    steps.clear()
    blobs.put(b"content")  # whoever put it there before may not have come as far as to sync the folder
    assert steps == ["fsync folder"]


def test_what_a_sweep_deletes_is_gone_from_both_folders_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blobs, steps = Blobs(tmp_path / "blobs"), []
    kept, _ = blobs.put(b"kept"), blobs.put(b"goes")
    (tmp_path / "blobs-aside").mkdir()  # an older release's
    real = os.unlink, os.fsync
    monkeypatch.setattr(os, "unlink", lambda path, **at: (steps.append("unlink"), real[0](path, **at))[1])
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (steps.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name), real[1](handle))[1],
    )
    assert blobs.sweep(lambda: {kept}, lambda: None) == 1
    assert steps[0] == "unlink" and sorted(steps[1:]) == ["blobs", "blobs-aside"]


def test_torn_files_are_cleared_away_at_the_start(tmp_path: Path):
    home = small_home(tmp_path / "home")
    torn, whole = home / "blobs-arriving" / "tmpabc.part", home / "blobs" / f"{digest_of(b'x')}.safetensors"
    torn.write_bytes(b"half of a bl")
    whole.write_bytes(b"x")
    with Coordinator(home, "--no-lineage"):
        assert not torn.exists() and whole.exists()


def test_fetch_of_a_damaged_blob_names_it_and_the_rest_is_still_served(small: Coordinator):
    with RawWorker(small.address) as raw:
        for seed in range(2):
            raw.teach(random_adapter(raw.spec, seed), task=f"task-{seed}")
        small.drained()
        manifest, _ = raw.client.fetch(None, every_task=True)
        damaged = manifest.tasks[0].entry.digest
        flip_a_byte(small.home / "blobs" / f"{damaged}.safetensors")
        with small.client() as client:
            with pytest.raises(WorkerError, match=f"DATA_LOSS.*{damaged}.safetensors is damaged"):
                client.fetch(None, tasks=["task-0"])
            _, blobs = client.fetch(None, tasks=["task-1"])
    assert manifest.tasks[1].entry.digest in blobs and damaged not in blobs
