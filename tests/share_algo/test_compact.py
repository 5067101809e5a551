"""Compaction: the joint optimum, and certificates that are true. Oracles: dense numpy, random restarts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from algebra_samples import adapter, bits, dense, orthonormality, related, relative_error, seeds, subspace
from hypothesis import given, settings
from hypothesis import strategies as st

from share_algo import Adapter, AlgebraError, Basis, Factors, Subspace, compact, derived_block, merge
from share_algo.tucker import Cores, tucker

SLACK = 3e-6
"""How much a certificate may claim beyond what is measured: float32 storage."""


def assert_certificates_true(made: Subspace, adapters: dict[str, Adapter]) -> None:
    """Each claims at least what is measured; what claims to be exact, no more than that."""
    for task, one in adapters.items():
        measured, claimed = relative_error(one, made.adapter(task)), made.certificates[task]
        assert measured <= claimed.relative_error + 1e-9, task
        if not claimed.is_bound:
            assert claimed.relative_error <= measured + 10 * SLACK, task


def objective(mats: list[np.ndarray], U: np.ndarray, V: np.ndarray) -> float:
    return float(sum(np.linalg.norm(m - U @ U.T @ m @ V @ V.T) ** 2 / np.linalg.norm(m) ** 2 for m in mats))


def dense_joint(mats: list[np.ndarray], k: int, seed: int | None = None) -> float:
    """Alternating optimum by dense eigenvectors of the whole matrices; from HOSVD or from random columns."""
    weighted = [m / np.linalg.norm(m) for m in mats]
    if seed is None:
        V = np.linalg.eigh(sum(m.T @ m for m in weighted))[1][:, -k:]
    else:
        V = np.linalg.qr(np.random.RandomState(seed).standard_normal((mats[0].shape[1], k)))[0]
    for _ in range(200):
        U = np.linalg.eigh(sum(m @ V @ V.T @ m.T for m in weighted))[1][:, -k:]
        V = np.linalg.eigh(sum(m.T @ U @ U.T @ m for m in weighted))[1][:, -k:]
    return objective(mats, U, V)


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 6), st.integers(1, 7))
def test_compaction_is_within_one_percent_of_the_dense_joint_optimum(seed, tasks, k):
    adapters = related(seed, tasks, 4, 0.2)
    made = compact(subspace(adapters, 1e-6), size=k).subspace
    mats = [dense(a)["m"] for a in adapters]
    ours = sum(relative_error(a, made.adapter(f"t{i}")) ** 2 for i, a in enumerate(adapters))
    assert ours <= 1.01 * dense_joint(mats, k) + 1e-8


def test_hosvd_start_finds_what_twenty_random_starts_find():
    adapters = related(5, 6, 4, 0.3)
    mats = [dense(a)["m"] for a in adapters]
    made = compact(subspace(adapters, 1e-6), size=5).subspace
    ours = sum(relative_error(a, made.adapter(f"t{i}")) ** 2 for i, a in enumerate(adapters))
    assert ours <= 1.01 * min(dense_joint(mats, 5, seed) for seed in range(20))


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 5), st.sampled_from([1e-5, 0.05, 0.3]), st.integers(2, 8))
def test_append_then_compact_then_append_never_errs_more_than_the_certificates_say(seed, tasks, tolerance, k):
    adapters = {f"t{i}": a for i, a in enumerate(related(seed, tasks, 4, 0.3))}
    made = subspace(list(adapters.values()), tolerance)
    assert_certificates_true(made, adapters)
    for size in (k, max(1, k - 2)):
        made = compact(made, size=size).subspace
        assert_certificates_true(made, adapters)
        assert orthonormality(made) < 1e-6
        late = related(seed + size, 1, 4, 0.3)[0]
        adapters[f"late{size}"] = late
        made = merge(made, f"late{size}", late, tolerance=tolerance).subspace
        assert_certificates_true(made, adapters)


def test_append_leaves_the_certificates_of_others_as_they_are():
    made = compact(subspace([adapter(s) for s in range(3)]), size=5).subspace
    after = merge(made, "new", adapter(9)).subspace
    assert all(after.certificates[task] == found for task, found in made.certificates.items())


def test_orthogonal_errors_compose_exactly_over_ten_compactions():
    adapters = {f"t{i}": a for i, a in enumerate(related(3, 5, 8, 0.2))}
    made = subspace(list(adapters.values()), 1e-6)
    for size in range(14, 4, -1):
        made = compact(made, size=size).subspace
    assert not any(c.is_bound for c in made.certificates.values())
    assert_certificates_true(made, adapters)


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([0.02, 0.1, 0.4]))
def test_tolerance_bounds_the_worst_task_of_each_module(seed, tolerance):
    adapters = [adapter(seed + i, 2) for i in range(4)]
    before = subspace(adapters, 1e-6)
    result = compact(before, tolerance=tolerance)
    assert max(result.report.errors.values()) <= tolerance
    for i, one in enumerate(adapters):
        kept = dense(result.subspace.adapter(f"t{i}"))
        for module, true in dense(one).items():
            assert np.linalg.norm(true - kept[module]) <= (tolerance + SLACK) * np.linalg.norm(true)


def test_larger_tolerance_needs_no_more_directions_and_size_beyond_the_basis_changes_nothing():
    made = subspace([adapter(s, 2) for s in range(4)])
    widths = [sum(map(sum, compact(made, tolerance=t).report.after.values())) for t in (0.01, 0.2, 0.5, 0.8)]
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]
    assert bits(compact(made, size=99).subspace) == bits(made)


def test_module_with_its_own_size_is_the_only_one_that_changes():
    made = subspace([adapter(s) for s in range(3)])
    after = compact(made, size={"encoder.q": (2, 3)}).subspace
    assert after.basis.widths()["encoder.q"] == (2, 3)
    before = bits(made)
    assert all(value == before[key] for key, value in bits(after).items() if "encoder.v" in key)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 3), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(1, 20))
def test_columns_that_no_task_needs_any_more_do_not_outlive_a_compaction(seed, tasks, loud, size):
    """Of tasks that were learned anew, the old directions hold rounding alone: which they are would be arbitrary."""
    earlier, later = (related(seed + i, tasks, 4, 0.3) for i in (0, 1))
    first = later[0].factors["m"]
    later[0] = Adapter({"m": Factors(loud * first.B_NR, first.A_RD)})
    made = subspace(earlier)
    for number, one in enumerate(later):
        made = merge(made, f"t{number}", one, tolerance=1e-5).subspace
    after = compact(made, size=size).subspace
    assert_certificates_true(after, {f"t{i}": a for i, a in enumerate(later)})
    mats = [dense(a)["m"] / np.linalg.norm(dense(a)["m"]) for a in later]
    widths = made.basis.widths()["m"]
    for side, stacked in enumerate((np.concatenate(mats, 1), np.concatenate([m.T for m in mats], 1))):
        needed = int(np.linalg.matrix_rank(stacked, tol=1e-5))
        columns = after.basis["m"].out_NK if side == 0 else after.basis["m"].in_DL
        if size < max(widths):
            assert columns.shape[1] == min(size, needed)
        if needed <= size < max(widths):
            span = np.linalg.svd(stacked)[0][:, :needed]
            assert np.linalg.norm(columns.double().numpy() - span @ (span.T @ columns.double().numpy())) < 1e-4


def test_module_in_which_no_task_has_anything_left_keeps_no_columns_and_is_read_as_zero(tmp_path):
    zero = Factors(torch.zeros(9, 3), torch.randn(3, 16))
    for derived in ({}, derived_block({"encoder.v": (9, 16)}, 5, seed=1)):
        made = Subspace(Basis((derived,)) if derived else Basis())
        for one in (adapter(1), Adapter({**adapter(2).factors, "encoder.v": zero})):
            made = merge(made, "t", one).subspace
        compact(made, size=2).subspace.save(tmp_path)
        after = Subspace.load(tmp_path)
        assert after.basis.widths() == {"encoder.q": (2, 2), "encoder.v": (0, 0)}
        assert not dense(after.adapter("t"))["encoder.v"].any()
        again = merge(after, "u", adapter(3)).subspace
        assert relative_error(adapter(3), again.adapter("u")) < 1e-5


def test_no_task_is_favoured_for_being_loud_unless_weights_say_so():
    loud, quiet = related(1, 1, 3, 0.0)[0], related(2, 1, 3, 0.0)[0]
    loud = Adapter({"m": Factors(1000 * loud.factors["m"].B_NR, loud.factors["m"].A_RD)})
    made = subspace([loud, quiet])
    even = compact(made, size=3).report.errors
    assert even["t1"] < 0.95 and even["t0"] < 0.95
    assert compact(made, size=3, weights={"t1": 1e6}).report.errors["t1"] < 1e-2 < even["t1"]


def test_joint_policy_beats_the_papers_rule_at_equal_size():
    adapters = related(7, 6, 5, 0.3)
    made = subspace(adapters)
    joint, share = (compact(made, size=5, policy=p).report.errors.values() for p in ("joint", "share"))
    assert sum(e * e for e in joint) < sum(e * e for e in share)


def test_papers_rule_is_the_svd_of_the_centred_factors():
    """Against numpy: columns of all balanced B side by side, centred, SVD; each task projected uncentred."""
    adapters = related(8, 4, 5, 0.3)
    made = subspace(adapters)
    after = compact(made, size=4, policy="share").subspace
    stacked = np.concatenate(
        [made.basis["m"].out_NK[:, : c.widths[0]].double().numpy() @ c.P_KR.double().numpy()
         for c in (made.tasks[t].coefficients["m"] for t in made.tasks)], 1,
    )  # fmt: skip
    left = np.linalg.svd(stacked - stacked.mean(1, keepdims=True))[0][:, :4]
    found = after.basis["m"].out_NK.double().numpy()
    assert np.abs(found @ found.T - left @ left.T).max() < 1e-5
    assert_certificates_true(after, {f"t{i}": a for i, a in enumerate(adapters)})


def test_papers_rule_without_a_size_explains_sixty_percent():
    made = subspace(related(9, 6, 6, 0.3))
    after = compact(made, policy="share", centred=False).subspace
    K = after.basis.widths()["m"][0]
    assert 0 < K < made.basis.widths()["m"][0]
    assert min(after.certificates[t].relative_error for t in after.tasks) > 0.1


def test_budget_of_a_merge_is_never_exceeded_and_the_report_counts_the_compaction():
    adapters = {f"t{i}": a for i, a in enumerate(related(4, 10, 4, 0.2))}
    made = Subspace.empty()
    for task, one in adapters.items():
        result = merge(made, task, one, budget=8)
        made = result.subspace
        assert max(max(w) for w in made.basis.widths().values()) <= 8
        assert result.report.relative_error == made.certificates[task].relative_error
    assert result.report.compaction is not None
    assert_certificates_true(made, adapters)


def test_refinement_never_ends_below_its_start():
    g = torch.Generator().manual_seed(0)
    cores = Cores(*(torch.randn(5, n, 3, generator=g).double() for n in (9, 7)), torch.ones(5).double())
    losses = [float(cores.lost_T(*tucker(cores, 3, 3, rounds)).square().sum()) for rounds in (1, 2, 5, 50)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.999 * losses[0]


def test_purity_tensors_that_went_in_are_untouched():
    made = subspace([adapter(s, head=True) for s in range(3)])
    before = bits(made)
    compact(made, size=2)
    assert bits(made) == before


@pytest.mark.parametrize(
    "wrong",
    [{}, {"size": 3, "tolerance": 0.1}, {"size": 0}, {"tolerance": -0.1}, {"tolerance": 1.0}, {"size": {"no": 3}},
     {"tolerance": 0.1, "policy": "share"}, {"size": 3, "policy": "other"}, {"size": 3, "weights": {"no": 1.0}},
     {"size": 3, "weights": {"t0": float("nan")}}],
)  # fmt: skip
def test_contradictory_arguments_are_refused(wrong):
    with pytest.raises(AlgebraError):
        compact(subspace([adapter(1)]), **wrong)
