"""Derived directions: columns that everybody computes from a seed, so that nobody sends or stores them.

Random orthonormal columns, independent for each module and side. The stream of numpy's RandomState is frozen
for good (NEP 19), so old seeds keep their meaning; QR may differ in the last bits between machines, which is
far below any tolerance used here.

Learned directions may lie *inside* derived ones: out = derived @ M. Then only M is kept, and what a basis costs does
not depend on the width of the model. Both are Directions like any others: append, lift and training see no difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from share_algo.errors import AlgebraError
from share_algo.types import Block, Directions

COLUMNS_MAX = 1 << 14
HEIGHT_MAX = 1 << 20
"""A recipe from elsewhere must not ask for more memory than the largest models have in one layer."""


Derived = TypeVar("Derived", bound="Derivation")


def once(make: Callable[[Derived], Directions]) -> Callable[[Derived], Directions]:
    """Equal recipes are derived once, as long as somebody holds the columns."""
    known: WeakValueDictionary[Any, Directions] = WeakValueDictionary()

    @wraps(make)
    def made(recipe: Derived) -> Directions:
        found = known.get(recipe)
        if found is None:
            known[recipe] = found = make(recipe)
        return found

    return made


@dataclass(frozen=True)
class Recipe:
    """All that must be known to derive one module's columns; no more of them than a side is high."""

    module: str
    seed: int
    columns: int
    N: int
    D: int

    def __post_init__(self) -> None:
        check_size(self.module, self.columns, self.N, self.D)
        if not isinstance(self.seed, int):
            raise AlgebraError(f"{self.module}: {str(self.seed)[:80]!r} is no seed")

    @property
    def said(self) -> list[object]:
        """What is stored."""
        return [self.seed, self.columns, self.N, self.D]

    @property
    def widths(self) -> tuple[int, int]:
        return min(self.columns, self.N), min(self.columns, self.D)

    @once
    def make(self) -> Directions:
        """Cost: (N + D) columns^2."""
        K, L = self.widths
        return Directions(_orthonormal(f"{self.seed}/{self.module}/out", self.N, K),
                          _orthonormal(f"{self.seed}/{self.module}/in", self.D, L))  # fmt: skip

    def let_go(self) -> None: ...


class Derivation(Protocol):
    """How one module's columns are found again."""

    @property
    def module(self) -> str: ...
    @property
    def N(self) -> int: ...
    @property
    def D(self) -> int: ...
    @property
    def widths(self) -> tuple[int, int]: ...
    @property
    def said(self) -> list[object]: ...
    def make(self) -> Directions: ...

    def let_go(self) -> None:
        """Of what was loaded to make it, if it was."""


class DerivedDirections(Directions):
    """All columns of a recipe, or those inside them that `inside` says: (columns x K, columns x L), orthonormal."""

    recipe: Derivation
    inside: Directions | None

    def __init__(self, recipe: Derivation, inside: Directions | None = None):
        if inside is not None and (inside.out_NK.shape[0], inside.in_DL.shape[0]) != recipe.widths:
            raise AlgebraError(f"{recipe.module}: learned directions do not lie inside {recipe.widths} derived ones")
        self.__dict__.update(recipe=recipe, inside=inside)

    @cached_property
    def _whole(self) -> Directions:
        """Held, so that another basis of the same recipe finds it (`once`)."""
        return self.recipe.make()

    @cached_property
    def _columns(self) -> Directions:
        if self.inside is None:
            return self._whole
        out_side, in_side = (side.T.to(self.inside.out_NK.device) for side in (self._whole.out_NK, self._whole.in_DL))
        return Directions((self.inside.out_NK.T @ out_side).T, (self.inside.in_DL.T @ in_side).T)

    @property
    def out_NK(self) -> Tensor:
        return self._columns.out_NK

    @property
    def in_DL(self) -> Tensor:
        return self._columns.in_DL

    @property
    def heights(self) -> tuple[int, int]:
        return self.recipe.N, self.recipe.D

    @property
    def widths(self) -> tuple[int, int]:
        return self.recipe.widths if self.inside is None else self.inside.widths

    @property
    def stored(self) -> Directions | None:
        return self.inside

    def with_stored(self, change: Callable[[str, Tensor], Tensor]) -> Directions:
        return self if self.inside is None else DerivedDirections(self.recipe, self.inside.with_stored(change))

    def turned(self, M_out: Tensor, M_in: Tensor) -> Directions:
        inside = self.inside
        if inside is None:
            inside = Directions(*(torch.eye(width).to(M_out.device) for width in self.recipe.widths))
        return DerivedDirections(self.recipe, inside.turned(M_out, M_in))


def check_size(module: str, columns: object, N: object, D: object) -> None:
    """AlgebraError for a recipe that asks for what no layer has."""
    bounds = ((columns, COLUMNS_MAX), (N, HEIGHT_MAX), (D, HEIGHT_MAX))
    if not all(isinstance(n, int) and 0 < n <= most for n, most in bounds):
        raise AlgebraError(f"{module}: {columns} derived columns of heights {N} and {D}")


def derived_block(shapes: Mapping[str, tuple[int, int]], columns: int, seed: int) -> Block:
    """`columns` directions a side for each module; shapes: (N, D) by name. Computed when first looked at.

    No more columns than the side is high. Zero columns give an empty block.
    """
    if not columns:
        return {}
    return {module: DerivedDirections(Recipe(module, seed, columns, N, D)) for module, (N, D) in shapes.items()}


def derive(
    blocks: Iterable[Block], told: Callable[[int, int], None] = lambda done, total: None, threads: int = 1
) -> None:
    """Now, what otherwise is derived when it is first looked at; so many modules at a time. What is loaded for it is
    let go at the end.

    told: how many modules are done, of how many; if it raises, no other is begun.
    """
    each = [d for block in blocks for d in block.values() if isinstance(d, DerivedDirections)]
    made: list[Directions] = []
    try:
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            for one in pool.map(lambda directions: directions.recipe.make(), each):
                made.append(one)
                told(len(made), len(each))
    finally:
        for directions in each:
            directions.recipe.let_go()
    for directions in each:
        _ = directions.out_NK  # of what is in `made`


def _orthonormal(key: str, height: int, columns: int) -> Tensor:
    """Each column contiguous in memory, as everywhere in a basis."""
    seed = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype=np.uint32)
    normal = np.random.RandomState(seed).standard_normal((height, columns))
    return torch.from_numpy(np.linalg.qr(normal).Q.T).float().contiguous().T
