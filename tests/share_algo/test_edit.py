"""remove, rename, average, combine, unite: each against what a merge from scratch or a dense mean says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from algebra_samples import FULL, SHAPES, adapter, bits, dense, projector, related, relative_error, seeds, subspace
from hypothesis import given, settings
from hypothesis import strategies as st

from share_algo import (
    Adapter,
    AlgebraError,
    Certificate,
    Factors,
    Subspace,
    average,
    combine,
    compact,
    merge,
    remove,
    rename,
    unite,
)


def spans_are_equal(a: Subspace, b: Subspace, within: float = 1e-4) -> bool:
    assert a.basis.widths() == b.basis.widths()
    return all(
        np.abs(x - y).max() < within for m in a.basis for x, y in zip(projector(a, m), projector(b, m), strict=True)
    )


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(0, 3))
def test_remove_leaves_the_space_that_merging_the_others_gives(seed, which):
    shapes = {"m": (20, 18), "n": (15, 16)}
    adapters = [adapter(seed + i, 3, shapes) for i in range(4)]
    removed = remove(subspace(adapters), f"t{which}").subspace
    assert spans_are_equal(removed, subspace([a for i, a in enumerate(adapters) if i != which]))
    for i, one in enumerate(adapters):
        if i != which:
            assert relative_error(one, removed.adapter(f"t{i}")) <= removed.certificates[f"t{i}"].relative_error + 1e-9
            assert removed.certificates[f"t{i}"].relative_error < 2 * FULL


def test_removing_the_newest_task_leaves_all_others_bitwise_alone():
    adapters = [adapter(i, 2, {"m": (20, 18)}) for i in range(3)]
    before = subspace(adapters[:2])
    assert bits(remove(subspace(adapters), "t2").subspace) == bits(before)


def test_directions_of_a_removed_task_cannot_be_read_from_what_is_left():
    shapes = {"m": (20, 18)}
    adapters = [adapter(i, 3, shapes) for i in range(3)]
    left, right = projector(remove(subspace(adapters), "t1").subspace, "m")
    gone = dense(adapters[1])["m"]
    assert np.linalg.norm(left @ gone @ right) < 0.7 * np.linalg.norm(gone)


def test_directions_that_another_task_uses_stay_when_its_twin_is_removed():
    one = adapter(1)
    made = merge(subspace([one]), "twin", one).subspace
    left = remove(made, "t0").subspace
    assert left.basis.widths() == made.basis.widths() and relative_error(one, left.adapter("twin")) < FULL


def test_module_that_only_the_removed_task_had_is_gone_and_the_last_removal_empties_all():
    made = subspace([adapter(1, 2, {"encoder.q": (14, 10)}), adapter(2, 2)])
    less = remove(made, "t1").subspace
    assert set(less.basis) == {"encoder.q"}
    empty = remove(less, "t0").subspace
    assert not empty.tasks and not list(empty.basis) and empty.nbytes() == 0


def test_unknown_task_is_refused_with_the_names_there_are():
    with pytest.raises(AlgebraError, match="t0"):
        remove(subspace([adapter(1)]), "other")


def test_rename_changes_the_name_and_no_number_and_keeps_the_place():
    made = subspace([adapter(1), adapter(2)])
    renamed = rename(made, "t0", "first")
    assert list(renamed.tasks) == ["first", "t1"]
    assert {k.replace("first/", "t0/"): v for k, v in bits(renamed).items()} == bits(made)
    for old, new in (("t0", "t1"), ("no", "x")):
        with pytest.raises(AlgebraError):
            rename(made, old, new)


@settings(max_examples=15, deadline=None)
@given(seeds, st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 0.05), min_size=1, max_size=4))
def test_average_is_the_weighted_sum_of_the_dense_updates(seed, weights):
    adapters = [adapter(seed + i, 1 + i, head=True) for i in range(len(weights))]
    result = average(subspace([adapter(99)]), "mean", adapters, weights)
    wanted = {m: sum(w * dense(a)[m] for w, a in zip(weights, adapters, strict=True)) for m in SHAPES}
    measured = relative_error(wanted, result.subspace.adapter("mean"))
    assert measured <= 1e-4 and measured <= result.report.relative_error + 1e-9
    head = sum(w * a.head["score.weight"] for w, a in zip(weights, adapters, strict=True))
    assert torch.allclose(result.subspace.adapter("mean").head["score.weight"], head, atol=1e-5)


def test_average_of_identical_adapters_is_the_adapter_at_its_own_rank():
    one = adapter(1)
    made = average(Subspace.empty(), "mean", [one] * 5).subspace
    assert relative_error(one, made.adapter("mean")) < FULL
    assert made.tasks["mean"].coefficients["encoder.q"].P_KR.shape[1] == 3


def test_averaging_factors_one_by_one_would_have_been_wrong():
    """The control: why averages are made in shared coordinates."""
    a, b = adapter(1).factors["encoder.q"], adapter(2).factors["encoder.q"]
    wrong = Factors((a.B_NR + b.B_NR) / 2, (a.A_RD + b.A_RD) / 2).delta_ND()
    true = (a.delta_ND() + b.delta_ND()) / 2
    assert (wrong - true).norm() > 0.3 * true.norm()


def test_fedasync_step_in_coordinates_is_the_dense_step_and_the_rank_stays_bounded():
    shapes = {"m": (8, 7)}
    made = subspace([adapter(i, 2, shapes) for i in range(4)])
    entry, wanted = made.tasks["t0"], dense(made.adapter("t0"))["m"]
    for i in (1, 2, 3, 1, 2, 3):
        entry = combine([entry, made.tasks[f"t{i}"]], [0.7, 0.3])
        wanted = 0.7 * wanted + 0.3 * dense(made.adapter(f"t{i}"))["m"]
    assert relative_error({"m": wanted}, entry.adapter(made.basis)) < 1e-5
    assert entry.coefficients["m"].P_KR.shape[1] <= 7


def test_contributions_that_do_not_match_are_refused_by_name():
    other_head = Adapter(adapter(2).factors, {"score.weight": torch.ones(3, 5)})
    no_module = Adapter({"encoder.q": adapter(2).factors["encoder.q"]})
    for wrong, reason in ((other_head, r"score\.weight"), (no_module, r"encoder\.v")):
        with pytest.raises(AlgebraError, match=reason):
            average(Subspace.empty(), "mean", [adapter(1, head=True), wrong])
    with pytest.raises(AlgebraError):
        average(Subspace.empty(), "mean", [])


@pytest.mark.parametrize(("dtype", "loudest"), [(torch.float32, 3e38), (torch.float64, 1e300), (torch.float16, 6e4)])
def test_heads_whose_sum_is_beyond_their_numbers_are_refused_by_name(dtype, loudest):
    loud = [Adapter(adapter(n).factors, {"score.weight": torch.full((3, 5), loudest, dtype=dtype)}) for n in (1, 2)]
    beyond = [4e10, 4e10] if dtype == torch.float64 else [1.0, 1.0]
    with pytest.raises(AlgebraError, match=r"score\.weight: the sum has numbers beyond what torch"):
        average(Subspace.empty(), "mean", loud, beyond)


def test_relative_error_of_a_sum_is_no_smaller_than_that_of_the_true_one():
    kept = torch.tensor([3.0, 4.0], dtype=torch.float64)
    for error in (0.0, 0.1, 2.0, 4.9):
        true = kept * (1 - error / 5)  # the quietest that is so far away
        stated = Certificate(5.0, 0.0).summed(error)
        assert stated.error >= float((true - kept).norm()) * (1 - 1e-9)
        assert stated.relative_error >= float((true - kept).norm() / true.norm()) * (1 - 1e-9)


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([1e-5, 0.1]))
def test_unite_is_like_merging_all(seed, ours, theirs, tolerance):
    shapes = {"m": (24, 22), "n": (20, 26)}
    adapters = [adapter(seed + i, 3, shapes) for i in range(ours + theirs)]
    first, second = subspace(adapters[:ours]), subspace(adapters[ours:])
    for i in reversed(range(theirs)):
        second = rename(second, f"t{i}", f"t{i + ours}")
    result = unite(first, second, tolerance=tolerance)
    if tolerance == FULL:
        assert spans_are_equal(result.subspace, subspace(adapters))
    for i, one in enumerate(adapters):
        measured, claimed = relative_error(one, result.subspace.adapter(f"t{i}")), result.subspace.certificates[f"t{i}"]
        assert measured <= claimed.relative_error + 1e-9 and claimed.relative_error <= tolerance + 3e-5
    before, after = bits(first), bits(result.subspace)
    assert all(after[key] == value for key, value in before.items() if not key.startswith("basis/"))


def test_unite_of_copies_adds_no_direction():
    adapters = related(1, 4, 4, 0.1)
    made = subspace(adapters)
    copy = made
    for task in list(made.tasks):
        copy = rename(copy, task, f"copy-{task}")
    result = unite(made, copy)
    assert result.subspace.basis.widths() == made.basis.widths() and len(result.subspace.tasks) == 8


def test_unite_with_narrow_tasks_after_a_compaction_keeps_certificates_true():
    adapters = related(2, 6, 4, 0.3)
    first = compact(subspace(adapters[:3]), size=5).subspace
    second = compact(subspace(adapters[3:]), size=4).subspace
    for i in (2, 1, 0):
        second = rename(second, f"t{i}", f"t{i + 3}")
    made = unite(first, second, tolerance=0.05).subspace
    for i, one in enumerate(adapters):
        measured = relative_error(one, made.adapter(f"t{i}"))
        assert measured <= made.certificates[f"t{i}"].relative_error + 1e-9


def test_unite_with_empty_is_the_identity_and_clashes_are_refused():
    made = subspace([adapter(1)])
    assert bits(unite(made, Subspace.empty()).subspace) == bits(made)
    assert relative_error(adapter(1), unite(Subspace.empty(), made).subspace.adapter("t0")) < FULL
    with pytest.raises(AlgebraError, match="t0"):
        unite(made, made)
    other = rename(subspace([adapter(2, shapes={"encoder.q": (3, 10)})]), "t0", "x")
    with pytest.raises(AlgebraError, match=r"encoder\.q"):
        unite(made, other)
