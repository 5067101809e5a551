"""merge and append: what is kept, what is left alone, and what is claimed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from algebra_samples import (
    FULL,
    SHAPES,
    adapter,
    bits,
    orthonormality,
    projector,
    ranks,
    relative_error,
    seeds,
    subspace,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from share_algo import Adapter, Basis, Coefficients, Factors, Subspace, TaskEntry, Update, append, keep, merge

tolerances = st.sampled_from([1e-5, 1e-3, 0.05, 0.3])


@settings(max_examples=30, deadline=None)
@given(seeds, st.lists(ranks, min_size=1, max_size=5), tolerances)
def test_error_is_within_the_tolerance_and_is_the_error_claimed(seed, each_rank, tolerance):
    made = Subspace.empty()
    for number, rank in enumerate(each_rank):
        one = adapter(seed + number, rank)
        result = merge(made, f"t{number}", one, tolerance=tolerance)
        made = result.subspace
        measured = relative_error(one, made.adapter(f"t{number}"))
        assert measured <= tolerance * 1.001 + 1e-6
        assert result.report.relative_error == pytest.approx(measured, rel=1e-4, abs=1e-8)
        assert all(m.relative_error <= tolerance * 1.001 for m in result.report.modules.values())


@settings(max_examples=20, deadline=None)
@given(seeds, st.lists(ranks, min_size=2, max_size=6), tolerances)
def test_merge_leaves_every_earlier_task_bitwise_as_it_was(seed, each_rank, tolerance):
    made = Subspace.empty()
    for number, rank in enumerate(each_rank):
        before = bits(made)
        grown = merge(made, f"t{number}", adapter(seed + number, rank, head=True), tolerance=tolerance).subspace
        after = bits(grown)
        assert all(after[key] == value for key, value in before.items() if not key.startswith("basis/"))
        assert bits(made) == before
        made = grown


def test_earlier_task_of_a_wide_model_is_bitwise_alike_when_read_from_a_wider_basis():
    shapes = {"m": (768, 512)}
    made = subspace([adapter(seed, 8, shapes) for seed in range(3)])
    before = bits(made)["t1/m"]
    for seed in range(3, 12):
        made = merge(made, f"t{seed}", adapter(seed, 8, shapes)).subspace
        assert bits(made)["t1/m"] == before


@settings(max_examples=20, deadline=None)
@given(seeds, st.lists(ranks, min_size=1, max_size=8), tolerances)
def test_basis_is_orthonormal_and_never_wider_than_the_space(seed, each_rank, tolerance):
    made = subspace([adapter(seed + n, rank) for n, rank in enumerate(each_rank)], tolerance)
    assert orthonormality(made) < 2e-6
    for module, (K, L) in made.basis.widths().items():
        N, D = SHAPES[module]
        assert K <= N and L <= D


def test_basis_stays_orthonormal_when_each_newcomer_brings_almost_nothing_new():
    """Small residuals are mostly rounding of the projection unless they are projected again."""
    shapes = {"m": (300, 200)}
    made, g = subspace([adapter(0, 8, shapes)]), torch.Generator().manual_seed(1)
    for number in range(1, 12):
        f = made.adapter("t0").factors["m"]
        B = f.B_NR + 2e-5 * f.B_NR.norm() / 50 * torch.randn(f.B_NR.shape, generator=g)
        made = merge(made, f"t{number}", Adapter({"m": Factors(B, f.A_RD)}), tolerance=1e-6).subspace
    assert made.basis.widths()["m"][0] > 8 and orthonormality(made) < 1e-6


def test_basis_stays_orthonormal_when_hardly_anything_of_a_newcomers_column_is_new():
    """Two adapters of rank 5 fill ten dimensions: of the last column next to nothing may be left beside the first."""
    for seed in range(200):
        assert orthonormality(subspace([adapter(seed, 5), adapter(seed + 1, 5)])) < 1e-6


@settings(max_examples=20, deadline=None)
@given(seeds, ranks, st.sampled_from([FULL, 0.2]))
def test_rotated_factors_of_the_same_update_give_the_same_subspace(seed, rank, tolerance):
    """Gauge: (B G, G^-1 A) is the same update."""
    one = adapter(seed, rank)
    G = torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed)).double()).Q
    G = G * torch.logspace(-1, 1, rank, dtype=torch.float64)
    turned = {m: Factors(f.B_NR.double() @ G, torch.linalg.inv(G) @ f.A_RD.double()) for m, f in one.factors.items()}
    first, second = subspace([one], tolerance), subspace([Adapter(turned)], tolerance)
    assert first.basis.widths() == second.basis.widths()
    assert relative_error(first.adapter("t0"), second.adapter("t0")) < 1e-6
    for module in SHAPES:
        for a, b in zip(projector(first, module), projector(second, module), strict=True):
            assert np.abs(a - b).max() < 1e-5


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_span_does_not_depend_on_the_order_of_arrival(order):
    adapters = [adapter(seed, 2) for seed in range(3)]
    made, turned = subspace(adapters), subspace([adapters[i] for i in order])
    for module in SHAPES:
        for a, b in zip(projector(made, module), projector(turned, module), strict=True):
            assert np.abs(a - b).max() < 1e-4


def test_identical_adapters_add_nothing_after_the_first():
    one = adapter(1)
    made = subspace([one])
    for number in range(1, 6):
        result = merge(made, f"t{number}", one, tolerance=0.0)
        assert result.report.new_directions == (0, 0) and result.subspace.basis is made.basis
        made = result.subspace
    assert relative_error(one, made.adapter("t5")) < 1e-6


def test_new_directions_are_as_few_as_a_dense_svd_says():
    """Against numpy: with an empty basis, the fewest ranks whose tail is within the tolerance."""
    scales = 2.0 ** -np.arange(8)
    rng = np.random.RandomState(0)
    U, V = (np.linalg.qr(rng.standard_normal((n, 8)))[0] for n in (30, 20))
    one = Adapter({"m": Factors(torch.from_numpy(U * scales), torch.from_numpy(V.T.copy()))})
    tail = np.sqrt(np.cumsum(scales[::-1] ** 2)[::-1] / np.sum(scales**2))
    for tolerance in (0.5, 0.1, 0.03):
        fewest = int((tail > tolerance).sum())
        (report,) = append(Basis(), one, tolerance=tolerance).modules.values()
        assert max(report.new_out, report.new_in) in (fewest, fewest + 1)


def test_old_columns_are_used_before_new_ones_are_bought():
    one, two = adapter(1, 3), adapter(2, 3)
    mixed = {m: Factors(one.factors[m].B_NR @ torch.ones(3, 3).tril(), two.factors[m].A_RD) for m in one.factors}
    result = merge(subspace([one, two]), "mixed", Adapter(mixed))
    assert result.report.new_directions == (0, 0) and result.report.relative_error < 1e-5


@settings(max_examples=15, deadline=None)
@given(seeds, tolerances, st.sampled_from([0.3, 0.9, 1.05, 1.5]))
def test_what_the_basis_holds_is_kept_within_the_tolerance_and_truly_claimed(seed, tolerance, outside):
    """Three modules of one shape and one more; of each a part of about `outside` tolerances lies beside the basis."""
    shapes = {"a": (24, 20), "b": (24, 20), "c": (24, 20), "d": (18, 22)}
    made, g = subspace([adapter(seed + i, 3, shapes) for i in range(3)]), torch.Generator().manual_seed(seed)
    factors = {}
    for module, old in ((m, made.basis[m]) for m in shapes):
        B = old.out_NK @ torch.randn(old.out_NK.shape[1], 2, generator=g)
        A = (old.in_DL @ torch.randn(old.in_DL.shape[1], 2, generator=g)).T
        beside = torch.randn(B.shape, generator=g)
        beside = beside - old.out_NK @ (old.out_NK.T @ beside)
        beside *= outside * tolerance * (B @ A).norm() / (beside @ A).norm()
        factors[module] = Factors(B + beside, A)
    one = Adapter(factors)
    result = merge(made, "x", one, tolerance=tolerance)
    measured = relative_error(one, result.subspace.adapter("x"))
    assert result.report.relative_error == pytest.approx(measured, rel=1e-6, abs=1e-9)
    assert all(m.relative_error <= tolerance * 1.001 for m in result.report.modules.values())
    assert all((m.new_out > 0) == (outside > 1.01) for m in result.report.modules.values())


def test_what_the_basis_holds_gets_the_smallest_rank_that_the_tolerance_allows():
    made = subspace([adapter(1, 4, {"m": (30, 20)})])
    f = made.adapter("t0").factors["m"]
    U, S, V = torch.linalg.svd(f.delta_ND().double(), full_matrices=False)
    S = torch.tensor([1.0, 0.5, 0.04, 0.02]).double()
    one = Adapter({"m": Factors(U[:, :4] * S, V[:4])})
    for tolerance, rank in ((1e-5, 4), (0.025, 3), (0.06, 2)):
        result = merge(made, "x", one, tolerance=tolerance)
        assert result.subspace.tasks["x"].coefficients["m"].P_KR.shape[1] == rank
        assert result.report.new_directions == (0, 0) and result.report.relative_error <= tolerance
        assert result.report.relative_error == pytest.approx(
            relative_error(one, result.subspace.adapter("x")), rel=1e-6, abs=1e-9
        )


def test_tasks_may_have_other_ranks_and_other_modules():
    a = adapter(1, 1, {"encoder.q": (14, 10)})
    b = adapter(2, 5, {"encoder.v": (9, 16), "encoder.q": (14, 10)})
    made = subspace([a, b])
    for task, one in (("t0", a), ("t1", b)):
        assert relative_error(one, made.adapter(task)) < FULL


def test_module_that_is_zero_stays_zero_and_its_shape_is_known():
    one = adapter(1)
    factors = {**one.factors, "encoder.v": Factors(torch.zeros(9, 3), one.factors["encoder.v"].A_RD)}
    made = merge(Subspace.empty(), "a", Adapter(factors)).subspace
    read = made.adapter("a").factors["encoder.v"]
    assert read.shape == (9, 16) and not read.delta_ND().any()


def test_adapter_larger_than_the_module_is_high_is_kept_whole():
    one = adapter(3, rank=12)
    assert relative_error(one, subspace([one]).adapter("t0")) < FULL


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_factors_of_any_float_type_are_kept_to_float32(dtype):
    one = adapter(1)
    cast = Adapter({m: Factors(f.B_NR.to(dtype), f.A_RD.to(dtype)) for m, f in one.factors.items()})
    made = subspace([cast])
    assert relative_error(cast, made.adapter("t0")) < 1e-6
    assert made.adapter("t0").factors["encoder.q"].B_NR.dtype == torch.float32


def test_replaced_task_is_the_new_one_and_the_largest_error_is_of_all_tasks():
    made = subspace([adapter(1), adapter(2)], tolerance=0.2)
    result = merge(made, "t0", adapter(9), tolerance=1e-5)
    assert relative_error(adapter(9), result.subspace.adapter("t0")) < FULL
    measured = relative_error(adapter(2), result.subspace.adapter("t1"))
    assert result.report.largest_relative_error == pytest.approx(measured, rel=1e-4)
    assert result.report.relative_error < FULL and result.report.seconds > 0
    assert result.report.nbytes == result.subspace.nbytes() > result.subspace.nbytes(coefficients_only=True)


def storage_bytes(basis: Basis) -> int:
    sides = [side for m in basis for side in (basis[m].out_NK, basis[m].in_DL)]
    sides += [side for block in basis.blocks for d in block.values() for side in (d.out_NK, d.in_DL)]
    return sum({s.untyped_storage().data_ptr(): s.untyped_storage().nbytes() for s in sides}.values())


def test_columns_are_held_once_and_the_blocks_are_what_was_appended():
    basis, blocks = Basis(), []
    for seed in range(4):
        shapes = {"encoder.q": (14, 10)} if seed == 2 else SHAPES
        blocks.append(append(basis, adapter(seed, 1, shapes)).update.block)
        basis = basis.grown(blocks[-1])
    for made in (basis, Basis(tuple(blocks)), basis.prefix(3)):
        assert storage_bytes(made) == made.nbytes()
        for added, stored in zip(blocks[: len(made.blocks)], made.blocks, strict=True):
            assert list(added) == list(stored)
            for module, new in added.items():
                assert torch.equal(new.out_NK, stored[module].out_NK) and torch.equal(new.in_DL, stored[module].in_DL)


def inside(basis: Basis, seed: int) -> TaskEntry:
    """Coefficients of rank 2 in all columns that there are."""
    g = torch.Generator().manual_seed(seed)
    widths = {m: basis[m].widths for m in basis}
    return TaskEntry(
        {
            m: Coefficients(torch.randn(K, 2, generator=g), torch.randn(L, 2, generator=g))
            for m, (K, L) in widths.items()
        }
    )


def test_update_without_directions_is_kept_bitwise_in_a_basis_that_has_grown_since():
    base = subspace([adapter(3, 2)]).basis
    grown = base.grown(append(base, adapter(9, 2)).update.block)
    entry = inside(base, 1)
    kept = keep(grown, Update({}, entry), base)
    assert kept is not None and kept.update.entry is entry and not kept.update.block
    placed = append(grown, entry.adapter(base))
    assert not any(any(d.widths) for d in placed.update.block.values())
    assert relative_error(entry.adapter(base), kept.update.entry.adapter(grown)) == 0.0 == kept.relative_error
    assert kept.certificate.norm == pytest.approx(placed.certificate.norm, rel=1e-6)
    assert {m: (r.K, r.L) for m, r in kept.modules.items()} == {m: (r.K, r.L) for m, r in placed.modules.items()}


def test_update_of_another_basis_or_with_directions_of_its_own_is_not_kept_as_it_is():
    base, other = subspace([adapter(3, 2)]).basis, subspace([adapter(4, 2)]).basis
    assert keep(other, Update({}, inside(base, 1)), base) is None
    assert keep(Basis(), Update({}, inside(base, 1)), base) is None
    assert keep(base, append(base, adapter(9, 2)).update, base) is None
    huge = {m: Coefficients(c.P_KR * 1e30, c.Q_LR * 1e30) for m, c in inside(base, 1).coefficients.items()}
    assert keep(base, Update({}, TaskEntry(huge)), base) is None
