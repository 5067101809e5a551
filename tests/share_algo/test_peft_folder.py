"""PEFT folders in and out; the oracle is PEFT itself: its layers, its scaling, its files."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from algebra_samples import adapter, peft_folder, relative_error
from peft import PeftModel
from training_samples import ALL, IDS, every_layer, lora_everywhere

from share_algo import Adapter, Factors, Subspace, merge


def trained(**config) -> PeftModel:
    """A PEFT model whose every adapter tensor is random."""
    model = lora_everywhere(**config)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    return model


CONFIGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"block.0": 2, "fc": 5, "conv2": 1}, "alpha_pattern": {"block.*": 5, "embed": 1}},
    "patterns and rslora": {"rank_pattern": {"gpt": 4}, "alpha_pattern": {"gpt": 3}, "use_rslora": True},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.filterwarnings("ignore")
def test_folder_that_peft_wrote_comes_back_to_peft_with_the_same_logits(config, tmp_path):
    model = trained(**config)
    model.save_pretrained(tmp_path / "in")
    with torch.no_grad():
        expected = model(IDS)
    loaded = Adapter.load(tmp_path / "in")
    made = merge(Subspace.empty(), "task", loaded).subspace
    made.save(tmp_path / "subspace")
    Subspace.load(tmp_path / "subspace").adapter("task").save(tmp_path / "out")
    again = PeftModel.from_pretrained(every_layer(), str(tmp_path / "out")).eval()
    with torch.no_grad():
        assert (again(IDS) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.filterwarnings("ignore")
def test_factors_read_from_a_folder_are_the_update_that_pefts_own_layers_apply(config, tmp_path):
    model = trained(**config)
    model.save_pretrained(tmp_path)
    loaded = Adapter.load(tmp_path)
    for module in ALL:
        layer = model.get_submodule(f"base_model.model.{module}")
        delta = layer.get_delta_weight("default").detach()
        delta = delta.T if module in ("gpt", "embed") else delta
        found = loaded.factors[module].delta_ND().reshape(delta.shape)
        assert torch.allclose(found, delta, rtol=1e-4, atol=1e-5), module
    assert set(loaded.head) >= {"score.0.weight", "score.0.bias", "score.1.weight", "score.1.bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_folder_holds_the_type_asked_for_and_the_same_update(dtype, tmp_path):
    one = adapter(1, head=True)
    one.save(tmp_path, dtype=dtype)
    again = Adapter.load(tmp_path)
    assert relative_error(one, again) < {torch.float32: 1e-7, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert torch.equal(again.head["score.weight"], one.head["score.weight"])


def test_save_and_load_are_bitwise_for_mixed_ranks_and_names_that_end_alike(tmp_path):
    shapes = {"fc": (6, 5), "zone.fc": (6, 5), "other": (4, 4)}
    factors = {m: adapter(i, i + 1, {m: s}).factors[m] for i, (m, s) in enumerate(shapes.items())}
    Adapter(factors).save(tmp_path)
    again = Adapter.load(tmp_path)
    for module, f in factors.items():
        assert torch.equal(again.factors[module].B_NR, f.B_NR) and torch.equal(again.factors[module].A_RD, f.A_RD)


def test_lora_alpha_is_kept_by_a_merge(tmp_path):
    tensors = {"q.lora_A.weight": torch.randn(2, 6), "q.lora_B.weight": torch.randn(5, 2)}
    plain = Adapter.load(peft_folder(tmp_path / "a", tensors))
    loud = Adapter.load(peft_folder(tmp_path / "b", tensors, lora_alpha=64))
    made = merge(Subspace.empty(), "loud", loud).subspace.adapter("loud").factors["q"].delta_ND()
    assert torch.allclose(made, 32 * plain.factors["q"].delta_ND(), rtol=1e-4, atol=1e-4)


def test_factors_too_large_for_float16_are_refused_with_the_module(tmp_path):
    with pytest.raises(ValueError, match=r"m: .*float16"):
        Adapter({"m": Factors(torch.full((2, 1), 1e6), torch.ones(1, 2))}).save(tmp_path, dtype=torch.float16)


def test_reading_and_merging_need_neither_peft_nor_transformers(tmp_path):
    tensors = {"q.lora_A.weight": torch.randn(2, 6), "q.lora_B.weight": torch.randn(5, 2)}
    peft_folder(tmp_path, tensors)
    program = (
        "import sys; sys.modules['peft'] = sys.modules['transformers'] = None\n"
        "from share_algo import Adapter, Subspace, merge, compact\n"
        f"made = merge(Subspace.empty(), 'a', Adapter.load({str(tmp_path)!r})).subspace\n"
        f"compact(made, size=1).subspace.save({str(tmp_path / 'out')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
