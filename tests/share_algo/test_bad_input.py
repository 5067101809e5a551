"""What cannot be used is refused with the module and the reason, and the subspace is bitwise what it was."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from algebra_samples import SHAPES, adapter, bits, peft_folder, subspace

from share_algo import Adapter, AlgebraError, Factors, Subspace, merge, rename

GOOD = {"q.lora_A.weight": torch.ones(2, 6), "q.lora_B.weight": torch.ones(5, 2)}


def with_module(**changed: Factors) -> Adapter:
    return Adapter({**adapter(5).factors, **{"encoder.v": changed["v"]}})


def spoiled(value: float, side: str) -> Adapter:
    f = adapter(5).factors["encoder.v"]
    tensor = getattr(f, side).clone()
    tensor[1, 2] = value
    return with_module(v=Factors(**{"B_NR": f.B_NR, "A_RD": f.A_RD, side: tensor}))


BAD_ADAPTERS = {
    "NaN in B": (spoiled(float("nan"), "B_NR"), r"encoder\.v: .*NaN"),
    "Inf in A": (spoiled(float("inf"), "A_RD"), r"encoder\.v: .*infinite"),
    "minus Inf": (spoiled(float("-inf"), "A_RD"), r"encoder\.v: .*infinite"),
    "rank 0": (with_module(v=Factors(torch.zeros(9, 0), torch.zeros(0, 16))), r"encoder\.v: .*rank 0"),
    "wrong out": (with_module(v=Factors(torch.ones(8, 2), torch.ones(2, 16))), r"encoder\.v: .*8 x 16.*9 x 16"),
    "wrong in": (with_module(v=Factors(torch.ones(9, 2), torch.ones(2, 15))), r"encoder\.v: .*9 x 15.*9 x 16"),
    "zero": (Adapter({m: Factors(torch.zeros(s[0], 2), torch.ones(2, s[1])) for m, s in SHAPES.items()}), "zero"),
    "nothing": (Adapter({}), "no factors"),
    "NaN in head": (Adapter(adapter(5).factors, {"score.weight": torch.tensor([float("nan")])}), r"score\.weight.*NaN"),
    "other base": (Adapter(adapter(5).factors, {}, {"base_model_name_or_path": "other"}), "other.*base-model"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_ADAPTERS.values(), ids=BAD_ADAPTERS)
def test_bad_adapter_is_refused_with_the_reason_and_nothing_changes(bad, reason):
    good = Adapter(adapter(1).factors, {}, {"base_model_name_or_path": "base-model"})
    made = subspace([good, adapter(2)])
    before = bits(made)
    with pytest.raises(AlgebraError, match=reason):
        merge(made, "bad", bad)
    assert bits(made) == before and sorted(made.tasks) == ["t0", "t1"]


@pytest.mark.parametrize("value", [1e30, 1e-30])
def test_extreme_scales_are_kept_or_refused_never_turned_into_nonsense(value):
    one = Adapter({"m": Factors(torch.full((4, 1), value), torch.full((1, 3), value))})
    try:
        read = merge(Subspace.empty(), "a", one).subspace.adapter("a").factors["m"]
    except AlgebraError:
        return
    true = torch.full((4, 3), value, dtype=torch.float64) ** 2
    assert torch.allclose(read.B_NR.double() @ read.A_RD.double(), true, rtol=1e-5)


def test_finite_numbers_with_a_sum_that_overflows_are_kept():
    one = Adapter({"m": Factors(torch.full((4, 1), 3e38), torch.full((1, 3), 1e-20))})
    read = merge(Subspace.empty(), "a", one).subspace.adapter("a").factors["m"]
    assert torch.allclose(read.delta_ND(), one.factors["m"].delta_ND(), rtol=1e-5)


@pytest.mark.parametrize("value", [1e200, 1e160, 3e38])
def test_update_whose_product_no_float_holds_is_refused_with_the_module(value):
    wide = torch.full((4, 1), value, dtype=torch.float64), torch.full((1, 3), value, dtype=torch.float64)
    with pytest.raises(AlgebraError, match=r"m: .*too large"):
        merge(Subspace.empty(), "a", Adapter({"m": Factors(*wide)}))


BAD_NAMES = ["../../evil", "org/a", "", ".", "..", "a\\b", "a b", "-rm", "a\n", "a\0", "ä", "x" * 101, "C:evil", None]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_task_name_that_could_hurt_as_a_file_name_is_refused(name):
    made = subspace([adapter(1)])
    for act in (lambda: merge(made, name, adapter(2)), lambda: rename(made, "t0", name)):
        with pytest.raises(AlgebraError, match="task name"):
            act()


def test_names_that_others_clean_into_one_stay_two(tmp_path):
    made = Subspace.empty()
    for name, seed in (("a_b", 1), ("a-b", 2), ("a.b", 3), ("A_b", 4)):
        made = merge(made, name, adapter(seed)).subspace
    made.save(tmp_path)
    assert bits(Subspace.load(tmp_path)) == bits(made) and len(made.tasks) == 4


BAD_CONFIGS = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "bias": ({"bias": "all"}, "bias"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    "another method": ({"peft_type": "IA3"}, "IA3"),
    "rank": ({"r": 4}, "q: .*rank 2.*4"),
    "rank by pattern": ({"rank_pattern": {"q": 3}}, "q: .*rank 2.*3"),
    "alpha": ({"lora_alpha": float("inf")}, "q: lora_alpha"),
    "alpha text": ({"lora_alpha": "8"}, "q: lora_alpha"),
    "pattern": ({"rank_pattern": {"(": 3}}, "pattern"),
    "long pattern": ({"rank_pattern": {"(a+)+" * 200: 3}}, "pattern"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
}


@pytest.mark.parametrize(("config", "reason"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_folder_that_factors_alone_do_not_describe_is_refused(config, reason, tmp_path):
    with pytest.raises(AlgebraError, match=reason):
        Adapter.load(peft_folder(tmp_path, GOOD, **config))


BAD_TENSORS = {
    "B missing": ({"q.lora_A.weight": torch.ones(2, 6)}, "q: has only lora_A"),
    "magnitude": ({**GOOD, "q.lora_magnitude_vector": torch.ones(5)}, "q: .*magnitude"),
    "bias": ({**GOOD, "q.lora_B.bias": torch.ones(5)}, "q: .*B.bias"),
    "ranks": ({"q.lora_A.weight": torch.ones(3, 6), "q.lora_B.weight": torch.ones(5, 2)}, "q: .*multiply"),
    "empty": ({"q.lora_A.weight": torch.ones(0, 6), "q.lora_B.weight": torch.ones(5, 0)}, "q: .*multiply"),
    "one dimension": ({"q.lora_A.weight": torch.ones(2), "q.lora_B.weight": torch.ones(5, 2)}, "q: .*multiply"),
    "groups": (
        {"q.lora_A.weight": torch.ones(2, 6, 3, 3), "q.lora_B.weight": torch.ones(8, 1, 1, 1)},
        "q: .*multiply",
    ),
    "integers": ({"q.lora_A.weight": torch.ones(2, 6).int(), "q.lora_B.weight": torch.ones(5, 2)}, "q: .*floating"),
    "no factors": ({"score.weight": torch.ones(2, 2)}, "no LoRA factors"),
}


@pytest.mark.parametrize(("tensors", "reason"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_folder_with_tensors_that_are_no_lora_is_refused_with_the_module(tensors, reason, tmp_path):
    with pytest.raises(AlgebraError, match=reason):
        Adapter.load(peft_folder(tmp_path, tensors))


def header(fields: object) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text


HUGE = {"base_model.model.q.lora_A.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
OVERLAP = {
    "base_model.model.q.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    "base_model.model.q.lora_B.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
}
BAD_FILES = {
    "empty": b"",
    "header length only": struct.pack("<Q", 2**60),
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "not json": struct.pack("<Q", 4) + b"nope",
    "huge shape": header(HUGE) + b"\0" * 64,
    "overlapping tensors": header(OVERLAP) + b"\0" * 8,
    "pickle": b"\x80\x04\x95",
}


@pytest.mark.parametrize("blob", BAD_FILES.values(), ids=BAD_FILES)
def test_hostile_or_broken_safetensors_are_refused(blob, tmp_path):
    peft_folder(tmp_path, GOOD)
    (tmp_path / "adapter_model.safetensors").write_bytes(blob)
    with pytest.raises(AlgebraError, match="safetensors"):
        Adapter.load(tmp_path)


def test_every_truncation_of_a_weights_file_is_refused(tmp_path):
    whole = (peft_folder(tmp_path, GOOD) / "adapter_model.safetensors").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "adapter_model.safetensors").write_bytes(whole[:size])
        with pytest.raises(AlgebraError):
            Adapter.load(tmp_path)


def test_missing_files_pickles_and_foreign_names_are_refused(tmp_path: Path):
    with pytest.raises(AlgebraError, match="adapter_config"):
        Adapter.load(tmp_path)
    peft_folder(tmp_path, GOOD)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AlgebraError, match="pickle"):
        Adapter.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(AlgebraError, match="not JSON"):
        Adapter.load(tmp_path)
