"""Rebuild from the journal, in memory, and compare with what is stored. A reader: nothing is changed.

Compared as functions: dW of every task whose coefficients a version changed, and the span of its basis. Digits may
differ between machines (SVD on other threads, another BLAS), so there is a number to compare with a tolerance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from coordinator.catalog import TaskBlob, Version
from coordinator.errors import CoordinatorError, Refused
from coordinator.history import History, kind_of
from coordinator.journal import ReadAhead
from coordinator.rebuild import Event, rebuild
from coordinator.transition import Learned, State
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import AlgebraError, TaskEntry
from share_algo.canonical import difference_norm, norm
from share_algo.codec import decode_entry


def compare(history: History, spec: pb.FederationSpec, must_go_on: Callable[[], None] = lambda: None) -> pb.ReplayReply:
    """Raises CoordinatorError for a blob that is missing or damaged, Refused where a version went while it was read.
    Cost: every merge of the journal once more. must_go_on: is asked at each step, and raises where it must not."""
    versions = [v for v in history.catalog.every() if not v.gone]
    try:
        return _compare(history, spec, versions, must_go_on)
    except CoordinatorError:
        _must_be_here(history, {v.version for v in versions})
        raise


def _must_be_here(history: History, numbers: set[int]) -> None:
    for version in history.catalog.every():
        if version.gone and version.version in numbers:
            why = f"version {version.version} was {version.gone} while it was compared: ask for the replay again"
            raise Refused(pb.OUTCOME_RETRY_BUSY, why)


def _compare(
    history: History, spec: pb.FederationSpec, versions: Sequence[Version], must_go_on: Callable[[], None]
) -> pb.ReplayReply:
    first = _start(history)
    targets = {history.target(v) for v in versions if kind_of(v) == pb.VERSION_KIND_ROLLBACK}
    replay = _Replay(history, spec, first, targets, must_go_on)
    for version in versions:
        if version.version >= first:
            replay.go_on(version)
    if versions[-1].version:
        replay.compare_basis(versions[-1])
    reply = replay.reply
    reply.first = first
    return reply


def _start(history: History) -> int:
    """Where versions are gone, the history that can be compared begins after the last of them."""
    return max((v.version + 1 for v in history.catalog.every() if v.gone), default=0)


@dataclass
class _Replay:
    """first: is rebuilt from the journal alone. targets: versions that are needed again."""

    history: History
    spec: pb.FederationSpec
    first: int
    targets: set[int]
    must_go_on: Callable[[], None]
    reply: pb.ReplayReply = field(default_factory=pb.ReplayReply)
    made: dict[int, State] = field(default_factory=dict)
    newest: State = field(default_factory=State)
    stored: dict[str, TaskBlob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What is stored of every task changes with the versions, so that none needs to be read for all of them."""
        self._journaled = ReadAhead(self.history.journal)
        self._began, self._ended = defaultdict[int, list[TaskBlob]](list), defaultdict[int, list[str]](list)
        for entry, until in self.history.catalog.entries_since(self.first):
            self._began[max(entry.version, self.first)].append(entry)
            if until is not None:
                self._ended[until].append(entry.task)

    def go_on(self, version: Version) -> None:
        """Replay one more version and compare the tasks that it changed."""
        self.must_go_on()
        before = self.newest
        self.newest = self._made(version)
        if version.version in self.targets:
            self.made[version.version] = self.newest
        self.reply.versions += 1
        for task in self._ended[version.version]:
            self.stored.pop(task, None)
        self.stored.update((entry.task, entry) for entry in self._began[version.version])
        if self.stored.keys() != self.newest.tasks.keys():
            [odd, *_] = sorted(self.stored.keys() ^ self.newest.tasks.keys())
            raise CoordinatorError(f"version {version.version}: the journal and the store differ in the task {odd}")
        for task, learned in self.newest.tasks.items():
            if before.tasks.get(task) is not learned:
                self.must_go_on()
                entry = decode_entry(self.history.blobs.get(self.stored[task].kept.blob.digest))
                self._compare_task(version, task, learned, entry)

    def compare_basis(self, version: Version) -> None:
        stored = self.history.bases.at(version)
        for module in sorted({*stored, *self.newest.basis}):
            for side in ("out_NK", "in_DL"):
                a, b = (getattr(basis[module], side) for basis in (self.newest.basis, stored))
                self._note(self.reply.basis, _sine(a, b), version, f"{module} {side[: side.index('_')]}")

    def _made(self, version: Version) -> State:
        kind = kind_of(version)
        if version.version != self.first and kind in (pb.VERSION_KIND_MERGE, pb.VERSION_KIND_COMPACT):
            return self._rebuilt(self.history.events_in(version, self._journaled), self.newest)
        if kind == pb.VERSION_KIND_ROLLBACK and (target := self.history.target(version)) in self.made:
            return self.made[target]
        return self._rebuilt(self.history.events(version.version), self.history.root())

    def _rebuilt(self, events: Iterable[Event], state: State) -> State:
        def one_by_one() -> Iterator[Event]:
            for event in events:
                self.must_go_on()
                yield event

        return rebuild(one_by_one(), self.spec, state)

    def _compare_task(self, version: Version, task: str, learned: Learned, stored: TaskEntry) -> None:
        self.reply.tasks += 1
        try:
            there = stored.adapter(self.history.bases.at(version)).factors
        except AlgebraError:  # coefficients that do not fit the stored basis
            self._note(self.reply.task, math.inf, version, task)
            return
        here = learned.entry.adapter(self.newest.basis).factors
        lost = math.hypot(*(difference_norm(here[m], there[m]) for m in here))
        size = math.hypot(*(norm(factors) for factors in there.values()))
        self._note(self.reply.task, lost / size if size else lost, version, task)

    @staticmethod
    def _note(largest: pb.Difference, value: float, version: Version, where: str) -> None:
        if not value <= largest.value or not largest.where:
            largest.CopyFrom(pb.Difference(value=value, version=version.version, where=where))


def _sine(a_NK: Tensor, b_NK: Tensor) -> float:
    """Of the largest angle between two spans; 1 where they have other dimensions."""
    if a_NK.shape[1] != b_NK.shape[1]:
        return 1.0
    if not a_NK.shape[1]:
        return 0.0
    a, b = a_NK.double(), b_NK.double()
    return max(float(x.sub(y @ (y.T @ x)).svd(compute_uv=False).S[0]) for x, y in ((a, b), (b, a)))
