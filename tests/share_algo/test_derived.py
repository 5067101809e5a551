"""Directions that are derived, and directions learned inside them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from algebra_samples import relative_error
from safetensors.torch import save

from share_algo import AlgebraError, Basis, Coefficients, Factors, Subspace, compact, dequantise, merge, quantise
from share_algo.codec import decode_block, decode_update, encode_block
from share_algo.derived import DerivedDirections, derived_block
from share_algo.types import Adapter

SHAPES = {"a": (96, 64), "b": (64, 80)}
COLUMNS = 24


def _generation(seed: int = 0) -> Subspace:
    return Subspace(Basis((derived_block(SHAPES, COLUMNS, seed),)))


def _inside(subspace: Subspace, seed: int, shared: int = 6, rank: int = 3) -> Adapter:
    """An adapter in the derived span; all seeds together use `shared` directions of it a side."""
    random, common = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    factors = {}
    for module in SHAPES:
        sides = [torch.randn(COLUMNS, shared, generator=common) @ torch.randn(shared, rank, generator=random)
                 for _ in range(2)]  # fmt: skip
        factors[module] = Coefficients(*sides).read(subspace.basis[module])
    return Adapter(factors)


def _with_tasks(number: int = 5) -> tuple[Subspace, dict[str, Adapter]]:
    subspace = _generation()
    adapters = {f"t{i}": _inside(subspace, i) for i in range(number)}
    for task, adapter in adapters.items():
        subspace = merge(subspace, task, adapter).subspace
    return subspace, adapters


def _derived_anew(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Copies: what is derived is known as long as somebody holds it, and nobody does when this returns."""
    return {m: (d.out_NK.clone(), d.in_DL.clone()) for m, d in derived_block(SHAPES, 24, seed).items()}


def test_everybody_derives_the_same_orthonormal_columns():
    one, two, other = _derived_anew(7), _derived_anew(7), _derived_anew(8)
    for module in SHAPES:
        assert torch.equal(one[module][0], two[module][0]) and torch.equal(one[module][1], two[module][1])
        assert not torch.allclose(one[module][0], other[module][0])
        assert torch.allclose(one[module][1].T @ one[module][1], torch.eye(24), atol=1e-6)


def test_another_lapack_derives_the_same_columns_to_rounding():
    """numpy and torch bring one of their own each; so far apart are two machines that derive the same block."""
    columns = derived_block({"a": (96, 64)}, COLUMNS, 7)["a"]
    for side, height, found in (("out", 96, columns.out_NK), ("in", 64, columns.in_DL)):
        seed = np.frombuffer(hashlib.sha256(f"7/a/{side}".encode()).digest(), dtype=np.uint32)
        normal = torch.from_numpy(np.random.RandomState(seed).standard_normal((height, COLUMNS)))
        assert torch.allclose(torch.linalg.qr(normal).Q.float(), found, rtol=0, atol=1e-6)


def test_a_derived_block_costs_a_few_bytes_and_comes_back_bitwise():
    block = derived_block(SHAPES, COLUMNS, 7)
    blob = encode_block(block)
    assert len(blob) < 200 and Basis((block,)).nbytes() == 0
    back = decode_block(blob)
    for module in SHAPES:
        assert torch.equal(back[module].out_NK, block[module].out_NK)
        assert torch.equal(back[module].in_DL, block[module].in_DL)


def test_a_task_trained_inside_needs_no_directions_and_a_strange_one_brings_its_own():
    subspace = _generation()
    merged = merge(subspace, "inside", _inside(subspace, 1))
    assert merged.report.new_directions == (0, 0) and merged.subspace.basis.nbytes() == 0
    strange = Adapter({m: Factors(torch.randn(N, 2), torch.randn(2, D)) for m, (N, D) in SHAPES.items()})
    merged = merge(merged.subspace, "strange", strange)
    assert merged.report.new_directions == (4, 4) and merged.report.relative_error < 1e-5
    assert merged.subspace.basis.nbytes() == 4 * 2 * sum(N + D for N, D in SHAPES.values())


def test_compaction_stays_inside_and_costs_nothing_that_grows_with_the_model():
    subspace, adapters = _with_tasks()
    small = compact(subspace, size=6).subspace
    assert small.basis.widths() == {"a": (6, 6), "b": (6, 6)}
    assert small.basis.nbytes() == 4 * len(SHAPES) * 2 * COLUMNS * 6
    assert all(relative_error(adapter, small.adapter(task)) < 1e-5 for task, adapter in adapters.items())


@pytest.mark.parametrize("sizes", [(5,), (6, 4)])
def test_a_certificate_is_true_after_compactions_inside(sizes: tuple[int, ...]):
    subspace, adapters = _with_tasks()
    for size in sizes:
        subspace = compact(subspace, size=size).subspace
    for task, adapter in adapters.items():
        error, claimed = relative_error(adapter, subspace.adapter(task)), subspace.certificates[task].relative_error
        assert error > 1e-3 and error <= claimed + 1e-6 and claimed < 1.2 * error


def test_saved_and_loaded_it_is_bitwise_the_same_and_still_derived(tmp_path):
    subspace, _ = _with_tasks()
    for number, kept in enumerate((subspace, compact(subspace, size=6).subspace)):
        kept.save(tmp_path / str(number))
        back = Subspace.load(tmp_path / str(number))
        for module in SHAPES:
            assert isinstance(back.basis[module], DerivedDirections)
            assert torch.equal(back.basis[module].out_NK, kept.basis[module].out_NK)
        assert back.nbytes() == kept.nbytes()


def test_quantised_and_back_it_stays_derived():
    subspace, adapters = _with_tasks()
    for before in (subspace, compact(subspace, size=6).subspace):
        small = quantise(before, "int8")
        again = dequantise(small.subspace)
        assert again.basis.nbytes() == before.basis.nbytes()
        for task, adapter in adapters.items():
            assert relative_error(adapter, again.adapter(task)) <= again.certificates[task].relative_error + 1e-6
        columns = again.basis["a"].out_NK
        assert torch.allclose(columns.T @ columns, torch.eye(columns.shape[1]), atol=1e-5)


def test_an_update_may_not_derive_its_directions():
    with pytest.raises(AlgebraError, match="must bring its directions"):
        decode_update(encode_block(derived_block(SHAPES, 4, 0)))


HOSTILE = [
    [0, 10**9, 64, 64],
    [0, 0, 64, 64],
    [0, 4, 10**12, 64],
    [0, 4.5, 9, 9],
    ["0", 4, 9, 9],
    [1],
    "x",
    [0, -1, 9, 9],
]


@pytest.mark.parametrize("recipe", HOSTILE)
def test_a_hostile_recipe_is_refused_before_anything_is_computed(recipe):
    blob = save({}, {"share_algo": json.dumps({"derived": {"layer.a": recipe}})})
    with pytest.raises(AlgebraError, match=r"layer\.a"):
        decode_block(blob)


def test_directions_that_do_not_lie_inside_the_derived_ones_are_refused():
    inside = {"out/a": torch.eye(5, 2), "in/a": torch.eye(24, 2)}
    blob = save(inside, {"share_algo": json.dumps({"derived": {"a": [0, 24, 96, 64]}})})
    with pytest.raises(AlgebraError, match="do not lie inside"):
        decode_block(blob)
