"""Directions derived from the base model's weights. The oracle: numpy's singular vectors."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
import torch
from algebra_samples import adapter, bits, relative_error
from safetensors.torch import save
from training_samples import inputs, lora, net, trained

from share_algo import (
    Adapter,
    AlgebraError,
    Basis,
    Coefficients,
    LoadedWeights,
    Subspace,
    compact,
    constrain,
    derive,
    merge,
    release,
    weight_block,
    with_weights,
)
from share_algo.codec import decode_block, encode_block
from share_algo.weights import LANCZOS_RESTARTS_MAX, LANCZOS_SIDE_MIN, basis_with_weights

SHAPES = {"a": (48, 32), "b": (32, 40)}
COLUMNS = 12


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {m: torch.randn(shape, generator=g) for m, shape in SHAPES.items()}


def generation() -> Subspace:
    return Subspace(Basis((weight_block(weights(), COLUMNS),)))


def inside(subspace: Subspace, seed: int, shared: int = 5, rank: int = 3) -> Adapter:
    random, common = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    sides = [torch.randn(COLUMNS, shared, generator=common) @ torch.randn(shared, rank, generator=random) for _ in "BA"]
    return Adapter({m: Coefficients(*sides).read(subspace.basis[m]) for m in SHAPES})


def with_tasks() -> tuple[Subspace, dict[str, Adapter]]:
    made = generation()
    adapters = {f"t{i}": inside(made, i) for i in range(4)}
    for task, one in adapters.items():
        made = merge(made, task, one).subspace
    return made, adapters


def test_columns_are_the_leading_singular_vectors_in_order_with_a_sign_of_their_own():
    for module, W in weights().items():
        columns = generation().basis[module]
        U, S = np.linalg.svd(W.double().numpy())[:2]
        out, inn = columns.out_NK.double().numpy(), columns.in_DL.double().numpy()
        assert np.abs(np.abs(np.sum(out * U[:, :COLUMNS], 0)) - 1).max() < 1e-6
        assert np.allclose(np.diag(out.T @ W.double().numpy() @ inn), S[:COLUMNS], rtol=1e-5)
        assert (np.take_along_axis(out, np.abs(out).argmax(0)[None], 0) > 0).all()


def reflection(side: int, seed: int) -> torch.Tensor:
    unit = torch.nn.functional.normalize(torch.randn(side, generator=torch.Generator().manual_seed(seed)), dim=0)
    return torch.eye(side) - 2 * torch.outer(unit, unit)


@pytest.mark.parametrize("restarts", [LANCZOS_RESTARTS_MAX, 1])
def test_a_few_columns_of_a_large_weight_are_the_same_without_decomposing_it_whole(
    restarts: int, monkeypatch: pytest.MonkeyPatch
):
    """With one restart Lanczos' method does not end, and it is decomposed after all."""
    monkeypatch.setattr("share_algo.weights.LANCZOS_RESTARTS_MAX", restarts)
    left, right = (reflection(LANCZOS_SIDE_MIN, seed) for seed in (1, 2))
    values = torch.linspace(3, 1, LANCZOS_SIDE_MIN)
    columns = weight_block({"m": (left * values) @ right}, 8)["m"]
    for found, known in ((columns.out_NK, left), (columns.in_DL, right)):
        assert ((found * known[:, :8]).sum(0).abs() - 1).abs().max() < 1e-4
    assert ((columns.out_NK.T @ (left * values) @ right @ columns.in_DL).diag() - values[:8]).abs().max() < 1e-4


def test_a_block_from_weights_costs_a_few_bytes_whatever_their_size_and_needs_them_to_be_read():
    block = weight_block({"m": torch.randn(700, 500)}, 64)
    blob = encode_block(block)
    assert len(blob) < 200 and Basis((block,)).nbytes() == 0
    bare = Subspace(Basis((decode_block(blob),)))
    assert bare.basis.widths() == {"m": (64, 64)}
    with pytest.raises(AlgebraError, match=r"m: .*with_weights"):
        _ = bare.basis["m"].out_NK


def test_saved_and_loaded_it_is_bitwise_the_same_once_the_weights_are_given(tmp_path):
    made, adapters = with_tasks()
    for number, kept in enumerate((made, compact(made, size=5).subspace)):
        kept.save(tmp_path / str(number))
        bare = Subspace.load(tmp_path / str(number))
        again = with_weights(bare, weights())
        assert bits(again) == bits(kept) and again.nbytes() == kept.nbytes()
        assert all(relative_error(one, again.adapter(t)) < 1e-5 for t, one in adapters.items())
    assert again.basis.nbytes() == 4 * len(SHAPES) * 2 * COLUMNS * 5


def test_a_strange_task_brings_its_own_directions_and_comes_back_with_them(tmp_path):
    made = merge(generation(), "strange", adapter(1, 2, SHAPES)).subspace
    assert made.basis.widths() == {"a": (14, 14), "b": (14, 14)}
    made.save(tmp_path)
    assert bits(with_weights(Subspace.load(tmp_path), weights())) == bits(made)


@pytest.mark.parametrize("other", [weights(1)["a"], weights()["a"].double(), weights()["b"], weights()["a"] + 1e-6])
def test_another_weight_is_refused_with_the_module(other, tmp_path):
    made, _ = with_tasks()
    made.save(tmp_path)
    with pytest.raises(AlgebraError, match=r"a: this is not the base model's weight"):
        with_weights(Subspace.load(tmp_path), {**weights(), "a": other})


def test_weights_that_are_loaded_for_it_are_loaded_once_and_let_go_once_all_is_derived():
    loaded: list[weakref.ref] = []

    def load() -> dict[str, torch.Tensor]:
        found = weights(7)
        loaded.extend(map(weakref.ref, found.values()))
        return found

    lazy = LoadedWeights(SHAPES, load)
    assert (set(lazy), len(lazy), "c" in lazy, lazy.get("c"), loaded) == (set(SHAPES), len(SHAPES), False, None, [])
    block = weight_block(lazy, COLUMNS)
    derive([block], threads=4)
    assert len(loaded) == len(SHAPES) and not any(ref() is not None for ref in loaded)
    same = weight_block(weights(7), COLUMNS)
    assert all(torch.equal(block[m].out_NK, same[m].out_NK) for m in SHAPES) and len(loaded) == len(SHAPES)
    assert lazy["a"].shape == SHAPES["a"] and len(loaded) == 2 * len(SHAPES)


def test_weights_are_let_go_also_where_one_is_another():
    lazy = LoadedWeights(SHAPES, lambda: {**weights(), "b": weights(1)["b"]})
    with pytest.raises(AlgebraError, match=r"^b: this is not the base model's weight"):
        derive(basis_with_weights(generation().basis.blocks, lazy).blocks)
    assert lazy._loaded is None


def test_weights_whose_vectors_nobody_could_tell_apart_are_refused():
    large = torch.eye(LANCZOS_SIDE_MIN)
    in_pairs = large * torch.linspace(2, 1, len(large)).round(decimals=1)
    for weight in (torch.eye(20), torch.zeros(20, 20), large, in_pairs):
        block = weight_block({"m": weight}, 4)
        with pytest.raises(AlgebraError, match=r"m: singular values"):
            _ = block["m"].out_NK


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(3, 3).int(), torch.full((3, 3), float("nan"))])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(AlgebraError, match="m: a base weight"):
        weight_block({"m": weight}, 2)


@pytest.mark.parametrize("recipe", [["0" * 63, 4, 9, 9], ["g" * 64, 4, 9, 9], ["0" * 64, 0, 9, 9], ["0" * 64, 4, 9]])
def test_a_hostile_recipe_is_refused(recipe):
    with pytest.raises(AlgebraError, match=r"layer\.a"):
        decode_block(save({}, {"share_algo": json.dumps({"derived": {"layer.a": recipe}})}))


def test_what_is_trained_inside_needs_no_directions():
    made = Subspace(Basis((weight_block({"proj": net().get_submodule("proj").weight}, 6),)))
    one = release(trained(constrain(lora(), made, new_directions=0), inputs(), steps=10))
    assert one.factors["proj"].delta_ND().any()
    result = merge(made, "x", one)
    assert result.report.new_directions == (0, 0) and result.subspace.basis.nbytes() == 0
