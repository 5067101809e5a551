"""Merging inside a budget: other tasks are not touched, and yet no certificate is wrong."""

from __future__ import annotations

import pytest
from algebra_samples import FULL, adapter, bits, orthonormality, related, relative_error, seeds, subspace
from hypothesis import given, settings
from hypothesis import strategies as st

from share_algo import Adapter, Subspace, compact, merge, quantise, remove, rename, unite
from share_algo.groups import Group, Grouped

BUDGET = 7


def drifting(seed: int, tasks: int) -> dict[str, Adapter]:
    """Every third task comes from other directions; some have a rank of their own or lack a module."""
    shapes = {"m": (24, 20), "n": (18, 22)}
    found = {}
    for i in range(tasks):
        one = adapter(seed + i // 3, 1 + i % 3, shapes if i % 4 else {"m": (24, 20)})
        found[f"t{i}"] = Adapter({**one.factors, "m": related(seed + i // 3, 1, 4, 0.3)[0].factors["m"]})
    return found


def bounded(adapters: dict[str, Adapter], budget: int = BUDGET, tolerance: float = FULL) -> Subspace:
    made = Subspace.empty()
    for task, one in adapters.items():
        made = merge(made, task, one, budget=budget, tolerance=tolerance).subspace
    return made


def assert_true(made: Subspace, adapters: dict[str, Adapter]) -> None:
    for task, one in adapters.items():
        measured, claimed = relative_error(one, made.adapter(task)), made.certificates[task]
        assert measured <= claimed.relative_error + 1e-9, task
        assert claimed.is_bound or claimed.relative_error <= measured + 3e-5, task


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 14), st.sampled_from([FULL, 0.1]), st.integers(2, 9))
def test_no_task_is_above_its_certificate_after_any_number_of_compactions(seed, tasks, tolerance, budget):
    adapters, made = drifting(seed, tasks), Subspace.empty()
    for number, (task, one) in enumerate(adapters.items()):
        result = merge(made, task, one, budget=budget, tolerance=tolerance)
        made = result.subspace
        assert max(max(w) for w in made.basis.widths().values()) <= budget
        assert result.report.certificate == made.certificates[task]
        if number % 4 == 3:
            assert_true(made, dict(list(adapters.items())[: number + 1]))
    assert orthonormality(made) < 1e-6
    assert_true(made, adapters)


def test_merge_that_compacts_looks_at_few_of_many_tasks(monkeypatch):
    """Not the clock: how many tasks' coefficients are touched, by 64 merges after the first 64 and after 512."""
    touched = []
    monkeypatch.setattr(Group, "entry", lambda self, task, real=Group.entry: touched.append(task) or real(self, task))
    made, counts = Subspace.empty(), []
    for number in range(512):
        one = related(number, 1, 4, 0.3, shape=(12, 10))[0]
        made = merge(made, f"t{number}", one, budget=4).subspace
        counts.append(len(touched))
    first, last = counts[127] - counts[63], counts[511] - counts[447]
    assert len(made.tasks) == 512 and len(made.tasks.groups) < 6
    assert counts[511] < 16 * 512 and last < 4 * first + 512


def test_tasks_before_a_merge_are_as_they_were_and_the_subspace_is_saved_as_it_is_read(tmp_path):
    adapters = drifting(1, 12)
    made = bounded(adapters)
    assert isinstance(made.tasks, Grouped) and list(made.tasks) == list(adapters) and len(made.tasks) == 12
    before = bits(made)
    merge(made, "more", adapter(99, 2, {"m": (24, 20)}), budget=BUDGET)
    assert bits(made) == before
    made.save(tmp_path)
    again = Subspace.load(tmp_path)
    assert bits(again) == before and dict(again.certificates) == dict(made.certificates)
    assert_true(merge(again, "t0", adapters["t1"], budget=BUDGET).subspace, {**adapters, "t0": adapters["t1"]})


def test_replaced_task_is_the_new_one_in_its_old_place():
    adapters = drifting(2, 12)
    made = merge(bounded(adapters), "t1", adapters["t7"], budget=BUDGET).subspace
    assert list(made.tasks) == list(adapters) and len(made.tasks) == len(made.certificates) == 12
    assert_true(made, {**adapters, "t1": adapters["t7"]})


@pytest.mark.parametrize("act", [
    lambda s: compact(s, size=4).subspace, lambda s: rename(s, "t0", "x"), lambda s: remove(s, "t0").subspace,
    lambda s: quantise(s, "bfloat16").subspace,
    lambda s: unite(s, rename(bounded({"t": adapter(5)}), "t", "u")).subspace,
])  # fmt: skip
def test_other_operations_see_the_tasks_as_they_are_read(act):
    adapters = drifting(3, 10)
    made = bounded(adapters)
    plain = made.but(tasks=dict(made.tasks), certificates=dict(made.certificates))
    first, second = act(made), act(plain)
    assert bits(first) == bits(second) and dict(first.certificates) == dict(second.certificates)


def test_budget_costs_little_beside_the_joint_optimum_of_all_tasks():
    """Many tasks that came one by one, against one compaction that saw them all."""
    adapters = {f"t{i}": a for i, a in enumerate(related(4, 40, 6, 0.2))}
    made, best = bounded(adapters, 6), compact(subspace(list(adapters.values())), size=6).subspace
    ours, joint = (sum(relative_error(a, s.adapter(t)) ** 2 for t, a in adapters.items()) ** 0.5 for s in (made, best))
    assert ours <= 1.05 * joint
