"""What a probe is, what it finds, and the small library interface that it is handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from benchmarks.algebra_samples import Sample, relative_error, write_folder

HOLDS, FAILS, NOT_APPLICABLE = "holds", "fails", "n/a"
ALL_DIRECTIONS = 1 << 20
"""As many columns as there are: nothing is lost for want of room."""


class Library(Protocol):
    """A library of shared subspaces, as its users meet it: PEFT folders in and out. Tensors in Samples are numpy."""

    name: ClassVar[str]
    package: ClassVar[str]
    ways: ClassVar[tuple[str, ...]]
    """Its ways of adding one adapter."""

    @classmethod
    def built(cls, folders: Mapping[str, Path], *, columns: int | None = None, error: float | None = None) -> Library:
        """From adapters by task name; `columns` a side, or bytes like that many; `error` of dW that is allowed."""

    @classmethod
    def streamed(cls, folders: Mapping[str, Path], columns: int) -> Library:
        """The same, by the way it recommends for more adapters than fit in memory."""

    @classmethod
    def loaded(cls, folder: Path) -> Library: ...
    @staticmethod
    def merges() -> dict[str, Callable[[list[Path]], Sample]]:
        """Its ways of making one adapter of several, by name."""

    def save(self, folder: Path) -> None: ...
    def add(self, task: str, folder: Path, way: str) -> None: ...
    def remove(self, task: str) -> None: ...
    def tasks(self) -> list[str]: ...
    def read(self, task: str) -> Sample: ...
    def claim(self, task: str, folder: Path) -> tuple[float, bool]:
        """The relative error that it states for the task, and whether it states it as a bound."""

    def model(self, task: str, base: Any) -> Any:
        """`base` with the task applied, by the library's own means."""

    def export(self, task: str, folder: Path) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """cell: what happened, in a few words. figure: for probes that compare the libraries; less is better. said: whose
    words, where a library refused something."""

    cell: str
    verdict: str
    figure: float | None = None
    said: str = ""

    @staticmethod
    def judged(cell: str, holds: bool, said: str = "") -> Outcome:
        return Outcome(cell, HOLDS if holds else FAILS, said=said)


@dataclass(frozen=True)
class Place:
    """Where a probe may write, and whether it shall run at full size."""

    folder: Path
    full: bool = False

    def written(self, samples: list[Sample], name: str = "t") -> dict[str, Path]:
        """The samples as PEFT folders, by task name."""
        return {f"{name}{i}": write_folder(s, self.folder / "adapters" / f"{name}{i}") for i, s in enumerate(samples)}


@dataclass(frozen=True)
class Probe:
    """compare: the verdict is that no other library's figure is more than 1 % lower. seconds: of CPU, at most."""

    family: int
    name: str
    run: Callable[[type[Library], Place], Outcome]
    compare: bool = False
    seconds: int = 60
    seconds_full: int = 60


def compared(outcomes: list[Outcome]) -> list[Outcome]:
    """The verdicts of one comparing probe."""
    figures = [o.figure for o in outcomes if o.figure is not None and np.isfinite(o.figure)]
    best = min(figures, default=0.0)
    return [
        o if o.figure is None else replace(o, verdict=HOLDS if o.figure <= 1.01 * best else FAILS) for o in outcomes
    ]


def mean_error(library: Library, samples: list[Sample], name: str = "t") -> float:
    return float(np.mean([relative_error(s, library.read(f"{name}{i}")) for i, s in enumerate(samples)]))


def worst_error(library: Library, samples: Mapping[str, Sample]) -> float:
    """The largest relative dW error; infinite where a task holds NaN."""
    return max(float(np.nan_to_num(relative_error(s, library.read(t)), nan=np.inf)) for t, s in samples.items())


def first_line(error: BaseException, hide: Path | None = None) -> str:
    """Type and first line of what was raised, without the scratch folder's name."""
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return (text.replace(f"{hide}/", "") if hide else text)[:160]
