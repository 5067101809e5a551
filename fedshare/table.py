"""One rule for every table: numbers and ids are never cut, names go on in the next line, and where a terminal is too
narrow for all columns, those that matter least are left out and a line says so. What is piped has room for everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

FOLDING = ("task", "worker", "stage")
"""Headings of what goes on in the next line where it has less room than it wants."""
NAME_LENGTH_MIN = 10
"""Room that a name has at least: `(rollback)` is whole."""
PIPED_WIDTH = 400
"""Two names of 100 characters, and every number there may be beside them."""
GAP = 2


@dataclass(frozen=True)
class Fitted:
    """picture: as wide as was asked for, or as what may not be left out needs."""

    picture: Group
    left_out: int

    def sentence(self, remedy: str = "widen the terminal, or --json") -> str:
        """What is missing; empty where nothing is."""
        if not self.left_out:
            return ""
        return f"{'1 column does' if self.left_out == 1 else f'{self.left_out} columns do'} not fit: {remedy}"


def fitted(
    headings: Sequence[str],
    rows: Iterable[Iterable[object]],
    width: int,
    *,
    spare: Sequence[str] = (),
    right: Sequence[str] = (),
    below: Sequence[str] = (),
) -> Fitted:
    """spare: headings that may be left out, what matters least first; right: of columns that are set to the right;
    below: a sentence under each row, wrapped."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = [_Column(h, [row[i] for row in cells], h in right) for i, h in enumerate(headings)]
    shown = _chosen(columns, width, spare)
    widths = _widths(shown, width)
    parts = [(0, len(cells))] if not below else [(i, i + 1) for i in range(len(below))]
    picture: list[RenderableType] = []
    for first, end in parts:
        picture.append(_table(shown, widths, first, end))
        if below:
            picture.append(Padding(Text(below[first]), (0, 0, 0, GAP), expand=False))
    return Fitted(Group(*picture), len(columns) - len(shown))


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    spare: Sequence[str] = (),
    right: Sequence[str] = (),
    below: Sequence[str] = (),
) -> None:
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPED_WIDTH)
    shown = fitted(headings, rows, console.width, spare=spare, right=right, below=below)
    console.print(shown.picture, crop=False)
    if said := shown.sentence():
        console.print(said, style="dim", highlight=False)


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: Sequence[Text | ProgressBar]
    right: bool

    @property
    def folds(self) -> bool:
        return self.heading in FOLDING

    @property
    def wanted(self) -> int:
        """So wide that nothing goes on in another line."""
        return max(*map(len, self.heading.split("\n")), 0, *map(_width, self.cells))

    @property
    def least(self) -> int:
        return min(self.wanted, NAME_LENGTH_MIN) if self.folds else self.wanted


def _chosen(columns: Sequence[_Column], width: int, spare: Sequence[str]) -> list[_Column]:
    shown = list(columns)
    for heading in spare:
        if _whole(c.least for c in shown) <= width:
            break
        shown = [c for c in shown if c.heading != heading]
    return shown


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Names share what the others leave: each has what it wants, or as much as any other."""
    widths = [c.least for c in columns]
    folding = sorted((i for i, c in enumerate(columns) if c.folds), key=lambda i: columns[i].wanted)
    room = max(width - _whole(widths), 0) + sum(widths[i] for i in folding)
    for n, i in enumerate(folding):
        widths[i] = min(columns[i].wanted, room // (len(folding) - n))
        room -= widths[i]
    return widths


def _whole(widths: Iterable[int]) -> int:
    known = list(widths)
    return sum(known) + GAP * (len(known) - 1)


def _table(columns: Sequence[_Column], widths: Sequence[int], first: int, end: int) -> Table:
    """Of these rows, with the headings above the first of all."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=not first, width=_whole(widths))
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            column.heading,
            width=width,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.folds,
        )
    for row in range(first, end):
        table.add_row(*(column.cells[row] for column in columns))
    return table


def _cell(value: object) -> Text | ProgressBar:
    """No markup is read in what somebody else has named."""
    return value if isinstance(value, Text | ProgressBar) else Text(str(value))


def _width(cell: Text | ProgressBar) -> int:
    return (cell.width or 0) if isinstance(cell, ProgressBar) else cell.cell_len
