"""A coordinator that is taught by hand, with what was submitted remembered: an oracle for what must be there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from parts import Coordinator, RawWorker, dense, history_of, honest_blob, journal_blob, random_adapter

from coordinator.draft import Draft
from coordinator.home import open_home
from coordinator.members import Members
from coordinator.verdicts import Ruling
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter

SENT_IS_KEPT = 2e-5
SAME = 1e-4
WHY = "it is unlike the others"


@dataclass
class Learning:
    """A coordinator, and what was submitted to it: by task what is to be found there."""

    coordinator: Coordinator
    receipts: dict[str, pb.Receipt] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)

    def learn(self, key: str, *, base: int | None = None, seed: int | None = None, **header: object) -> pb.Receipt:
        """key: TASK or TASK@WORKER; header: what it says beside that. Returns when it is merged."""
        task, _, worker = key.partition("@")
        with RawWorker(self.coordinator.address, worker or f"{task}-worker", task) as raw:
            adapter = random_adapter(raw.spec, len(self.receipts) if seed is None else seed)
            receipt = raw.teach(adapter, base, **header)
        self.coordinator.drained()
        self.receipts[key], self.adapters[key] = receipt, adapter
        return receipt

    def outcome(self, key: str) -> pb.Outcome:
        return self.verdict(key).outcome

    def verdict(self, key: str) -> pb.Verdict:
        return self.story(key).verdict

    def story(self, key: str) -> pb.StoryReply:
        with self.coordinator.client() as client:
            return client.story(self.receipts[key].update_id)

    def report(self, worker: str, task: str, *versions: int) -> None:
        """Its worker has measured these."""
        with RawWorker(self.coordinator.address, worker, task) as raw:
            for version in versions:
                raw.client.report(worker, raw.joined.incarnation, task, version, {"accuracy": 0.5})

    def reported(self, update_id: str) -> list[int]:
        """Versions of which an update's story has a measurement."""
        with self.coordinator.client() as client:
            events = client.story(update_id).events
        return [int(e.detail.rpartition(" ")[2]) for e in events if e.what == "reported"]

    def everything(self, version: int | None = None) -> tuple[pb.Manifest, dict[str, bytes]]:
        with self.coordinator.client() as client:
            return client.fetch(version, every_task=True)

    def dense(self, version: int | None = None) -> dict[str, dict[str, np.ndarray]]:
        manifest, blobs = self.everything(version)
        return {ref.task: dense(manifest, blobs, ref.task) for ref in manifest.tasks}

    def replay(self) -> pb.ReplayReply:
        with self.coordinator.client() as client:
            return client.replay()


def learned(coordinator: Coordinator) -> Learning:
    """Versions 1 to 4: a, b, c, and b once more by another worker; b and c were made for older versions."""
    learning = Learning(coordinator)
    learning.learn("a", base=0)
    learning.learn("b", base=0)
    learning.learn("c", base=1)
    learning.learn("b@other", base=3)
    return learning


def same(before: Mapping[str, Mapping[str, np.ndarray]], after: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    """Bitwise."""
    return before.keys() == after.keys() and all(
        (before[task][module] == after[task][module]).all() for task in before for module in before[task]
    )


def keep_aside(learning: Learning, task: str = "odd", base: int = 2, adapter: Adapter | None = None) -> str:
    """An update made for `base`, journaled, with the verdict that it is in quarantine. Returns its id."""
    assert learning.coordinator.stop() == 0
    with open_home(learning.coordinator.home) as home:
        history, worker = history_of(home), f"{task}-worker"
        incarnation = Members(home.engine).join(worker, task, time.time())
        adapter = learning.adapters[task] = adapter or random_adapter(home.spec, 50)
        blob = honest_blob(home.spec, adapter, history.bases.behind(base))
        made = {"worker": worker, "task": task, "incarnation": incarnation, "base_version": base}
        header = journal_blob(home, blob, **made)
        position = history.journal.newest_position()
        aside = Ruling(position, pb.OUTCOME_QUARANTINED, reason=WHY)
        history.catalog.settle(Draft(position, first=(aside,)), time.time())
    learning.coordinator.start()
    learning.receipts[task] = pb.Receipt(update_id=header.update_id)
    return header.update_id
