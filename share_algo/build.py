"""Build a subspace from many adapters, reading one at a time: memory is bounded by the basis, not by their number.

While it grows, the basis may be wider than asked for in the end (SLACK): adapters that come early must not decide
for those that come late. When it is full it is compacted to half way, and at the end to its size.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from share_algo.append import DEFAULT_TOLERANCE
from share_algo.certificate import largest
from share_algo.compact import compact
from share_algo.errors import AlgebraError
from share_algo.names import check_task_name
from share_algo.subspace import Result, Subspace, measured, merge
from share_algo.types import Adapter

SLACK = 3
"""How many times the final size the basis may have in between."""
HALFWAY = 2

Source = Path | str | Adapter | Callable[[], Adapter]
Sources = Iterable[Path | str] | Mapping[str, Source]


@dataclass(frozen=True)
class BuildReport:
    """What a build did. `refused`: the reason by name, for adapters that were left out."""

    tasks: int
    refused: Mapping[str, str]
    compactions: int
    after: Subspace = field(repr=False)
    seconds: float = 0.0

    @property
    def largest_relative_error(self) -> float:
        """Of all tasks; exact where their certificates are, otherwise a bound."""
        return largest(self.after.certificates.values())


def build(
    adapters: Sources,
    *,
    size: int | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    start: Subspace | None = None,
    refuse: bool = True,
    measure: bool = True,
    progress: bool = False,
) -> Result[BuildReport]:
    """One subspace of all `adapters` (folders, named by their last part; or a mapping from task names).

    size: columns a side at most; otherwise as many as `tolerance` needs.
    refuse=False: bad adapters are left out and reported instead of raised.
    measure: read all once more at the end, so that every certificate is exact; otherwise, where directions were added
    between compactions, it is a bound. progress: a bar (needs rich).
    Raises AlgebraError with the adapter's name.
    Memory: one adapter, SLACK * size columns, all coefficients.
    """
    started = time.perf_counter()
    named = _named(adapters)
    if size is not None and size < 1:
        raise AlgebraError(f"a size of {size} columns")
    made, compactions = start or Subspace.empty(), 0
    refused: dict[str, str] = {}
    for task in _with_bar(named, progress):
        try:
            if task in made.tasks:
                raise AlgebraError("there is a task of this name already")
            made = merge(made, task, _loaded(named[task]), tolerance=tolerance).subspace
        except AlgebraError as error:
            if refuse:
                raise AlgebraError(f"{task}: {error}") from None
            refused[task] = str(error)
            continue
        if size is not None and (wide := _wider(made, SLACK * size)):
            made = compact(made, size=dict.fromkeys(wide, HALFWAY * size)).subspace
            compactions += 1
    if size is not None and (wide := _wider(made, size)):
        made = compact(made, size=dict.fromkeys(wide, size)).subspace
        compactions += 1
    if measure and compactions:
        for task in _with_bar([task for task in named if task not in refused], progress, "measuring"):
            made = measured(made, task, _loaded(named[task]))
    report = BuildReport(len(named) - len(refused), refused, compactions, made, time.perf_counter() - started)
    return Result(made, report)


def _named(adapters: Sources) -> dict[str, Source]:
    """By task name; AlgebraError for two folders of one name."""
    named: dict[str, Source]
    if isinstance(adapters, Mapping):
        named = dict(adapters)
    else:
        paths = [Path(path) for path in adapters]
        named = {path.name: path for path in paths}
        if len(named) != len(paths):
            twice = next(p for p in paths if named[p.name] is not p)
            raise AlgebraError(f"{twice} and {named[twice.name]} have the same name: give a mapping from names")
    for task in named:
        check_task_name(task)
    return named


def _loaded(source: Source) -> Adapter:
    if isinstance(source, Adapter):
        return source
    return source() if callable(source) else Adapter.load(source)


def _wider(subspace: Subspace, columns: int) -> list[str]:
    return [m for m, widths in subspace.basis.widths().items() if max(widths) > columns]


@contextlib.contextmanager
def _bar(total: int, doing: str) -> Iterator[Callable[[str], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(doing, total=total)
        yield lambda name: progress.update(bar, advance=1, description=f"{doing} {name[:40]}")


def _with_bar(named: Iterable[str], progress: bool, doing: str = "merging") -> Iterator[str]:
    names = list(named)
    if not progress:
        yield from names
        return
    with _bar(len(names), doing) as advance:
        for name in names:
            yield name
            advance(name)
