"""Old versions go, and nothing that is kept breaks: checked against an oracle in memory over random histories."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import SAME, SENT_IS_KEPT, Learning, keep_aside, learned, same
from parts import (
    Coordinator,
    CoordinatorHere,
    RawWorker,
    dense_adapter,
    flip_a_byte,
    history_of,
    honest_blob,
    honest_header,
    journal_blob,
    order,
    random_adapter,
    receiver_of,
    relative_error,
    scaled,
    small_home,
    small_spec,
    until,
)
from sqlalchemy import func, select

from coordinator import integrate, replay
from coordinator.catalog import Catalog, Version
from coordinator.draft import Draft
from coordinator.errors import CoordinatorError, Refused
from coordinator.home import open_home
from coordinator.integrate import CATCH_UPS_MAX, Integrator
from coordinator.letting_go import Overtaken
from coordinator.members import Members
from coordinator.receive import Receiver
from coordinator.retention import letting_go
from coordinator.sweep import named
from coordinator.tables import commands, verdicts
from coordinator.upkeep import Upkeep, slack
from coordinator.views import part
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis
from workers.errors import CoordinatorAway, Refusal


@pytest.fixture
def learning(here: CoordinatorHere) -> Learning:
    return learned(here)


def collected(learning: Learning, keep: int) -> pb.Verdict:
    verdict = order(learning.coordinator, collect=pb.Collect(keep=keep))
    assert (verdict.outcome, verdict.version) == (pb.OUTCOME_DONE, 0), verdict.reason
    return verdict


def on_disk(home: Path) -> set[str]:
    return {file.stem for file in (home / "blobs").glob("*.safetensors")}


def test_of_older_versions_only_the_record_stays(learning: Learning):
    before, kept = learning.coordinator.versions(), {v: learning.dense(v) for v in (0, 3, 4)}
    assert collected(learning, keep=2).reason == "2 versions up to 2 were collected; 0 updates stated anew"
    after = learning.coordinator.versions()
    assert [r.gone for r in after] == ["collected", "collected", "", ""]
    for record in after:
        record.gone = ""
    assert before == after
    for version, tasks in kept.items():
        assert same(tasks, learning.dense(version))
    with pytest.raises(Refusal, match="version 2 was collected: only its record is left"):
        learning.everything(2)
    assert learning.coordinator.status().head == 4


def test_collection_deletes_the_blobs_that_nothing_needs_any_more(learning: Learning):
    order(learning.coordinator, compact=pb.Compact(size=5))
    manifest = learning.everything(4)[0]
    old = {ref.digest for ref in manifest.blocks} | {t.entry.digest for t in manifest.tasks}
    head = learning.everything()[0]
    needed = {ref.digest for ref in head.blocks} | {t.entry.digest for t in head.tasks}
    assert old <= on_disk(learning.coordinator.home)
    collected(learning, keep=1)
    left = until(lambda: on_disk(learning.coordinator.home), "blobs")
    assert not old & left and needed <= left
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        assert on_disk(home.folder) == named(home.engine)


def test_update_for_a_collected_version_is_refused_by_name(learning: Learning):
    collected(learning, keep=2)
    with RawWorker(learning.coordinator.address, "late") as raw:
        blob = honest_blob(raw.spec, random_adapter(raw.spec, 9), Basis())
        refused = raw.submit(raw.header(blob, 2), blob)
    assert (refused.outcome, refused.position) == (pb.OUTCOME_REFUSED_BASE_GONE, 0)
    assert refused.reason == "version 2, for which it was made, was collected: fit again on the head"
    verdict = order(learning.coordinator, rollback=pb.Rollback(version=2))
    assert (verdict.outcome, verdict.reason) == (pb.OUTCOME_SKIPPED, "version 2 was collected")
    learning.learn("whole", base=0)  # what is made elsewhere stays welcome
    assert relative_error(dense_adapter(learning.adapters["whole"]), learning.dense()["whole"]) < SENT_IS_KEPT


def test_measurement_of_a_version_that_was_collected_meanwhile_is_kept(learning: Learning):
    collected(learning, keep=1)
    with RawWorker(learning.coordinator.address, "a-worker", "a") as raw:
        raw.client.report("a-worker", raw.joined.incarnation, "a", 1, {"accuracy": 0.5})
        assert [(m.version, m.value) for m in raw.client.metrics("a")] == [(1, 0.5)]
        with pytest.raises(Refusal, match="there is no version 9"):
            raw.client.report("a-worker", raw.joined.incarnation, "a", 9, {"accuracy": 0.5})


def test_update_in_flight_for_a_version_that_is_collected_meanwhile_is_refused(learning: Learning):
    order(learning.coordinator, compact=pb.Compact(size=5))
    with RawWorker(learning.coordinator.address, "slow", "slow") as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 77), 4)

        def chunks() -> Iterator[bytes]:
            yield blob[:100]
            collected(learning, keep=1)
            yield blob[100:]

        assert raw.submit(raw.header(blob, base), chunks()).outcome == pb.OUTCOME_REFUSED_BASE_GONE
    assert learning.coordinator.status().queued == 0


def test_update_queued_behind_a_collection_of_its_base_version_is_merged(learning: Learning):
    order(learning.coordinator, compact=pb.Compact(size=5))
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        receiver_of(home).command(pb.CommandRequest(command_id="c" * 32, collect=pb.Collect(keep=1)))
        incarnation = Members(home.engine).join("queued-worker", "queued", time.time())
        adapter = random_adapter(home.spec, 78)
        blob = honest_blob(home.spec, adapter, history_of(home).bases.of(3))
        made = {"worker": "queued-worker", "task": "queued", "incarnation": incarnation, "base_version": 3}
        journal_blob(home, blob, **made)
    learning.coordinator.start()
    learning.coordinator.drained()
    assert [r.gone for r in learning.coordinator.versions()] == ["collected"] * 4 + ["", ""]
    assert relative_error(dense_adapter(adapter), learning.dense()["queued"]) < SENT_IS_KEPT


def test_contribution_that_is_stated_anew_as_its_difference_counts_with_the_norm_that_was_sent(tmp_path: Path):
    """It differs by a thousandth from what the task was: so quiet an update would be kept aside."""
    spec = small_spec()
    spec.policies.add(task="sum", kind=pb.POLICY_KIND_FEDBUFF, mixing=1, buffer_size=1)
    spec.quarantine.CopyFrom(pb.Quarantine(deviations_max=8, updates_min=2))
    with CoordinatorHere(small_home(tmp_path / "home", spec)) as coordinator:
        learning = Learning(coordinator)
        learning.learn("sum", base=0)
        learning.learn("other", base=0)
        assert coordinator.stop() == 0
        with open_home(coordinator.home) as home:
            receiver_of(home).command(pb.CommandRequest(command_id="c" * 32, collect=pb.Collect(keep=1)))
            incarnation = Members(home.engine).join("late", "sum", time.time())
            nearly = scaled(learning.adapters["sum"], 1.001)
            blob = honest_blob(home.spec, nearly, history_of(home).bases.of(1))
            made = {"worker": "late", "task": "sum", "incarnation": incarnation, "base_version": 1}
            header = journal_blob(home, blob, **made)
        coordinator.start()
        coordinator.drained()
        newest = coordinator.versions()[-1]
        assert newest.update_id == header.update_id, learning.coordinator.status()
        sent, found = dense_adapter(nearly), learning.dense()["sum"]
        assert newest.norm == pytest.approx(math.hypot(*(np.linalg.norm(dW) for dW in sent.values())), rel=1e-4)
        assert relative_error(sent, found) < SENT_IS_KEPT


def test_reader_that_is_fetching_a_version_while_it_is_collected_is_told_so_in_one_sentence(learning: Learning):
    """Its manifest was read before, and its blobs are asked for afterwards."""
    order(learning.coordinator, compact=pb.Compact(size=5))
    manifest, _ = learning.everything(4)
    collected(learning, keep=1)
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        with pytest.raises(Refused, match=r"^version 4 was collected: only its record is left$"):
            part(history_of(home).catalog, home.blobs, manifest.version, manifest.blocks[-1].digest)
        with pytest.raises(CoordinatorError, match=r"is missing: restore it from a copy of this home$"):
            part(history_of(home).catalog, home.blobs, 5, "0" * 64)


@pytest.mark.parametrize("meanwhile", ["tasks_of", "blocks_of"])
def test_manifest_of_a_version_that_is_collected_while_it_is_read_is_refused(
    learning: Learning, monkeypatch: pytest.MonkeyPatch, meanwhile: str
):
    order(learning.coordinator, compact=pb.Compact(size=5))
    read, due = getattr(Catalog, meanwhile), [1]

    def read_late(catalog: Catalog, version: Version) -> object:
        if version.version == 4 and due:
            due.pop()
            collected(learning, keep=1)
        return read(catalog, version)

    monkeypatch.setattr(Catalog, meanwhile, read_late)
    with learning.coordinator.client() as client, pytest.raises(Refusal, match=r"^version 4 was collected: only its"):
        client.fetch(4, tasks=["a"], manifest_only=True)
    assert not due


def test_replay_whose_versions_are_collected_meanwhile_is_asked_for_again(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
):
    go_on, due = replay._Replay.go_on, [1]

    def go_on_late(self: replay._Replay, version: Version) -> None:
        if version.version == 2 and due:
            due.pop()
            collected(learning, keep=1)
        go_on(self, version)

    monkeypatch.setattr(replay._Replay, "go_on", go_on_late)
    with pytest.raises(
        CoordinatorAway, match=r"^version [1-3] was collected while it was compared: ask for the replay"
    ):
        learning.replay()
    assert (learning.replay().first, due) == (4, [])


def test_forget_and_replay_need_nothing_that_was_collected(learning: Learning):
    order(learning.coordinator, compact=pb.Compact(size=6))
    learning.learn("d", base=4)
    learning.learn("e", base=5)
    assert "stated anew" in collected(learning, keep=2).reason
    reply = learning.replay()
    assert (reply.first, reply.versions) == (6, 2)
    assert max(reply.task.value, reply.basis.value) < SAME
    assert order(learning.coordinator, forget=pb.Forget(task="c")).outcome == pb.OUTCOME_DONE
    found = learning.dense()
    assert sorted(found) == ["a", "b", "d", "e"]
    for task in ("d", "e"):  # merged after the compaction
        assert relative_error(dense_adapter(learning.adapters[task]), found[task]) < SENT_IS_KEPT
    reply = learning.replay()
    assert max(reply.task.value, reply.basis.value) < SAME


def test_replay_needs_no_columns_that_only_what_was_replaced_had(learning: Learning):
    for task in "ab":
        learning.learn(task, base=3, seed=ord(task))
    order(learning.coordinator, compact=pb.Compact(size=8))
    assert learning.coordinator.versions()[-1].basis_out == 6
    learning.learn("d", base=6)
    assert "stated anew" in collected(learning, keep=1).reason
    reply = learning.replay()
    assert max(reply.task.value, reply.basis.value) < SAME


def test_what_was_reverted_can_be_merged_again_and_forgotten_after_its_base_version_was_collected(learning: Learning):
    learning.learn("d", base=1)
    order(learning.coordinator, compact=pb.Compact(size=7))
    order(learning.coordinator, rollback=pb.Rollback(version=4))
    collected(learning, keep=2)  # what d was made for is gone, and a version that holds d is kept
    assert learning.outcome("d") == pb.OUTCOME_REVERTED
    order(learning.coordinator, rollback=pb.Rollback(version=6))
    assert learning.outcome("d") == pb.OUTCOME_MERGED
    assert order(learning.coordinator, forget=pb.Forget(task="a")).outcome == pb.OUTCOME_DONE
    assert sorted(learning.dense()) == ["b", "c", "d"]


def test_basis_outlives_its_version_while_a_later_one_of_its_generation_is_kept(learning: Learning):
    assert "0 updates stated anew" in collected(learning, keep=1).reason
    order(learning.coordinator, rollback=pb.Rollback(version=4))
    assert "4 versions" not in collected(learning, keep=1).reason
    assert order(learning.coordinator, forget=pb.Forget(task="a")).outcome == pb.OUTCOME_DONE
    assert sorted(learning.dense()) == ["b", "c"]


def test_erasure_after_a_collection_leaves_no_stand_in_of_what_is_erased(learning: Learning):
    order(learning.coordinator, compact=pb.Compact(size=6))
    collected(learning, keep=1)
    assert order(learning.coordinator, forget=pb.Forget(task="c", erase=True)).outcome == pb.OUTCOME_DONE
    assert sorted(learning.dense()) == ["a", "b"]
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        assert on_disk(home.folder) == named(home.engine)
        stand_ins = [entry.position for entry, _ in history_of(home).journal.every() if entry.stand_in]
        assert 3 not in stand_ins  # c's


def test_collection_that_an_update_overtakes_changes_nothing_until_that_is_taken_in(learning: Learning):
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        history = history_of(home)
        gone = letting_go(history, frozenset({1, 2}), "collected")
        receiver_of(home).command(pb.CommandRequest(command_id="e" * 32, collect=pb.Collect(keep=2)))
        with pytest.raises(Overtaken):
            history.catalog.settle(Draft(gone.consumed + 1, letting_go=gone), time.time())
        assert not any(v.is_gone for v in history.catalog.outlines())
    learning.coordinator.start()
    learning.coordinator.drained()
    assert [r.gone for r in learning.coordinator.versions()] == ["collected", "collected", "", ""]


def test_collection_ends_however_many_updates_come_meanwhile_and_each_is_merged(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
):
    order(learning.coordinator, compact=pb.Compact(size=5))
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        history, tries = history_of(home), list[pb.Outcome]()
        receiver = Receiver(home.spec, history.journal, history.bases, home.blobs, lambda _: None)
        receiver.command(pb.CommandRequest(command_id="e" * 32, collect=pb.Collect(keep=1)))
        Members(home.engine).join("raw", "late", time.time())
        settle = history.catalog.settle

        def settle_late(draft: Draft, at: float) -> None:
            """Each time one more has come, made for a version that goes."""
            task = f"late{len(tries)}"
            learning.adapters[task] = random_adapter(home.spec, 60 + len(tries))
            blob = honest_blob(home.spec, learning.adapters[task], history.bases.behind(2))
            try:
                receiver.accept(honest_header(home.spec, blob, task=task, base_version=2), blob)
                tries.append(pb.OUTCOME_QUEUED)
            except Refused as refused:
                tries.append(refused.outcome)
                del learning.adapters[task]
            settle(draft, at)

        integrator = Integrator(home.spec, home.engine, history, lambda _: None)
        with monkeypatch.context() as patch:
            patch.setattr(history.catalog, "settle", settle_late)
            integrator._next()
        assert tries == [pb.OUTCOME_QUEUED] * CATCH_UPS_MAX + [pb.OUTCOME_RETRY_BUSY]
    learning.coordinator.start()
    learning.coordinator.drained()
    assert [r.gone for r in learning.coordinator.versions()][:4] == ["collected"] * 4
    found = learning.dense()
    assert set(found) == {"a", "b", "c", *(f"late{n}" for n in range(CATCH_UPS_MAX))}
    for task in found.keys() - set("abc"):
        assert relative_error(dense_adapter(learning.adapters[task]), found[task]) < SENT_IS_KEPT


@pytest.mark.parametrize("is_in_the_head", [False, True])
def test_update_that_can_never_be_merged_stops_no_collection_and_no_erasure(tmp_path: Path, is_in_the_head: bool):
    spec = federation(policies=[pb.Policy(task="b", kind=pb.POLICY_KIND_FEDBUFF, buffer_size=1, mixing=1)])
    with CoordinatorHere(small_home(tmp_path / "home", spec)) as coordinator:
        learning = learned(coordinator)
        if is_in_the_head:
            learning.learn("d")
        else:
            order(coordinator, rollback=pb.Rollback(version=1))
        other_head = replace(random_adapter(spec, 50), head={"classifier.weight": torch.randn(3, 6)})
        aside = keep_aside(learning, "b", base=4, adapter=other_head)
        collected(learning, keep=1)
        judged = order(coordinator, judge=pb.Judge(update_id=aside, accept=True))
        assert judged.outcome == pb.OUTCOME_SKIPPED
        assert "cannot be merged: version 4, for which it was made, was " in judged.reason
        assert order(coordinator, forget=pb.Forget(worker="c-worker", erase=True)).outcome == pb.OUTCOME_DONE
        assert sorted(learning.dense()) == (["a", "b", "d"] if is_in_the_head else ["a"])


def test_update_that_has_to_be_kept_and_is_damaged_is_named_with_a_way_out(learning: Learning):
    coordinator = learning.coordinator
    order(coordinator, rollback=pb.Rollback(version=1))
    order(coordinator, compact=pb.Compact(size=1))
    assert coordinator.stop() == 0
    with open_home(coordinator.home) as home:
        [(position, _)] = history_of(home).journal.find(learning.receipts["c"].update_id)
    flip_a_byte(coordinator.home / "blobs" / f"{position.submission.digest}.safetensors")
    coordinator.start()
    refused = order(coordinator, collect=pb.Collect(keep=1))
    assert refused.outcome == pb.OUTCOME_SKIPPED
    id = position.submission.update_id[:12]
    assert refused.reason.startswith(f"update {id} has to be kept, and ") and "damaged" in refused.reason
    assert refused.reason.endswith(
        f"; or forget its task or its worker with --erase (`fedshare story {id}` names them)"
    )
    assert order(coordinator, forget=pb.Forget(task="c", erase=True)).outcome == pb.OUTCOME_DONE
    assert order(coordinator, collect=pb.Collect(keep=1)).outcome == pb.OUTCOME_DONE


def test_collection_of_nothing_is_skipped_and_one_that_keeps_nothing_is_refused(learning: Learning):
    verdict = order(learning.coordinator, collect=pb.Collect(keep=4))
    assert verdict.outcome == pb.OUTCOME_SKIPPED
    assert verdict.reason == "nothing to collect: 4 versions can be read, 4 are kept"
    with pytest.raises(Refusal, match="keeps at least 1 version"):
        order(learning.coordinator, collect=pb.Collect(keep=0))


def test_collection_that_was_cut_off_before_its_sweep_is_taken_up_at_the_start(small: Coordinator):
    learning = learned(small)
    order(small, compact=pb.Compact(size=5))
    with RawWorker(small.address) as raw:
        raw.stub.Command(pb.CommandRequest(command_id="d" * 32, collect=pb.Collect(keep=1)), timeout=30)
        small.kill()
    small.start()
    small.drained()
    assert order(small, "d" * 32, collect=pb.Collect(keep=1)).outcome == pb.OUTCOME_DONE
    assert sorted(learning.dense()) == ["a", "b", "c"]
    assert small.stop() == 0
    with open_home(small.home) as home:
        assert on_disk(home.folder) == named(home.engine)


def test_start_does_not_wait_for_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    go_on, swept = threading.Event(), list[bool]()
    monkeypatch.setattr(integrate, "sweep_if_wanted", lambda *_: swept.append(go_on.wait(10)))
    with CoordinatorHere(small_home(tmp_path / "home")) as coordinator, RawWorker(coordinator.address) as raw:
        try:
            receipt = raw.teach(random_adapter(raw.spec, 0))
            assert receipt.outcome == pb.OUTCOME_QUEUED and coordinator.status().queued == 1
            assert swept == []
        finally:
            go_on.set()
        assert coordinator.drained().head == 1


def federation(**changes: object) -> pb.FederationSpec:
    spec = small_spec()
    spec.MergeFrom(pb.FederationSpec(**changes))
    return spec


def test_versions_are_collected_by_themselves_when_more_can_be_read_than_are_kept(tmp_path: Path):
    home = small_home(tmp_path / "home", federation(versions_kept=3))
    with CoordinatorHere(home) as coordinator:
        learning = Learning(coordinator)
        for n in range(3 + slack(3)):
            learning.learn(f"t{n % 4}@w{n}")
        assert not any(r.gone for r in coordinator.versions())
        learning.learn("last")
        until(lambda: [r.version for r in coordinator.versions() if not r.gone] == [10, 11, 12], "they are collected")
        learning.learn("one-more")
        assert sum(not r.gone for r in coordinator.versions()) == 4
        coordinator.drained()
        reply = learning.replay()
        assert reply.first == 10 and max(reply.task.value, reply.basis.value) < SAME


def test_collection_that_cannot_be_done_is_not_ordered_again_after_each_merge(tmp_path: Path):
    home = small_home(tmp_path / "home", federation(versions_kept=1))
    with CoordinatorHere(home) as coordinator, RawWorker(coordinator.address) as raw:
        raw.teach(random_adapter(raw.spec, 0), task="first")
        coordinator.drained()
        base, blob = raw.blob(random_adapter(raw.spec, 1))
        raw.submit(raw.header(blob, base), blob)
        coordinator.drained()
        flip_a_byte(home / "blobs" / f"{digest_of(blob)}.safetensors")  # made for version 1: to be stated anew
        order(coordinator, compact=pb.Compact(size=1))
        for n in range(3 * slack(1)):
            raw.teach(random_adapter(raw.spec, n + 2), task=f"t{n}")
            coordinator.drained()
    with open_home(home) as opened, opened.engine.connect() as connection:
        [ordered] = connection.execute(select(func.count()).select_from(commands)).scalars()
        [skipped] = connection.execute(
            select(func.count()).select_from(verdicts).where(verdicts.c.outcome == pb.OUTCOME_SKIPPED)
        ).scalars()
    assert ordered - 1 == skipped == 3  # not counting the compaction; each looks through the whole journal


def test_file_may_keep_fewer_versions_at_a_head_where_more_were_collected_before(tmp_path: Path):
    spec = federation(versions_kept=20)
    home = small_home(tmp_path / "home", spec)
    with CoordinatorHere(home) as coordinator:
        learning = Learning(coordinator)
        for n in range(21 + slack(20)):
            learning.learn(f"t{n % 3}")
        until(lambda: sum(not r.gone for r in coordinator.versions()) == 20, "they are collected")
    with open_home(home) as opened:
        opened.spec.versions_kept = 5
        history = history_of(opened)
        integrator = Integrator(opened.spec, opened.engine, history, lambda _: None)
        assert integrator._next()
        assert history.catalog.count_readable() == 5


def test_basis_stays_inside_its_budget_by_compactions_that_are_journaled(tmp_path: Path):
    home = small_home(tmp_path / "home", federation(budget=pb.Budget(columns_max=6, columns_after=4)))
    with CoordinatorHere(home) as coordinator:
        learning = Learning(coordinator)
        for n in range(6):
            learning.learn(f"t{n}")
            coordinator.drained()
        records = coordinator.versions()
        kinds = [r.kind for r in records]
        assert kinds.count(pb.VERSION_KIND_COMPACT) >= 2
        for before, after in pairwise(records):
            if max(before.basis_out, before.basis_in) > 6:
                assert (after.kind, after.basis_out, after.basis_in) == (pb.VERSION_KIND_COMPACT, 4, 4)
        with coordinator.client() as client:
            compaction = next(r for r in records if r.kind == pb.VERSION_KIND_COMPACT)
            assert client.story(compaction.update_id).events[0].detail.startswith("the command to compact")
        reply = learning.replay()
        assert reply.versions == len(records) + 1 and max(reply.task.value, reply.basis.value) < SAME
        assert order(coordinator, forget=pb.Forget(task="t1")).outcome == pb.OUTCOME_DONE
        assert sorted(learning.dense()) == ["t0", "t2", "t3", "t4", "t5"]


def test_compaction_that_is_due_is_journaled_once_when_a_kill_comes_in_between(tmp_path: Path):
    """The version that is too wide is durable, the command is not: as after a kill between the two."""
    budget = federation(budget=pb.Budget(columns_max=6, columns_after=4))
    home = small_home(tmp_path / "home", budget)
    with CoordinatorHere(home) as coordinator:
        learning = Learning(coordinator)
        for n in range(4):
            learning.learn(f"t{n}")
    with open_home(home) as opened:
        history = history_of(opened)
        too_wide = next(v for v in history.catalog.every() if v.records and v.records[-1].basis_out > 6)
        count = history.journal.newest_position()
        upkeep = Upkeep(opened.spec, history.journal, history.catalog)
        upkeep.after(too_wide, count)
        assert history.journal.newest_position() == count  # its command has been here
        other = Upkeep(federation(budget=budget.budget, federation_id="f" * 32), history.journal, history.catalog)
        for version in (too_wide, replace(too_wide, version=99)):
            other.after(version, count)  # the second need not be asked for: the first waits
        assert history.journal.newest_position() == count + 1


@dataclass
class Oracle:
    """What every version must hold, by the rules alone: a list of (task, worker, adapter), and what was read of it."""

    learning: Learning
    rng: random.Random
    made_of: dict[int, list[tuple[str, str, Adapter]]] = field(default_factory=lambda: {0: []})
    seen: dict[int, Mapping[str, Mapping[str, np.ndarray]]] = field(default_factory=lambda: {0: {}})
    holds: dict[int, set[int]] = field(default_factory=dict)
    head: int = 0

    def go(self) -> None:
        steps = [self.merge] * 5 + [self.compact, self.rollback, self.collect] * 2 + [self.forget, self.erase]
        self.rng.choice(steps)()

    def merge(self) -> None:
        task, worker = self.rng.choice("abcd"), self.rng.choice(["w1", "w2", "w3"])
        with RawWorker(self.learning.coordinator.address, worker, task) as raw:
            adapter = random_adapter(raw.spec, self.rng.randrange(1 << 30))
            raw.teach(adapter, self.rng.choice(list(self.seen)))
        self.learning.coordinator.drained()
        self._made([*self.made_of[self.head], (task, worker, adapter)])

    def compact(self) -> None:
        verdict = order(self.learning.coordinator, compact=pb.Compact(size=self.rng.randint(3, 7)))
        if verdict.outcome == pb.OUTCOME_DONE:
            self._made(self.made_of[self.head])

    def rollback(self) -> None:
        target = self.rng.choice(list(self.seen))
        assert order(self.learning.coordinator, rollback=pb.Rollback(version=target)).outcome == pb.OUTCOME_DONE
        self._made(self.made_of[target])
        assert same(self.seen[target], self.seen[self.head])

    def collect(self) -> None:
        keep = self.rng.randint(1, 4)
        order(self.learning.coordinator, collect=pb.Collect(keep=keep))
        for version in sorted(self.seen)[1:-keep]:
            self._gone(version, "collected")

    def forget(self) -> None:
        worker = self.rng.choice(["w1", "w2", "w3"])
        if order(self.learning.coordinator, forget=pb.Forget(worker=worker)).outcome == pb.OUTCOME_DONE:
            self._made([u for u in self.made_of[self.head] if u[1] != worker])

    def erase(self) -> None:
        task, last = self.rng.choice("abcd"), self.head
        verdict = order(self.learning.coordinator, forget=pb.Forget(task=task, erase=True))
        if verdict.outcome == pb.OUTCOME_DONE:
            self._made([u for u in self.made_of[last] if u[0] != task])
            first = min((v for v, held in self.made_of.items() if any(u[0] == task for u in held)), default=last + 1)
            for version in [v for v in self.seen if first <= v <= last]:
                self._gone(version, "erased")

    def check(self) -> None:
        """Every version that is kept can be read, and is what it was."""
        for version, tasks in self.seen.items():
            assert same(tasks, self.learning.dense(version)), version

    def _made(self, updates: list[tuple[str, str, Adapter]]) -> None:
        """The new head holds of every task the newest of these, as truly as it says."""
        self.head += 1
        manifest, found = self.learning.everything()[0], self.learning.dense()
        newest = {task: adapter for task, _, adapter in updates}
        assert manifest.version == self.head and found.keys() == newest.keys()
        for ref in manifest.tasks:
            measured = relative_error(dense_adapter(newest[ref.task]), found[ref.task])
            assert measured <= ref.relative_error + 1e-5, ref.task
        self.made_of[self.head], self.seen[self.head] = updates, found

    def _gone(self, version: int, why: str) -> None:
        del self.seen[version]
        with pytest.raises(Refusal, match=f"version {version} was {why}"):
            self.learning.everything(version)


@pytest.mark.parametrize("seed", range(5))
def test_random_history_keeps_what_it_must_and_nothing_else(tmp_path: Path, seed: int):
    home = small_home(tmp_path / "home")
    with CoordinatorHere(home) as coordinator:
        oracle = Oracle(Learning(coordinator), random.Random(seed))
        for _ in range(30):
            oracle.go()
        oracle.check()
        reply = oracle.learning.replay()
        assert max(reply.task.value, reply.basis.value) < SAME
        oracle.merge()
        oracle.merge()
        oracle.collect()
        oracle.check()
    with open_home(home) as opened:
        assert on_disk(home) == named(opened.engine)
