"""Versions are immutable, share their blobs, and keep the function that was sent, however late it comes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import pytest
from parts import (
    Coordinator,
    CoordinatorHere,
    RawWorker,
    dense,
    dense_adapter,
    random_adapter,
    relative_error,
    small_home,
)

from coordinator.admit import LABELS_BYTES_MAX
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter
from workers.errors import Refusal

HEAD = 5


@dataclass(frozen=True)
class Learned:
    """Three tasks learned in turn, then two that were made for older versions: 0 and 1."""

    coordinator: Coordinator
    adapters: dict[str, Adapter]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learned]:
    adapters: dict[str, Adapter] = {}
    with Coordinator(small_home(tmp_path_factory.mktemp("versions") / "home"), "--no-lineage") as coordinator:
        for seed, (task, base) in enumerate({"a": 0, "b": 1, "c": 2, "late": 0, "later": 1}.items()):
            with RawWorker(coordinator.address, f"{task}-worker", task) as raw:
                adapters[task] = random_adapter(raw.spec, seed)
                raw.teach(adapters[task], base)
            coordinator.drained()
        yield Learned(coordinator, adapters)


def everything(learned: Learned, version: int) -> tuple[pb.Manifest, dict[str, bytes]]:
    with learned.coordinator.client() as client:
        return client.fetch(version, every_task=True)


def test_versions_count_up_each_with_its_parent(learned: Learned):
    records = learned.coordinator.versions()
    assert [(r.version, r.parent) for r in records] == [(n, n - 1) for n in range(1, HEAD + 1)]
    assert len({r.digest for r in records}) == HEAD


def test_late_update_tells_its_base_version_and_staleness(learned: Learned):
    found = {r.task: (r.base_version, r.staleness) for r in learned.coordinator.versions()}
    assert found == {"a": (0, 0), "b": (1, 0), "c": (2, 0), "late": (0, 3), "later": (1, 3)}


@pytest.mark.parametrize("task", ["a", "b", "c", "late", "later"])
def test_function_kept_is_the_function_sent_however_late_it_came(learned: Learned, task: str):
    manifest, blobs = everything(learned, HEAD)
    assert relative_error(dense_adapter(learned.adapters[task]), dense(manifest, blobs, task)) < 2e-5


@pytest.mark.parametrize("task", ["a", "b", "c", "late", "later"])
def test_error_that_is_recorded_is_the_error_that_dense_matrices_show(learned: Learned, task: str):
    [record] = [r for r in learned.coordinator.versions() if r.task == task]
    manifest, blobs = everything(learned, record.version)
    measured = relative_error(dense_adapter(learned.adapters[task]), dense(manifest, blobs, task))
    assert record.relative_error == pytest.approx(measured, rel=0.2, abs=3e-7)
    assert record.relative_error <= record.relative_error_max < 1e-5


def test_append_leaves_earlier_tasks_bitwise_as_they_were(learned: Learned):
    then, blobs_then = everything(learned, 1)
    now, blobs_now = everything(learned, HEAD)
    before, after = dense(then, blobs_then, "a"), dense(now, blobs_now, "a")
    assert all((before[m] == after[m]).all() for m in before)


def test_version_is_the_same_whenever_it_is_fetched(learned: Learned):
    first = everything(learned, 2)
    with RawWorker(learned.coordinator.address, "once-more", "z") as raw:
        raw.teach(random_adapter(raw.spec, 99))
        learned.coordinator.drained()
        assert everything(learned, 2) == first
        raw.teach(learned.adapters["a"], task="a")  # and when one of its tasks is learned again
        learned.coordinator.drained()
    assert everything(learned, 2) == first


def test_basis_of_a_version_is_a_prefix_of_the_next_ones(learned: Learned):
    blocks = [[ref.digest for ref in everything(learned, v)[0].blocks] for v in range(HEAD + 1)]
    assert blocks[0] == []
    assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(blocks))


def test_task_learned_again_is_replaced_and_the_others_stay(learned: Learned):
    with RawWorker(learned.coordinator.address, "b-worker", "b") as raw:
        before, _ = everything(learned, learned.coordinator.status().head)
        raw.teach(random_adapter(raw.spec, 77))
        status = learned.coordinator.drained()
    head = status.head
    after, blobs = everything(learned, head)
    assert status.bytes_tasks == sum(t.entry.nbytes for t in after.tasks)  # and no longer the one before
    old, new = ({t.task: t for t in m.tasks} for m in (before, after))
    assert new["b"].version == head and new["b"].entry != old["b"].entry
    assert {t: ref for t, ref in new.items() if t != "b"} == {t: ref for t, ref in old.items() if t != "b"}
    assert relative_error(dense_adapter(random_adapter(raw.spec, 77)), dense(after, blobs, "b")) < 2e-5


def test_subscriber_gets_only_the_blobs_it_lacks(learned: Learned):
    with learned.coordinator.client() as client:
        _, have = client.fetch(2, tasks=["a"])
        manifest, got = client.fetch(3, tasks=["a", "c"], have=have)
        _, nothing = client.fetch(3, tasks=["a", "c"], have=[*have, *got])
        _, whole = client.fetch(3, tasks=["a", "c"])
    wanted = [*(b.digest for b in manifest.blocks), *(t.entry.digest for t in manifest.tasks)]
    assert set(whole) == set(wanted)
    assert set(got) == set(wanted) - set(have) and 0 < len(got) < len(wanted)
    assert nothing == {}


def test_subscriber_without_tasks_gets_the_basis_and_no_coefficients(learned: Learned):
    with learned.coordinator.client() as client:
        manifest, blobs = client.fetch(3)
        only, none = client.fetch(3, every_task=True, manifest_only=True)
    assert list(manifest.tasks) == [] and set(blobs) == {b.digest for b in manifest.blocks}
    assert [t.task for t in only.tasks] == ["a", "b", "c"] and none == {}


def test_watcher_is_told_the_newest_version_and_then_each_change(small: Coordinator):
    with RawWorker(small.address) as raw:
        notices = raw.client.watch()
        assert next(notices).version == 0
        raw.teach(random_adapter(raw.spec, 1))
        first = next(notices)
        raw.teach(random_adapter(raw.spec, 2), task="other")
        second = next(notices)
        notices.close()
    assert (first.version, first.parent, first.task, first.consumed_position) == (1, 0, "task", 1)
    assert (second.version, second.parent, second.task, second.consumed_position) == (2, 1, "other", 2)
    assert [first.digest, second.digest] == [r.digest for r in small.versions()]


def test_module_that_an_adapter_leaves_untouched_is_merged_as_zero(small: Coordinator):
    with RawWorker(small.address) as raw:
        adapter = random_adapter(raw.spec, 1)
        untouched = next(iter(adapter.factors))
        adapter.factors[untouched].B_NR.zero_()
        raw.teach(adapter)
        status = small.drained()
        assert (status.merged, status.skipped) == (1, 0), raw.client.story(raw.join().learned.update_id).verdict
        manifest, blobs = raw.client.fetch(1, every_task=True)
    found = dense(manifest, blobs, "task")
    assert not found[untouched].any()
    assert relative_error(dense_adapter(adapter), found) < 2e-5


MESSAGE_BYTES_MAX = 4 << 20
"""What a client takes at once."""


def test_manifest_of_any_length_comes_whole(here: CoordinatorHere):
    """Each of its tasks has as many labels as are admitted."""
    labels, count = [f"{n:0128d}" for n in range(LABELS_BYTES_MAX // 128)], 17
    with RawWorker(here.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 1), 0)
        for n in range(count):
            receipt = raw.submit(raw.header(blob, base, task=f"task-{n}", labels=labels), blob)
            assert receipt.outcome == pb.OUTCOME_QUEUED, receipt
        here.drained()
        manifest, blobs = raw.client.fetch(None, every_task=True)
    assert manifest.ByteSize() > MESSAGE_BYTES_MAX and manifest.version == here.status().head
    assert sorted(t.task for t in manifest.tasks) == sorted(f"task-{n}" for n in range(count))
    assert all(list(t.labels) == labels for t in manifest.tasks)
    assert set(blobs) == {ref.digest for ref in [*manifest.blocks, *(t.entry for t in manifest.tasks)]}


def test_sentence_that_a_task_is_not_there_does_not_name_all_others(here: CoordinatorHere):
    with RawWorker(here.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 1), 0)
        for n in range(100):
            raw.submit(raw.header(blob, base, task=f"{n:0100d}"), blob)
        here.drained()
        with pytest.raises(Refusal, match=rf"has no task '{'n' * 100}'; it has: {0:0100d}, .* and 80 more$"):
            raw.client.fetch(None, tasks=["n" * 10_000])


def test_measurements_of_any_number_come_whole(here: CoordinatorHere):
    with RawWorker(here.address, "w" * 100, "t" * 100) as raw:
        for n in range(130):
            values = {f"{k:0100d}": float(n) for k in range(100)}
            raw.client.report(raw.worker, raw.joined.incarnation, raw.task, 0, values)
        found = raw.client.metrics()
        assert sum(m.ByteSize() for m in found) > MESSAGE_BYTES_MAX
        assert raw.client.metrics(raw.task) == found and raw.client.metrics("other") == []
    assert [m.value for m in found] == [float(n) for n in range(130) for _ in range(100)]


def test_records_of_any_length_come_whole(here: CoordinatorHere):
    """Of versions of many updates, each with as many metrics as are admitted."""
    with RawWorker(here.address) as raw:
        raw.teach(random_adapter(raw.spec, 1), metrics={f"{k:0100d}": 1.0 for k in range(100)})
        here.drained()
        [record] = here.versions()
        with closing(sqlite3.connect(here.home / "journal.sqlite")) as database, database:
            row = list(database.execute("SELECT * FROM versions WHERE version = 1").fetchone())
            names = [column[1] for column in database.execute("PRAGMA table_info(versions)")]
            at = names.index("record")
            row[at] = json.dumps(32 * json.loads(row[at]))
            for number in range(2, 17):
                changed = {"version": number, "parent": number - 1, "position": None}
                values = [changed.get(name, value) for name, value in zip(names, row, strict=True)]
                database.execute(f"INSERT INTO versions VALUES ({', '.join('?' * len(row))})", values)
        found = raw.client.versions(1)
    assert sum(r.ByteSize() for r in found) > MESSAGE_BYTES_MAX
    assert [r.version for r in found] == [1, *(number for number in range(2, 17) for _ in range(32))]
    assert all((r.update_id, r.metrics) == (record.update_id, record.metrics) for r in found)
