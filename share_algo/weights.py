"""Directions that everybody derives from the base model: leading singular vectors of a frozen weight W0.

Kept are a fingerprint of W0 and the number of columns, whatever the model's width. Whoever reads them must have W0 (see
`with_weights`), or a machine that has derived them before; another W0 is refused. Singular vectors are the same
everywhere, to float64's rounding, only where their values differ: where two are too close to be told apart, deriving is
refused. Order: falling values. Sign: the largest entry of each out vector is positive. Learned directions may lie
inside them, as inside random ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, svds
from threadpoolctl import threadpool_limits
from torch import Tensor

from share_algo.derived import DerivedDirections, check_size, once
from share_algo.derived_cache import kept
from share_algo.errors import AlgebraError
from share_algo.fingerprint import fingerprint
from share_algo.subspace import Subspace
from share_algo.types import NO_TENSORS, Basis, Block, Directions

FINGERPRINT = re.compile(r"[0-9a-f]{64}")
GAP_MIN = 1e-9
"""Least difference of neighbouring singular values, relative to the largest: vectors then agree to about 1e-6."""
LANCZOS_SIDE_MIN = 2048
LANCZOS_SHARE_MAX = 1 / 8
"""A few vectors of a large square cost two to seven times less by Lanczos' method than by decomposing it whole."""
LANCZOS_VECTORS_MIN = 64
"""Held at once; with fewer a few columns of a slowly falling spectrum take many restarts."""
LANCZOS_RESTARTS_MAX = 50
"""Flat spectra and steep ones took at most five; what takes more is decomposed whole."""


class LoadedWeights(Mapping[str, Tensor]):
    """Weights that are loaded, all together, when the first is asked for; and again when one is asked for after
    `let_go`. Names are known before. Thread-safe."""

    def __init__(self, names: Iterable[str], load: Callable[[], Mapping[str, Tensor]]):
        self._names, self._load, self._lock = dict.fromkeys(names), load, Lock()
        self._loaded: Mapping[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def let_go(self) -> None:
        with self._lock:
            self._loaded = None


@dataclass(frozen=True)
class WeightRecipe:
    """The `columns` leading singular vectors a side of the weight with this fingerprint.

    weights: by module, where this one is looked for when it is needed; it may be another.
    """

    module: str
    fingerprint: str
    columns: int
    N: int
    D: int
    weights: Mapping[str, Tensor] = field(default_factory=lambda: NO_TENSORS, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_size(self.module, self.columns, self.N, self.D)
        if not isinstance(self.fingerprint, str) or not FINGERPRINT.fullmatch(self.fingerprint):
            raise AlgebraError(f"{self.module}: {str(self.fingerprint)[:80]!r} is no fingerprint of a weight")

    @property
    def said(self) -> list[object]:
        """What is stored."""
        return [self.fingerprint, self.columns, self.N, self.D]

    @property
    def widths(self) -> tuple[int, int]:
        return min(self.columns, self.N, self.D), min(self.columns, self.N, self.D)

    def make(self) -> Directions:
        """AlgebraError as `weight`, where this machine has not derived them before. Cost: a hash of W0, and a singular
        value decomposition in float64, about 20 N D min(N, D), or a few hundred products with W0 and its transpose
        where Lanczos' method serves."""
        return _singular_vectors(self)

    def let_go(self) -> None:
        if isinstance(self.weights, LoadedWeights):
            self.weights.let_go()

    def weight(self) -> Tensor:
        """W0, N x D. AlgebraError where it is not at hand, or is another. Cost: its hash."""
        if self.module not in self.weights:
            raise AlgebraError(
                f"{self.module}: its directions are derived from the base model's weight: share_algo.with_weights"
            )
        whole = self.weights[self.module].flatten(1)
        if whole.shape != (self.N, self.D) or fingerprint(whole) != self.fingerprint:
            raise AlgebraError(f"{self.module}: this is not the base model's weight that its directions come from")
        return whole


@once
def _singular_vectors(recipe: WeightRecipe) -> Directions:
    return kept(["singular vectors", *recipe.said], lambda: _decomposed(recipe))


def _decomposed(recipe: WeightRecipe) -> Directions:
    U_Nk, S, V_Dk = _leading(recipe.weight().detach().double().cpu(), recipe.widths[0])
    if not S[0] > 0 or bool((S[:-1] - S[1:] <= GAP_MIN * S[0]).any()):
        raise AlgebraError(f"{recipe.module}: singular values of the base weight are too close to tell vectors apart")
    sign = U_Nk.gather(0, U_Nk.abs().argmax(0, keepdim=True)).sign()
    return Directions(_columns(U_Nk * sign), _columns(V_Dk * sign))


def _leading(weight_ND: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U_Nk, k + 1 falling singular values, V_Dk): the last value is the next one's, or 0 where there is none."""
    smaller = min(weight_ND.shape)
    if smaller >= LANCZOS_SIDE_MIN and k + 1 <= LANCZOS_SHARE_MAX * smaller and weight_ND.any():
        with suppress(ArpackNoConvergence):
            return _by_lanczos(weight_ND, k)
    U, S, Vh = torch.linalg.svd(weight_ND, full_matrices=False)
    return U[:, :k], torch.cat([S, S.new_zeros(1)])[: k + 1], Vh[:k].T


def _by_lanczos(weight_ND: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """To float64's rounding (`tol=0`, ARPACK's default), from the same start everywhere."""
    begin = np.random.RandomState(0).standard_normal(min(weight_ND.shape))
    with threadpool_limits(1, user_api="blas"):  # with two, products with a vector took twice as long
        found = svds(
            weight_ND.numpy(),
            k=k + 1,
            ncv=max(LANCZOS_VECTORS_MIN, 2 * k + 3),
            v0=begin,
            maxiter=LANCZOS_RESTARTS_MAX,
            solver="arpack",
        )
    U, S, Vh = (torch.from_numpy(part.copy()) for part in found)
    falling = S.argsort(descending=True)
    return U[:, falling[:k]], S[falling], Vh[falling[:k]].T


def weight_block(weights: Mapping[str, Tensor], columns: int) -> Block:
    """`columns` leading singular vectors a side of each module's W0 (N, D), at most min(N, D).

    More dimensions (a convolution's) count as D. Computed when first looked at. AlgebraError names a module.
    """
    block: dict[str, Directions] = {}
    for module, weight in weights.items():
        if weight.ndim < 2 or not weight.is_floating_point() or not weight.isfinite().all():
            raise AlgebraError(f"{module}: a base weight is a finite floating-point matrix")
        whole = weight.flatten(1)
        N, D = whole.shape
        block[module] = DerivedDirections(WeightRecipe(module, fingerprint(whole), columns, N, D, weights))
    return block


def with_weights(subspace: Subspace, weights: Mapping[str, Tensor]) -> Subspace:
    """The same subspace, able to read what is derived from `weights`. AlgebraError for one that is another, with its
    module. Modules not named stay as they are. Cost: a hash of each weight that is needed."""
    basis = basis_with_weights(subspace.basis.blocks, weights)
    for recipe in {_recipe_of(directions, weights) for block in basis.blocks for directions in block.values()}:
        if recipe:
            recipe.weight()
    return subspace.but(basis=basis)


def basis_with_weights(blocks: Iterable[Block], weights: Mapping[str, Tensor]) -> Basis:
    """The basis of these blocks, able to read what is derived from `weights`: they are looked at when they are needed,
    and checked then."""

    def given(directions: Directions) -> Directions:
        recipe = _recipe_of(directions, weights)
        return DerivedDirections(replace(recipe, weights=weights), directions.stored) if recipe else directions

    return Basis(tuple({module: given(d) for module, d in block.items()} for block in blocks))


def _recipe_of(directions: Directions, weights: Mapping[str, Tensor]) -> WeightRecipe | None:
    """Where they are derived from one of these weights, as far as the name goes."""
    recipe = directions.recipe if isinstance(directions, DerivedDirections) else None
    return recipe if isinstance(recipe, WeightRecipe) and recipe.module in weights else None


def _columns(wide_NK: Tensor) -> Tensor:
    """Each column contiguous in memory, as everywhere in a basis."""
    return wide_NK.T.float().contiguous().T
