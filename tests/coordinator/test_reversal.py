"""What was merged can be taken back: rolled back, forgotten, erased; and the journal proves what is kept."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from forks import fedshare
from learning import SAME, SENT_IS_KEPT, Learning, keep_aside, learned, same
from parts import (
    Coordinator,
    CoordinatorHere,
    RawWorker,
    dense_adapter,
    history_of,
    honest_blob,
    journal_one,
    one_sentence,
    order,
    random_adapter,
    relative_error,
    small_home,
    spans,
    until,
)
from sqlalchemy import select, update

from coordinator import receive, replay
from coordinator.catalog import Version
from coordinator.home import open_home
from coordinator.process import THREADS
from coordinator.reversal import NOTHING_TO_FORGET
from coordinator.tables import entries, writer
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationStub
from share_algo import Basis, Update
from workers.errors import CoordinatorAway, Refusal, WorkerError


@pytest.fixture
def learning(here: CoordinatorHere) -> Learning:
    return learned(here)


@pytest.fixture
def killable(small: Coordinator) -> Learning:
    """The same in a process of its own."""
    return learned(small)


def test_rollback_makes_a_new_version_that_equals_the_old_one(learning: Learning):
    then = learning.dense(2)
    verdict = order(learning.coordinator, rollback=pb.Rollback(version=2))
    assert (verdict.outcome, verdict.version) == (pb.OUTCOME_DONE, 5)
    assert same(then, learning.dense()) and same(then, learning.dense(2))
    record = learning.coordinator.versions()[-1]
    assert (record.kind, record.parent, record.generation) == (pb.VERSION_KIND_ROLLBACK, 4, 1)
    assert "equals version 2; 2 updates reverted" in record.note


def test_what_a_rollback_takes_back_is_reverted_and_the_rest_stays_merged(learning: Learning):
    order(learning.coordinator, rollback=pb.Rollback(version=2))
    outcomes = {key: learning.outcome(key) for key in learning.receipts}
    merged, reverted = pb.OUTCOME_MERGED, pb.OUTCOME_REVERTED
    assert outcomes == {"a": merged, "b": merged, "c": reverted, "b@other": reverted}
    status = learning.coordinator.status()
    assert (status.merged, status.reverted, status.skipped, status.queued) == (2, 2, 0, 0)
    assert [e.what for e in learning.story("c").events] == ["received", "merged", "reverted"]
    assert "rollback to version 2" in learning.verdict("c").reason


def test_story_has_what_was_measured_while_the_update_was_the_task_and_no_other(learning: Learning):
    first, second = learning.receipts["a"].update_id, learning.learn("a", base=4).update_id
    order(learning.coordinator, forget=pb.Forget(task="c"))
    order(learning.coordinator, rollback=pb.Rollback(version=4))
    learning.report("a-worker", "a", *range(1, 8))
    learning.report("another", "a", 1)
    assert learning.reported(first) == [1, 2, 3, 4, 7] and learning.reported(second) == [5, 6]
    order(learning.coordinator, forget=pb.Forget(task="a"))
    order(learning.coordinator, rollback=pb.Rollback(version=6))
    learning.report("a-worker", "a", 8, 9)
    assert learning.reported(first) == [1, 2, 3, 4, 7] and learning.reported(second) == [5, 6, 9]


def test_story_of_an_update_that_was_accepted_late_has_what_was_measured_since(learning: Learning):
    accepted = keep_aside(learning)
    other = learning.learn("odd", base=4).update_id
    order(learning.coordinator, judge=pb.Judge(update_id=accepted, accept=True))
    order(learning.coordinator, rollback=pb.Rollback(version=4))
    order(learning.coordinator, rollback=pb.Rollback(version=6))
    learning.report("odd-worker", "odd", 5, 6, 7, 8)
    assert learning.reported(other) == [5] and learning.reported(accepted) == [6, 8]


def test_what_was_reverted_can_be_submitted_again_and_again_merged_by_a_rollback(learning: Learning):
    order(learning.coordinator, rollback=pb.Rollback(version=2))
    learning.learn("c@again", seed=2)
    assert learning.outcome("c@again") == pb.OUTCOME_MERGED
    assert relative_error(dense_adapter(learning.adapters["c"]), learning.dense()["c"]) < SENT_IS_KEPT
    order(learning.coordinator, rollback=pb.Rollback(version=4))
    assert same(learning.dense(4), learning.dense())
    outcomes = [learning.outcome(key) for key in ("c", "b@other", "c@again")]
    assert outcomes == [pb.OUTCOME_MERGED, pb.OUTCOME_MERGED, pb.OUTCOME_REVERTED]
    assert [e.what for e in learning.story("c").events] == ["received", "merged", "reverted", "merged"]


def test_update_made_for_a_version_of_another_generation_is_lifted_with_its_own_basis(learning: Learning):
    order(learning.coordinator, rollback=pb.Rollback(version=1))
    learning.learn("late", base=4)
    learning.learn("later", base=2)
    found = learning.dense()
    for task in ("late", "later"):
        assert relative_error(dense_adapter(learning.adapters[task]), found[task]) < SENT_IS_KEPT
    assert learning.everything(2)[0].generation != learning.everything()[0].generation


def test_rollback_to_what_is_not_there_is_skipped_with_the_reason_and_changes_nothing(learning: Learning):
    before = learning.everything()
    verdict = order(learning.coordinator, rollback=pb.Rollback(version=9))
    assert (verdict.outcome, verdict.reason) == (pb.OUTCOME_SKIPPED, "there is no version 9: the newest is 4")
    assert learning.everything() == before


def test_command_given_twice_is_carried_out_once_also_after_a_kill(killable: Learning):
    id = uuid.uuid4().hex
    first = order(killable.coordinator, id, rollback=pb.Rollback(version=2))
    again = order(killable.coordinator, id, rollback=pb.Rollback(version=2))
    killable.coordinator.kill()
    killable.coordinator.start()
    restarted = order(killable.coordinator, id, rollback=pb.Rollback(version=2))
    assert first == again == restarted
    assert len(killable.coordinator.versions()) == 5
    other_one = f"^command {id} is here already, and is another one: leave its id out, and it gets one of its own$"
    with pytest.raises(Refusal, match=other_one):
        order(killable.coordinator, id, rollback=pb.Rollback(version=3))


def test_command_with_a_receipt_is_carried_out_after_a_kill(killable: Learning):
    with RawWorker(killable.coordinator.address) as raw:
        command = pb.CommandRequest(command_id=uuid.uuid4().hex, forget=pb.Forget(task="b", erase=True))
        receipt = raw.stub.Command(command, timeout=30)
        killable.coordinator.kill()
    assert (receipt.outcome, receipt.position) == (pb.OUTCOME_QUEUED, 5)
    killable.coordinator.start()
    killable.coordinator.drained()
    assert order(killable.coordinator, command.command_id, forget=command.forget).outcome == pb.OUTCOME_DONE
    assert sorted(killable.dense()) == ["a", "c"]


@pytest.mark.parametrize("erase", [False, True], ids=["kept", "erased"])
def test_subspace_after_forget_equals_one_that_never_saw_the_task(learning: Learning, tmp_path: Path, erase: bool):
    assert order(learning.coordinator, forget=pb.Forget(task="b", erase=erase)).outcome == pb.OUTCOME_DONE
    with CoordinatorHere(small_home(tmp_path / "never")) as coordinator:
        never = Learning(coordinator)
        never.learn("a", seed=0)
        never.learn("c", seed=2)
        forgot, innocent = learning.dense(), never.dense()
        assert forgot.keys() == innocent.keys() == {"a", "c"}
        assert max(relative_error(innocent[task], forgot[task]) for task in forgot) < SENT_IS_KEPT
        ours, theirs = spans(*learning.everything()), spans(*never.everything())
        assert max(np.abs(ours[side] - theirs[side]).max() for side in theirs) < SAME
        assert all(np.isclose(np.trace(ours[side]), np.trace(theirs[side]), atol=SAME) for side in theirs)


def test_task_of_a_forgotten_worker_falls_back_to_what_others_taught(learning: Learning):
    order(learning.coordinator, forget=pb.Forget(worker="other"))
    assert relative_error(dense_adapter(learning.adapters["b"]), learning.dense()["b"]) < SENT_IS_KEPT
    assert [learning.outcome(key) for key in ("b", "b@other")] == [pb.OUTCOME_MERGED, pb.OUTCOME_REVERTED]


def test_forget_of_what_never_came_is_skipped_and_changes_nothing(learning: Learning):
    verdict = order(learning.coordinator, forget=pb.Forget(task="nobody"))
    assert (verdict.outcome, verdict.reason) == (pb.OUTCOME_SKIPPED, NOTHING_TO_FORGET)
    assert learning.coordinator.status().head == 4
    for name, whose in (("--task", "task"), ("--worker", "worker")):
        said = one_sentence(fedshare("forget", name, "nobody", "-c", learning.coordinator.address))
        assert said == f"{whose} 'nobody' is not forgotten: {NOTHING_TO_FORGET}"


@pytest.mark.parametrize("forget", [pb.Forget(), pb.Forget(task="a", worker="b"), pb.Forget(task="../x")], ids=str)
def test_forget_must_say_a_task_or_a_worker(learning: Learning, forget: pb.Forget):
    with pytest.raises(Refusal):
        order(learning.coordinator, forget=forget)


@dataclass
class Erased:
    """A home in which "secret" was learned in the midst of others, and erased; then its coordinator was stopped."""

    learning: Learning
    home: Path
    blobs: dict[str, bytes]


@pytest.fixture
def erased(here: CoordinatorHere) -> Erased:
    learning = Learning(here)
    learning.learn("a", base=0)
    learning.learn("secret@someone")
    learning.learn("c")
    learning.learn("d", base=2, warm_start="secret")
    learning.learn("e", base=2, warm_start="c")
    with RawWorker(here.address, "someone", "secret") as raw:
        raw.client.report("someone", raw.joined.incarnation, "secret", 2, {"accuracy": 0.125})
    before = {file.stem: file.read_bytes() for file in (here.home / "blobs").glob("*.safetensors")}
    assert order(here, forget=pb.Forget(worker="someone", erase=True)).outcome == pb.OUTCOME_DONE
    return Erased(learning, here.home, before)


def files_with(home: Path, needle: bytes) -> list[str]:
    return [str(f.relative_to(home)) for f in home.rglob("*") if f.is_file() and needle in f.read_bytes()]


def test_no_file_of_the_home_holds_anything_of_what_was_erased(erased: Erased):
    with erased.learning.coordinator.client() as client:
        spec, record = client.describe(), client.versions(first=2)[0]
    assert (record.task, record.worker, record.gone, record.norm) == ("", "", "erased", 0)
    sent = {honest_blob(spec, erased.learning.adapters["secret@someone"], Basis())}
    gone = {
        name: blob
        for name, blob in erased.blobs.items()
        if not (erased.home / "blobs" / f"{name}.safetensors").exists()
    }
    assert len(gone) >= 3  # what was sent, its block, its coefficients
    for blob in [*gone.values(), *sent]:
        middle = len(blob) - len(blob) // 3  # in the tensors
        assert files_with(erased.home, blob[middle : middle + 24]) == []
    assert files_with(erased.home, b"secret") == files_with(erased.home, b"someone") == []


def test_no_judgement_and_no_earlier_forget_holds_a_name_that_is_erased_later(here: CoordinatorHere):
    learning = Learning(here)
    learning.learn("a", base=0)
    learning.learn("heirloom", warm_start="a")
    learning.learn("c")
    for task, accept in (("veiled", True), ("hidden", False)):
        order(here, judge=pb.Judge(update_id=keep_aside(learning, task, base=1), accept=accept))
    order(here, forget=pb.Forget(task="a"))
    order(here, forget=pb.Forget(task="heirloom"))
    for task in ("veiled", "hidden", "heirloom"):
        assert files_with(here.home, task.encode())
        assert order(here, forget=pb.Forget(worker=f"{task}-worker", erase=True)).outcome == pb.OUTCOME_DONE
        assert files_with(here.home, task.encode()) == []
    with here.client() as client:
        [first, *_] = [record for record in client.versions() if record.kind == pb.VERSION_KIND_FORGET]
    assert first.note.endswith("; what they had learned is where others began that stay: (erased)")


@pytest.mark.parametrize("worker", ["someone", "someone-who-only-joined"])
def test_erasure_that_finds_nothing_more_leaves_no_name_either(erased: Erased, worker: str):
    coordinator = erased.learning.coordinator
    with RawWorker(coordinator.address, "someone-who-only-joined", "secret"):
        pass
    for forget in (pb.Forget(task="secret", erase=True), pb.Forget(worker=worker, erase=True)):
        verdict = order(coordinator, forget=forget)
        assert (verdict.outcome, verdict.reason) == (pb.OUTCOME_SKIPPED, NOTHING_TO_FORGET)
    assert files_with(erased.home, b"secret") == []
    assert bool(files_with(erased.home, b"someone")) == (worker == "someone")


def test_others_are_what_they_were_after_an_erasure_and_after_a_restart(erased: Erased):
    for _ in range(2):
        found = erased.learning.dense()
        assert sorted(found) == ["a", "c", "d", "e"]
        for task, dW in found.items():
            assert relative_error(dense_adapter(erased.learning.adapters[task]), dW) < SENT_IS_KEPT
        assert erased.learning.coordinator.stop() == 0
        erased.learning.coordinator.start()


def test_story_says_that_something_was_erased_and_not_what(erased: Erased):
    story = erased.learning.story("secret@someone")
    assert story.verdict.outcome == pb.OUTCOME_ERASED
    assert [e.what for e in story.events] == ["received", "merged", "erased"]
    assert "secret" not in str(story) and "someone" not in str(story)
    status = erased.learning.coordinator.status()
    assert (status.merged, status.erased) == (4, 1)
    assert [m.worker for m in status.members] == [f"{task}-worker" for task in "acde"]


def test_what_began_with_an_erased_task_says_that_it_did_and_the_forget_which_those_are(erased: Erased):
    with erased.learning.coordinator.client() as client:
        by_task = {r.task: r for r in client.versions()}
        forget = client.versions()[-1]
    assert (by_task["d"].warm_start, by_task["e"].warm_start) == ("(erased)", "c")
    assert forget.note == (
        "as if 1 updates had never come, which are erased; 4 versions can no longer be read;"
        " what they had learned is where others began that stay: d"
    )
    assert ", begun with what (erased) had learned;" in erased.learning.story("d").events[0].detail


def test_forget_of_a_worker_says_who_began_with_it_also_where_it_taught_their_task_too(here: CoordinatorHere):
    learning = Learning(here)
    learning.learn("source@someone", base=0)
    learning.learn("heir", warm_start="source")
    learning.learn("heir@someone")
    order(here, forget=pb.Forget(worker="someone"))
    assert here.versions()[-1].note.endswith("; what they had learned is where others began that stay: heir")


def test_version_that_was_erased_is_refused_by_name(erased: Erased):
    with pytest.raises(Refusal, match="version 3 was erased: only its record is left"):
        erased.learning.everything(3)
    with RawWorker(erased.learning.coordinator.address, "late") as raw:
        blob = honest_blob(raw.spec, random_adapter(raw.spec, 9), Basis())
        refused = raw.submit(raw.header(blob, 3), blob)
        assert (refused.outcome, refused.position) == (pb.OUTCOME_REFUSED_BASE_GONE, 0)
        assert refused.reason == "version 3, for which it was made, was erased: fit again on the head"
    assert order(erased.learning.coordinator, rollback=pb.Rollback(version=3)).reason == "version 3 was erased"
    erased.learning.learn("still", base=1)  # a version from before is still good
    assert (
        relative_error(dense_adapter(erased.learning.adapters["still"]), erased.learning.dense()["still"])
        < SENT_IS_KEPT
    )


def test_worker_that_comes_back_after_its_erasure_is_newer_than_what_still_runs_of_it(here: CoordinatorHere):
    learning = Learning(here)
    learning.learn("a", base=0)
    with RawWorker(here.address, "someone", "b") as old:
        old.teach(random_adapter(old.spec, 1), 0)
        order(here, forget=pb.Forget(worker="someone", erase=True))
        blob = honest_blob(old.spec, random_adapter(old.spec, 2), Basis())
        assert old.submit(old.header(blob, 0), blob).reason == "someone is not a member: join first"
        with RawWorker(here.address, "someone", "b") as new:
            assert new.joined.incarnation > old.joined.incarnation
            refused = old.submit(old.header(blob, 0), blob)
            assert refused.outcome == pb.OUTCOME_REFUSED_INCARNATION
            assert new.submit(new.header(blob, 0), blob).outcome == pb.OUTCOME_QUEUED


def test_forget_that_waits_behind_an_erasure_of_the_same_worker_still_says_whose(tmp_path: Path):
    home, forgets = small_home(tmp_path / "home"), [pb.Forget(worker="raw", erase=erase) for erase in (True, False)]
    ids = []
    for seed, forget in enumerate(forgets):  # of an update before each
        ids.append(journal_one(home, seed).update_id)
        with open_home(home) as opened:
            command = pb.CommandRequest(command_id=uuid.uuid4().hex, forget=forget)
            ids.append(history_of(opened).journal.command(command, 0.0)[0].update_id)
    with CoordinatorHere(home) as coordinator:
        coordinator.drained()
        with coordinator.client() as client:
            told = [client.story(one).verdict for one in ids]
    done, erased, reverted = pb.OUTCOME_DONE, pb.OUTCOME_ERASED, pb.OUTCOME_REVERTED
    assert [verdict.outcome for verdict in told] == [erased, done, reverted, done]


def test_second_forget_and_a_replay_need_nothing_that_was_erased(erased: Erased):
    erased.learning.learn("f")
    assert order(erased.learning.coordinator, forget=pb.Forget(task="c")).outcome == pb.OUTCOME_DONE
    found = erased.learning.dense()
    assert sorted(found) == ["a", "d", "e", "f"]
    for task, dW in found.items():
        assert relative_error(dense_adapter(erased.learning.adapters[task]), dW) < SENT_IS_KEPT
    reply = erased.learning.replay()
    assert (reply.first, reply.versions) == (6, 3)
    assert max(reply.task.value, reply.basis.value) < SAME


def test_replay_gives_what_is_stored_through_rollbacks_and_forgets(learning: Learning):
    order(learning.coordinator, rollback=pb.Rollback(version=2))
    learning.learn("d", base=4)
    order(learning.coordinator, forget=pb.Forget(task="a"))
    order(learning.coordinator, rollback=pb.Rollback(version=6))
    learning.learn("e", base=7)
    reply = learning.replay()
    assert (reply.first, reply.versions) == (0, 10)
    assert reply.tasks >= 8 and max(reply.task.value, reply.basis.value) < SAME


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions that replays have come to. Each takes a second."""
    found, go_on = [], replay._Replay.go_on

    def slowly(self: replay._Replay, version: Version) -> None:
        found.append(version.version)
        time.sleep(1)
        go_on(self, version)

    monkeypatch.setattr(replay._Replay, "go_on", slowly)
    return found


def test_replays_that_were_given_up_keep_nobody_waiting(learning: Learning, steps: list[int]):
    with grpc.insecure_channel(learning.coordinator.address) as channel:
        stub = FederationStub(channel)
        first = stub.Replay.future(pb.ReplayRequest(), timeout=60)
        until(lambda: steps, "it replays")
        others = [stub.Replay.future(pb.ReplayRequest(), timeout=60) for _ in range(THREADS)]
        assert {(call.code(), call.details()) for call in others} == {
            (grpc.StatusCode.ABORTED, "another replay is under way: ask again when it has ended")
        }
        assert next(stub.Status(pb.StatusRequest(), timeout=30)).merged == 4
        first.cancel()
    assert learning.replay().versions == 5  # as soon as the step at hand is done
    assert steps[-5:] == [0, 1, 2, 3, 4] and len(steps) < 10, "the first one went on although nobody waited"


def test_replay_ends_when_the_coordinator_stops(learning: Learning, steps: list[int]):
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(learning.replay)
        until(lambda: steps, "it replays")
        assert learning.coordinator.stop() == 0
        with pytest.raises(CoordinatorAway, match=r"^the coordinator stops: ask for the replay again"):
            asked.result()
    assert len(steps) < 5, "it went on until its end"


def test_replay_finds_a_task_that_is_not_what_the_journal_says(learning: Learning):
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home, writer(home.engine).begin() as connection:
        other = connection.execute(select(entries.c.digest).where(entries.c.version_from == 2)).scalar_one()
        connection.execute(update(entries).where(entries.c.version_from == 4).values(digest=other))
    learning.coordinator.start()
    reply = learning.replay()
    assert (reply.task.where, reply.task.version) == ("b", 4) and reply.task.value > 0.1


@pytest.mark.parametrize("change", [{"version_until": 4}, {"version_from": 4}])
def test_replay_says_in_which_version_the_store_has_another_task(learning: Learning, change: dict[str, int]):
    """c came with version 3, and is still there."""
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home, writer(home.engine).begin() as connection:
        connection.execute(update(entries).where(entries.c.task == "c").values(**change))
    learning.coordinator.start()
    odd = 4 if "version_until" in change else 3
    with pytest.raises(WorkerError, match=f"version {odd}: the journal and the store differ in the task c"):
        learning.replay()


def test_replay_finds_a_basis_that_is_not_what_the_journal_says(learning: Learning):
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home, writer(home.engine).begin() as connection:
        connection.exec_driver_sql("UPDATE versions SET blocks = 3 WHERE version = 4")
    learning.coordinator.start()
    assert learning.replay().basis.value > 0.1


def test_watcher_is_told_of_a_rollback_and_fetches_only_what_it_lacks(learning: Learning):
    with learning.coordinator.client() as client:
        _, have = client.fetch(4, every_task=True)
        notices: Iterator[pb.VersionNotice] = client.watch()
        next(notices)
        order(learning.coordinator, rollback=pb.Rollback(version=3))
        notice = next(notices)
        notices.close()
        assert (notice.version, notice.parent, notice.task) == (5, 4, "")
        manifest, blobs = client.fetch(5, every_task=True, have=have)
    assert len(blobs) == 1 and len(manifest.blocks) == 3  # only b, as it was


def test_erasure_is_finished_when_who_reads_the_database_has_ended_and_merging_goes_on_meanwhile(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
):
    for module, name in (
        ("integrate", "SWEEP_SECONDS"),
        ("integrate", "IDLE_SECONDS_MAX"),
        ("database", "WIPE_SECONDS_MAX"),
    ):
        monkeypatch.setattr(f"coordinator.{module}.{name}", 0.1)
    home = learning.coordinator.home
    learning.learn("secret@mallory")
    reader = sqlite3.connect(home / "journal.sqlite")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM journal").fetchone()
    assert order(learning.coordinator, forget=pb.Forget(worker="mallory", erase=True)).outcome == pb.OUTCOME_DONE
    learning.learn("d")
    assert learning.outcome("d") == pb.OUTCOME_MERGED and learning.coordinator.status().waiting == ""
    assert files_with(home, b"mallory")
    reader.close()
    until(lambda: not files_with(home, b"mallory"), "its name is gone")


@pytest.mark.parametrize("is_started_again", [False, True])
@pytest.mark.parametrize("is_sent_twice", [False, True])
def test_bytes_that_arrive_while_they_are_erased_are_swept(
    learning: Learning, monkeypatch: pytest.MonkeyPatch, is_sent_twice: bool, is_started_again: bool
):
    """Looked at before the erasure and put after its sweep: the journal refuses them, or knows them as erased."""
    decoded, coordinator = receive._decoded, learning.coordinator
    monkeypatch.setattr("coordinator.integrate.IDLE_SECONDS_MAX", 0.5)
    monkeypatch.setattr("coordinator.integrate.SWEEP_SECONDS", 60.0 if is_started_again else 0.5)

    def erased_meanwhile(blob: bytes) -> Update:
        monkeypatch.setattr(receive, "_decoded", decoded)
        if is_sent_twice:
            assert raw.submit(header, blob).outcome == pb.OUTCOME_QUEUED
        order(coordinator, forget=pb.Forget(worker="mallory", erase=True))
        if is_sent_twice:
            raw.join()
        return decoded(blob)

    learning.learn("secret@mallory")
    with RawWorker(coordinator.address, "mallory", "secret") as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 9), 0)
        header = raw.header(blob, base)
        monkeypatch.setattr(receive, "_decoded", erased_meanwhile)
        outcome = raw.submit(header, blob).outcome
    assert outcome == (pb.OUTCOME_ERASED if is_sent_twice else pb.OUTCOME_REFUSED_INCARNATION)
    if is_started_again:
        assert files_named(coordinator.home, header.digest)
        coordinator.stop()
        coordinator.start()
    until(lambda: not files_named(coordinator.home, header.digest), "they are gone")


def files_named(home: Path, digest: str) -> list[Path]:
    return list(home.rglob(f"{digest}*"))
