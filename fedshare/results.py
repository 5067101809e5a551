"""What a federation has come to: per task and in all, from what the coordinator knows. For a table, a picture, JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedshare.table import print_table
from workers.client import Client

HEADINGS = ("task", "version", "learned\n%", "at head\n%", "bytes\nsent", "bytes\nas LoRA", "ratio")
SPARE = ("ratio", "version", "bytes\nas LoRA", "learned\n%", "bytes\nsent")
"""Those that a narrow terminal has no room for, what matters least first."""


@dataclass(frozen=True)
class TaskResult:
    """accuracy_*: 0..1, None where it was not measured. bytes_lora: the same adapter as plain LoRA."""

    task: str
    worker: str
    version: int
    base_version: int
    accuracy_when_learned: float | None
    accuracy_at_head: float | None
    logits_difference: float | None
    relative_error: float
    bytes_sent: int
    bytes_lora: int


@dataclass(frozen=True)
class Results:
    name: str
    head: int
    tasks: list[TaskResult]
    accuracy_by_version: dict[str, dict[int, float]]
    bytes_basis: int
    bytes_tasks: int

    @property
    def bytes_sent(self) -> int:
        return sum(t.bytes_sent for t in self.tasks)

    @property
    def bytes_lora(self) -> int:
        return sum(t.bytes_lora for t in self.tasks)

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "bytes_sent": self.bytes_sent, "bytes_lora": self.bytes_lora}


def collect(client: Client) -> Results:
    """Ask the coordinator. A task that was learned twice is shown as it was learned last."""
    status = client.status()
    measured: dict[tuple[str, str], dict[int, float]] = {}
    for m in client.metrics():
        measured.setdefault((m.task, m.name), {})[m.version] = m.value
    newest = {r.task: r for r in client.versions() if r.task}
    tasks = [
        TaskResult(
            task=r.task,
            worker=r.worker,
            version=r.version,
            base_version=r.base_version,
            accuracy_when_learned=r.metrics.get("accuracy_when_learned"),
            accuracy_at_head=measured.get((r.task, "accuracy"), {}).get(status.head),
            logits_difference=measured.get((r.task, "logits_difference"), {}).get(r.version),
            relative_error=r.relative_error,
            bytes_sent=r.bytes_sent,
            bytes_lora=r.bytes_lora,
        )
        for r in newest.values()
    ]
    by_version = {task: values for (task, name), values in measured.items() if name == "accuracy"}
    return Results(status.spec.name, status.head, tasks, by_version, status.bytes_basis, status.bytes_tasks)


def show(results: Results, console: Console) -> None:
    """Accuracy in percent when learned and at the head, bytes both ways; then what is kept."""
    means = [_mean(getattr(t, name) for t in results.tasks) for name in ("accuracy_when_learned", "accuracy_at_head")]
    rows: list[Iterable[str | Text]] = [
        (t.task, str(t.version), _percent(t.accuracy_when_learned), _percent(t.accuracy_at_head),
         *_bytes(t.bytes_sent, t.bytes_lora))
        for t in results.tasks
    ]  # fmt: skip
    rows.append(
        Text(cell, style="bold")
        for cell in ("mean, total", "", *map(_percent, means), *_bytes(results.bytes_sent, results.bytes_lora))
    )
    console.print(f"federation {results.name}, version {results.head}", highlight=False, style="italic")
    print_table(console, HEADINGS, rows, spare=SPARE, right=HEADINGS[1:])
    console.print(f"\n{storage_sentence(results)}", highlight=False)


def storage_sentence(results: Results) -> str:
    """Both ways of counting: what each task adds, and everything that must be kept."""
    own, everything = results.bytes_tasks, results.bytes_basis + results.bytes_tasks
    return (
        f"kept for {len(results.tasks)} tasks: {own:,} bytes of coefficients and heads, {everything:,} with the basis;"
        f" one LoRA per task is {results.bytes_lora:,}: {results.bytes_lora / max(1, own):.1f} times"
        f" the former, {results.bytes_lora / max(1, everything):.1f} times the latter"
    )


def draw(results: Results, file: Path) -> Path:
    """Accuracy of every task over the versions it was measured on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for task, values in sorted(results.accuracy_by_version.items(), key=lambda item: min(item[1])):
        versions = sorted(values)
        axes.plot(versions, [100 * values[v] for v in versions], marker="o", markersize=4, label=task)
    axes.set(
        xlabel="version",
        ylabel="accuracy on the task's test split, %",
        title=f"{results.name}: accuracy over versions",
    )
    axes.set_xticks(range(results.head + 1))
    axes.set_ylim(top=102)
    axes.grid(alpha=0.3)
    if results.accuracy_by_version:
        axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(1, 0))
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file


def _bytes(sent: int, lora: int) -> tuple[str, str, str]:
    return f"{sent:,}", f"{lora:,}", f"{lora / sent:.1f}x" if sent else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _mean(values) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
