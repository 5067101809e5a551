"""What workers measured on versions, in order of arrival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select

from coordinator.members import incarnation_of, must_be_current
from coordinator.tables import metrics, writer

STORY_MAX = 100_000
PAGE = 2000
"""Measurements in one message: far less than a MiB, whatever their names are."""


@dataclass(frozen=True)
class Measurement:
    id: int
    worker: str
    task: str
    version: int
    name: str
    value: float
    at: float


class Measured:
    def __init__(self, engine: Engine):
        self._engine, self._writer = engine, writer(engine)

    def add(
        self, worker: str, incarnation: int, task: str, version: int, values: Mapping[str, float], at: float
    ) -> None:
        rows = [
            {"worker": worker, "task": task, "version": version, "name": name, "value": value, "at": at}
            for name, value in values.items()
        ]
        with self._writer.begin() as connection:
            must_be_current(incarnation_of(connection, worker), worker, incarnation)
            if rows:
                connection.execute(insert(metrics), rows)

    def of_task(self, task: str = "", after: int = 0, limit: int = PAGE) -> list[Measurement]:
        """The next of one task, or of every task where none is named, after the measurement with this id."""
        query = select(metrics).where(metrics.c.id > after)
        return self._read(query.where(metrics.c.task == task) if task else query, limit)

    def of_contributor(self, worker: str, task: str, versions: tuple[int, int]) -> list[Measurement]:
        """What this worker measured of this task from the first of these versions on and before the second."""
        m, (first, end) = metrics.c, versions
        of = m.worker == worker, m.task == task, m.version >= first, m.version < end
        return self._read(select(metrics).where(*of), STORY_MAX)

    def contributors(self) -> set[tuple[str, str]]:
        """(worker, task) of everything that is kept."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(metrics.c.worker, metrics.c.task).distinct()).all()
        return {(row.worker, row.task) for row in rows}

    def after(self, id: int, limit: int) -> list[Measurement]:
        return self._read(select(metrics).where(metrics.c.id > id), limit)

    def _read(self, query, limit: int) -> list[Measurement]:
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(metrics.c.id).limit(limit)).all()
        return [Measurement(*row) for row in rows]
