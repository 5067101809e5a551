"""A fit: learned as LoRA, cut to what travels, and recovered inside that without another byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parts import federation_text, sentences, write_task_file
from peft import PeftModel
from torch.nn.functional import cross_entropy

from fedshare.federation_file import read_federation_file
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Appended, Basis, Update, append, attach, lift
from share_algo.codec import decode_update, encode_update
from share_algo.training import read
from workers.base_model import BaseModel, find_base_model
from workers.evaluate import logits_of
from workers.fit import Fitted, fit
from workers.tasks import TaskData, load_task
from workers.train import lora_model

LABELS = ("red", "green")
EPOCHS, RECOVERY = 36, 1 / 6


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> BaseModel:
    return find_base_model(str(tiny_base))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    folder = tmp_path_factory.mktemp("tasks") / "colour"
    for split in ("train", "test"):
        write_task_file(folder / f"{split}.csv", sentences(split, LABELS, 48))
    return load_task("colour", str(folder))


@pytest.fixture
def spec(tiny_base: Path, tmp_path: Path) -> pb.FederationSpec:
    """With a cut that costs something."""
    file = tmp_path / "federation.toml"
    file.write_text(federation_text(tiny_base, tmp_path, epochs=EPOCHS))
    spec = read_federation_file(file).spec()
    spec.directions.tolerance = 0.9
    return spec


def fitted(base: BaseModel, spec: pb.FederationSpec, task: TaskData, recovery: float) -> Fitted:
    spec.recipe.recovery = recovery
    return fit(base, spec, Basis(), task)


def loss(model: PeftModel, base: BaseModel, task: TaskData) -> float:
    labels = torch.tensor([label for _, label in task.train])
    return float(cross_entropy(logits_of(model, base.tokenizer, task.train, 16), labels))


def test_recovery_wins_back_what_the_cut_has_lost_in_the_same_directions(
    base: BaseModel, spec: pb.FederationSpec, task: TaskData, monkeypatch: pytest.MonkeyPatch
):
    cuts: list[Update] = []

    def noted(*args: Any, **named: Any) -> Appended:
        appended = append(*args, **named)
        cuts.append(decode_update(encode_update(appended.update, compact=True)))
        return appended

    monkeypatch.setattr("workers.fit.append", noted)
    spec.directions.bits = 8
    recovered = fitted(base, spec, task, RECOVERY)
    [cut], sent = cuts, decode_update(recovered.blob)
    for module, directions in cut.block.items():
        assert torch.equal(directions.out_NK, sent.block[module].out_NK)
        assert torch.equal(directions.in_DL, sent.block[module].in_DL)
    for module, own in cut.entry.coefficients.items():
        assert sent.entry.coefficients[module].P_KR.shape == own.P_KR.shape
    as_cut = attach(lora_model(base, spec, len(LABELS)), lift(cut, Basis()))
    assert recovered.steps == 3 * EPOCHS
    assert loss(recovered.model, base, task) < 0.9 * loss(as_cut, base, task)


def test_model_that_comes_back_is_what_the_update_means(base: BaseModel, spec: pb.FederationSpec, task: TaskData):
    found = fitted(base, spec, task, RECOVERY)
    sent = lift(decode_update(found.blob), Basis())
    for module, factors in read(found.model).factors.items():
        assert torch.allclose(
            factors.B_NR @ factors.A_RD, sent.factors[module].B_NR @ sent.factors[module].A_RD, atol=1e-6
        )
    for name, tensor in read(found.model).head.items():
        assert torch.equal(tensor.float(), sent.head[name].float())


def test_progress_counts_the_recovery_too(base: BaseModel, spec: pb.FederationSpec, task: TaskData):
    spec.recipe.epochs, spec.recipe.recovery = 2, 0.5
    told: list[tuple[int, int]] = []
    fit(base, spec, Basis(), task, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 6) for n in range(1, 7)]
