"""Lineage: a reader of versions and measurements, with its own cursor, that shows them in MLflow.

MLflow being slow, away or broken never stops learning: this runs beside the walk, not in it. The only file
that imports mlflow.

    experiment NAME/versions   one run a version and update: tags say parent, task, worker, update, base version;
                               metrics say relative error, basis size, bytes; the contributor is a dataset input
    experiment NAME/workers    one run a worker and task: what it measured, with the version as step
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from coordinator.catalog import Catalog, Version
from coordinator.errors import Fenced
from coordinator.heirs import ERASED_TASK
from coordinator.home import Home
from coordinator.lineage_erase import erase_runs
from coordinator.measured import Measured, Measurement
from coordinator.tables import cursors, writer
from coordinator.transition import Record
from protos.fedshare.v1.federation_pb2 import VERSION_KIND_FORGET, VERSION_KIND_MERGE, VersionKind

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

BATCH = 200
POLL_SECONDS = 2.0
AWAY_SECONDS_MAX = 60.0
"""Longest pause between tries while MLflow is away."""
DRAIN_SECONDS_MAX = 30.0
"""How long a stopping coordinator waits for MLflow; the cursor remembers where to go on."""


class LineageOff:
    uri = ""

    def behind(self) -> int:
        return 0

    def start(self) -> None: ...
    def wake(self) -> None: ...
    def stop(self) -> None: ...


class Lineage:
    def __init__(self, home: Home, catalog: Catalog, measured: Measured, tracking_uri: str = ""):
        folder = home.lineage_folder.absolute()
        self._database = None if tracking_uri else folder / "mlflow.db"
        self.uri = tracking_uri or f"sqlite:///{self._database}"
        self._artifacts = None if tracking_uri else (folder / "artifacts").as_uri()
        if not tracking_uri:
            folder.mkdir(parents=True, exist_ok=True)
        self._name, self._federation_id = home.spec.name, home.spec.federation_id
        self._catalog, self._measured = catalog, measured
        reader = f"lineage@{folder}" if home.is_shared and not tracking_uri else "lineage"  # each home has its own
        self._versions, self._measurements, self._collections = (
            _Cursor(home, f"{reader}/{name}") for name in ("versions", "metrics", "collected")
        )
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="lineage", daemon=True)

    def behind(self) -> int:
        """Versions that MLflow does not show yet."""
        return self._catalog.head().version - self._versions.get()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """Write what is there, within DRAIN_SECONDS_MAX; the rest, and all where MLflow is away, by the next start."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(DRAIN_SECONDS_MAX)

    def _run(self) -> None:
        pause, store, away = POLL_SECONDS, None, False
        while not (away and self._stopping.is_set()):
            last = self._stopping.is_set()
            try:
                store = store or _Store(self.uri, self._artifacts, self._name, self._federation_id, self._database)
                while self._copy_versions(store) or self._copy_measurements(store):
                    pass
                self._copy_collections(store)
                pause, away = POLL_SECONDS, False
            except Fenced:
                return
            except Exception as error:  # whatever MLflow raises: say it once, stay out of the way
                log.warning("MLflow at %s is away (%s): lineage waits", self.uri, type(error).__name__)
                pause, away = min(2 * pause, AWAY_SECONDS_MAX), True
            if last:
                return
            self._wake.wait(pause)
            self._wake.clear()

    def _copy_versions(self, store: _Store) -> bool:
        found = self._catalog.records(self._versions.get() + 1, BATCH)
        for version in found:
            if any(record.kind == VERSION_KIND_FORGET for record in version.records):
                self._follow_erasures(store)
            store.write_version(version)
            self._versions.set(version.version)
        return bool(found)

    def _copy_collections(self, store: _Store) -> None:
        """Versions that were collected since they were written say so. Those collected last are the newest of them."""
        done, last = self._collections.get(), min(self._catalog.newest_collected(), self._versions.get())
        while done < last:
            found = self._catalog.records(done + 1, BATCH)
            for version in found:
                if version.version <= last and version.gone:
                    store.write_version(version)
            done = min(found[-1].version, last)
            self._collections.set(done)

    def _follow_erasures(self, store: _Store) -> None:
        """MLflow says of what was erased no more than the coordinator does: that there was something."""
        held = [v for v in self._catalog.every() if v.version <= self._versions.get()]
        blank = [v for v in held if any(_is_blanked(r) for r in v.records)]
        store.erase({r.update_id for v in blank for r in v.records}, self._measured.contributors())
        for version in blank:
            store.write_version(version)

    def _copy_measurements(self, store: _Store) -> bool:
        found = self._measured.after(self._measurements.get(), BATCH)
        if found:
            store.write_measurements(found)
            self._measurements.set(found[-1].id)
        return bool(found)


class _Cursor:
    """How far a reader has come. Kept in the home, so that a restart goes on from there."""

    def __init__(self, home: Home, name: str):
        self._engine, self._writer, self._name = home.engine, writer(home.engine), name

    def get(self) -> int:
        with self._engine.connect() as connection:
            found = connection.execute(select(cursors.c.position).where(cursors.c.name == self._name)).scalar()
        return found or 0

    def set(self, position: int) -> None:
        with self._writer.begin() as connection:
            connection.execute(delete(cursors).where(cursors.c.name == self._name))
            connection.execute(insert(cursors).values(name=self._name, position=position))


class _Store:
    """MLflow's side: everything is looked up by our own tags first, so writing twice writes once."""

    def __init__(self, uri: str, artifacts: str | None, name: str, federation_id: str, database: Path | None):
        self._client = _client(uri)
        self._federation_id, self._database = federation_id, database
        self._versions = self._experiment(f"{name}/versions", artifacts)
        self._workers = self._experiment(f"{name}/workers", artifacts)

    def write_version(self, version: Version) -> None:
        """A run for each update that was merged in it; one for a version that is no merge."""
        for record in version.records:
            self._write(version, record)

    def _write(self, version: Version, r: Record) -> None:
        from mlflow.entities import Metric

        kind = VersionKind.Name(r.kind).removeprefix("VERSION_KIND_").lower()
        tags = {
            "fedshare.version": str(version.version),
            "fedshare.parent": str(version.parent),
            "fedshare.generation": str(version.generation),
            "fedshare.digest": version.digest,
            "fedshare.kind": kind,
            "fedshare.note": r.note,
            "fedshare.task": r.task,
            "fedshare.worker": r.worker,
            "fedshare.update_id": r.update_id,
            "fedshare.base_version": str(r.base_version),
            "fedshare.warm_start": r.warm_start,
            "fedshare.gone": version.gone,
        }
        at = int(version.created_at * 1000)
        key = {name: tags[name] for name in ("fedshare.version", "fedshare.update_id")}
        merged = kind == "merge"
        run_id = self._run(self._versions, key, f"v{version.version} {(r.task or 'erased') if merged else kind}", at)
        values = {
            "relative_error": r.relative_error,
            "relative_error_max": r.relative_error_max,
            "largest_error": r.largest_error,
            "weight": r.weight,
            "norm": r.norm,
            "staleness": r.staleness,
            "basis_out": r.basis_out,
            "basis_in": r.basis_in,
            "new_out": r.new_out,
            "new_in": r.new_in,
            "bytes_sent": r.bytes_sent,
            "bytes_lora": r.bytes_lora,
            **r.metrics,
        }
        self._client.log_batch(
            run_id, metrics=[Metric(k, v, at, version.version) for k, v in values.items()], tags=_tags(tags)
        )
        if r.task:
            self._client.log_inputs(run_id, datasets=[_contributor(r)])
        self._client.set_terminated(run_id, end_time=at)

    def erase(self, update_ids: set[str], contributors: set[tuple[str, str]]) -> None:
        """Delete the runs that say more of these updates than their id, and those of workers other than these."""
        from mlflow.entities import LifecycleStage

        gone = [
            run
            for run in self._runs(self._versions)
            if run.data.tags.get("fedshare.update_id") in update_ids and _may_name(run.data.tags)
        ]
        gone += [
            run
            for run in self._runs(self._workers)
            if (run.data.tags.get("fedshare.worker"), run.data.tags.get("fedshare.task")) not in contributors
        ]
        for run in gone:
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                self._client.delete_run(run.info.run_id)
        if self._database is not None:
            erase_runs(self._database, [run.info.run_id for run in gone])

    def _runs(self, experiment_id: str) -> Iterator[Run]:
        """Those that are marked as deleted, too: an erasure may have been cut off before it really deleted them."""
        from mlflow.entities import ViewType

        where, token = f"tags.`fedshare.federation_id` = '{self._federation_id}'", None
        while True:
            page = self._client.search_runs([experiment_id], where, ViewType.ALL, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def write_measurements(self, measurements: list[Measurement]) -> None:
        from mlflow.entities import Metric

        by_source: dict[tuple[str, str], list[Metric]] = {}
        for m in measurements:
            by_source.setdefault((m.worker, m.task), []).append(Metric(m.name, m.value, int(m.at * 1000), m.version))
        for (worker, task), metrics in by_source.items():
            key = {"fedshare.worker": worker, "fedshare.task": task}
            run_id = self._run(self._workers, key, f"{task}@{worker}", metrics[0].timestamp)
            self._client.log_batch(run_id, metrics=metrics)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=artifacts and f"{artifacts}/{name}")

    def _run(self, experiment_id: str, key: dict[str, str], name: str, start_time: int) -> str:
        """The run with these tags, made if it is not there. start_time: milliseconds since 1970."""
        key = {"fedshare.federation_id": self._federation_id, **key}
        where = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in key.items())
        found = self._client.search_runs([experiment_id], where, max_results=1)
        if found:
            return found[0].info.run_id
        return self._client.create_run(experiment_id, start_time, tags=key, run_name=name).info.run_id


def _client(uri: str) -> MlflowClient:
    # MLflow's own defaults block for minutes when its server is away
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "5"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _may_name(tags: dict[str, str]) -> bool:
    """Whether a run of a version says whose it was, or who began with what was forgotten."""
    return bool(tags.get("fedshare.task")) or tags.get("fedshare.kind") == "forget"


def _is_blanked(record: Record) -> bool:
    """By an erasure: it says less than it did."""
    if record.kind != VERSION_KIND_MERGE:
        return ERASED_TASK in record.note
    return not record.task or record.warm_start == ERASED_TASK


def _tags(tags: dict[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def _contributor(r: Record) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(f"{r.task}@{r.worker}", f"base-v{r.base_version}", "fedshare", f"update {r.update_id}")
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "contributor")])
