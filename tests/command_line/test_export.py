"""An exported task is a plain PEFT folder, and is the function that its worker has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from forks import fedshare
from learning import learned
from parts import CoordinatorHere, Walk, one_sentence, order

from protos.fedshare.v1 import federation_pb2 as pb
from workers.base_model import find_base_model
from workers.evaluate import logits_of
from workers.life import Life


def logits(model: torch.nn.Module, life: Life) -> torch.Tensor:
    return logits_of(model, life.base.tokenizer, life.task.test, life.spec.recipe.tokens_max)


def loaded(folder: Path, base: Path) -> torch.nn.Module:
    """As anybody loads it who has peft, and not us."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    return PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), folder)


@pytest.mark.parametrize("task", ["colour", "animal"])
def test_export_is_the_workers_function(walk: Walk, tiny_base: Path, tmp_path: Path, task: str):
    folder = tmp_path / "lora"
    ended = fedshare("export", "--task", task, "--to", folder, "-c", walk.coordinator.address, "--json")
    assert ended.returncode == 0, ended.stderr
    labels = {"colour": ["green", "red"], "animal": ["cat", "dog"]}[task]
    said = json.loads(ended.stdout)
    assert said.pop("relative_error") < 1e-5
    assert said == {
        "task": task, "version": 2, "folder": str(folder), "labels": labels, "base_model": str(tiny_base),
        "is_bound": False,
    }  # fmt: skip
    assert json.loads((folder / "labels.json").read_text()) == labels
    [life] = [led.life for led in walk.led[1:] if led.life.plan.task == task]
    ours, theirs = logits(life.model, life), logits(loaded(folder, tiny_base), life)
    untrained = logits(find_base_model(str(tiny_base)).classifier(2, life.spec.seed), life)
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(ours.abs().max())
    assert float((ours - untrained).abs().max()) > 1e-3 * float(ours.abs().max())


def test_export_in_words_goes_to_a_folder_named_like_the_task(walk: Walk, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = fedshare("export", "--task=colour", "-c", walk.coordinator.address)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "colour of version 2 is in colour-lora (2 labels)\n"
    assert (tmp_path / "colour-lora" / "adapter_model.safetensors").is_file()


def test_export_of_a_compacted_task_says_what_part_of_it_is_lost(here: CoordinatorHere, tmp_path: Path):
    learning = learned(here)
    order(here, compact=pb.Compact(size=5))
    learning.learn("d", base=5)
    order(here, compact=pb.Compact(size=4))
    errors = {ref.task: f"{ref.relative_error:.1e}" for ref in learning.everything()[0].tasks}
    for task, version, lost in (("a", 4, ""), ("d", 7, errors["d"]), ("a", 7, f"at most {errors['a']}")):
        folder = tmp_path / f"{task}-{version}"
        ended = fedshare("export", "--task", task, "--version", version, "--to", folder, "-c", here.address)
        said = f"{task} of version {version} is in {folder} (2 labels)"
        assert (
            ended.stdout == said + (lost and f"; it has lost {lost} of the dW that was merged, in compactions") + "\n"
        )


def test_version_of_a_task_is_exported_the_same_as_long_as_it_was_not_learned_again(walk: Walk, tmp_path: Path):
    for version in (1, 2):
        to = ("--version", version, "--to", tmp_path / str(version))
        assert fedshare("export", "--task", "colour", *to, "-c", walk.coordinator.address).returncode == 0
    first, second = ((tmp_path / v / "adapter_model.safetensors").read_bytes() for v in "12")
    assert first == second


def test_task_that_is_not_there_is_refused_and_nothing_is_written(walk: Walk, tmp_path: Path):
    said = one_sentence(fedshare("export", "--task", "nobody", "--to", tmp_path / "x", "-c", walk.coordinator.address))
    assert said == "version 2 has no task 'nobody'; it has: animal, colour"
    assert not (tmp_path / "x").exists()


def test_task_before_it_was_learned_is_refused(walk: Walk, tmp_path: Path):
    said = one_sentence(
        fedshare("export", "--task=animal", "--version=1", "--to", tmp_path / "x", "-c", walk.coordinator.address)
    )
    assert said == "version 1 has no task 'animal'; it has: colour"


def test_folder_with_something_in_it_is_not_touched(walk: Walk, tmp_path: Path):
    (tmp_path / "mine").write_text("")
    said = one_sentence(fedshare("export", "--task", "colour", "--to", tmp_path, "-c", walk.coordinator.address))
    assert said == f"{tmp_path} is not empty: name another folder with --to"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("to", ["file", "file/below"])
def test_folder_that_cannot_be_one_is_one_sentence(walk: Walk, tmp_path: Path, to: str):
    (tmp_path / "file").write_text("")
    said = one_sentence(fedshare("export", "--task", "colour", "--to", tmp_path / to, "-c", walk.coordinator.address))
    assert said.startswith(f"cannot write {tmp_path / to}: ")
