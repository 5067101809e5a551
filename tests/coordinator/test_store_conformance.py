"""What every store promises: SQLite with local files, and PostgreSQL with a bucket, hold to the same."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from parts import small_spec, until
from servers import Postgres
from sqlalchemy import Engine, event, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from coordinator import erasure, tables
from coordinator.blob_place import BlobPlace
from coordinator.catalog import VERSION_MAX, Catalog, Version, _insert_version
from coordinator.database import BUSY_SECONDS_MAX, WIPE_SECONDS_MAX, unfenced, wipe_deleted
from coordinator.draft import BlobName, Draft, Erasure, Kept, LettingGo
from coordinator.errors import CoordinatorError, Fenced, Refused
from coordinator.home import Home, Place, open_home
from coordinator.journal import Journal, Submission
from coordinator.lease import _Beaten, _read, _swap
from coordinator.letting_go import SWEEP_WANTED, WIPE_WANTED, Overtaken, want
from coordinator.measured import Measured
from coordinator.members import Members
from coordinator.shelves import Folder
from coordinator.story import tell
from coordinator.sweep import named, sweep_if_wanted
from coordinator.tables import writer
from coordinator.transition import Record
from coordinator.verdicts import Ruling, decide
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Certificate

Open = Callable[[], Home]


@pytest.fixture
def opened(tmp_path: Path, place: dict[str, str]) -> Open:
    """Opens the same home again and again."""
    return partial(open_home, tmp_path / "home", small_spec(), **place)


@pytest.fixture
def home(opened: Open) -> Iterator[Home]:
    with opened() as home:
        Catalog(home.engine).ensure_root(home.spec.federation_id, 0.0)
        Members(home.engine).join("ann", "spam", 1.0)
        yield home


def submission(n: int, **changes: object) -> Submission:
    fields = {"digest": f"{n:064x}", "nbytes": n, "worker": "ann", "incarnation": 1, "task": "spam"}
    return Submission(f"{n:032x}", **{**fields, **changes})


def publish(home: Home, position: int, task: str = "spam", **changes: object) -> int:
    """A version with one more block, in which the entry at `position` is merged. Returns its number."""
    catalog = Catalog(home.engine)
    block, entry = (BlobName(home.blobs.put(f"{kind}{position}".encode()), 3) for kind in ("block", "entry"))
    draft = Draft(
        position=position,
        records=(Record(position, task, "ann", f"{position:032x}"),),
        blocks=(block,),
        entries={task: Kept(entry, ("no", "yes"), Certificate(1.0, 0.0))},
        first=(Ruling(position, pb.OUTCOME_MERGED),),
    )
    return catalog.publish(catalog.head(), Draft(**{**vars(draft), **changes}), float(position)).version


def skip(home: Home, position: int, at: float) -> None:
    skipped = Ruling(position, pb.OUTCOME_SKIPPED, reason="because")
    Catalog(home.engine).settle(Draft(position, first=(skipped,)), at)


def rows(home: Home) -> dict[str, list[tuple]]:
    with home.engine.connect() as connection:
        found = {table.name: connection.execute(select(table)).all() for table in tables.metadata.sorted_tables}
    return {name: [tuple(row) for row in some] for name, some in found.items() if name != "lease"}


# ---- the schema ---------------------------------------------------------------------------------------------


def test_migrations_make_exactly_the_tables_that_queries_are_written_with(home: Home):
    with home.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_home_that_is_opened_again_is_what_it_was(home: Home, opened: Open):
    Journal(home.engine).append(submission(1), 1.0)
    publish(home, 1)
    before = rows(home)
    home.__exit__()
    with opened() as again:
        assert again.spec == home.spec and rows(again) == before


# ---- the journal --------------------------------------------------------------------------------------------


def test_entry_comes_back_as_it_was_appended(home: Home):
    odd = submission(1, labels=["grün", "", "\"\\'", "\x00\n", "🙂"], metrics={"a.b": -1e-300, "big": 1e300})
    decision, repeated = Journal(home.engine).append(odd, 1234.5678)
    assert (decision.position, decision.outcome, repeated) == (1, pb.OUTCOME_QUEUED, False)
    found = Journal(home.engine).at(1)
    assert found.submission == Submission(**{**vars(odd), "labels": list(odd.labels)})
    assert found.received_at == 1234.5678


def test_repeated_id_changes_nothing_and_gets_the_first_decision_after_reopening_too(home: Home, opened: Open):
    first, _ = Journal(home.engine).append(submission(1), 1.0)
    assert Journal(home.engine).append(submission(1), 2.0) == (first, True)
    publish(home, 1)
    home.__exit__()
    with opened() as again:
        decision, repeated = Journal(again.engine).append(submission(1), 3.0)
        assert (decision.position, decision.outcome, decision.version, repeated) == (1, pb.OUTCOME_MERGED, 1, True)
        assert Journal(again.engine).at(1).received_at == 1.0


def test_id_with_other_bytes_is_refused(home: Home):
    journal = Journal(home.engine)
    journal.append(submission(1), 1.0)
    for ask in (journal.expect, lambda s: journal.append(s, 2.0)):
        with pytest.raises(Refused) as raised:
            ask(submission(1, digest="e" * 64))
        assert raised.value.outcome == pb.OUTCOME_REFUSED_ID_REUSED


def test_positions_have_no_gaps_whatever_is_refused_repeated_or_fails(home: Home):
    journal, commits = Journal(home.engine), []

    def fail(connection: object) -> None:
        commits.append(1)
        raise OSError("the disk is gone")

    for n in range(1, 4):
        journal.append(submission(n), 1.0)
        with pytest.raises(Refused):
            journal.append(submission(90 + n, worker="stranger"), 1.0)
        event.listen(home.engine, "commit", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            journal.append(submission(50), 1.0)
        event.remove(home.engine, "commit", fail)
        assert journal.append(submission(n), 1.0)[1]
    command = pb.CommandRequest(command_id="c" * 32, rollback=pb.Rollback(version=0))
    assert journal.command(command, 1.0)[0].position == 4
    assert [p.position for p, _ in journal.every()] == [1, 2, 3, 4] and len(commits) == 3
    assert journal.at(4).command == command


def test_what_arrives_together_shares_a_commit_and_fails_alone(home: Home):
    journal, commits = Journal(home.engine), []
    event.listen(home.engine, "commit", lambda connection: commits.append(1))
    arrivals = [*(submission(n) for n in range(8)), submission(9, worker="stranger"), submission(3)]
    with ThreadPoolExecutor(len(arrivals)) as threads:
        with journal._appended._turn:
            ends = []
            for n, one in enumerate(arrivals, 1):
                ends.append(threads.submit(journal.append, one, 1.0))
                until(lambda n=n: len(journal._appended._waiting) == n, "it waits")
        refused = ends[8].exception()
        results = [end.result() for end in (*ends[:8], ends[9])]
    assert len(commits) == 1 and isinstance(refused, Refused)
    assert [(d.position, repeated) for d, repeated in results] == [*((n + 1, False) for n in range(8)), (4, True)]


def test_many_threads_write_one_after_the_other_and_lose_nothing(home: Home):
    journals = [Journal(home.engine) for _ in range(4)]
    with ThreadPoolExecutor(16) as threads:
        done = list(threads.map(lambda n: journals[n % 4].append(submission(n), 1.0)[0].position, range(1, 81)))
        list(threads.map(lambda n: Members(home.engine).join("ann", "spam", 1.0), range(16)))
    assert sorted(done) == list(range(1, 81))
    assert Members(home.engine).everyone()[0].incarnation == 17


def test_reader_sees_one_state_while_others_write(home: Home):
    Journal(home.engine).append(submission(1), 1.0)
    count = select(tables.journal.c.position)
    with home.engine.connect() as connection:
        before = connection.execute(count).all()
        Journal(home.engine).append(submission(2), 1.0)  # and is not kept waiting
        assert connection.execute(count).all() == before
    assert len(rows(home)["journal"]) == 2


def test_prefix_finds_an_id_and_means_no_pattern(home: Home):
    journal = Journal(home.engine)
    for n in (0xABC, 0xABD):
        journal.append(submission(n, digest="d" * 64), 1.0)
    assert [p.position for p, _ in journal.find(f"{0xABC:032x}"[:30])] == [1, 2]
    assert [p.position for p, _ in journal.find(f"{0xABD:032X}")] == [2]
    assert journal.find("%") == journal.find("_" * 32) == journal.find("\\") == []


def test_what_cannot_be_an_id_has_no_story(home: Home):
    journal, catalog, measured = Journal(home.engine), Catalog(home.engine), Measured(home.engine)
    for prefix in ("abcdef\0", "abcdef%", "abcdeg"):
        with pytest.raises(Refused, match="no update has an id that starts with"):
            tell(prefix, journal, catalog, measured)


# ---- verdicts -----------------------------------------------------------------------------------------------


def test_second_verdict_is_impossible_and_takes_its_transaction_back(home: Home):
    journal = Journal(home.engine)
    for n in (1, 2):
        journal.append(submission(n), 1.0)
    skip(home, 1, 2.0)
    before = rows(home)
    with pytest.raises(IntegrityError):
        skip(home, 1, 3.0)
    with pytest.raises(IntegrityError):
        publish(home, 2, first=(Ruling(2, pb.OUTCOME_MERGED), Ruling(1, pb.OUTCOME_MERGED)))
    assert rows(home) == before and Catalog(home.engine).head().version == 0


def test_verdict_on_what_was_never_journaled_is_impossible(home: Home):
    with pytest.raises(IntegrityError), writer(home.engine).begin() as connection:
        decide(connection, [Ruling(7, pb.OUTCOME_SKIPPED)], 1.0)


def test_counts_and_history_follow_what_commands_change(home: Home):
    journal = Journal(home.engine)
    for n in range(1, 5):
        journal.append(submission(n), 1.0)
    for n in (1, 2):
        publish(home, n)
    publish(home, 3, later=(Ruling(1, pb.OUTCOME_REVERTED, reason="taken back"),))
    counts = journal.counts()
    assert (counts[pb.OUTCOME_MERGED], counts[pb.OUTCOME_REVERTED], counts[pb.OUTCOME_QUEUED]) == (2, 1, 1)
    assert [journal.alive_at(v) for v in range(4)] == [set(), {1}, {1, 2}, {2, 3}]
    assert journal.moves_of("ann", "spam") == [(1, 1, True), (2, 2, True), (1, 3, False), (3, 3, True)]
    assert journal.moves_of("another", "spam") == []
    [past] = journal.past(1)
    assert (past.outcome, past.version, past.decided_at) == (pb.OUTCOME_MERGED, 1, 1.0)
    assert (journal.consumed(), [p.position for p in journal.after(3, 9)], journal.after(4, 9)) == (3, [4], [])


def test_commands_that_wait_are_counted_apart_from_updates(home: Home):
    journal = Journal(home.engine)
    journal.command(pb.CommandRequest(command_id="b" * 32, forget=pb.Forget(task="a")), 1.0)
    skip(home, 1, 2.0)
    journal.command(pb.CommandRequest(command_id="c" * 32, forget=pb.Forget(task="b")), 3.0)
    for n in (3, 4):
        journal.append(submission(n), 4.0)
    assert (journal.counts()[pb.OUTCOME_QUEUED], journal.commands_queued()) == (2, 1)


# ---- members and measurements -------------------------------------------------------------------------------


def test_older_incarnation_writes_nothing_more(home: Home):
    members, journal, measured = Members(home.engine), Journal(home.engine), Measured(home.engine)
    assert members.join("ann", "spam", 2.0) == 2
    for write in (
        lambda: journal.append(submission(1), 3.0),
        lambda: members.leave("ann", 1, 3.0),
        lambda: measured.add("ann", 1, "spam", 0, {"accuracy": 0.5}, 3.0),
    ):
        with pytest.raises(Refused) as raised:
            write()
        assert raised.value.outcome == pb.OUTCOME_REFUSED_INCARNATION
    assert rows(home)["journal"] == rows(home)["metrics"] == []
    members.leave("ann", 2, 4.0)
    assert [(m.incarnation, m.left_at) for m in members.everyone()] == [(2, 4.0)]


def test_who_left_longest_ago_makes_room_and_comes_back_newer_than_what_still_runs(
    home: Home, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("coordinator.members.MEMBERS_MAX", 3)
    members, journal = Members(home.engine), Journal(home.engine)
    assert [members.join("ann", "spam", 2.0), members.join("bob", "spam", 2.0), members.join("cid", "spam", 2.0)] == [
        2,
        1,
        1,
    ]
    with pytest.raises(Refused, match="3 members, and none has left: join again when one has ended its work"):
        members.join("dan", "spam", 3.0)
    members.leave("cid", 1, 5.0)
    members.leave("ann", 2, 4.0)
    members.join("dan", "spam", 6.0)
    assert {m.worker for m in members.everyone()} == {"bob", "cid", "dan"}
    with pytest.raises(Refused, match="ann is not a member: join first"):
        journal.append(submission(1, incarnation=2), 7.0)
    assert members.join("ann", "spam", 8.0) == 3
    with pytest.raises(Refused, match="incarnation 2 of ann is no longer current"):
        journal.append(submission(1, incarnation=2), 9.0)
    assert {m.worker for m in members.everyone()} == {"ann", "bob", "dan"}


def test_incarnation_is_checked_inside_the_transaction_that_writes(home: Home):
    """A rejoin that is under way when an append begins is seen by it."""
    inside, go_on = threading.Event(), threading.Event()

    def rejoin() -> None:
        with writer(home.engine).begin() as connection:
            connection.execute(update(tables.members).values(incarnation=2))
            inside.set()
            go_on.wait(10)

    with ThreadPoolExecutor(2) as threads:
        rejoined = threads.submit(rejoin)
        inside.wait(10)
        appended = threads.submit(Journal(home.engine).append, submission(1), 1.0)
        time.sleep(0.1)
        go_on.set()
        rejoined.result()
        with pytest.raises(Refused, match="incarnation 2 has joined since"):
            appended.result()


def test_measurements_come_back_in_order_of_arrival(home: Home):
    measured = Measured(home.engine)
    for n in range(3):
        measured.add("ann", 1, "spam", n, {"accuracy": n / 4, "loss": -n / 3}, float(n))
    found = measured.of_task("spam")
    assert [(m.version, m.name, m.value) for m in found] == [
        (n, name, value) for n in range(3) for name, value in (("accuracy", n / 4), ("loss", -n / 3))
    ]
    assert measured.of_contributor("ann", "spam", (1, 2)) == found[2:4] and not measured.of_contributor(
        "bob", "spam", (0, 9)
    )
    assert measured.after(found[3].id, 10) == found[4:] and measured.contributors() == {("ann", "spam")}


# ---- the catalog --------------------------------------------------------------------------------------------


def test_version_is_visible_whole_or_not_at_all(home: Home):
    def fail(connection: object) -> None:
        raise OSError("the disk is gone")

    Journal(home.engine).append(submission(1), 1.0)
    before = rows(home)
    event.listen(home.engine, "commit", fail)
    with pytest.raises(OSError):
        publish(home, 1)
    event.remove(home.engine, "commit", fail)
    assert rows(home) == before
    assert publish(home, 1) == 1
    head = Catalog(home.engine).head()
    assert (head.version, head.parent, head.blocks, head.records[0].position) == (1, 0, 1, 1)


def test_old_versions_stay_what_they_were_and_tasks_are_sorted_by_code_points(home: Home):
    catalog, names = Catalog(home.engine), ["b", "B", "a_1", "a-1", "Z", "a.1", "0"]
    for n, task in enumerate([*names, "b"], 1):
        Journal(home.engine).append(submission(n, task=task), 1.0)
        publish(home, n, task)
    assert [t.task for t in catalog.tasks_of(catalog.head())] == sorted(names)
    assert [t.version for t in catalog.tasks_of(catalog.get(7)) if t.task == "b"] == [1]
    assert [t.version for t in catalog.tasks_of(catalog.head()) if t.task == "b"] == [8]
    assert [v.version for v in catalog.every()] == list(range(9))
    assert len(catalog.blocks_of(catalog.get(3))) == 3


def test_numbers_of_64_bits_are_asked_for_and_kept(home: Home):
    catalog, journal = Catalog(home.engine), Journal(home.engine)
    assert catalog.get(VERSION_MAX) is None and catalog.records(VERSION_MAX, 5) == []
    journal.append(submission(1, base_version=VERSION_MAX, nbytes=2**40), 1.0)
    assert (journal.at(1).submission.base_version, journal.at(1).submission.nbytes) == (VERSION_MAX, 2**40)


# ---- blobs --------------------------------------------------------------------------------------------------


def test_blob_is_put_once_or_again_and_is_the_same(home: Home):
    blob = bytes(range(256)) * 5000
    assert home.blobs.put(blob) == home.blobs.put(blob) == digest_of(blob)
    assert home.blobs.get(digest_of(blob)) == blob
    assert home.blobs._shelf.names("") == [f"{digest_of(blob)}.safetensors"]


def test_damaged_blob_is_named_and_mended_when_it_comes_again(home: Home):
    digest = home.blobs.put(b"content")
    home.blobs._shelf.put(f"{digest}.safetensors", b"c0ntent")
    with pytest.raises(CoordinatorError, match=f"{digest}.safetensors is damaged"):
        home.blobs.get(digest)
    home.blobs.put(b"content")
    assert home.blobs.get(digest) == b"content"


def test_missing_blob_is_named(home: Home):
    with pytest.raises(CoordinatorError, match=f"{'a' * 64}.safetensors is missing"):
        home.blobs.get("a" * 64)


def test_sweep_deletes_what_is_neither_named_nor_held(home: Home):
    blobs = home.blobs
    kept, held, late, loose = (blobs.put(name) for name in (b"kept", b"held", b"late", b"loose"))
    holds = [blobs.holding(held), blobs.holding(late)]

    def names() -> set[str]:
        holds[1].__enter__()  # a row is about to name it, after the sweep has begun
        return {kept}

    with holds[0]:
        assert blobs.sweep(names, lambda: None) == 1
    holds[1].__exit__(None, None, None)
    assert sorted(blobs._shelf.names("")) == sorted(f"{d}.safetensors" for d in (kept, held, late))
    with pytest.raises(CoordinatorError, match="is missing"):
        blobs.get(loose)


def test_sweep_of_a_coordinator_that_is_no_longer_the_one_deletes_nothing(home: Home):
    digests = {home.blobs.put(name) for name in (b"one", b"two")}

    def fenced() -> None:
        raise Fenced("another has taken over")

    with pytest.raises(Fenced):
        home.blobs.sweep(set, fenced)
    assert {name.partition(".")[0] for name in home.blobs._shelf.names("")} == digests


STEPS = ("names", "names", "named", "must_be_ours", "delete", "delete", "sync", "sync")
"""Of a sweep that finds two blobs which no row names."""


@pytest.mark.parametrize("stopped_at", range(len(STEPS) + 1))
def test_sweep_that_is_stopped_anywhere_and_goes_on_takes_nothing_from_its_successors(
    home: Home, opened: Open, monkeypatch: pytest.MonkeyPatch, stopped_at: int
):
    """They get what it deletes again; one of them sweeps itself, and the next knows of no sweep any more."""
    blobs, steps, shelf = home.blobs, list[str](), home.blobs._shelf
    one, two = blobs.put(b"one"), blobs.put(b"two")
    with writer(home.engine).begin() as connection:
        want(connection, SWEEP_WANTED)

    def stop(step: str) -> None:
        if len(steps) == stopped_at:
            home.lease.let_go()
            for n, blob in ((1, b"one"), (2, b"two")):
                with opened() as successor, successor.blobs.holding(digest_of(blob)):
                    Journal(successor.engine).append(submission(n, digest=successor.blobs.put(blob)), 1.0)
                    sweep_if_wanted(successor.engine, successor.blobs)
        steps.append(step)

    def seen(step: str, real: Callable) -> Callable:
        return lambda *given: (stop(step), real(*given))[1]

    def must_be_ours() -> None:
        with writer(home.engine).begin():
            pass

    for step in ("names", "delete", "sync"):
        monkeypatch.setattr(shelf, step, seen(step, getattr(shelf, step)))
    with suppress(Fenced):
        blobs.sweep(seen("named", lambda: set[str]()), seen("must_be_ours", must_be_ours))
    stop("over")
    monkeypatch.undo()
    was_fenced = stopped_at <= STEPS.index("must_be_ours")
    assert tuple(steps) == ((*STEPS[:4], "over") if was_fenced else (*STEPS, "over"))
    with opened() as now:
        assert (now.blobs.get(one), now.blobs.get(two)) == (b"one", b"two")
        assert now.blobs.sweep(set, lambda: None) and now.blobs._shelf.names("") == []  # and nothing comes back


def test_name_of_another_edition_is_read_and_swept_like_the_first(home: Home, opened: Open):
    """Where it was damaged it is mended by what comes again."""
    first, both = home.blobs.put(b"first"), home.blobs.put(b"both")
    home.blobs._shelf.put(f"{both}.safetensors", b"b0th")
    with writer(home.engine).begin() as connection:
        want(connection, SWEEP_WANTED)
    home.__exit__()
    with opened() as again:
        assert again.blobs.get(first) == b"first"
        assert again.blobs.put(b"both") == both
        assert again.blobs.get(both) == b"both"
        assert len(again.blobs._shelf.names("")) == 3
        assert again.blobs.sweep(lambda: {first}, lambda: None) == 2
        assert again.blobs._shelf.names("") == [f"{first}.safetensors"]


def test_what_a_sweep_of_an_older_release_had_set_aside_is_found_and_swept(home: Home):
    """It never takes the place of what has come since."""
    kept, loose, anew = (digest_of(blob) for blob in (b"kept", b"loose", b"anew"))
    for digest, blob in ((kept, b"kept"), (loose, b"loose"), (anew, b"damaged")):
        shelf, name = home.blobs._shelf, f"aside/{digest}.{'5' * 32}.safetensors"
        if isinstance(shelf, Folder):
            Path(shelf.where(name)).parent.mkdir(exist_ok=True)
        shelf.put(name, blob)
    home.blobs.put(b"anew")
    assert home.blobs.get(kept) == b"kept"
    assert home.blobs.sweep(lambda: {kept, anew}, lambda: None) == 1
    assert (home.blobs.get(kept), home.blobs.get(anew)) == (b"kept", b"anew")
    with pytest.raises(CoordinatorError, match="is missing"):
        home.blobs.get(loose)


# ---- erasure ------------------------------------------------------------------------------------------------


def erased(home: Home, consumed: int = 3) -> int:
    """Of two merged updates the first, ann's for spam, is erased with its version."""
    draft = {
        "entries": {"spam": None, "kept": Kept(BlobName(home.blobs.put(b"kept"), 4), (), Certificate(1.0, 0.0))},
        "afresh": True,
        "first": (),
        "later": (Ruling(1, pb.OUTCOME_ERASED),),
        "erasure": Erasure(frozenset({1}), "", "ann", 3),
        "letting_go": LettingGo(frozenset({1, 2}), "erased", {}, consumed),
        "records": (Record(2, "kept", "bob", f"{2:032x}"),),
    }
    Members(home.engine).join("bob", "kept", 1.0)
    for n, who in ((1, "ann"), (2, "bob")):
        Journal(home.engine).append(submission(n, worker=who, task="spam" if n == 1 else "kept"), 1.0)
    Measured(home.engine).add("ann", 1, "spam", 0, {"accuracy": 0.5}, 1.0)
    publish(home, 1)
    publish(home, 2, "kept", records=draft["records"])
    Journal(home.engine).command(pb.CommandRequest(command_id="c" * 32, forget=pb.Forget(worker="ann")), 2.0)
    return publish(home, 3, **draft)


def test_erasure_blanks_every_row_and_keeps_the_id(home: Home):
    assert erased(home) == 3
    assert "ann" not in str(rows(home)) and "spam" not in str(rows(home))
    first = Journal(home.engine).at(1).submission
    assert (first.update_id, first.worker, first.task, first.labels) == (f"{1:032x}", "", "", [])
    assert Catalog(home.engine).get(1).gone == "erased"
    assert Journal(home.engine).counts()[pb.OUTCOME_ERASED] == 1
    assert sweep_if_wanted(home.engine, home.blobs) == 5  # two blocks, two entries, one that no row ever named
    assert sweep_if_wanted(home.engine, home.blobs) == 0
    assert {name.partition(".")[0] for name in home.blobs._shelf.names("")} <= named(home.engine)


def test_erasure_among_many_versions_is_never_silent_for_long(home: Home, monkeypatch: pytest.MonkeyPatch):
    """PostgreSQL ends a transaction that is: here after 0.6 s, and a record takes as long as hundreds do."""
    first, real = erased(home) + 1, erasure._blanked
    last = first + 5 * erasure.ROWS_AT_ONCE
    with writer(home.engine).begin() as connection:
        for version in range(first, last + 1):
            record = Record(1 if version == last else 2, "ham", "bob", f"{version:032x}")
            _insert_version(connection, Version(version, version - 1, 0, 0, "", 1.0, (record,)), None)
    monkeypatch.setattr(erasure, "_blanked", lambda *given: time.sleep(0.002) or real(*given))
    with writer(home.engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '600ms'")
        erasure.erase(connection, Erasure(frozenset({1}), "", "ann", 3))
    before, changed = Catalog(home.engine).records(last - 1, 2)
    assert (before.task, changed.task, changed.records[0].worker) == ("ham", "", "")


def still_wanted(home: Home) -> list[str]:
    return [name for name, _ in rows(home)["cursors"] if name in (SWEEP_WANTED, WIPE_WANTED)]


def test_wipe_that_a_reader_holds_up_keeps_nobody_waiting_and_stays_wanted(home: Home, opened: Open):
    other = open_another(opened, home)
    try:
        with other.connect() as reader:
            reader.execute(select(tables.versions)).all()
            erased(home)
            began = time.monotonic()
            assert sweep_if_wanted(home.engine, home.blobs) == 5
            assert sweep_if_wanted(home.engine, home.blobs) == 0
            assert time.monotonic() - began < 2 * WIPE_SECONDS_MAX + 10
            assert still_wanted(home) == ["wipe"]
            Members(home.engine).join("cid", "kept", 1.0)
    finally:
        other.dispose()
    sweep_if_wanted(home.engine, home.blobs)
    assert still_wanted(home) == []
    files = [file for file in home.folder.iterdir() if file.is_file()]
    assert not [file.name for file in files if b"spam" in file.read_bytes()]


def test_wipe_of_postgresql_waits_no_longer_for_a_table_that_is_in_use(tmp_path: Path, postgres: Postgres):
    with open_home(tmp_path / "home", small_spec(), store=postgres.database()) as home:
        other = home.engine.execution_options(isolation_level="READ COMMITTED")
        with other.connect() as user:
            user.exec_driver_sql("LOCK TABLE journal IN ACCESS SHARE MODE")  # reads nothing old
            began = time.monotonic()
            assert not wipe_deleted(home.engine)
            assert time.monotonic() - began < WIPE_SECONDS_MAX + 10
        assert wipe_deleted(home.engine)
        with home.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == f"{BUSY_SECONDS_MAX:.0f}s"


def test_sweep_that_is_wanted_again_while_it_happens_stays_wanted(home: Home):
    erased(home)
    real = home.blobs.sweep

    def swept(*given: object) -> int:
        with writer(home.engine).begin() as connection:
            want(connection, "sweep")
        return real(*given)

    home.blobs.sweep = swept
    sweep_if_wanted(home.engine, home.blobs)
    assert still_wanted(home) == ["sweep"]


def test_erasure_that_was_overtaken_changes_nothing(home: Home):
    with pytest.raises(Overtaken):
        erased(home, consumed=2)
    assert Catalog(home.engine).head().version == 2 and "spam" in str(rows(home)["journal"])


def test_files_of_postgresql_hold_no_name_of_what_was_erased(tmp_path: Path, postgres: Postgres):
    needles = {"worker": "gone-worker", "task": "gone-task"}
    with open_home(tmp_path / "home", small_spec(), store=postgres.database()) as home:
        Catalog(home.engine).ensure_root(home.spec.federation_id, 0.0)
        Members(home.engine).join(needles["worker"], needles["task"], 1.0)
        for n in range(1, 10):  # so often that the planner notes it
            Journal(home.engine).append(submission(n, **needles), 1.0)
            publish(home, n, needles["task"])
        with home.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("ANALYZE")
        assert files_with(postgres, *needles.values())
        Journal(home.engine).command(pb.CommandRequest(command_id="c" * 32), 1.0)
        gone = {
            "erasure": Erasure(frozenset(range(1, 10)), "", needles["worker"], 10),
            "letting_go": LettingGo(frozenset(range(1, 10)), "erased", {}, 10),
        }
        publish(home, 10, entries={needles["task"]: None}, first=(), records=(), afresh=True, **gone)
        sweep_if_wanted(home.engine, home.blobs)
    postgres.sql("CHECKPOINT")
    assert files_with(postgres, *needles.values()) == []


def test_planner_of_postgresql_notes_nothing_of_any_text(tmp_path: Path, postgres: Postgres):
    noted = (
        "SELECT relname, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'"
        " AND atttypid IN ('varchar'::regtype, 'text'::regtype, 'json'::regtype) AND attstattarget <> 0"
    )
    with open_home(tmp_path / "home", small_spec(), store=postgres.database()) as home, home.engine.connect() as reads:
        assert reads.exec_driver_sql(noted).all() == []


def files_with(postgres: Postgres, *needles: str) -> list[str]:
    """Files of tables and indexes; its log of changes (pg_wal) keeps what was written for a while."""
    postgres.sql("CHECKPOINT")
    files = [path for path in (postgres.folder / "data" / "base").rglob("*") if path.is_file()]
    return [str(path) for path in files if any(needle.encode() in path.read_bytes() for needle in needles)]


# ---- who may write ------------------------------------------------------------------------------------------


def test_nothing_is_written_with_an_older_token(home: Home):
    with home.engine.connect() as connection:
        token = connection.execute(select(tables.lease.c.token)).scalar_one()
    with writer(home.engine).begin() as connection:
        connection.execute(update(tables.lease).values(token=token + 1, holder="another"))
    lost, before = [], rows(home)
    home.fence.when_lost(lambda: lost.append(True))
    for write in (
        lambda: Journal(home.engine).append(submission(1), 1.0),
        lambda: skip(home, 1, 1.0),
        lambda: Journal(home.engine).command(pb.CommandRequest(command_id="c" * 32), 1.0),
        lambda: Members(home.engine).join("bob", "spam", 1.0),
        lambda: Measured(home.engine).add("ann", 1, "spam", 0, {"accuracy": 0.5}, 1.0),
        lambda: publish(home, 1),
        lambda: Catalog(home.engine).ensure_root("", 1.0),
    ):
        with pytest.raises(Fenced, match=r"another coordinator \(another\) has taken over"):
            write()
    assert rows(home) == before and home.fence.lost.is_set() and lost


def test_nothing_is_written_with_a_token_that_another_holds_as_well(home: Home, opened: Open):
    """The database fell back to before this one's takeover, and another has taken over from there."""
    before = _read(home.engine)
    home.__exit__()
    with opened() as again:
        with writer(again.engine).begin() as connection:
            connection.execute(update(tables.lease).values(**asdict(before)))
        other = open_another(opened, again)
        with unfenced(other) as connection:
            _swap(connection, before, before.token + 1)
        assert _read(other).token == again.fence.token
        other.dispose()
        with pytest.raises(Fenced, match=rf"^another coordinator \(process {os.getpid()} on [^ #]*\) has taken over: "):
            Members(again.engine).join("bob", "spam", 1.0)


def test_each_opening_has_a_newer_token(home: Home, opened: Open):
    tokens = [home.fence.token]
    home.__exit__()
    for _ in range(2):
        with opened() as again:
            tokens.append(again.fence.token)
    assert tokens == [tokens[0], tokens[0] + 1, tokens[0] + 2]


def test_second_coordinator_is_refused_and_changes_nothing(home: Home, opened: Open):
    before = home.fence.token
    with pytest.raises(CoordinatorError, match=r"another coordinator \(process \d+ on .*\) is running on .*--standby"):
        opened()
    Members(home.engine).join("bob", "spam", 1.0)
    with home.engine.connect() as connection:
        assert connection.execute(select(tables.lease.c.token)).scalar_one() == before


def test_nobody_takes_over_in_the_middle_of_a_transaction(home: Home, opened: Open):
    """A stopped process may sit between its check and its commit."""
    with writer(home.engine).begin() as connection:
        other = open_another(opened, home)
        with pytest.raises(OperationalError), unfenced(other, hurried=True) as second:
            second.execute(update(tables.lease).values(token=99))
        connection.execute(insert(tables.cursors).values(name="x", position=1))
    other.dispose()
    Members(home.engine).join("bob", "spam", 1.0)


def open_another(opened: Open, home: Home) -> Engine:
    """Another process's engine on the same database."""
    return Place(home.folder, opened.keywords.get("store", "")).open()[0]


def test_takeover_gives_way_to_a_sign_of_life_in_the_last_moment(home: Home, opened: Open):
    other = open_another(opened, home)
    seen = _read(other)
    with writer(home.engine, unsynced=True).begin() as connection:
        connection.execute(update(tables.lease).values(beats=tables.lease.c.beats + 1))
    with pytest.raises(_Beaten), unfenced(other) as connection:
        _swap(connection, seen, seen.token + 1)
    Members(home.engine).join("bob", "spam", 1.0)
    seen = _read(other)
    with unfenced(other) as connection:
        _swap(connection, seen, seen.token + 1)
    other.dispose()
    with pytest.raises(Fenced):
        Members(home.engine).join("bob", "spam", 1.0)


def test_holder_beats_while_it_lives(home: Home):
    with home.lease.beating():
        until(lambda: _read(home.engine).beats >= 2, "two beats")
    before = _read(home.engine).beats
    time.sleep(1.5)
    assert _read(home.engine).beats == before


def test_holder_beats_as_soon_as_it_holds_also_where_its_blobs_take_long_to_be_found(
    home: Home, opened: Open, monkeypatch: pytest.MonkeyPatch
):
    before, real = _read(home.engine).beats, BlobPlace.find
    home.__exit__()

    def find(place: BlobPlace, engine: Engine) -> str:
        until(lambda: _read(engine).beats > before, "a beat")
        return real(place, engine)

    monkeypatch.setattr(BlobPlace, "find", find)
    with opened() as again:
        Members(again.engine).join("bob", "spam", 1.0)
