"""The base model is found without a network where it can be, recognised by its weights, and never unpickled."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.base_model import MINILM, MINILM_PACKAGE, MINILM_SHA256, BaseModel, find_base_model
from workers.errors import WorkerError


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base model in a folder of one test's own."""
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_folder_is_found_by_its_path(tiny_base: Path):
    assert find_base_model(str(tiny_base)) == BaseModel(str(tiny_base), tiny_base)


def test_same_weights_have_the_same_fingerprint_wherever_they_are(tiny_base: Path, copy: Path):
    ours = find_base_model(str(tiny_base))
    assert find_base_model(str(copy)).fingerprint == ours.fingerprint
    assert ours.linear_shapes["bert.encoder.layer.1.intermediate.dense"] == (64, 32)


def test_other_weights_have_another_fingerprint(tiny_base: Path, copy: Path):
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find_base_model(str(copy)).fingerprint != find_base_model(str(tiny_base)).fingerprint


def test_head_depends_on_the_seed_only(tiny_base: Path):
    base = find_base_model(str(tiny_base))
    first, again, other = (base.classifier(2, seed).classifier.weight for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)


def damage_nothing_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_pickle_only(folder: Path) -> None:
    import safetensors.torch
    import torch

    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def damage_cut_off(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_nothing_there, damage_pickle_only, damage_cut_off, damage_config])
def test_folder_without_usable_weights_is_one_sentence(copy: Path, damage):
    damage(copy)
    with pytest.raises(WorkerError, match=f"the base model in {copy} cannot be loaded: ") as raised:
        _ = find_base_model(str(copy)).fingerprint
    assert "\n" not in str(raised.value)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that claims to carry MiniLM, and no cache that has it."""
    package = tmp_path / MINILM_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('its code must not run')")
    (package / "model" / "config.json").write_text("{}")
    real = importlib.util.find_spec
    location = importlib.util.spec_from_file_location(
        MINILM_PACKAGE, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: location if name == MINILM_PACKAGE else real(name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return package


def test_packaged_weights_that_are_not_the_published_ones_are_refused(packaged: Path):
    (packaged / "model" / "model.safetensors").write_bytes(b"other weights")
    found = hashlib.sha256(b"other weights").hexdigest()
    sentence = f"{packaged}/model does not hold the published weights of {MINILM} \\(SHA-256 {found}\\)"
    with pytest.raises(WorkerError, match=f"^{sentence}$"):
        find_base_model(MINILM)
    assert found != MINILM_SHA256


def test_package_without_weights_is_refused(packaged: Path):
    with pytest.raises(WorkerError, match=f"{packaged}/model does not hold the published weights"):
        find_base_model(MINILM)


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """A hub that takes connections and never says a word."""
    with socket.socket() as hub:
        hub.bind(("127.0.0.1", 0))
        hub.listen(64)
        yield f"http://127.0.0.1:{hub.getsockname()[1]}"


def find_with_hub(hub: str, cache: Path) -> str:
    """What is said of a model that is nowhere, by a process of its own that may ask this hub."""
    code = "from workers.base_model import find_base_model; find_base_model('nobody/nothing')"
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    return ended.stderr.splitlines()[-1].removeprefix("workers.errors.WorkerError: ")


NOWHERE = "the base model nobody/nothing is not a folder, not in the local cache, and the hub cannot be reached"


@pytest.mark.timeout(60)
def test_model_that_is_nowhere_is_one_sentence_when_the_hub_refuses(tmp_path: Path):
    assert find_with_hub("http://127.0.0.1:1", tmp_path).startswith(NOWHERE)


@pytest.mark.timeout(60)
def test_model_that_is_nowhere_is_one_sentence_within_20_seconds_when_the_hub_is_silent(
    tmp_path: Path, silent_hub: str
):
    asked = time.monotonic()
    assert find_with_hub(silent_hub, tmp_path).startswith(NOWHERE)
    assert time.monotonic() - asked < 20
