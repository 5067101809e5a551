"""One step of a policy is the sum that the papers write, of dW and of heads: checked with numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import SENT_IS_KEPT
from parts import dense_adapter, random_adapter, relative_error, small_spec

from coordinator.transition import Arrived, Merged, Skipped, State, step
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis, TaskEntry, Update, append

Dense = Mapping[str, np.ndarray]

CONSTANT, HINGE, POLYNOMIAL = (
    pb.STALENESS_RULE_CONSTANT,
    pb.STALENESS_RULE_HINGE,
    pb.STALENESS_RULE_POLYNOMIAL,
)
FEDASYNC, FEDBUFF = pb.POLICY_KIND_FEDASYNC, pb.POLICY_KIND_FEDBUFF
MIXED = pb.Policy(task="mixed", kind=FEDASYNC, mixing=0.6, rule=HINGE, a=2.0, b=1.0)


def spec_of(*policies: pb.Policy) -> pb.FederationSpec:
    spec = small_spec()
    spec.policies.extend(policies)
    return spec


def arrived(
    spec: pb.FederationSpec, task: str, adapter: Adapter, *, staleness: int = 0, begun: TaskEntry | None = None,
    base: Basis | None = None, labels: Sequence[str] = ("no", "yes"),
) -> Arrived:  # fmt: skip
    base = base or Basis()
    update = append(base, adapter, tolerance=spec.tolerance).update
    return Arrived(1, "id", "w", task, 0, staleness, base, update, 1, labels, {}, begun)


def after(spec: pb.FederationSpec, state: State, *each: Arrived) -> State:
    state, result = step(state, each, spec)
    assert isinstance(result, Merged), result
    return state


def dense_of(state: State, task: str) -> dict[str, np.ndarray]:
    return dense_adapter(state.tasks[task].entry.adapter(state.basis))


def head_of(state: State, task: str) -> torch.Tensor:
    return state.tasks[task].entry.head["classifier.weight"]


def added(*parts: tuple[float, Dense]) -> dict[str, np.ndarray]:
    return {m: sum(w * d[m] for w, d in parts) for m in parts[0][1]}


@settings(max_examples=20)
@given(st.integers(0, 50), st.floats(0.05, 1), st.integers(0, 9))
def test_fedasync_of_identical_updates_stays_where_it_is(seed: int, mixing: float, tau: int):
    spec = spec_of(pb.Policy(kind=FEDASYNC, mixing=mixing, rule=POLYNOMIAL, a=0.5))
    adapter = random_adapter(spec, seed)
    state = after(spec, State(), arrived(spec, "t", adapter))
    for _ in range(3):
        state = after(spec, state, arrived(spec, "t", adapter, staleness=tau))
    assert relative_error(dense_adapter(adapter), dense_of(state, "t")) < SENT_IS_KEPT
    assert torch.allclose(head_of(state, "t"), adapter.head["classifier.weight"], rtol=1e-6)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), st.integers(0, 9), st.floats(0.05, 1))
def test_fedbuff_adds_the_mean_of_weighted_differences_and_the_order_does_not_matter(
    seeds: list[int], tau: int, mixing: float
):
    spec = spec_of(pb.Policy(kind=FEDBUFF, mixing=mixing, rule=POLYNOMIAL, a=0.5, buffer_size=len(seeds)))
    began = after(spec, State(), arrived(spec, "t", random_adapter(spec, 100), staleness=0))
    base, begun = began.basis, began.tasks["t"].entry
    old, sent = dense_of(began, "t"), [random_adapter(spec, seed) for seed in seeds]
    each = [arrived(spec, "t", a, staleness=tau + i, begun=begun, base=base) for i, a in enumerate(sent)]
    forth, back = after(spec, began, *each), after(spec, began, *each[::-1])
    shares = [mixing / math.sqrt(1 + tau + i) / len(sent) for i in range(len(sent))]
    parts = [part for w, a in zip(shares, sent, strict=True) for part in ((w, dense_adapter(a)), (-w, old))]
    wanted = added((1.0, old), *parts)
    assert relative_error(wanted, dense_of(forth, "t")) < SENT_IS_KEPT
    assert relative_error(dense_of(forth, "t"), dense_of(back, "t")) < SENT_IS_KEPT
    heads = [a.head["classifier.weight"] for a in sent]
    head = head_of(began, "t") + sum(w * (h - head_of(began, "t")) for w, h in zip(shares, heads, strict=True))
    assert torch.allclose(head_of(forth, "t"), head, rtol=1e-4, atol=1e-5)


def test_fedbuff_of_one_fresh_update_for_the_head_is_replace():
    replaced, one = spec_of(), spec_of(pb.Policy(kind=FEDBUFF, mixing=1, rule=POLYNOMIAL, a=0.5, buffer_size=1))
    states = []
    for spec in (replaced, one):
        state = State()
        for seed in range(3):
            begun = state.tasks["t"].entry if state.tasks else None
            update = arrived(spec, "t", random_adapter(spec, seed), begun=begun, base=state.basis)
            state = after(spec, state, update)
        states.append(state)
    assert relative_error(dense_of(states[0], "t"), dense_of(states[1], "t")) < SENT_IS_KEPT
    assert torch.allclose(head_of(states[0], "t"), head_of(states[1], "t"), atol=1e-5)


@pytest.mark.parametrize("kind", [FEDASYNC, FEDBUFF], ids=["fedasync", "fedbuff"])
def test_other_tasks_are_bitwise_what_they_were(kind: pb.PolicyKind):
    spec = spec_of(pb.Policy(kind=kind, mixing=0.7, rule=POLYNOMIAL, a=1, buffer_size=1))
    state = after(spec, State(), arrived(spec, "other", random_adapter(spec, 1)))
    before = dense_of(state, "other")
    for seed in (2, 3):
        state = after(spec, state, arrived(spec, "t", random_adapter(spec, seed), staleness=seed))
    assert all((dense_of(state, "other")[m] == before[m]).all() for m in before)


def test_error_that_a_sum_brings_along_is_in_its_certificate():
    spec = spec_of(MIXED)
    state = after(spec, State(), arrived(spec, "mixed", random_adapter(spec, 1)))
    learned = state.tasks["mixed"]
    worse = type(learned.certificate)(learned.certificate.norm, 0.25 * learned.certificate.norm)
    state = State(state.basis, {"mixed": type(learned)(learned.entry, learned.labels, worse)})
    mixed = after(spec, state, arrived(spec, "mixed", random_adapter(spec, 2))).tasks["mixed"].certificate
    assert mixed.is_bound and mixed.error == pytest.approx(0.4 * worse.error, rel=1e-3)


def test_updates_whose_rows_mean_something_else_are_never_added_up():
    spec = spec_of(MIXED)
    state = after(spec, State(), arrived(spec, "mixed", random_adapter(spec, 1)))
    same_state, result = step(state, [arrived(spec, "mixed", random_adapter(spec, 2), labels=("yes", "no"))], spec)
    assert isinstance(result, Skipped) and "labels" in result.reason and same_state is state
    spec = spec_of()
    state, result = step(state, [arrived(spec, "mixed", random_adapter(spec, 2), labels=("yes", "no"))], spec)
    assert isinstance(result, Merged) and state.tasks["mixed"].labels == ("yes", "no")


def test_halves_of_a_rounded_head_are_added_up_in_float32():
    spec = spec_of(pb.Policy(kind=FEDASYNC, mixing=1 / 3, rule=CONSTANT))
    update = arrived(spec, "t", random_adapter(spec, 1)).update
    entry = TaskEntry(update.entry.coefficients, {"b": torch.ones(1, dtype=torch.bfloat16)})
    one = Arrived(1, "id", "w", "t", 0, 0, Basis(), Update(update.block, entry), 1, (), {})
    zero = TaskEntry(update.entry.coefficients, {"b": torch.zeros(1, dtype=torch.bfloat16)})
    state = after(spec, State(), Arrived(1, "id", "w", "t", 0, 0, Basis(), Update(update.block, zero), 1, (), {}))
    head = after(spec, state, one).tasks["t"].entry.head["b"]
    assert head.dtype == torch.float32 and float(head) == pytest.approx(1 / 3, rel=1e-6)
