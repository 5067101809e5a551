"""What a person sees while it runs: one line a worker, and what has happened. Without a terminal: a line a change."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from fedshare.run import View
from fedshare.table import fitted
from workers.ray_host import Glimpse

EVENTS_SHOWN = 4
HEADINGS = ("worker", "stage", "fit", "on version", "accuracy")
SPARE = ("fit", "on version", "accuracy")
"""Those that a narrow terminal has no room for, what matters least first."""


class Screen:
    """Use as a context manager; `show` is what a Run calls."""

    def __init__(self, console: Console, total: int):
        self._console, self._total = console, total
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._said: dict[str, str] = {}
        self._events_said = 0

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, view: View) -> None:
        if self._live:
            self._live.update(_picture(view, self._total, self._console.width), refresh=True)
        else:
            self._say(view)

    def _say(self, view: View) -> None:
        for event in view.events[self._events_said :]:
            self._console.print(event)
        self._events_said = len(view.events)
        for g in view.workers:
            line = _words(g)
            if self._said.get(g.worker) != line:
                self._said[g.worker] = line
                self._console.print(f"{view.seconds:4.0f} s  {g.worker}: {line}", highlight=False)


def _words(g: Glimpse) -> str:
    if g.error:
        return f"failed: {g.error}"
    if waits := g.progress.get("waits"):
        return str(waits)
    accuracy = g.progress.get("accuracy")
    known = f", accuracy {accuracy:.3f} on version {g.progress['version']}" if accuracy is not None else ""
    return f"{g.stage}{known}"


def _picture(view: View, total: int, width: int) -> Group:
    learned = sum(bool(g.progress.get("version")) for g in view.workers)
    rows = [_row(g) for g in view.workers]
    for task in view.waiting:
        rows.append([Text(f"{task.name}-worker", style="dim"), Text("not started", style="dim"), "", "", ""])
    shown = fitted(HEADINGS, rows, width, spare=SPARE, right=HEADINGS[3:])
    heading = Text(f"{learned} of {total} tasks learned, {view.seconds:.0f} s", style="bold")
    missing = [Text(said, style="dim")] if (said := shown.sentence("widen the terminal")) else []
    events = (Text(event, style="yellow") for event in view.events[-EVENTS_SHOWN:])
    return Group(heading, shown.picture, *missing, *events)


def _row(g: Glimpse) -> list[str | Text | ProgressBar]:
    p = g.progress
    fraction = 1.0 if p.get("version") else float(p.get("fraction", 0.0))
    accuracy = p.get("accuracy")
    return [
        g.worker,
        Text(g.error or p.get("waits") or p.get("detail") or g.stage, style="red" if g.error else ""),
        ProgressBar(total=1.0, completed=fraction, width=20),
        str(p.get("version") or ""),
        "" if accuracy is None else f"{accuracy:.3f}",
    ]
