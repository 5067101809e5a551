"""Checkpointing, mixed precision, half and quantised weights, torch.compile: each beside plain float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from training_samples import (
    Net,
    closeness,
    distance,
    gradients_of,
    inputs,
    learned,
    lora,
    loss_of,
    net,
    trained,
    weights,
)
from transformers import BertConfig, BertForSequenceClassification

from share_algo import Subspace, attach, constrain, merge, release
from share_algo.constraint import COEFFICIENTS, NEW_DIRECTIONS
from share_algo.lora_layers import lora_pairs


@pytest.fixture
def x() -> torch.Tensor:
    return inputs()


@pytest.fixture
def made(x: torch.Tensor) -> Subspace:
    return learned(x)


def inside(base: nn.Module, made: Subspace, new_directions: int = 1, **settings: object) -> PeftModel:
    return constrain(lora(base, **settings), made, new_directions=new_directions, seed=0, start=made.tasks["t0"])


def hands_over_exactly(model: PeftModel, made: Subspace, new_directions: int) -> None:
    """Released, the model keeps its weights bitwise; merged, no direction comes of rounding and dW is what it was."""
    computed = weights(model)
    adapter = release(model)
    assert all(torch.equal(before, after) for before, after in zip(computed, weights(model), strict=True))
    result = merge(made, "task", adapter)
    assert max(result.report.new_directions) <= new_directions
    assert result.report.relative_error < 1e-5
    assert distance(result.subspace.adapter("task"), adapter) < 1e-5


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant: bool) -> None:
    ids = torch.arange(32).reshape(4, 8)
    made = merge(Subspace.empty(), "t0", release(stepped(constrain(bert(), Subspace.empty(), new_directions=2), ids)))
    model = constrain(bert(), made.subspace, new_directions=1, start=made.subspace.tasks["t0"])
    expected, computed = bert_gradients(model, ids)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    found, computed_again = bert_gradients(model, ids)
    assert computed_again == 2 * computed  # it was really on
    assert closeness(found, expected) < 1e-6
    assert all(n.endswith((COEFFICIENTS, NEW_DIRECTIONS)) or ".classifier." in n for n in found)
    hands_over_exactly(stepped(model, ids), made.subspace, new_directions=4)  # one in each of four modules


def bert() -> PeftModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    lora = LoraConfig(r=3, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(BertForSequenceClassification(config), lora).train()


def bert_gradients(model: PeftModel, ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """And how often a constrained weight was used."""
    calls = []
    hook = next(iter(lora_pairs(model)))[1].out.owner.register_forward_hook(lambda *_: calls.append(1))
    model.zero_grad()
    model(input_ids=ids, labels=torch.arange(len(ids)) % 2).loss.backward()
    hook.remove()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}, len(calls)


def stepped(model: PeftModel, ids: torch.Tensor) -> PeftModel:
    for _ in range(3):
        gradients, _ = bert_gradients(model, ids)
        for name, gradient in gradients.items():
            model.get_parameter(name).data -= 0.1 * gradient
    return model


def test_autocast_to_bfloat16_leaves_what_is_learned_in_float32(x: torch.Tensor, made: Subspace) -> None:
    model, exact = inside(net(), made), gradients_of(inside(net(), made), x)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # the cache outlives a step made by hand
        assert closeness(gradients_of(model, x), exact) < 0.05
        trained(model, x)
        before = model(x)
        assert before.dtype == torch.bfloat16
    hands_over_exactly(model, made, new_directions=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adapter_in_float32", [True, False])
def test_half_weights_train_and_hand_over_in_float32(
    dtype: torch.dtype, adapter_in_float32: bool, x: torch.Tensor, made: Subspace
) -> None:
    settings = {"autocast_adapter_dtype": adapter_in_float32}
    model = inside(net().to(dtype), made, new_directions=0, **settings)
    exact = gradients_of(inside(net(), made, new_directions=0), x)
    assert closeness(gradients_of(model, x.to(dtype)), exact) < {torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]
    before = trained(model, x.to(dtype))(x.to(dtype))
    adapter = release(model)
    assert all(f.B_NR.dtype == torch.float32 for f in adapter.factors.values())
    assert torch.equal(model(x.to(dtype)), before)
    assert torch.equal(attach(lora(net().to(dtype), **settings), adapter)(x.to(dtype)), before)
    hands_over_exactly(inside(net().to(dtype), made, new_directions=0, **settings), made, new_directions=0)


def test_compiled_it_computes_and_learns_the_same(x: torch.Tensor, made: Subspace) -> None:
    model, eager = inside(net(), made), inside(net(), made)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss_of(compiled, x).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert closeness(found, gradients_of(eager, x)) < 1e-6
    assert torch.allclose(compiled(x), eager(x), atol=1e-6)
    hands_over_exactly(trained(model, x), made, new_directions=1)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)  # released, it is compiled anew


def in_8_bits(base: Net) -> Net:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = bitsandbytes.nn.Linear8bitLt(base.proj.in_features, base.proj.out_features, has_fp16_weights=False)
    return with_projection(base, layer, "is_loaded_in_8bit")


def in_4_bits(base: Net) -> Net:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = bitsandbytes.nn.Linear4bit(
        base.proj.in_features, base.proj.out_features, compute_dtype=torch.float32, quant_type="nf4"
    )
    return with_projection(base, layer, "is_loaded_in_4bit")


def with_projection(base: Net, layer: nn.Module, flag: str) -> Net:
    layer.load_state_dict(base.proj.state_dict())
    base.proj = layer.to("cpu")  # where it is quantised
    setattr(base, flag, True)
    return base


def in_8_bits_of_torchao(base: Net) -> Net:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(base, quantization.Int8WeightOnlyConfig(), filter_fn=lambda _, name: name == "proj")
    base.quantization_method = "torchao"
    return base


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("quantised", "tolerance"),
    [(in_8_bits, 0.05), (in_4_bits, 0.5), (in_8_bits_of_torchao, 0.05)],
    ids=["bitsandbytes 8 bits", "bitsandbytes 4 bits", "torchao 8 bits"],
)
def test_quantised_base_model_trains_and_hands_over_exactly(
    quantised: Callable[[Net], Net], tolerance: float, x: torch.Tensor, made: Subspace
) -> None:
    base = prepare_model_for_kbit_training(quantised(net()), use_gradient_checkpointing=False)
    model, plain = inside(base, made), inside(net(), made)
    assert type(model.base_model.model.proj) is not type(plain.base_model.model.proj)  # PEFT's layer for it
    frozen = model.base_model.model.proj.base_layer.weight
    bits = [t.clone() for t in (frozen.dequantize() if hasattr(frozen, "dequantize") else frozen.data,)]
    found = gradients_of(model, x)
    assert all(n.endswith((COEFFICIENTS, NEW_DIRECTIONS)) or ".head." in n for n in found)
    assert closeness(found, gradients_of(plain, x)) < tolerance
    before = loss_of(model, x)
    assert loss_of(trained(model, x), x) < before
    again = model.base_model.model.proj.base_layer.weight
    assert torch.equal(bits[0], again.dequantize() if hasattr(again, "dequantize") else again.data)
    hands_over_exactly(model, made, new_directions=1)
