"""A parcel is whole on the disk or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protos.chunks import digest_of
from workers.errors import WorkerError
from workers.home import BlobCache, Home
from workers.outbox import Outbox, Parcel

LOGITS = torch.arange(6.0).reshape(3, 2)


def put(outbox: Outbox, blob: bytes = b"update") -> Parcel:
    return outbox.put("task", 7, blob, digest_of(blob), ("no", "yes"), {"accuracy_when_learned": 0.5}, LOGITS)


def test_parcel_comes_back_word_for_word(tmp_path: Path):
    sent = put(Outbox(tmp_path))
    [found] = Outbox(tmp_path).parcels()
    assert found == sent and found.blob() == b"update"
    assert (found.header.base_version, found.header.labels, found.header.nbytes) == (7, ["no", "yes"], 6)
    assert torch.equal(found.trained_logits(), LOGITS)


def test_parcels_come_oldest_first_each_with_an_id_of_its_own(tmp_path: Path):
    outbox = Outbox(tmp_path)
    ids = [put(outbox, blob).header.update_id for blob in (b"a", b"b", b"c")]
    assert [p.header.update_id for p in outbox.parcels()] == ids and len(set(ids)) == 3


def test_torn_parcel_is_cleared_away_and_a_whole_one_stays(tmp_path: Path):
    whole, torn = put(Outbox(tmp_path)), put(Outbox(tmp_path))
    (torn.folder / "header.json").unlink()
    (torn.folder / "header.part").write_text("{")
    assert Outbox(tmp_path).parcels() == [whole]
    assert list(tmp_path.iterdir()) == [whole.folder]


def test_parcel_that_is_done_is_gone(tmp_path: Path):
    outbox = Outbox(tmp_path)
    outbox.done(put(outbox))
    assert outbox.parcels() == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "{", '{"update_id": 3}'])
def test_damaged_header_is_named(tmp_path: Path, damage: str):
    parcel = put(Outbox(tmp_path))
    (parcel.folder / "header.json").write_text(damage)
    with pytest.raises(WorkerError, match=f"{parcel.folder}/header.json is damaged: move {parcel.folder} away"):
        Outbox(tmp_path).parcels()


def test_missing_or_changed_update_is_named(tmp_path: Path):
    parcel = put(Outbox(tmp_path))
    for damage in (lambda file: file.write_bytes(b"updatf"), Path.unlink):
        damage(parcel.folder / "update.safetensors")
        with pytest.raises(WorkerError, match=f"{parcel.folder}/update.safetensors is damaged"):
            parcel.blob()


def test_outbox_on_a_full_disk_is_one_sentence_and_leaves_nothing(tiny_disk: Path):
    outbox = Outbox(tiny_disk / "outbox")
    with pytest.raises(WorkerError, match=f"^cannot keep the result in {tiny_disk}/outbox: No space left on device$"):
        put(outbox, bytes(9 << 20))
    assert list(outbox.folder.iterdir()) == []
    assert put(outbox, bytes(1 << 20)).blob() == bytes(1 << 20)


def test_blobs_on_a_full_disk_are_one_sentence_and_leave_nothing(tiny_disk: Path):
    cache, blob = BlobCache(tiny_disk / "blobs"), bytes(9 << 20)
    with pytest.raises(WorkerError, match=f"^cannot write {tiny_disk}/blobs/.*: No space left on device$"):
        cache.put(digest_of(blob), blob)
    assert list(cache.folder.iterdir()) == []


def test_home_below_a_file_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkerError, match=f"^cannot use {tmp_path}/file/home as a home: Not a directory$"):
        Home(tmp_path / "file" / "home").__enter__()


def test_refused_update_that_the_disk_does_not_take_is_one_sentence_and_stays_in_the_outbox(tmp_path: Path):
    with Home(tmp_path) as home:
        parcel = put(home.outbox)
        (tmp_path / "refused").write_text("a file")
        with pytest.raises(WorkerError, match=r"cannot keep a refused update in .*: File exists"):
            home.set_aside(parcel)
        assert home.outbox.parcels() == [parcel]
