"""A subspace in a folder: bitwise, all at once, and never more than the index says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from algebra_samples import adapter, bits, subspace
from forks import forked
from hypothesis import given, settings
from hypothesis import strategies as st

from share_algo import Adapter, AlgebraError, Subspace, compact, merge, remove


def sample() -> Subspace:
    shapes = {"encoder.q": (14, 10)}
    return subspace([adapter(1, head=True), adapter(2, 1, shapes), Adapter(adapter(3).factors, {}, {"task_type": "X"})])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_load_gives_bitwise_what_was_saved(tmp_path_factory, seed, tasks, compacted):
    made = subspace([adapter(seed + t, 1 + t % 3, head=True) for t in range(tasks)])
    made = compact(made, size=2).subspace if compacted else made
    folder = tmp_path_factory.mktemp("subspace")
    made.save(folder)
    again = Subspace.load(folder)
    assert bits(again) == bits(made)
    assert dict(again.certificates) == dict(made.certificates) and list(again.tasks) == list(made.tasks)


def test_settings_base_model_and_blocks_come_back(tmp_path):
    made = merge(sample(), "last", Adapter(adapter(4).factors, {}, {"base_model_name_or_path": "b"})).subspace
    made.save(tmp_path)
    again = Subspace.load(tmp_path)
    assert again.base_model == "b" and again.tasks["t2"].settings == {"task_type": "X"}
    assert len(again.basis.blocks) == len(made.basis.blocks)


def test_merging_after_a_load_gives_bitwise_what_merging_before_the_save_gives(tmp_path):
    made = sample()
    made.save(tmp_path)
    more = adapter(9)
    assert bits(merge(Subspace.load(tmp_path), "x", more).subspace) == bits(merge(made, "x", more).subspace)


def test_empty_subspace_is_saved_and_loaded(tmp_path):
    Subspace.empty().save(tmp_path)
    assert not Subspace.load(tmp_path).tasks


def test_removed_task_neither_returns_nor_leaves_its_numbers_on_disk(tmp_path):
    made = sample()
    made.save(tmp_path)
    before = set(files(tmp_path))
    less = remove(made, "t0").subspace
    less.save(tmp_path)
    assert bits(Subspace.load(tmp_path)) == bits(less)
    index = json.loads((tmp_path / "index.json").read_text())
    named = {*index["blocks"], *(task["entry"] for task in index["tasks"].values())}
    assert {Path(f).stem for f in files(tmp_path)} == named and before - set(files(tmp_path))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "blobs").iterdir())


def test_unchanged_blobs_are_shared_between_saves(tmp_path):
    made = sample()
    made.save(tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "blobs").iterdir()}
    merge(made, "more", adapter(7)).subspace.save(tmp_path)
    again = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "blobs").iterdir()}
    assert all(again[name] == time for name, time in times.items()) and len(again) == len(times) + 2


def test_every_flipped_or_lost_byte_is_noticed(tmp_path):
    sample().save(tmp_path)
    for path in sorted((tmp_path / "blobs").iterdir()):
        whole = path.read_bytes()
        for spoiled in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
            path.write_bytes(spoiled)
            with pytest.raises(AlgebraError, match=path.stem):
                Subspace.load(tmp_path)
        path.write_bytes(whole)
    assert bits(Subspace.load(tmp_path)) == bits(sample())


def test_missing_blob_is_named(tmp_path):
    sample().save(tmp_path)
    path = sorted((tmp_path / "blobs").iterdir())[0]
    path.unlink()
    with pytest.raises(AlgebraError, match=path.stem):
        Subspace.load(tmp_path)


def spoiled_index(change) -> str:
    made = json.loads(Path("index.json").read_text())
    return json.dumps(change(made) or made)


EVIL = {
    "path as digest": lambda i: i["blocks"].append("../../../etc/passwd"),
    "number as digest": lambda i: i["blocks"].append(7),
    "evil name": lambda i: i["tasks"].update({"../../evil": next(iter(i["tasks"].values()))}),
    "no entry": lambda i: i["tasks"].update({"x": {}}),
    "task is text": lambda i: i["tasks"].update({"x": "y"}),
    "unknown format": lambda i: i.update(format="other"),
    "unknown form": lambda i: i.update(form="int3"),
    "no blocks": lambda i: i.pop("blocks") and None,
    "blocks missing": lambda i: i["blocks"].clear(),
    "certificate": lambda i: next(iter(i["tasks"].values())).update(certificate={"norm": 1}),
    "negative certificate": lambda i: next(iter(i["tasks"].values()))["certificate"].update(error=-1.0),
    "list": lambda i: [i],
}


@pytest.mark.parametrize("change", EVIL.values(), ids=EVIL)
def test_hostile_index_is_refused(change, tmp_path, monkeypatch):
    sample().save(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "index.json").write_text(spoiled_index(change))
    with pytest.raises(AlgebraError):
        Subspace.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 10_000, '{"tasks": {}, "tasks": {}}', "null", "\x00"])
def test_index_that_is_not_ours_is_refused(text, tmp_path):
    sample().save(tmp_path)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(AlgebraError, match="index"):
        Subspace.load(tmp_path)


def test_task_that_is_in_the_index_twice_is_refused(tmp_path):
    sample().save(tmp_path)
    text = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace('"tasks": {', '"tasks": {"t0": {"entry": "x"}, ', 1))
    with pytest.raises(AlgebraError, match="twice"):
        Subspace.load(tmp_path)


def test_folder_without_an_index_is_refused_by_name(tmp_path):
    with pytest.raises(AlgebraError, match=r"index\.json"):
        Subspace.load(tmp_path / "nowhere")


def write_many(folder: str, seed: int) -> None:
    torch.set_num_threads(1)
    for number in range(6):
        subspace([adapter(seed), adapter(seed + number)]).save(folder)


def test_two_writers_and_a_reader_at_once_never_meet_a_broken_subspace(tmp_path):
    sample().save(tmp_path)
    writers = [forked(write_many, str(tmp_path), 100 * n) for n in (1, 2)]
    while any(writer.is_alive() for writer in writers):
        assert len(Subspace.load(tmp_path).tasks) in (2, 3)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(Subspace.load(tmp_path).tasks) == 2
