"""A worker's life without the training: what it has learned is a random adapter. All else is its own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from parts import FINGERPRINT, dense, dense_adapter, honest_blob, random_adapter, relative_error, scaled

from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import Client
from workers.life import Life, Plan
from workers.outbox import Parcel
from workers.tasks import TaskData

from .federations import policy_for
from .formulas import Dense, of_task
from .learned import Made

if TYPE_CHECKING:
    from .child import Notes
    from .runs import World

LABELS = ("no", "yes")
SENT_IS_KEPT = 1e-4
PATIENCE_SECONDS = 60.0
"""Over real gRPC."""


class Stub:
    """Where the client keeps what it calls."""

    def __init__(self, world: World):
        self._world = world

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(request: Any, timeout: float) -> Any:
            streamed = isinstance(request, Iterator)
            reply = self._world.call(method, list(request) if streamed else request)
            return iter(reply) if isinstance(reply, list) else reply

        return call


class HereClient(Client):
    """A client without a channel and without patience."""

    def __init__(self, world: World):
        self.address, self._patience, self._waiting = "here", 0.0, lambda seconds: None
        self._stubs, self._at = [Stub(world)], 0  # type: ignore[list-item]

    def __exit__(self, *_: object) -> None: ...


class HereWatcher:
    """Waiting lets the others go on."""

    def __init__(self, client: HereClient, worker: str, incarnation: int):
        self._world: World = client._stub._world  # type: ignore[attr-defined]

    @property
    def newest(self) -> pb.VersionNotice:
        return self._world.notice()

    def wait(self, ready: Callable[[pb.VersionNotice], bool], seconds: float) -> bool:
        return self._world.wait(lambda: ready(self.newest))

    def stop(self) -> None: ...


class ShortLife(Life):
    """`world` is told what is made, and asked what to make."""

    base = SimpleNamespace(fingerprint=FINGERPRINT)  # type: ignore[assignment]

    def __init__(self, world: World | Notes, worker: str, task: str, home: Path, address: str = "here"):
        patience_seconds = 0.0 if address == "here" else PATIENCE_SECONDS
        plan = Plan(worker, task, "hf:made", address, home, patience_seconds=patience_seconds, learn_again=True)
        super().__init__(plan, lambda progress: None, lambda: False)
        self._world = world

    @property
    def task(self) -> TaskData:  # type: ignore[override]
        return TaskData(self.plan.task, LABELS, (), ())

    def _client(self) -> Client:
        return HereClient(self._world)  # type: ignore[arg-type]

    def _learn_unless(self, learned: pb.Verdict | None) -> list[Parcel]:
        return super()._learn_unless(learned) if self._world.has_more(self.plan.worker) else []

    def _learn(self) -> Parcel:
        begin = self.beginning(self._world.base_version())
        manifest, basis = begin.manifest, begin.basis
        adapter = scaled(random_adapter(self.spec, self._world.next_seed(), rank=1), self._world.loudness())
        blob = honest_blob(self.spec, adapter, basis)
        made = Made(self.plan.worker, self.plan.task, adapter, manifest.version, self._began(manifest))
        self._world.made(digest_of(blob), made)
        parcel = self.home.outbox.put(
            self.plan.task, manifest.version, blob, digest_of(blob), LABELS, {"steps": 1.0}, torch.zeros(1)
        )
        self._world.finished(parcel)
        return parcel

    def _began(self, manifest: pb.Manifest) -> Dense | None:
        """What the task is in the base version, where updates count as differences from that."""
        if not manifest.tasks or policy_for(self.spec, self.plan.task).kind != pb.POLICY_KIND_FEDBUFF:
            return None
        digests = [*(ref.digest for ref in manifest.blocks), *(ref.entry.digest for ref in manifest.tasks)]
        return of_task(manifest, {digest: self._blob(digest) for digest in digests}, self.plan.task)

    def _deliver(self, parcel: Parcel) -> None:
        super()._deliver(parcel)
        self._world.delivered(parcel)

    def _evaluate(self, version: int, measured: Any = None, trained: Any = None) -> None:
        """The function kept is the one learned, where it is the task's newest and replaces what there was."""
        manifest, blobs = self.client.fetch(version, tasks=[self.plan.task])
        mine = self.home.outbox.parcels()[0].header
        merged = [r for r in self.client.versions(first=version) if (r.version, r.task) == (version, self.plan.task)]
        replaces = policy_for(self.spec, self.plan.task).kind == pb.POLICY_KIND_REPLACE
        if replaces and merged and merged[-1].update_id == mine.update_id:
            record = self._world.made_by(mine.digest)
            found = dense(manifest, blobs, self.plan.task)
            assert relative_error(dense_adapter(record.adapter), found) < SENT_IS_KEPT

    def _follow(self) -> None:
        """Nothing to measure later versions with."""
