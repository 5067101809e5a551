"""Honest updates are hardly ever kept aside; what is accepted follows its policy; what is not finite never comes in."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from learning import SAME, Learning
from parts import (
    CoordinatorHere,
    RawWorker,
    dense_adapter,
    history_of,
    order,
    random_adapter,
    relative_error,
    scaled,
    small_home,
    small_spec,
)

from coordinator.errors import CoordinatorError
from coordinator.home import open_home
from coordinator.quarantine import MAD_MIN, NORMAL, Norm, beside, unlike
from fedshare.federation_file import Quarantine
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo.codec import decode_update, encode_update

DEFAULT = pb.Quarantine(**Quarantine().model_dump())
RULE = pb.Quarantine(deviations_max=5, updates_min=4)
QUARANTINED = pb.OUTCOME_QUARANTINED


def test_false_alarms_of_the_default_are_rarer_than_one_in_a_thousand_from_the_first_judgement_on():
    rng = random.Random(0)
    for spread in (0.2, 0.4, 0.6):  # of log ||dW||: 0.6 is a factor of two up or down
        norms = [[math.exp(rng.gauss(0, spread)) for _ in range(1 + DEFAULT.updates_min)] for _ in range(5000)]
        assert sum(bool(unlike(newest, before, DEFAULT)) for newest, *before in norms) <= 5


def test_default_finds_what_is_a_thousand_times_too_loud_among_updates_that_differ_by_a_third():
    rng = random.Random(0)
    norms = [[math.exp(rng.gauss(0, 0.15)) for _ in range(30)] for _ in range(200)]
    assert all(unlike(1000.0, before, DEFAULT) and unlike(0.001, before, DEFAULT) for before in norms)


def test_nobody_is_kept_aside_for_being_a_little_louder_than_updates_that_are_all_alike():
    margin = math.exp(NORMAL * MAD_MIN * DEFAULT.deviations_max)
    for norm in (2.0, 0.5, 0.99 * margin, 1.01 / margin):
        assert unlike(norm, [1.0] * 50, DEFAULT) == ""
    assert "above" in unlike(1.01 * margin, [1.0] * 50, DEFAULT) and "below" in unlike(0.0, [1.0] * 50, DEFAULT)


def test_what_is_not_finite_is_left_to_the_merge_which_says_so():
    assert unlike(math.inf, [1.0] * 50, DEFAULT) == unlike(math.nan, [1.0] * 50, DEFAULT) == ""


class Loud(Learning):
    def send(self, key: str, times: float = 1.0, seed: int = 0) -> pb.Verdict:
        """key: TASK or TASK#N."""
        with RawWorker(self.coordinator.address, "somebody", key.partition("#")[0]) as raw:
            self.adapters[key] = scaled(random_adapter(raw.spec, seed), times)
            self.receipts[key] = raw.teach(self.adapters[key], 0)
        self.coordinator.drained()
        return self.verdict(key)

    def accept(self, key: str) -> None:
        judge = pb.Judge(update_id=self.receipts[key].update_id, accept=True)
        assert order(self.coordinator, judge=judge).outcome == pb.OUTCOME_DONE


def federation(updates_min: int, *policies: pb.Policy) -> pb.FederationSpec:
    spec = small_spec()
    spec.quarantine.CopyFrom(pb.Quarantine(deviations_max=8, updates_min=updates_min))
    spec.policies.extend(policies)
    return spec


def test_too_loud_and_too_quiet_are_kept_aside_also_after_a_restart(tmp_path: Path):
    with CoordinatorHere(small_home(tmp_path / "home", federation(8))) as coordinator:
        loud = Loud(coordinator)
        honest = [loud.send(f"t{n}", 1 + 0.2 * (n % 3), seed=n).outcome for n in range(10)]
        assert honest == [pb.OUTCOME_MERGED] * 10
        assert loud.send("nothing", 1e-6, seed=50).outcome == QUARANTINED
        assert coordinator.stop() == 0
        coordinator.start()
        verdict = loud.send("poison", 1000, seed=51)
        assert (verdict.outcome, verdict.version) == (QUARANTINED, 0)
        assert "robust deviations above" in verdict.reason and "the median of 10 merged updates" in verdict.reason
        assert loud.send("t99", 1.1, seed=53).outcome == pb.OUTCOME_MERGED
        assert coordinator.status().head == 11 and not loud.dense().keys() & {"poison", "nothing"}


def test_accepted_update_follows_its_tasks_policy(tmp_path: Path):
    mean = pb.Policy(task="mean", kind=pb.POLICY_KIND_FEDASYNC, mixing=0.5)
    two = pb.Policy(task="two", kind=pb.POLICY_KIND_FEDBUFF, mixing=1, buffer_size=2)
    with CoordinatorHere(small_home(tmp_path / "home", federation(2, mean, two))) as coordinator:
        loud = Loud(coordinator)
        for seed, task in enumerate(("mean", "b", "two")):
            loud.send(task, seed=seed)
        assert loud.outcome("two") == pb.OUTCOME_BUFFERED
        before = loud.dense()["mean"]
        for key in ("mean#2", "two#2"):
            assert loud.send(key, 500, seed=9).outcome == QUARANTINED
        loud.accept("mean#2")
        sent = dense_adapter(loud.adapters["mean#2"])
        wanted = {m: 0.5 * before[m] + 0.5 * sent[m] for m in before}
        assert relative_error(wanted, loud.dense()["mean"]) < SAME
        loud.accept("two#2")
        assert [loud.outcome(key) for key in ("two", "two#2")] == [pb.OUTCOME_MERGED] * 2
        one, other = (dense_adapter(loud.adapters[key]) for key in ("two", "two#2"))
        assert relative_error({m: (one[m] + other[m]) / 2 for m in one}, loud.dense()["two"]) < SAME
        reply = loud.replay()
        assert max(reply.task.value, reply.basis.value) < SAME


def test_accepted_contribution_waits_in_its_buffer_like_any_other(tmp_path: Path):
    two = pb.Policy(task="two", kind=pb.POLICY_KIND_FEDBUFF, mixing=1, buffer_size=2)
    with CoordinatorHere(small_home(tmp_path / "home", federation(2, two))) as coordinator:
        loud = Loud(coordinator)
        for seed, task in enumerate(("a", "b")):
            loud.send(task, seed=seed)
        assert loud.send("two", 500, seed=9).outcome == QUARANTINED
        loud.accept("two")
        assert loud.outcome("two") == pb.OUTCOME_BUFFERED and coordinator.status().head == 2
        assert loud.send("two#2", seed=10).outcome == pb.OUTCOME_MERGED
        assert loud.outcome("two") == pb.OUTCOME_MERGED


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    home = small_home(tmp_path_factory.mktemp("finite") / "home")
    with CoordinatorHere(home) as coordinator, RawWorker(coordinator.address) as raw:
        yield raw


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["coefficients", "directions", "head"])
def test_what_is_not_finite_never_reaches_the_journal(raw: RawWorker, value: float, where: str):
    sent = decode_update(raw.blob(random_adapter(raw.spec, 1), 0)[1])
    [first, *_], [block, *_] = sent.entry.coefficients.values(), sent.block.values()
    head = sent.entry.head["classifier.weight"]
    {"coefficients": first.P_KR, "directions": block.in_DL, "head": head}[where][0, 0] = value
    blob = encode_update(sent)
    refused = raw.submit(raw.header(blob), blob)
    assert (refused.outcome, refused.position) == (pb.OUTCOME_REFUSED_MALFORMED, 0)
    assert "finite" in refused.reason


def test_norms_are_those_of_the_newest_merges_in_their_order(tmp_path: Path):
    with CoordinatorHere(small_home(tmp_path / "home")) as coordinator:
        loud = Loud(coordinator)
        for n in range(4):
            loud.send(f"t{n}", 100.0**n)
        assert coordinator.stop() == 0
        with open_home(coordinator.home) as home:
            norms = history_of(home).catalog.norms(3)
            assert len(norms) == 3 and len(history_of(home).catalog.norms(300)) == 4
            assert [round(math.log10(after.value / before.value)) for before, after in pairwise(norms)] == [2, 2]


def test_versions_that_are_no_merges_take_no_norms_place(tmp_path: Path):
    with CoordinatorHere(small_home(tmp_path / "home")) as coordinator:
        loud = Loud(coordinator)
        for n in range(3):
            loud.send(f"t{n}")
            order(coordinator, rollback=pb.Rollback(version=n + n + 1))
    with open_home(coordinator.home) as home:
        assert len(history_of(home).catalog.norms(3)) == 3


def test_operators_settings_follow_a_changed_file_and_policies_do_not(tmp_path: Path):
    home, changed = small_home(tmp_path / "home"), federation(4)
    changed.budget.CopyFrom(pb.Budget(columns_max=9, columns_after=5))
    changed.versions_kept = 7
    with open_home(home, changed):
        pass
    with open_home(home) as opened:
        assert (opened.spec.quarantine, opened.spec.budget) == (changed.quarantine, changed.budget)
        assert opened.spec.versions_kept == 7 and len(opened.spec.federation_id) == 32
    changed.policies.add(kind=pb.POLICY_KIND_FEDASYNC, mixing=0.5)
    with pytest.raises(CoordinatorError, match="the number of policies is"), open_home(home, changed):
        pass


def test_operators_settings_are_switched_off_by_a_file_that_leaves_them_out(tmp_path: Path):
    on = small_spec()
    on.quarantine.CopyFrom(RULE)
    on.versions_kept = 3
    home = small_home(tmp_path / "home", on)
    with open_home(home, small_spec()) as opened:
        assert (opened.spec.quarantine.deviations_max, opened.spec.versions_kept) == (0, 0)
    with open_home(home) as opened:
        assert (opened.spec.quarantine.deviations_max, opened.spec.versions_kept) == (0, 0)


def test_nobody_makes_room_for_himself_bit_by_bit():
    rng = random.Random(0)
    merged, largest = [Norm(f"w{n}", math.exp(rng.gauss(0, 0.3))) for n in range(20)], 1.0
    for _ in range(100):
        judged_by = beside("mallory", merged, DEFAULT)
        while unlike(louder := largest * 1.05, judged_by, DEFAULT) == "" and louder < 1e3:
            largest = louder
        merged.append(Norm("mallory", largest))
    assert largest < 100


def test_those_who_are_alone_are_judged_by_their_own():
    mine = [Norm("me", 1.0)] * DEFAULT.updates_min
    assert beside("me", mine, DEFAULT) == [1.0] * DEFAULT.updates_min
    assert beside("me", [*mine, *[Norm("you", 2.0)] * DEFAULT.updates_min], DEFAULT) == [2.0] * DEFAULT.updates_min


@pytest.mark.parametrize(("norm", "aside"), [(1.0, False), (1.5, False), (100.0, True), (0.01, True), (0.0, True)])
def test_what_is_far_from_the_median_is_unlike(norm: float, aside: bool):
    assert bool(unlike(norm, [0.9, 1.0, 1.0, 1.1], RULE)) == aside


def test_deviations_are_those_of_median_and_mad():
    norms = [math.exp(x) for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    edge = 5 * NORMAL * 0.5
    assert unlike(math.exp(edge - 1e-6), norms, RULE) == ""
    assert "5.0 robust deviations above 1" in unlike(math.exp(edge + 1e-6), norms, RULE)


def test_nothing_is_judged_before_enough_was_merged_or_when_it_is_switched_off():
    assert unlike(1e6, [1.0] * 3, RULE) == "" and unlike(1e6, [1.0] * 9, pb.Quarantine(updates_min=1)) == ""


def test_loud_update_is_kept_aside_makes_no_room_for_the_next_and_can_be_accepted(tmp_path: Path):
    spec = small_spec()
    spec.quarantine.CopyFrom(RULE)
    with CoordinatorHere(small_home(tmp_path / "home", spec)) as coordinator:
        for seed in range(4):
            with RawWorker(coordinator.address, f"w{seed}", f"t{seed}") as raw:
                raw.teach(random_adapter(raw.spec, seed), 0)
        coordinator.drained()
        with RawWorker(coordinator.address, "loud", "loud") as raw:
            loud = [raw.teach(scaled(random_adapter(raw.spec, n), 1000.0), 0) for n in (7, 8)]
        coordinator.drained()
        with coordinator.client() as client:
            told = [client.story(receipt.update_id).verdict for receipt in loud]
        assert [v.outcome for v in told] == [pb.OUTCOME_QUARANTINED] * 2 and "robust deviations above" in told[0].reason
        assert coordinator.status().quarantined == 2 and "loud" not in {r.task for r in coordinator.versions()}
        order(coordinator, judge=pb.Judge(update_id=loud[1].update_id, accept=True))
        assert coordinator.versions()[-1].update_id == loud[1].update_id
