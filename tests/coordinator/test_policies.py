"""Several updates of one task become one as its policy says, with weights as the papers write them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import (
    CoordinatorHere,
    RawWorker,
    dense,
    dense_adapter,
    random_adapter,
    relative_error,
    small_home,
    small_spec,
)

from coordinator.staleness import share, too_stale, weight
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter

ROUNDING = 1e-5
STALENESS = st.integers(0, 10_000)
HINGE = pb.Policy(rule=pb.STALENESS_RULE_HINGE, a=10, b=4)
POLYNOMIAL = pb.Policy(rule=pb.STALENESS_RULE_POLYNOMIAL, a=0.5)
ROOT = {"rule": pb.STALENESS_RULE_POLYNOMIAL, "a": 0.5}
POLICIES = [
    pb.Policy(task="async", kind=pb.POLICY_KIND_FEDASYNC, mixing=0.5, **ROOT),
    pb.Policy(task="buff", kind=pb.POLICY_KIND_FEDBUFF, mixing=1.0, buffer_size=2, **ROOT),
    pb.Policy(task="fresh", staleness_max=1),
]


# ---- weights ------------------------------------------------------------------------------------------------


@given(STALENESS)
def test_hinge_weighs_as_fedasync_writes_it(tau: int):
    assert weight(HINGE, tau) == pytest.approx(1 if tau <= 4 else 1 / (10 * (tau - 4) + 1), rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(10.0, 4.0), (0.5, 0.0), (1.0, 2.5)])
def test_hinge_is_the_papers_at_every_staleness_beside_its_edge(a: float, b: float):
    rule = pb.Policy(rule=pb.STALENESS_RULE_HINGE, a=a, b=b)
    for tau in range(200):
        assert 1 / weight(rule, tau) == pytest.approx(1.0 + max(0.0, a * tau - a * b), rel=1e-12)


@given(STALENESS, st.floats(0, 3))
def test_polynomial_weighs_as_fedasync_writes_it(tau: int, a: float):
    rule = pb.Policy(rule=pb.STALENESS_RULE_POLYNOMIAL, a=a)
    assert weight(rule, tau) == pytest.approx(math.exp(-a * math.log(tau + 1)), rel=1e-9)


@given(STALENESS)
def test_fedbuff_weighs_one_over_the_root_of_one_plus_staleness(tau: int):
    assert weight(POLYNOMIAL, tau) == pytest.approx(1 / math.sqrt(1 + tau), rel=1e-12)


@given(STALENESS, st.sampled_from([pb.Policy(), HINGE, POLYNOMIAL]))
def test_fresh_update_weighs_one_and_an_older_one_never_more(tau: int, rule: pb.Policy):
    assert weight(rule, 0) == 1
    assert 0 < weight(rule, tau + 1) <= weight(rule, tau) <= 1
    mixed = pb.Policy(rule=rule.rule, a=rule.a, b=rule.b, mixing=0.25)
    assert share(mixed, tau) == pytest.approx(weight(rule, tau) / 4)


def test_too_stale_says_by_how_much_and_no_bound_means_none():
    assert too_stale(pb.Policy(), 10**9) == "" and too_stale(pb.Policy(staleness_max=0), 0) == ""
    assert "3 versions" in too_stale(pb.Policy(staleness_max=2), 3)


# ---- the coordinator ----------------------------------------------------------------------------------------


@pytest.fixture
def policed(tmp_path: Path) -> Iterator[CoordinatorHere]:
    spec = small_spec()
    spec.policies.extend(POLICIES)
    with CoordinatorHere(small_home(tmp_path / "home", spec)) as coordinator:
        yield coordinator


def teach(
    coordinator: CoordinatorHere, task: str, seed: int, base: int = 0, worker: str = "raw"
) -> tuple[str, Adapter]:
    """Submit and wait for the verdict. Returns the update's id."""
    with RawWorker(coordinator.address, f"{worker}-{task}", task) as raw:
        adapter = random_adapter(raw.spec, seed)
        receipt = raw.teach(adapter, base)
        coordinator.drained()
        return receipt.update_id, adapter


def verdict(coordinator: CoordinatorHere, update_id: str) -> pb.Verdict:
    with coordinator.client() as client:
        return client.story(update_id).verdict


def kept(coordinator: CoordinatorHere, task: str) -> dict[str, np.ndarray]:
    with coordinator.client() as client:
        manifest, blobs = client.fetch(None, tasks=[task])
    return dense(manifest, blobs, task)


def summed(*parts: tuple[float, Adapter]) -> dict[str, np.ndarray]:
    each = [(w, dense_adapter(adapter)) for w, adapter in parts]
    return {m: sum(w * d[m] for w, d in each) for m in each[0][1]}


def test_fedasync_mixes_what_comes_into_what_the_task_was(policed: CoordinatorHere):
    _, first = teach(policed, "async", 1)
    assert relative_error(dense_adapter(first), kept(policed, "async")) < ROUNDING  # a task's first is taken whole
    update_id, second = teach(policed, "async", 2, base=0)  # one version old
    s = 0.5 / math.sqrt(2)
    assert relative_error(summed((1 - s, first), (s, second)), kept(policed, "async")) < ROUNDING
    told = verdict(policed, update_id)
    assert (told.outcome, told.version) == (pb.OUTCOME_MERGED, 2) and told.weight == pytest.approx(s)


def test_fedbuff_waits_for_its_buffer_and_averages_differences_from_their_own_bases(policed: CoordinatorHere):
    one, first = teach(policed, "buff", 1)
    told = verdict(policed, one)
    assert (told.outcome, told.version, policed.status().buffered) == (pb.OUTCOME_BUFFERED, 0, 1)
    two, second = teach(policed, "buff", 2, worker="other")
    assert [verdict(policed, u).outcome for u in (one, two)] == [pb.OUTCOME_MERGED] * 2
    begin = summed((0.5, first), (0.5, second))
    assert relative_error(begin, kept(policed, "buff")) < ROUNDING
    assert [(r.version, r.weight) for r in policed.versions()] == [(1, 1.0), (1, 1.0)]
    _, stale = teach(policed, "buff", 3, base=0)  # the task was not there in its base: the difference is all of it
    _, fresh = teach(policed, "buff", 4, base=1, worker="other")
    w = 1 / math.sqrt(2)
    change = summed((w / 2, stale), (0.5, fresh))
    expected = {m: begin[m] + change[m] - 0.5 * begin[m] for m in begin}
    assert relative_error(expected, kept(policed, "buff")) < ROUNDING


def test_too_stale_is_a_verdict_that_says_so(policed: CoordinatorHere):
    for seed in (1, 2):
        teach(policed, "async", seed)
    update_id, _ = teach(policed, "fresh", 3, base=0)
    told = verdict(policed, update_id)
    assert (told.outcome, told.version) == (pb.OUTCOME_TOO_STALE, 0)
    assert told.reason == "2 versions since its base version, and its task takes 1 at most"
    assert policed.status().too_stale == 1
    newer, _ = teach(policed, "fresh", 3, base=1)
    assert verdict(policed, newer).outcome == pb.OUTCOME_MERGED


def test_update_whose_labels_mean_something_else_is_not_averaged_in(policed: CoordinatorHere):
    """Refused where the head says what the rows mean; below the seam where it did not say so yet."""
    with RawWorker(policed.address, "queued", "buff") as raw:
        raw.teach(random_adapter(raw.spec, 3), 0)
        receipt = raw.teach(random_adapter(raw.spec, 2), 0, labels=["yes", "no"])
        policed.drained()
    told = verdict(policed, receipt.update_id)
    assert told.outcome == pb.OUTCOME_SKIPPED and "labels" in told.reason and policed.status().buffered == 1
