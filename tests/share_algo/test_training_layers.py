"""Every kind of layer that PEFT gives LoRA to is trained inside a subspace. The oracle is PEFT itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from training_samples import ALL, IDS, distance, every_layer, lora_everywhere, net, trained

from share_algo import Adapter, AlgebraError, Basis, Subspace, attach, constrain, merge, release
from share_algo.constraint import COEFFICIENTS
from share_algo.lora_layers import lora_pairs
from share_algo.training import read

pytestmark = pytest.mark.filterwarnings("ignore")


def learned_subspace() -> Subspace:
    model = trained(constrain(lora_everywhere(), Basis(), new_directions=2, seed=0), IDS, steps=20)
    return merge(Subspace.empty(), "first", release(model)).subspace


def test_every_layer_starts_as_the_base_model_and_learns() -> None:
    model = constrain(lora_everywhere(), learned_subspace(), new_directions=1, seed=0)
    assert torch.equal(model(IDS), every_layer()(IDS))
    learned = release(trained(model, IDS, steps=2))
    assert sorted(learned.factors) == sorted(ALL)
    assert all(f.delta_ND().any() for f in learned.factors.values())


def test_with_an_empty_basis_it_is_plain_lora_step_by_step_for_every_layer() -> None:
    constrained, plain = constrain(lora_everywhere(), Basis(), new_directions=3, seed=0), lora_everywhere()
    starts = {m: (p.out.matrix(), p.into.matrix()) for m, p in lora_pairs(constrained)}
    for module, pair in lora_pairs(plain):
        pair.out.write(starts[module][0])
        pair.into.write(starts[module][1])
    for name, parameter in constrained.named_parameters():  # only what LoRA itself moves
        parameter.requires_grad_(parameter.requires_grad and not name.endswith(COEFFICIENTS))
    assert torch.allclose(trained(constrained, IDS)(IDS), trained(plain, IDS)(IDS), atol=1e-5)


def test_it_starts_with_numbers_as_large_as_pefts_own() -> None:
    ours, theirs = (dict(lora_pairs(model)) for model in (
        constrain(lora_everywhere(r=40), Basis(), new_directions=40, seed=0), lora_everywhere(r=40)))  # fmt: skip
    for module in ALL:
        for side in ("out", "into"):
            mine, pefts = (getattr(pairs[module], side).matrix().std() for pairs in (ours, theirs))
            assert mine == pytest.approx(pefts, rel=0.25), (module, side)


def test_what_was_trained_comes_back_after_merge_with_the_same_logits(tmp_path: Path) -> None:
    made = learned_subspace()
    model = trained(constrain(lora_everywhere(), made, new_directions=1, seed=0), IDS)
    expected = model(IDS)
    result = merge(made, "task", release(model))
    assert torch.equal(model(IDS), expected)
    assert max(r.new_out for r in result.report.modules.values()) <= 1
    kept = result.subspace.adapter("task")
    assert torch.allclose(attach(lora_everywhere(), kept)(IDS), expected, atol=1e-5)
    kept.save(tmp_path)
    again = PeftModel.from_pretrained(every_layer(), str(tmp_path)).eval()
    assert torch.allclose(again(IDS), expected, atol=1e-5)
    assert distance(Adapter.load(tmp_path), kept) < 1e-6


def test_conv1d_alone_says_that_its_weights_lie_transposed() -> None:
    model = get_peft_model(every_layer(), LoraConfig(r=2, target_modules=["gpt"], modules_to_save=["score"]))
    assert release(constrain(model, Basis(), new_directions=2)).settings == {"fan_in_fan_out": True}


def test_an_adapter_of_another_kind_of_layer_is_refused_by_name() -> None:
    whole = read(lora_everywhere())
    odd = type(whole.factors["fc"])(whole.factors["fc"].B_NR, whole.factors["fc"].A_RD, "embedding")
    with pytest.raises(AlgebraError, match=r"fc: .*embedding"):
        attach(lora_everywhere(), Adapter({**whole.factors, "fc": odd}, whole.head))


@pytest.mark.parametrize(
    ("config", "said"),
    [({"use_dora": True}, "proj: Dora"), ({"lora_bias": True}, "proj: lora_B has a bias")],
    ids=["dora", "bias"],
)
def test_what_factors_alone_do_not_hold_is_refused_by_name(config: dict[str, bool], said: str) -> None:
    model = get_peft_model(net(), LoraConfig(r=2, target_modules=["proj"], **config))
    with pytest.raises(AlgebraError, match=said):
        constrain(model, Basis(), new_directions=2)


def test_grouped_convolutions_are_refused_by_name() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(AlgebraError, match="0: a grouped convolution"):
        read(get_peft_model(grouped, LoraConfig(r=2, target_modules=["0"])))


def test_an_adapter_that_the_model_lacks_is_refused_by_name() -> None:
    with pytest.raises(AlgebraError, match="other"):
        constrain(lora_everywhere(), Basis(), new_directions=1, adapter_name="other")
