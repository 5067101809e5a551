"""The pure core against numpy: whatever is submitted, merged, taken back or forgotten, in whatever order.

A version here is a basis and what is kept of each task. What it should be is kept beside it as dense matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from parts import dense_adapter, random_adapter, relative_error, small_spec

from coordinator.rebuild import rebuild
from coordinator.transition import Arrived, Merged, Skipped, State, step
from share_algo import Adapter, Basis, Factors, TaskEntry, append
from share_algo.codec import decode_block, decode_entry, decode_update, encode_block, encode_entry, encode_update

SPEC = small_spec("machine", {"a": (7, 5), "b": (4, 9)})
TASKS = ("red", "green", "blue")
SENT_IS_KEPT = 1e-4
ORTHONORMAL = 1e-5

Dense = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kept:
    """A version: its basis, its tasks, and the updates that it is made of, in order."""

    basis: Basis = field(default_factory=Basis)
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    alive: tuple[Arrived, ...] = ()


def read(kept: Kept, task: str) -> Dense:
    return dense_adapter(kept.tasks[task].adapter(kept.basis))


def again(basis: Basis) -> Basis:
    """As a restart reads it: from bytes."""
    return Basis(tuple(decode_block(encode_block(block)) for block in basis.blocks))


def projectors(basis: Basis) -> Dense:
    sides = {f"{m}/{side}": getattr(basis[m], side).numpy() for m in basis for side in ("out_NK", "in_DL")}
    return {name: X.astype(np.float64) @ X.T.astype(np.float64) for name, X in sides.items()}


class Core(RuleBasedStateMachine):
    """versions: all of them. sent: by update id, what it taught. consumed: ids in the order of their verdicts."""

    def __init__(self) -> None:
        super().__init__()
        self.versions, self.state = [Kept()], State()
        self.queue: list[Arrived] = []
        self.sent: dict[str, Dense] = {}
        self.consumed: list[str] = []

    @rule(task=st.sampled_from(TASKS), seed=st.integers(0, 10**6), rank=st.integers(1, 3), stale=st.integers(0, 3))
    def submit(self, task: str, seed: int, rank: int, stale: int) -> None:
        """Made for one of the newest versions, and sent as bytes."""
        self._send(task, random_adapter(SPEC, seed, rank), max(0, len(self.versions) - 1 - stale))

    @precondition(lambda self: self.sent)
    @rule(task=st.sampled_from(TASKS), pick=st.integers(0, 100), scale=st.sampled_from([1.0, -0.5, 1e-3, 1e3]))
    def submit_what_another_taught(self, task: str, pick: int, scale: float) -> None:
        """Inside the span, or nearly: no direction is new."""
        like = list(self.sent.values())[pick % len(self.sent)]
        self._send(task, _adapter(like, scale), len(self.versions) - 1)

    def _send(self, task: str, adapter: Adapter, base: int) -> None:
        basis, number = self.versions[base].basis, len(self.sent)
        update = decode_update(encode_update(append(basis, adapter, tolerance=SPEC.tolerance).update))
        self.sent[f"{number:032x}"] = dense_adapter(adapter)
        self.queue.append(
            Arrived(
                position=number + 1, update_id=f"{number:032x}", worker="w", task=task, base_version=base,
                staleness=len(self.versions) - 1 - base, base=basis, update=update, nbytes=1, labels=(), metrics={},
            )
        )  # fmt: skip

    @precondition(lambda self: self.queue)
    @rule()
    def merge(self) -> None:
        arrived, before = self.queue.pop(0), self.versions[-1]
        state, result = step(self.state, (arrived,), SPEC)
        assert isinstance(result, Merged), result
        [record] = result.records
        assert record.update_id == arrived.update_id and record.relative_error <= SPEC.tolerance
        prefix = state.basis.blocks[: len(before.basis.blocks)]
        assert list(map(encode_block, prefix)) == list(map(encode_block, before.basis.blocks))
        entry = decode_entry(encode_entry(result.learned.entry))
        after = Kept(state.basis, {**before.tasks, arrived.task: entry}, (*before.alive, arrived))
        for task in before.tasks.keys() - {arrived.task}:
            assert _bitwise(read(before, task), read(after, task)), f"{task} has changed"
        _must_hold(projectors(before.basis), projectors(after.basis))
        self.consumed.append(arrived.update_id)
        self.versions.append(after)
        self.state = state

    @precondition(lambda self: len(self.versions) > 1)
    @rule()
    def merge_of_what_does_not_fit_changes_nothing(self) -> None:
        """Coefficients for a basis that its sender never had."""
        last = self.versions[-1].alive[-1:]
        if not last or not last[0].update.entry.coefficients:
            return
        wrong = replace(last[0], base=Basis(self.state.basis.blocks * 2), update_id="f" * 32)
        state, result = step(self.state, (wrong,), SPEC)
        if isinstance(result, Skipped):
            assert state is self.state and result.reason

    @rule()
    def restart(self) -> None:
        head = self.versions[-1]
        self.versions[-1] = Kept(again(head.basis), head.tasks, head.alive)
        self.state = State(self.versions[-1].basis)

    @precondition(lambda self: len(self.versions) > 1)
    @rule(back=st.integers(1, 4))
    def rollback(self, back: int) -> None:
        self._publish(self.versions[max(0, len(self.versions) - 1 - back)])

    @precondition(lambda self: self.versions[-1].alive)
    @rule(task=st.sampled_from(TASKS))
    def forget(self, task: str) -> None:
        """As if its updates had never come: the same subspace as one that never saw them."""
        left = [arrived for arrived in self.versions[-1].alive if arrived.task != task]
        rebuilt = rebuild([(arrived,) for arrived in left], SPEC, State())
        assert task not in rebuilt.tasks
        self._publish(Kept(rebuilt.basis, {t: x.entry for t, x in rebuilt.tasks.items()}, tuple(left)))
        taught = [self.sent[arrived.update_id] for arrived in left]
        for name, projector in projectors(rebuilt.basis).items():
            assert np.trace(projector) <= _rank(taught, name) + 0.5, f"{name} holds more than was taught"

    def _publish(self, kept: Kept) -> None:
        self.versions.append(kept)
        self.state = State(kept.basis)

    @invariant()
    def every_task_of_the_head_is_what_its_newest_update_taught(self) -> None:
        head = self.versions[-1]
        newest = {arrived.task: arrived.update_id for arrived in head.alive}
        assert head.tasks.keys() == newest.keys()
        for task, update_id in newest.items():
            assert relative_error(self.sent[update_id], read(head, task)) < SENT_IS_KEPT

    @invariant()
    def basis_is_orthonormal(self) -> None:
        for name, P in projectors(self.state.basis).items():
            assert np.abs(P @ P - P).max() < ORTHONORMAL, f"{name} is no orthonormal basis"

    @invariant()
    def each_update_is_consumed_once_and_in_order(self) -> None:
        assert self.consumed == sorted(set(self.consumed))
        assert len(self.consumed) + len(self.queue) == len(self.sent)


def _adapter(like: Dense, scale: float) -> Adapter:
    import torch

    factors = {}
    for module, dW in like.items():
        U, S, Vt = np.linalg.svd(scale * dW, full_matrices=False)
        B, A = (torch.from_numpy(x.astype(np.float32)) for x in (U[:, :3] * S[:3], Vt[:3]))
        factors[module] = Factors(B.contiguous(), A.contiguous())
    return Adapter(factors, {"classifier.weight": torch.ones(2, 6)})


def _rank(taught: list[Dense], name: str) -> int:
    module, side = name.split("/")
    columns = [dW[module] if side == "out_NK" else dW[module].T for dW in taught]
    return int(np.linalg.matrix_rank(np.concatenate(columns, axis=1), tol=1e-6)) if columns else 0


def _bitwise(before: Dense, after: Dense) -> bool:
    return all((before[m] == after[m]).all() for m in before)


def _must_hold(before: Dense, after: Dense) -> None:
    """The span only grows."""
    for name, P in before.items():
        assert np.abs(after[name] @ P - P).max() < 1e-4, f"{name} has lost something"


TestCore = Core.TestCase
TestCore.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
