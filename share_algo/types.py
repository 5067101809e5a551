"""The shapes of everything. All types are immutable; tensors in them are never written to.

Adapter   one task's LoRA, per module (Factors), and its head
Basis     a list of Blocks; a Block holds, per module, some new Directions (columns)
TaskEntry what one task owns inside a basis: Coefficients per module, and its head
Update    a TaskEntry together with the Directions that the basis it was made for lacks
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from share_algo.errors import AlgebraError

NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})

LINEAR, EMBEDDING = "linear", "embedding"
LAYOUT = re.compile(r"linear|embedding|conv:[1-9]\d{0,3}(,[1-9]\d{0,3}){0,2}")
"""How PEFT stores a module's factors: Linear and Conv1D; Embedding; ConvNd with its kernel, as in "conv:3,3"."""


@dataclass(frozen=True)
class Factors:
    """One module's update: dW (N, D) = B_NR @ A_RD, scaling folded into B."""

    B_NR: Tensor
    A_RD: Tensor
    layout: str = LINEAR

    def __post_init__(self) -> None:
        if self.B_NR.ndim != 2 or self.A_RD.ndim != 2 or self.B_NR.shape[1] != self.A_RD.shape[0]:
            raise AlgebraError(f"lora_B {tuple(self.B_NR.shape)} and lora_A {tuple(self.A_RD.shape)} do not multiply")
        if not LAYOUT.fullmatch(self.layout):
            raise AlgebraError(f"unknown layout {self.layout[:40]!r}")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D) of the weight that is updated."""
        return self.B_NR.shape[0], self.A_RD.shape[1]

    @property
    def rank(self) -> int:
        return self.B_NR.shape[1]

    def delta_ND(self) -> Tensor:
        """The dense update. Costs N * D numbers: for tests and small models only."""
        return self.B_NR @ self.A_RD


@dataclass(frozen=True)
class Adapter:
    """One task's LoRA factors by module name, and whatever else was trained for it (its head).

    settings: what PEFT's adapter_config.json says beside the factors (JSON values; see peft_read.KEPT).
    """

    factors: Mapping[str, Factors]
    head: Mapping[str, Tensor] = field(default_factory=lambda: NO_TENSORS)
    settings: Mapping[str, Any] = field(default_factory=lambda: NO_SETTINGS)

    @staticmethod
    def load(folder: Path | str) -> Adapter:
        """A PEFT LoRA folder, its scaling folded into B. Needs no peft. AlgebraError says what is wrong with it."""
        from share_algo.peft_read import read_folder

        return read_folder(Path(folder))

    def save(self, folder: Path | str, *, dtype: torch.dtype | None = None) -> None:
        """Write a PEFT LoRA folder (scaling 1). Needs peft. dtype: of the factors, else as they are held."""
        from share_algo.peft_folder import save_adapter

        base_model, task_type = self.settings.get("base_model_name_or_path"), self.settings.get("task_type")
        save_adapter(self, Path(folder), base_model=base_model, task_type=task_type, dtype=dtype)

    def nbytes(self) -> int:
        """Bytes of all tensors as they are held, head included."""
        tensors = [t for f in self.factors.values() for t in (f.B_NR, f.A_RD)] + list(self.head.values())
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Directions:
    """Columns of one module's two bases: out_NK and in_DL, each with orthonormal columns."""

    out_NK: Tensor
    in_DL: Tensor

    @staticmethod
    def none(N: int, D: int) -> Directions:
        return Directions(torch.zeros(N, 0), torch.zeros(D, 0))

    @property
    def widths(self) -> tuple[int, int]:
        """(K, L)."""
        return self.out_NK.shape[1], self.in_DL.shape[1]

    @property
    def heights(self) -> tuple[int, int]:
        """(N, D)."""
        return self.out_NK.shape[0], self.in_DL.shape[0]

    @property
    def stored(self) -> Directions | None:
        """The numbers that must be kept: of derived directions only what was learned inside them, if anything."""
        return self

    def with_stored(self, change: Callable[[str, Tensor], Tensor]) -> Directions:
        """The same with the stored numbers changed; `change` gets "out/" or "in/" and the tensor."""
        return Directions(change("out/", self.out_NK), change("in/", self.in_DL))

    def turned(self, M_out: Tensor, M_in: Tensor) -> Directions:
        """The columns [out M_out, in M_in]. M: orthonormal, float64. Cost: N K k + 2 N k^2 a side, in float32."""
        return Directions(_turned_side(self.out_NK, M_out), _turned_side(self.in_DL, M_in))

    def nbytes(self) -> int:
        """Of what must be kept, in float32."""
        return 4 * (self.stored.out_NK.numel() + self.stored.in_DL.numel()) if self.stored else 0

    def first(self, K: int, L: int) -> Directions:
        return Directions(self.out_NK[:, :K], self.in_DL[:, :L])

    def then(self, new: Directions) -> Directions:
        """These columns followed by `new`'s."""
        return _joined([self, new])


Block = Mapping[str, Directions]
"""What one append adds: per module (possibly zero) new columns. Never changed afterwards."""


@dataclass(frozen=True)
class Basis:
    """Everybody's directions, as an ordered list of blocks.

    A later basis of the same generation starts with the same blocks, so coefficients made for an earlier
    basis keep their meaning: they are read with the first columns only.
    """

    blocks: tuple[Block, ...] = ()

    @cached_property
    def _columns(self) -> dict[str, Directions]:
        """By module, joined. From then on the blocks are stretches of these: no column is held twice."""
        names: dict[str, None] = {name: None for block in self.blocks for name in block}
        columns = {name: _joined([b[name] for b in self.blocks if name in b]) for name in names}
        ends: dict[str, tuple[int, int]] = {}
        self.__dict__["blocks"] = tuple(_stretches(block, columns, ends) for block in self.blocks)
        return columns

    def columns(self, module: str, N: int, D: int) -> Directions:
        """All columns of one module (none yet: zero columns of heights N and D)."""
        found = self._columns.get(module)
        if found is None:
            return Directions.none(N, D)
        if found.heights != (N, D):
            raise AlgebraError(
                f"{module}: the update is {N} x {D}, the basis is for {' x '.join(map(str, found.heights))}"
            )
        return found

    def widths(self) -> dict[str, tuple[int, int]]:
        """(K, L) by module. Cost: at most one addition a block and module, no tensor is touched."""
        if "_columns" in self.__dict__:
            return {name: columns.widths for name, columns in self._columns.items()}
        widths: dict[str, tuple[int, int]] = {}
        for block in self.blocks:
            for name, new in block.items():
                K, L = widths.get(name, (0, 0))
                widths[name] = (K + new.widths[0], L + new.widths[1])
        return widths

    def __getitem__(self, module: str) -> Directions:
        if module not in self._columns:
            raise AlgebraError(f"{module}: the basis has no directions for this module")
        return self._columns[module]

    def __contains__(self, module: str) -> bool:
        return module in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def grown(self, block: Block) -> Basis:
        """This basis and one more block. Cost: one copy of the columns of the modules that grow."""
        old = self._columns
        columns = {**old, **{m: old[m].then(new) if m in old else _joined([new]) for m, new in block.items()}}
        same = (b.of(columns) for b in self.blocks if isinstance(b, Stretches))  # all are, once joined
        basis = Basis((*same, _stretches(block, columns, self.widths())))
        basis.__dict__["_columns"] = columns
        return basis

    def prefix(self, blocks: int) -> Basis:
        """The basis as it was when it had that many blocks."""
        return self if blocks == len(self.blocks) else Basis(self.blocks[:blocks])

    def nbytes(self) -> int:
        """Bytes of what must be kept, in float32."""
        return sum(directions.nbytes() for block in self.blocks for directions in block.values())


class Stretches(Mapping[str, Directions]):
    """A block that holds no columns: of each module's joined columns it is those in a range, (out, in).

    derived: its directions that are not held anyway, and stay what they are.
    """

    def __init__(
        self,
        columns: Mapping[str, Directions],
        ranges: Mapping[str, tuple[slice, slice]],
        derived: Mapping[str, Directions],
    ):
        self._columns, self._ranges, self._derived = columns, ranges, derived

    def __getitem__(self, module: str) -> Directions:
        if module in self._derived:
            return self._derived[module]
        out, inn = self._ranges[module]
        return Directions(self._columns[module].out_NK[:, out], self._columns[module].in_DL[:, inn])

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def of(self, columns: Mapping[str, Directions]) -> Stretches:
        """The same ranges of columns that begin with these."""
        return Stretches(columns, self._ranges, self._derived)


def _stretches(block: Block, columns: Mapping[str, Directions], ends: dict[str, tuple[int, int]]) -> Stretches:
    """The same block as part of `columns`, where it begins at `ends`; these move to where it ends."""
    ranges = {}
    for module, new in block.items():
        (K, L), (more_K, more_L) = ends.get(module, (0, 0)), new.widths
        ends[module] = K + more_K, L + more_L
        ranges[module] = slice(K, K + more_K), slice(L, L + more_L)
    return Stretches(columns, ranges, {module: new for module, new in block.items() if new.stored is not new})


@dataclass(frozen=True)
class Coefficients:
    """One task's coordinates in one module: P_KR and Q_LR, for the first K and L columns of the basis."""

    P_KR: Tensor
    Q_LR: Tensor
    layout: str = LINEAR

    @property
    def widths(self) -> tuple[int, int]:
        return self.P_KR.shape[0], self.Q_LR.shape[0]

    def read(self, directions: Directions) -> Factors:
        """The LoRA factors that these coordinates mean in a basis that is at least as wide."""
        K, L = self.widths
        have_K, have_L = directions.widths
        if have_K < K or have_L < L:
            raise AlgebraError(f"coefficients for {K} and {L} columns, but the basis has {have_K} and {have_L}")
        columns = directions.first(K, L)
        return Factors(spread(columns.out_NK, self.P_KR).T, spread(columns.in_DL, self.Q_LR), self.layout)


@dataclass(frozen=True)
class TaskEntry:
    """All that belongs to one task inside a subspace."""

    coefficients: Mapping[str, Coefficients]
    head: Mapping[str, Tensor] = field(default_factory=lambda: NO_TENSORS)
    settings: Mapping[str, Any] = field(default_factory=lambda: NO_SETTINGS)

    def adapter(self, basis: Basis) -> Adapter:
        """The task as plain LoRA. Cost per module: (N K + D L) R."""
        return Adapter({m: c.read(basis[m]) for m, c in self.coefficients.items()}, self.head, self.settings)

    def with_coefficients(self, coefficients: Mapping[str, Coefficients]) -> TaskEntry:
        """The same head and settings, other coordinates."""
        return replace(self, coefficients=coefficients)

    def nbytes(self) -> int:
        tensors = [t for c in self.coefficients.values() for t in (c.P_KR, c.Q_LR)] + list(self.head.values())
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Update:
    """What a worker sends: coordinates in [its base version's basis, block], and that block.

    A whole adapter from elsewhere is the special case of an empty base basis.
    """

    block: Block
    entry: TaskEntry


def spread(columns_NK: Tensor, coordinates_KR: Tensor) -> Tensor:
    """(columns @ coordinates)^T, R x N. Bitwise alike however the coordinates lie in memory; of columns that are
    contiguous, as in a basis, three times as fast as the product the other way round."""
    return coordinates_KR.T.contiguous() @ columns_NK.T


def _joined(parts: list[Directions]) -> Directions:
    """Columns side by side, each column contiguous in memory.

    So the first K columns are the same stretch of memory layout whatever follows them, and a task that is read
    with its first columns is computed bitwise alike before and after an append. Derived columns by themselves stay so.
    """
    if len(parts) == 1 and parts[0].stored is not parts[0]:
        return parts[0]
    return Directions(torch.cat([p.out_NK.T for p in parts]).T, torch.cat([p.in_DL.T for p in parts]).T)


def _turned_side(old_NK: Tensor, M: Tensor) -> Tensor:
    """old @ M with its columns made orthonormal afresh (one Newton step), so that rounding never adds up."""
    new = old_NK @ M.float()
    gram = (new.T @ new).double()
    eye = torch.eye(len(gram)).to(gram)
    return new @ (1.5 * eye - 0.5 * gram).float()
