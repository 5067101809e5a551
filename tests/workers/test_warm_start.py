"""A new task begins with what a known one learned, where a fresh head could make more of that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forks import fedshare
from learning import SAME
from parts import Coordinator, Walk, federation_text, order, sentences, write_task_file

from fedshare.federation_file import read_federation_file
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis, append
from share_algo.codec import decode_update
from share_algo.training import constrain, read, release
from workers.base_model import BaseModel, find_base_model
from workers.begin import warm_start
from workers.evaluate import features_of, logits_of
from workers.fit import fit
from workers.tasks import TaskData, load_task
from workers.train import lora_model

COLUMNS = 24
EPOCHS = 30
WORDS_OF = {"colour": ("red", "green"), "hue": ("green", "red"), "animal": ("cat", "dog")}
"""hue: the same words mean the opposite labels, in other sentences."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, words in WORDS_OF.items():
        for split, count in (("train", 48), ("test", 16)):
            rows = sentences(f"{name}/{split}", words, count)
            write_task_file(folder / name / f"{split}.csv", rows)
    return folder


@pytest.fixture(scope="module")
def text(tiny_base: Path, data: Path) -> str:
    said = federation_text(tiny_base, data, epochs=EPOCHS, start="weights", start_columns=COLUMNS)
    return said.replace("[recipe]", "[recipe]\nwarm_starts = 8")


@pytest.fixture(scope="module")
def walk(text: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Animal, colour and hue were learned in turn."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "federation.toml").write_text(text)
    with Coordinator(folder / "home", "--no-lineage", str(folder / "federation.toml")) as coordinator:
        walk = Walk(coordinator, data, folder / "workers")
        walk.led = [walk.lead(task) for task in ("animal", "colour", "hue")]
        yield walk


def test_a_task_begins_with_the_one_that_is_like_it_and_the_record_says_so(walk: Walk):
    first, _, last = walk.coordinator.versions()
    assert (first.warm_start, last.warm_start) == ("", "colour")
    update_id = walk.coordinator.versions()[-1].update_id
    told = fedshare("story", update_id, "--coordinator", walk.coordinator.address)
    assert "begun with what colour had learned" in told.stdout


def test_function_kept_is_the_one_that_was_trained_and_nothing_but_coefficients_came(walk: Walk):
    last = walk.coordinator.versions()[-1]
    assert (last.new_out, last.new_in, last.basis_out) == (0, 0, COLUMNS)
    assert walk.measured("hue", "logits_difference")[3] <= SAME
    assert walk.led[-1].end.accuracy is not None and walk.led[-1].end.accuracy >= 0.9


def test_forgetting_a_task_names_those_that_began_with_it(walk: Walk):
    assert order(walk.coordinator, forget=pb.Forget(task="colour")).outcome == pb.OUTCOME_DONE
    forget = walk.coordinator.versions()[-1]
    assert forget.note.endswith("what they had learned is where others began that stay: hue")
    assert walk.coordinator.client().replay().task.value < SAME


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> BaseModel:
    return find_base_model(str(tiny_base))


@pytest.fixture(scope="module")
def spec(text: str, tmp_path_factory: pytest.TempPathFactory) -> pb.FederationSpec:
    file = tmp_path_factory.mktemp("spec") / "federation.toml"
    file.write_text(text)
    return read_federation_file(file).spec()


@pytest.fixture(scope="module")
def basis(base: BaseModel, spec: pb.FederationSpec) -> Basis:
    from coordinator.start import start_block

    return Basis((start_block(spec, base.weights(m.name for m in spec.modules)),))


def task_of(data: Path, name: str) -> TaskData:
    return load_task(name, str(data / name))


def test_model_is_what_it_was_where_no_start_is_better(
    base: BaseModel, spec: pb.FederationSpec, basis: Basis, data: Path
):
    """Of a task that is zero a head can make exactly what it can make of the model's own start."""
    task = task_of(data, "hue")
    model = constrain(lora_model(base, spec, 2), basis, new_directions=0, seed=spec.seed)
    zero = append(basis, read(model)).update.entry
    before = logits_of(model, base.tokenizer, task.test, 16)
    assert warm_start(model, base, spec, basis, task, {"zero": zero}) == ""
    assert torch.equal(before, logits_of(model, base.tokenizer, task.test, 16))
    release(model)


def test_a_warm_start_is_worth_something(base: BaseModel, spec: pb.FederationSpec, basis: Basis, data: Path):
    colour = decode_update(fit(base, spec, basis, task_of(data, "colour")).blob).entry
    few = pb.FederationSpec()
    few.CopyFrom(spec)
    few.recipe.epochs = 6
    hue = task_of(data, "hue")
    labels = torch.tensor([label for _, label in hue.train])
    losses = {}
    for known in ({}, {"colour": colour}):
        fitted = fit(base, few, basis, hue, known=known)
        logits = logits_of(fitted.model, base.tokenizer, hue.train, 16)
        losses[fitted.warm_start] = float(torch.nn.functional.cross_entropy(logits, labels))
    assert losses["colour"] < 0.8 * losses[""], json.dumps(losses)


def test_features_are_what_the_head_gets(base: BaseModel, spec: pb.FederationSpec, data: Path):
    task = task_of(data, "animal")
    model = lora_model(base, spec, 2)
    features = features_of(model, base.tokenizer, task.test, 16)
    assert features is not None
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert torch.allclose(head(features), logits_of(model, base.tokenizer, task.test, 16), atol=1e-6)
