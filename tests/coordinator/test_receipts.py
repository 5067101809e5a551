"""A receipt is a promise: the update is on disk, and is merged exactly once, whatever is killed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from parts import (
    Coordinator,
    RawWorker,
    dense,
    dense_adapter,
    flip_a_byte,
    honest_blob,
    honest_header,
    journal_one,
    random_adapter,
    receiver_of,
    relative_error,
    small_home,
    until,
)

from coordinator.errors import Refused
from coordinator.home import open_home
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis


def test_receipt_tells_the_position_and_the_update_becomes_a_version(small: Coordinator):
    with RawWorker(small.address) as raw:
        first = raw.teach(random_adapter(raw.spec, 1))
        small.drained()
        second = raw.teach(random_adapter(raw.spec, 2))
        small.drained()
    assert (first.position, second.position) == (1, 2)
    assert not first.repeated and not first.is_transient and first.reason == ""
    records = small.versions()
    assert [(r.version, r.parent, r.update_id) for r in records] == [(1, 0, first.update_id), (2, 1, second.update_id)]


def test_duplicate_update_returns_the_first_receipt_also_after_a_restart(small: Coordinator):
    with RawWorker(small.address) as raw:
        base, blob = raw.blob(random_adapter(raw.spec, 1))
        header = raw.header(blob, base)
        first = raw.submit(header, blob)
        again = raw.submit(header, blob)
        small.drained()
        merged = raw.submit(header, blob)
        small.kill()
        small.start()
        restarted = raw.client.submit(header, blob)
    assert first.outcome == pb.OUTCOME_QUEUED and not first.repeated
    assert again.repeated and again.position == first.position
    assert merged.repeated and (merged.outcome, merged.version) == (pb.OUTCOME_MERGED, 1)
    assert restarted == merged
    assert len(small.versions()) == 1


def test_same_id_with_other_bytes_is_refused_and_the_first_stays(shared_small: Coordinator):
    with RawWorker(shared_small.address, "same-id") as raw:
        first = raw.teach(random_adapter(raw.spec, 1), 0)
        base, other = raw.blob(random_adapter(raw.spec, 2), 0)
        refused = raw.submit(raw.header(other, base, update_id=first.update_id), other)
    assert refused.outcome == pb.OUTCOME_REFUSED_ID_REUSED and not refused.is_transient
    assert refused.position == 0 and first.update_id in refused.reason
    shared_small.drained()
    assert [r.update_id for r in shared_small.versions() if r.worker == "same-id"] == [first.update_id]


def test_tries_that_arrive_together_make_one_entry(shared_small: Coordinator):
    with RawWorker(shared_small.address, "together") as raw, ThreadPoolExecutor(8) as threads:
        base, blob = raw.blob(random_adapter(raw.spec, 1), 0)
        header = raw.header(blob, base)
        receipts = list(threads.map(lambda _: raw.submit(header, blob), range(8)))
    assert len({r.position for r in receipts}) == 1
    assert sum(not r.repeated for r in receipts) == 1
    shared_small.drained()
    assert len([r for r in shared_small.versions() if r.worker == "together"]) == 1


def test_update_with_a_receipt_survives_a_kill_right_after_it(small: Coordinator):
    receipts = []
    for seed in range(2):
        with RawWorker(small.address) as raw:
            base, blob = raw.blob(random_adapter(raw.spec, seed))
            header = raw.header(blob, base)
            receipts.append(raw.submit(header, blob))
            small.kill()
        small.start()
    small.drained()
    assert [r.position for r in receipts] == [1, 2]
    assert [r.update_id for r in small.versions()] == [r.update_id for r in receipts]


@dataclass
class Storm:
    """Workers that submit while the coordinator is killed again and again."""

    coordinator: Coordinator
    updates_each: int = 8

    def __post_init__(self) -> None:
        self.sent: dict[str, tuple[str, Adapter]] = {}
        self.receipts: dict[str, pb.Receipt] = {}

    def run(self, workers: int, kills: int, rng: random.Random) -> None:
        with ThreadPoolExecutor(workers) as threads:
            ends = [threads.submit(self._work, n) for n in range(workers)]
            for receipts in sorted(rng.sample(range(workers * self.updates_each - 1), kills)):
                until(lambda n=receipts: len(self.receipts) >= n, f"{receipts} receipts")
                time.sleep(rng.uniform(0, 0.03))
                self.coordinator.kill()
                self.coordinator.start()
            for end in ends:
                end.result()

    def _work(self, n: int) -> None:
        with RawWorker(self.coordinator.address, f"worker-{n}", f"task-{n}") as raw:
            for i in range(self.updates_each):
                adapter = random_adapter(raw.spec, 100 * n + i)
                base, blob = raw.blob(adapter)
                header = raw.header(blob, base, task=f"task-{n}-{i}")
                self.sent[header.update_id] = (header.task, adapter)
                self.receipts[header.update_id] = raw.client.submit(header, blob)


@pytest.fixture(scope="module")
def stormed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    home = small_home(tmp_path_factory.mktemp("storm") / "home")
    with Coordinator(home, "--no-lineage") as coordinator:
        storm = Storm(coordinator)
        storm.run(workers=4, kills=5, rng=random.Random(0))
        coordinator.drained()
        yield storm


def test_every_update_with_a_receipt_is_in_exactly_one_version_after_five_kills(stormed: Storm):
    records = stormed.coordinator.versions()
    assert len(stormed.receipts) == 4 * stormed.updates_each
    assert sorted(r.update_id for r in records) == sorted(stormed.receipts)
    chain = list(dict.fromkeys((r.version, r.parent) for r in records))
    assert chain == [(n, n - 1) for n in range(1, len(chain) + 1)]


def test_versions_follow_the_order_of_receipts_after_five_kills(stormed: Storm):
    positions = [stormed.receipts[r.update_id].position for r in stormed.coordinator.versions()]
    assert positions == list(range(1, len(positions) + 1))


def test_every_task_is_the_function_that_was_sent_after_five_kills(stormed: Storm):
    with stormed.coordinator.client() as client:
        manifest, blobs = client.fetch(None, every_task=True)
    errors = {
        task: relative_error(dense_adapter(adapter), dense(manifest, blobs, task))
        for task, adapter in stormed.sent.values()
    }
    assert len(errors) == 4 * stormed.updates_each
    assert max(errors.values()) < 2e-5


def test_nothing_is_queued_or_skipped_after_five_kills(stormed: Storm):
    status = stormed.coordinator.status()
    assert (status.queued, status.skipped, status.merged) == (0, 0, 4 * stormed.updates_each)


def test_entry_that_cannot_be_merged_is_skipped_with_its_reason_and_the_rest_goes_on(tmp_path: Path):
    home = small_home(tmp_path / "home")
    good, damaged = journal_one(home, seed=1), journal_one(home, seed=2)
    flip_a_byte(home / "blobs" / f"{damaged.digest}.safetensors")
    with Coordinator(home, "--no-lineage") as coordinator, coordinator.client() as client:
        coordinator.drained()
        verdict = client.story(damaged.update_id).verdict
        assert verdict.outcome == pb.OUTCOME_SKIPPED
        assert damaged.digest in verdict.reason and "damaged" in verdict.reason
        assert [r.update_id for r in client.versions(1)] == [good.update_id]


def test_update_for_a_version_that_is_not_in_memory_is_checked_against_the_disk(small: Coordinator):
    with RawWorker(small.address) as raw:
        raw.teach(random_adapter(raw.spec, 1))
        small.drained()
        base, blob = raw.blob(random_adapter(raw.spec, 2))
        header = raw.header(blob, base)
        assert small.stop() == 0
    with open_home(small.home) as home:
        decision, _ = receiver_of(home).accept(header, blob)
        assert (decision.position, decision.outcome) == (2, pb.OUTCOME_QUEUED)
        wrong = honest_blob(home.spec, random_adapter(home.spec, 3), Basis())
        with pytest.raises(Refused, match="coefficients for") as raised:
            receiver_of(home).accept(honest_header(home.spec, wrong, base_version=1), wrong)
        assert raised.value.outcome == pb.OUTCOME_REFUSED_SHAPE
