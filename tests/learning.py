"""A coordinator that is taught by hand, with what was submitted remembered: an oracle for what must be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from parts import Coordinator, RawWorker, dense, random_adapter

from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter

SENT_IS_KEPT = 2e-5
SAME = 1e-4


@dataclass
class Learning:
    """A coordinator, and what was submitted to it: by task what is to be found there."""

    coordinator: Coordinator
    receipts: dict[str, pb.Receipt] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)

    def learn(self, key: str, *, base: int | None = None, seed: int | None = None) -> pb.Receipt:
        """key: TASK or TASK@WORKER. Returns when it is merged."""
        task, _, worker = key.partition("@")
        with RawWorker(self.coordinator.address, worker or f"{task}-worker", task) as raw:
            adapter = random_adapter(raw.spec, len(self.receipts) if seed is None else seed)
            receipt = raw.teach(adapter, base)
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
