"""Group commit: what arrives together shares one commit, is on disk before anybody is told, and fails alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from parts import small_home, until
from sqlalchemy import event

from coordinator.errors import Refused
from coordinator.home import Home, open_home
from coordinator.journal import Journal, Submission
from coordinator.members import Members
from coordinator.together import BATCH_MAX, Together
from protos.fedshare.v1 import federation_pb2 as pb


def submission(n: int, worker: str = "raw", digest: str = "d") -> Submission:
    return Submission(f"{n:032x}", digest, 1, worker, 1, "task")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    with open_home(small_home(tmp_path / "home")) as home:
        Members(home.engine).join("raw", "task", 0.0)
        yield home


class Held:
    """Appends that are all waiting when the first of them may go on."""

    def __init__(self, home: Home, submissions: list[Submission]):
        self._journal, self._submissions = Journal(home.engine), submissions

    def results(self) -> list[object]:
        turn = self._journal._appended._turn
        with ThreadPoolExecutor(len(self._submissions)) as threads:
            with turn:
                ends = []
                for n, one in enumerate(self._submissions, start=1):
                    ends.append(threads.submit(self._append, one))
                    until(lambda n=n: len(self._journal._appended._waiting) == n, "it waits")
            return [end.result() for end in ends]

    def _append(self, one: Submission) -> object:
        try:
            decision, repeated = self._journal.append(one, 0.0)
            return decision.position, repeated
        except Refused as refused:
            return refused.outcome


def test_appends_that_wait_together_share_one_commit_in_order_of_arrival(home: Home):
    commits = []
    event.listen(home.engine, "commit", lambda connection: commits.append(connection))
    assert Held(home, [submission(n) for n in range(10)]).results() == [(n + 1, False) for n in range(10)]
    assert len(commits) == 1
    assert [found.submission.update_id for found in Journal(home.engine).after(0, 10)] == [
        f"{n:032x}" for n in range(10)
    ]


def test_refusal_and_repetition_inside_one_commit_concern_nobody_else(home: Home):
    arrivals = [
        submission(1),
        submission(2, worker="stranger"),
        submission(1),
        submission(1, digest="e"),
        submission(3),
    ]
    assert Held(home, arrivals).results() == [
        (1, False), pb.OUTCOME_REFUSED_INCARNATION, (1, True), pb.OUTCOME_REFUSED_ID_REUSED, (2, False)
    ]  # fmt: skip
    assert Journal(home.engine).counts()[pb.OUTCOME_QUEUED] == 2


def test_nobody_is_told_before_the_commit(home: Home):
    told, seen = [], []
    event.listen(home.engine, "commit", lambda connection: (time.sleep(0.2), seen.append(list(told))))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: told.append(Journal(home.engine).append(submission(n), 0.0)), range(4)))
    assert seen[0] == [] and len(told) == 4


def test_commit_that_fails_is_told_to_all_and_keeps_nothing(home: Home):
    def fail(connection: object) -> None:
        raise OSError("the disk is gone")

    event.listen(home.engine, "commit", fail, once=True)
    journal = Journal(home.engine)
    with pytest.raises(OSError, match="the disk is gone"):
        journal.append(submission(1), 0.0)
    assert journal.counts()[pb.OUTCOME_QUEUED] == 0
    assert journal.append(submission(1), 0.0)[0].position == 1


def test_every_item_is_done_once_however_many_wait():
    done, busy = [], threading.Lock()

    def work(items: list[int]) -> list[int]:
        assert busy.acquire(blocking=False)  # one at a time
        assert len(items) <= BATCH_MAX
        done.extend(items)
        busy.release()
        return [2 * item for item in items]

    together = Together(work)
    with ThreadPoolExecutor(200) as threads:
        assert list(threads.map(together, range(1000))) == [2 * n for n in range(1000)]
    assert sorted(done) == list(range(1000))
