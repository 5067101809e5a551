"""`fedshare run`: one coordinator, one Ray actor for each task, until all are learned and measured at the head."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedshare.coordinator_process import CoordinatorProcess
from fedshare.federation_file import FederationFile, Task
from workers.life import Plan
from workers.ray_host import Glimpse, RayWorkers

TICK_SECONDS = 0.5
SETTLED = ("watching", "left", "lost", "refused")
GONE = ("left", "lost")


@dataclass(frozen=True)
class View:
    """What a screen shows at one instant."""

    workers: list[Glimpse]
    waiting: list[Task]
    seconds: float
    events: list[str]


@dataclass
class Accident:
    """A worker is killed once, when its fit has come so far."""

    worker: str
    at_fraction: float
    happened: bool = False


@dataclass
class Run:
    """State of one run. `show` is called at every tick."""

    file: FederationFile
    home: Path
    show: Callable[[View], None]
    accidents: list[Accident] = field(default_factory=list)
    ray_address: str | None = None

    def go(self, coordinator: CoordinatorProcess) -> list[Glimpse]:
        """Lead all workers to their end; returns how each one ended. Raises only what stops the whole run."""
        self._started = time.monotonic()
        self._events: list[str] = []
        self._incarnations: dict[str, int] = {}
        self._waiting = list(self.file.tasks)
        self._address = coordinator.address
        cpus = os.cpu_count() or 2
        self._at_once = self.file.workers.at_once or max(2, cpus)
        with RayWorkers(self.ray_address, cpus) as workers:
            while not self._over(glimpses := workers.look()):
                if coordinator.keep_running():
                    self._event("the coordinator died and was started again")
                self._start_due(workers, glimpses)
                self._accidents(workers, glimpses)
                self._returns(glimpses)
                if self._all_have_learned(glimpses):
                    for glimpse in glimpses:
                        workers.finish(glimpse.worker)
                self._show(glimpses)
                time.sleep(TICK_SECONDS)
            self._show(glimpses)
        return glimpses

    def _start_due(self, workers: RayWorkers, glimpses: list[Glimpse]) -> None:
        busy = sum(not _settled(g) for g in glimpses)
        seconds = time.monotonic() - self._started
        for task in [t for t in self._waiting if t.start_seconds <= seconds]:
            if busy >= self._at_once:
                return
            workers.start(self._plan(task), cpu_share=self._share())
            self._waiting.remove(task)
            busy += 1

    def _share(self) -> float:
        """So small that every worker of this run has its place at once."""
        return max(0.001, round(1 / max(1, len(self.file.tasks)), 3))

    def _plan(self, task: Task) -> Plan:
        data = self.file.data
        return Plan(
            worker=f"{task.name}-worker",
            task=task.name,
            source=task.source,
            address=self._address,
            home=self.home / "workers" / f"{task.name}-worker",
            base_model=self.file.base.model,
            train_examples_max=data.train_examples_max,
            test_examples_max=data.test_examples_max,
            pause_seconds=task.pause_seconds,
            threads=max(1, (os.cpu_count() or 2) // self._at_once),
            evaluate_every=self.file.workers.evaluate == "every",
        )

    def _accidents(self, workers: RayWorkers, glimpses: list[Glimpse]) -> None:
        for accident in self.accidents:
            for g in glimpses:
                due = g.stage == "fitting" and g.progress["fraction"] >= accident.at_fraction
                if due and g.worker == accident.worker and not accident.happened:
                    workers.kill(g.worker)
                    accident.happened = True
                    self._event(f"{g.worker} was killed at {g.progress['fraction']:.0%} of its fit")

    def _returns(self, glimpses: list[Glimpse]) -> None:
        for g in glimpses:
            now, before = int(g.progress.get("incarnation", 0)), self._incarnations.get(g.worker, 0)
            if now > before:
                self._incarnations[g.worker] = now
            if now > max(1, before):
                self._event(f"{g.worker} is back, as incarnation {now}")

    def _all_have_learned(self, glimpses: list[Glimpse]) -> bool:
        """Counted, for a worker that was started just now is not among the glimpses yet."""
        return len(glimpses) == len(self.file.tasks) and all(_settled(g) for g in glimpses)

    def _over(self, glimpses: list[Glimpse]) -> bool:
        return not self._waiting and all(g.stage in GONE or g.error for g in glimpses)

    def _event(self, sentence: str) -> None:
        self._events.append(f"{time.monotonic() - self._started:4.0f} s  {sentence}")

    def _show(self, glimpses: list[Glimpse]) -> None:
        seconds = time.monotonic() - self._started
        self.show(View(glimpses, list(self._waiting), seconds, list(self._events)))


def _settled(glimpse: Glimpse) -> bool:
    """Nothing more to wait for, unless new versions come."""
    return glimpse.stage in SETTLED or bool(glimpse.error)
