"""A worker's life in this very process, with a progress bar: `fedshare worker`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from workers.life import WAITING, Life, Plan, Progress


def lead_here(plan: Plan, *, stay: bool, console: Console) -> dict[str, Any]:
    """Lead the life to its end; returns how it ended. Ctrl-C is passed on: finished work is in the outbox."""
    said: list[str] = []
    with Bar(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        line = bar.add_task(plan.worker, total=1.0)

        def tell(progress: Progress) -> None:
            bar.update(
                line,
                description=f"{plan.worker}: {progress.detail or progress.stage}",
                completed=progress.fraction,
            )
            words = _milestone(progress)
            if words and words not in said:
                said.append(words)
                bar.console.print(words, highlight=False, markup=False, soft_wrap=True)

        end = Life(plan, tell, lambda: stay).lead()
    return asdict(end)


def _milestone(p: Progress) -> str:
    if p.detail.startswith(WAITING):
        return "no coordinator answers: waiting for it"
    if p.stage == "fitting" and not p.fraction:
        return f"joined (incarnation {p.incarnation}); fitting beside version {p.base_version}"
    if p.stage == "waiting for the merge":
        return p.detail or f"receipt for update {p.update_id}: it is on the coordinator's disk"
    if p.stage == "kept by the coordinator":
        return p.waits
    if p.stage == "not compared":
        return p.detail
    if p.accuracy is not None and p.stage == "evaluating" and p.version:
        return f"version {p.version}: accuracy {p.accuracy:.3f}"
    return ""
