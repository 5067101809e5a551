"""A worker's life in a Ray actor. The only file that imports ray.

An actor leads its life in a thread of its own; its methods are short. Ray starts a killed actor again: it
then asks the coordinator what became of its work, as any worker does. `RayWorkers` is the driver's side.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.errors import WorkerError

if TYPE_CHECKING:
    from workers.life import Plan, Progress

RESTARTS_MAX = 5
ANSWER_SECONDS_MAX = 60.0
"""An actor that answers no question for so long counts as lost; starting one takes a tenth of it."""


class Actor:
    """What runs in Ray: one worker, one task."""

    def __init__(self, plan: dict[str, Any]):
        self._plan = plan
        self._stay = threading.Event()
        self._stay.set()
        self._progress: dict[str, Any] = {"stage": "importing"}
        self._error = ""
        threading.Thread(target=self._lead, name="life", daemon=True).start()

    def progress(self) -> dict[str, Any]:
        """Progress as a mapping, with `error` (one sentence, or empty)."""
        return {**self._progress, "error": self._error}

    def finish(self) -> None:
        """Evaluate the newest version and leave."""
        self._stay.clear()

    def _lead(self) -> None:
        from workers.life import Life, Plan

        def tell(progress: Progress) -> None:
            self._progress = asdict(progress)

        try:
            Life(Plan(**self._plan), tell, self._stay.is_set).lead()
        except WorkerError as error:
            self._error = str(error)
        except Exception as error:  # ours to mend: the driver must hear of it
            self._error = f"internal error: {type(error).__name__}: {error}"
            raise


@dataclass(frozen=True)
class Glimpse:
    """What the driver knows of one worker just now."""

    worker: str
    progress: dict[str, Any]
    restarting: bool = False

    @property
    def stage(self) -> str:
        return "restarting" if self.restarting else str(self.progress["stage"])

    @property
    def error(self) -> str:
        return str(self.progress.get("error", ""))


class RayWorkers:
    """Workers as actors on a Ray cluster: the running one that RAY_ADDRESS names, or one on this machine.

    The coordinator listens on loopback, so actors are placed on this node. Use as a context manager: leaving
    it kills its actors.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None):
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._cpus = cpus
        self._actors: dict[str, Any] = {}
        self._last: dict[str, Glimpse] = {}

    def __enter__(self) -> RayWorkers:
        self._ray = _ray(local=self._address == "local")
        local = {"num_cpus": self._cpus, "include_dashboard": False} if self._address == "local" else {}
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise WorkerError(f"cannot reach the Ray cluster at {self._address}: {first}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def start(self, plan: Plan, cpu_share: float) -> None:
        """cpu_share: of one CPU, for Ray's bookkeeping; small enough that all workers of a run fit."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self._ray.get_runtime_context().get_node_id()
        actor = self._ray.remote(Actor).options(
            num_cpus=cpu_share,
            max_restarts=RESTARTS_MAX,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        absolute = replace(plan, home=Path(plan.home).absolute())
        self._actors[plan.worker] = actor.remote(asdict(absolute))
        self._last[plan.worker] = Glimpse(plan.worker, {"stage": "starting"})

    def look(self, seconds: float = 1.0) -> list[Glimpse]:
        """All workers, as they answer within so many seconds; who does not is shown as last seen."""
        asked = {actor.progress.remote(): worker for worker, actor in self._actors.items()}
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
        for answer in ready:
            worker = asked[answer]
            try:
                self._last[worker] = Glimpse(worker, self._ray.get(answer))
            except self._ray.exceptions.ActorUnavailableError:
                self._last[worker] = replace(self._last[worker], restarting=True)
            except self._ray.exceptions.RayActorError:
                gone = {"stage": "lost", "error": f"the process of {worker} died {RESTARTS_MAX} times"}
                self._last[worker] = Glimpse(worker, gone)
        return list(self._last.values())

    def finish(self, worker: str) -> None:
        self._actors[worker].finish.remote()

    def kill(self, worker: str) -> None:
        """As a power cut would; Ray starts it again."""
        self._ray.kill(self._actors[worker], no_restart=False)


def _ray(*, local: bool) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    import ray.exceptions

    return ray
