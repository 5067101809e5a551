"""Tasks that a compaction does not touch: they stay in the coordinates they had, and are turned when they are read.

A merge inside a budget compacts again and again. A group of tasks keeps its coefficients as they were, the product of
all turns since, and the sum of its tasks' Gram matrices: all that a compaction needs. Groups grow geometrically,
so there are about log T of them; one that is no longer REWRITE times as large as the next newer is rewritten with it in
present coordinates, so that each task is rewritten about log T times in all. (Grams kept incrementally as in Brand's
SVD, 2002; the schedule is that of log-structured merge trees, O'Neil et al. 1996.)

What a task lost by g projections, kept_i = projection of kept_(i-1), follows from both ends alone:
sum_i loss_i^2 = ||kept_0||^2 - ||kept_g||^2, hence ||kept_0 - kept_g|| <= sum_i loss_i <= sqrt(g sum_i loss_i^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

from share_algo.canonical import product_norm
from share_algo.certificate import ROUNDING, Certificate
from share_algo.tucker import Cores
from share_algo.turns import Turn, turned_entry
from share_algo.types import Coefficients, TaskEntry

REWRITE = 8

Value = TypeVar("Value")


@dataclass(frozen=True)
class Group:
    """Tasks in coordinates of one earlier basis. turns: from there to the present one, by module (none: the same)."""

    entries: Mapping[str, TaskEntry]
    certificates: Mapping[str, Certificate]
    turns: Mapping[str, Turn] = field(default_factory=lambda: MappingProxyType({}))
    compactions: int = 0

    @cached_property
    def grams(self) -> dict[str, Turn]:
        """By module (sum w C C^T, sum w C^T C) in the tasks' own coordinates, w = 1 / ||dW||^2. Cost: T R K^2, once."""
        found = {}
        for module in {m: None for entry in self.entries.values() for m in entry.coefficients}:
            names = [task for task, entry in self.entries.items() if module in entry.coefficients]
            each = [self.entries[task].coefficients[module] for task in names]
            widths = max(c.widths[0] for c in each), max(c.widths[1] for c in each)
            found[module] = Cores.of(each, widths, [self.certificates[task].weight for task in names]).grams()
        return found

    def gram(self, module: str) -> Turn:
        """The module's Gram matrices in present coordinates, as far as these reach."""
        out, inn = self.grams[module]
        if module not in self.turns:
            return out, inn
        M_out, M_in = (M[: len(G)] for M, G in zip(self.turns[module], (out, inn), strict=True))
        return M_out.T @ out @ M_out, M_in.T @ inn @ M_in

    def turned(self, turns: Mapping[str, Turn]) -> Group:
        """After one more compaction. Cost: K^3 a module."""
        mine = {module: _after(self.turns.get(module), turn) for module, turn in turns.items() if module in self.grams}
        after = replace(self, turns={**self.turns, **mine}, compactions=self.compactions + 1)
        after.__dict__["grams"] = self.grams
        return after

    def entry(self, task: str) -> TaskEntry:
        return turned_entry(self.entries[task], self.turns)

    def certificate(self, task: str) -> Certificate:
        """Exact after one compaction of all columns there are, a bound after more."""
        before, steps = self.certificates[task], self.compactions
        moved = [(c, self.turns[m]) for m, c in self.entries[task].coefficients.items() if m in self.turns]
        if not moved:
            return before
        lost = math.sqrt(max(0.0, sum(_energy(c, None) - _energy(c, turn) for c, turn in moved)))
        if steps == 1:
            nested = all(c.widths == (len(M_out), len(M_in)) for c, (M_out, M_in) in moved)
            return before.projected(lost, nested=nested)
        error = before.error + math.sqrt(steps) * lost + steps * ROUNDING * before.norm
        return Certificate(before.norm, error, error, before.is_bound or lost > ROUNDING * before.norm)

    def with_task(self, task: str, entry: TaskEntry, certificate: Certificate) -> Group:
        return Group({**self.entries, task: entry}, {**self.certificates, task: certificate})

    def with_newer(self, other: Group) -> Group:
        """Both in present coordinates; of a task that is in both only the newer. Cost: K^2 R a task and module."""
        owner = {**dict.fromkeys(self.entries, self), **dict.fromkeys(other.entries, other)}
        return Group({t: g.entry(t) for t, g in owner.items()}, {t: g.certificate(t) for t, g in owner.items()})


class Grouped(Mapping[str, Value]):
    """The tasks of all groups, or their certificates, as they are now. The last group is in present coordinates."""

    def __init__(self, groups: tuple[Group, ...], read: Callable[[Group, str], Value]):
        self.groups, self._read = groups, read

    def __getitem__(self, task: str) -> Value:
        for group in reversed(self.groups):
            if task in group.entries:
                return self._read(group, task)
        raise KeyError(task)

    def __contains__(self, task: object) -> bool:
        return any(task in group.entries for group in self.groups)

    def __iter__(self) -> Iterator[str]:
        return iter({task: None for group in self.groups for task in group.entries})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def tables(groups: tuple[Group, ...]) -> tuple[Grouped[TaskEntry], Grouped[Certificate]]:
    """What a subspace holds: its tasks and their certificates."""
    return Grouped(groups, Group.entry), Grouped(groups, Group.certificate)


def compacted(groups: tuple[Group, ...], turns: Mapping[str, Turn]) -> tuple[Group, ...]:
    """The groups after one more compaction, an empty one for what comes next at the end."""
    after = [group.turned(turns) for group in groups if group.entries]
    while len(after) > 1 and len(after[-2].entries) < REWRITE * len(after[-1].entries):
        newer = after.pop()
        after.append(after.pop().with_newer(newer))
    return (*after, Group({}, {}))


def _after(old: Turn | None, new: Turn) -> Turn:
    """First `old`, then `new`, which begins with the columns that `old` ends in."""
    if old is None:
        return new
    M_out, M_in = (first @ then[: first.shape[1]] for first, then in zip(old, new, strict=True))
    return M_out, M_in


def _energy(c: Coefficients, turn: Turn | None) -> float:
    P_KR, Q_LR = c.P_KR.double(), c.Q_LR.double()
    if turn is not None:
        P_KR, Q_LR = turn[0][: len(P_KR)].T @ P_KR, turn[1][: len(Q_LR)].T @ Q_LR
    return product_norm(P_KR, Q_LR) ** 2
