"""A new task's head begins as a linear probe of what it gets, before anything else is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parts import WORDS, federation_text, sentences
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from fedshare.federation_file import read_federation_file
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis, linear_probe
from workers.base_model import BaseModel, find_base_model
from workers.begin import probed_head
from workers.evaluate import features_of, head_of, logits_of
from workers.fit import fit
from workers.tasks import TaskData
from workers.train import lora_model

TOKENS_MAX = 16
VOCABULARY = 5 + len(WORDS)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> BaseModel:
    return find_base_model(str(tiny_base))


@pytest.fixture
def spec(tiny_base: Path, tmp_path: Path) -> pb.FederationSpec:
    (tmp_path / "federation.toml").write_text(federation_text(tiny_base, tmp_path))
    return read_federation_file(tmp_path / "federation.toml").spec()


@pytest.fixture(scope="module")
def task() -> TaskData:
    rows = {split: _rows(split, count) for split, count in (("train", 48), ("test", 16))}
    return TaskData("colour", ("red", "green"), rows["train"], rows["test"])


def _rows(split: str, count: int) -> tuple[tuple[str, int], ...]:
    found = sentences(split, ("red", "green"), count)
    names = {"red": 0, "green": 1}
    return tuple((text, names[str(label)]) for text, label in found)


def loss(model: PeftModel, base: BaseModel, task: TaskData) -> float:
    labels = torch.tensor([label for _, label in task.train])
    return float(torch.nn.functional.cross_entropy(logits_of(model, base.tokenizer, task.train, TOKENS_MAX), labels))


def decoder() -> PeftModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_labels=2, pad_token_id=0,
    )  # fmt: skip
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type=TaskType.SEQ_CLS)
    return get_peft_model(LlamaForSequenceClassification(config), lora)


def with_a_head_of_two_layers() -> PeftModel:
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_labels=2, pad_token_id=0, max_position_embeddings=40,
    )  # fmt: skip
    lora = LoraConfig(r=2, target_modules=["query"], task_type=TaskType.SEQ_CLS)
    return get_peft_model(RobertaForSequenceClassification(config), lora)


def test_head_begins_as_the_probe_of_its_features(base: BaseModel, spec: pb.FederationSpec, task: TaskData):
    model = lora_model(base, spec, 2)
    before = loss(model, base, task)
    assert probed_head(model, base, spec, task)
    features = features_of(model, base.tokenizer, task.train, TOKENS_MAX)
    labels = torch.tensor([label for _, label in task.train])
    weight, bias = linear_probe(features, labels, 2)
    logits = logits_of(model, base.tokenizer, task.train, TOKENS_MAX)
    assert torch.allclose(logits, (features.double() @ weight.T + bias).float(), atol=1e-2 * float(logits.abs().max()))
    assert loss(model, base, task) < 0.9 * before


def test_a_decoders_head_is_probed_at_the_token_that_counts(base: BaseModel, spec: pb.FederationSpec, task: TaskData):
    model = decoder()
    before = loss(model, base, task)
    features = features_of(model, base.tokenizer, task.train, TOKENS_MAX)
    assert features is not None and features.shape == (len(task.train), 16)
    assert torch.allclose(head_of(model)(features), logits_of(model, base.tokenizer, task.train, TOKENS_MAX), atol=1e-6)
    assert probed_head(model, base, spec, task) and loss(model, base, task) < 0.8 * before


@pytest.mark.parametrize("why", ["the recipe wants none", "two layers", "too large", "one example"])
def test_else_the_head_is_bitwise_as_it_was(
    why: str, base: BaseModel, spec: pb.FederationSpec, task: TaskData, monkeypatch: pytest.MonkeyPatch
):
    model = with_a_head_of_two_layers() if why == "two layers" else lora_model(base, spec, 2)
    if why == "the recipe wants none":
        spec.recipe.probe_examples = 0
    if why == "too large":
        monkeypatch.setattr("workers.begin.PROBED_NUMBERS_MAX", 2 * 32 - 1)
    if why == "one example":
        task = TaskData(task.name, task.labels, task.train[:1], task.test)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not probed_head(model, base, spec, task)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_as_many_examples_are_looked_at_as_the_recipe_says(base: BaseModel, spec: pb.FederationSpec, task: TaskData):
    spec.recipe.probe_examples = 4
    few, all_of_them = lora_model(base, spec, 2), lora_model(base, spec, 2)
    assert probed_head(few, base, spec, task)
    spec.recipe.probe_examples = 2000
    assert probed_head(all_of_them, base, spec, task)
    assert loss(all_of_them, base, task) < loss(few, base, task)


def test_a_probed_head_is_worth_steps(base: BaseModel, spec: pb.FederationSpec, task: TaskData):
    losses = {}
    for examples in (0, 2000):
        spec.recipe.probe_examples = examples
        losses[examples] = loss(fit(base, spec, Basis(), task).model, base, task)
    assert losses[2000] < 0.9 * losses[0]
