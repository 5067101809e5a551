"""A coordinator's home: one folder, one federation, one coordinator at a time.

HOME/journal.sqlite   tables.py          HOME/blobs/    blobs.py
HOME/lineage/         MLflow's store     HOME/lock      held while a coordinator runs
HOME/address          host:port of the running coordinator
HOME/blobs-arriving/  blobs that are not whole yet
"""

from __future__ import annotations

import uuid
from pathlib import Path

from filelock import FileLock, Timeout
from google.protobuf import json_format
from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import DatabaseError

from coordinator import tables
from coordinator.blobs import Blobs, sync_folder
from coordinator.errors import CoordinatorError
from coordinator.migrations import NewerRelease
from protos.fedshare.v1.federation_pb2 import FederationSpec


class Home:
    """An open home. Use as a context manager: leaving it lets the lock go."""

    def __init__(self, folder: Path, spec: FederationSpec, engine: Engine, lock: FileLock):
        self.folder, self.spec, self.engine, self._lock = folder, spec, engine, lock
        self.blobs = Blobs(folder / "blobs")

    @property
    def lineage_folder(self) -> Path:
        return self.folder / "lineage"

    @property
    def address_file(self) -> Path:
        return self.folder / "address"

    def __enter__(self) -> Home:
        return self

    def __exit__(self, *_: object) -> None:
        self.address_file.unlink(missing_ok=True)
        self.engine.dispose()
        self._lock.release()


def open_home(folder: Path, wanted: FederationSpec | None = None) -> Home:
    """Open the home in `folder`; make it for `wanted` if there is none.

    Raises CoordinatorError when another coordinator holds it, when it belongs to a federation other than
    `wanted`, when a newer release has used it, when it cannot be written, or when there is neither a home nor
    a `wanted`. A home of an older release is brought up to this one.
    """
    try:
        if wanted is None and not (folder / "journal.sqlite").exists():
            raise CoordinatorError(f"{folder} is not a coordinator's home yet: name a federation file to make it one")
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise CoordinatorError(f"another coordinator is running on {folder}: stop it, or use another --home") from None
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        return _locked_home(folder, wanted, lock)
    except OSError as error:
        lock.release()
        raise _unusable(folder, error) from None
    except BaseException:
        lock.release()
        raise


def _unusable(folder: Path, error: OSError) -> CoordinatorError:
    return CoordinatorError(f"cannot use {folder} as a home: {error.strerror or error}")


def _locked_home(folder: Path, wanted: FederationSpec | None, lock: FileLock) -> Home:
    try:
        engine = tables.open_database(folder / "journal.sqlite")
        spec = _stored_spec(engine)
        if spec is None:
            spec = _store_spec(engine, wanted)
    except DatabaseError as error:
        raise CoordinatorError(f"cannot open {folder / 'journal.sqlite'}: {error.orig}") from None
    except NewerRelease as error:
        raise CoordinatorError(f"{folder} was made by a newer release of fedshare ({error}): use that one") from None
    if wanted is not None:
        _must_be_same(folder, spec, wanted)
    return Home(folder, spec, engine, lock)


def _stored_spec(engine: Engine) -> FederationSpec | None:
    with engine.connect() as connection:
        row = connection.execute(select(tables.federation)).one_or_none()
    return json_format.Parse(row.spec, FederationSpec()) if row else None


def _store_spec(engine: Engine, wanted: FederationSpec) -> FederationSpec:
    spec = FederationSpec()
    spec.CopyFrom(wanted)
    spec.federation_id = uuid.uuid4().hex
    with tables.writer(engine).begin() as connection:
        connection.execute(
            insert(tables.federation).values(id=spec.federation_id, spec=json_format.MessageToJson(spec))
        )
    return spec


def _must_be_same(folder: Path, have: FederationSpec, wanted: FederationSpec) -> None:
    for field in (
        "name",
        "base",
        "modules",
        "rank",
        "tolerance",
        "seed",
        "directions",
        "recipe",
        "budget",
        "versions_kept",
    ):
        if getattr(have, field) != getattr(wanted, field):
            raise CoordinatorError(
                f"{folder} belongs to the federation {have.name!r}, whose {field} is not that of {wanted.name!r}:"
                " use another --home"
            )
