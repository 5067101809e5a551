"""A base model is loaded and hashed once, as long as its files stay as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from share_algo.cache_folder import CACHE
from workers.base_model import BaseModel
from workers.description import Description


class Model:
    """A copy of the tiny base model, and how often it was loaded to describe it."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache, self.loaded = folder, cache / "models", 0

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    def fingerprint(self) -> str:
        """As the next process finds it."""
        return BaseModel("tiny", self.folder).fingerprint


@pytest.fixture
def model(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    model, find_out = (
        Model(Path(shutil.copytree(tiny_base, tmp_path / "base")), tmp_path / "cache"),
        BaseModel._found_out,
    )

    def counted(base: BaseModel) -> Description:
        model.loaded += 1
        return find_out(base)

    monkeypatch.setattr(BaseModel, "_found_out", counted)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return model


def test_a_model_is_described_once(model: Model, tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    assert model.fingerprint() == model.fingerprint()
    assert model.loaded == 1 and len(list(model.cache.iterdir())) == 1
    found = BaseModel("tiny", model.folder).linear_shapes
    monkeypatch.setenv(CACHE, "")
    plain = BaseModel("tiny", tiny_base)
    assert (plain.fingerprint, plain.linear_shapes) == (model.fingerprint(), found) and model.loaded == 3


def test_other_weights_are_seen_although_size_and_date_are_the_same(model: Model):
    before, stat = model.fingerprint(), model.weights.stat()
    with model.weights.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        byte = file.read(1)
        file.seek(-2, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(model.weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (model.weights.stat().st_size, model.weights.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert model.fingerprint() != before and model.loaded == 2


def test_files_that_change_while_they_are_read_are_not_kept(model: Model, monkeypatch: pytest.MonkeyPatch):
    find_out = BaseModel._found_out

    def while_it_is_written_to(base: BaseModel) -> Description:
        os.utime(model.weights)
        return find_out(base)

    monkeypatch.setattr(BaseModel, "_found_out", while_it_is_written_to)
    model.fingerprint()
    assert not model.cache.exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b.replace(b't":"', b't":"0'), lambda b: b"{}"],
    ids=["cut", "empty", "another", "strange"],
)  # fmt: skip
def test_damaged_description_is_found_out_anew_and_mended(model: Model, damage: Callable[[bytes], bytes]):
    before = model.fingerprint()
    [file] = model.cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert (model.fingerprint(), model.loaded, file.read_bytes()) == (before, 2, whole)


def test_folder_that_cannot_be_used_stops_nobody(model: Model):
    model.cache.parent.write_text("a file")
    assert model.fingerprint() == model.fingerprint() and model.loaded == 2


def test_so_many_descriptions_are_kept_and_no_more(model: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.description.ENTRIES_MAX", 2)
    for n in range(4):
        os.utime(model.weights, ns=(n, n))
        model.fingerprint()
    assert model.loaded == 4 and len(list(model.cache.iterdir())) == 2
