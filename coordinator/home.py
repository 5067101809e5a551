"""A coordinator's home: one folder, one federation, one coordinator at a time (lease.py).

HOME/journal.sqlite   database.py        HOME/blobs/    blobs.py, blob_place.py
HOME/lineage/         MLflow's store     HOME/lock.N    held while the coordinator with token N runs
HOME/address          host:port of the running coordinator
HOME/blobs-arriving/  blobs that are not whole yet
HOME/blobs-aside/     blobs that an older release was about to delete

The database may be PostgreSQL instead and the blobs at a URL: then several homes, on as many machines, may share them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from sqlalchemy import Engine, insert, inspect, select, update
from sqlalchemy.exc import DatabaseError, DBAPIError, InternalError, OperationalError

from coordinator import tables
from coordinator.blob_place import BlobPlace, editions
from coordinator.blobs import Blobs
from coordinator.database import fence_of, open_postgres, open_sqlite, shown, unusable
from coordinator.errors import CoordinatorError, Fenced
from coordinator.lease import Held, Lease, take
from coordinator.locks import AdvisoryLocks, FileLocks, Locks
from coordinator.migrations import NewerRelease
from coordinator.settings import differences
from coordinator.shelves import sync_folder
from protos.fedshare.v1.federation_pb2 import FederationSpec

JOURNAL = "journal.sqlite"


class Home:
    """An open home. Use as a context manager: leaving it lets the lease go."""

    def __init__(self, place: Place, spec: FederationSpec, engine: Engine, lease: Lease, blobs: Blobs):
        self.place, self.folder, self.spec, self.engine, self.lease = place, place.folder, spec, engine, lease
        self.is_shared = bool(place.store)
        self.fence = fence_of(engine)
        self.blobs = blobs
        self.address = ""

    @property
    def lineage_folder(self) -> Path:
        return self.folder / "lineage"

    @property
    def address_file(self) -> Path:
        return self.folder / "address"

    def __enter__(self) -> Home:
        return self

    def __exit__(self, _kind: object = None, error: BaseException | None = None, _trace: object = None) -> None:
        if self.address_file.exists() and self.address_file.read_text() == self.address:
            self.address_file.unlink(missing_ok=True)
        self.lease.let_go()
        self.engine.dispose()
        if isinstance(error, (OperationalError, InternalError)):  # full, damaged or away, where nobody waits for it
            raise unusable(self.place.database, error) from None


@dataclass(frozen=True)
class Place:
    """Where a home is. store: postgresql://..., else HOME/journal.sqlite. blobs: see blob_place.py."""

    folder: Path
    store: str = ""
    blobs: str = ""

    @property
    def name(self) -> str:
        return (self.store and shown(self.store)) or str(self.folder)

    @property
    def database(self) -> str:
        return (self.store and shown(self.store)) or str(self.folder / JOURNAL)

    @property
    def of_blobs(self) -> BlobPlace:
        return BlobPlace(self.name, self.folder, self.blobs, is_shared=bool(self.store))

    def open(self) -> tuple[Engine, Locks]:
        if self.store:
            engine = open_postgres(self.store)
            return engine, AdvisoryLocks(engine)
        return open_sqlite(self.folder / JOURNAL), FileLocks(self.folder)


def has_journal(folder: Path) -> bool:
    """Whether it is a home whose database is in it."""
    return (folder / JOURNAL).exists()


def open_home(
    folder: Path,
    wanted: FederationSpec | None = None,
    *,
    store: str = "",
    blobs: str = "",
    standby: bool = False,
    prepare: Callable[[FederationSpec], None] = lambda spec: None,
) -> Home:
    """Open the home in `folder`; make it for `wanted` if there is none. standby: wait until nobody else holds it.

    prepare: called by who stands by, before it waits, with what the federation is as far as that is known.

    Raises CoordinatorError when another coordinator holds it, or takes it over meanwhile, when it belongs to a
    federation other than `wanted`, when its blobs are elsewhere, or their place is another federation's or away, when a
    newer release has used it, when it cannot be written, or when there is neither a home nor a `wanted`. A home of an
    older release is brought up to this one.
    """
    place = Place(folder, store, blobs)
    if wanted is None and not store and not has_journal(folder):
        made_by = f"`fedshare coordinator FILE --home {folder}` makes one, FILE being a federation's"
        raise CoordinatorError(f"{folder} is not a coordinator's home: {made_by}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        engine, locks = place.open()
        try:
            if standby and (known := _known_spec(engine) or wanted):
                prepare(known)
            lease = take(engine, locks, standby)
            with lease.beating():  # to look for the blobs may take long
                return _held_home(place, wanted, engine, lease)
        except BaseException:
            locks.keep_only(None)
            engine.dispose()
            raise
    except Held as held:
        raise CoordinatorError(
            f"another coordinator ({held}) is running on {place.name}: stop it, use another --home,"
            " or let a coordinator wait for it with --standby"
        ) from None
    except Fenced as error:
        raise CoordinatorError(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename and str(error.filename) != str(folder) else ""
        raise CoordinatorError(f"cannot use {folder} as a home: {where}{error.strerror or error}") from None
    except DatabaseError as error:
        raise unusable(place.database, error) from None
    except NewerRelease as error:
        raise CoordinatorError(
            f"{place.name} was made by a newer release of fedshare ({error}): use that one"
        ) from None


def _held_home(place: Place, wanted: FederationSpec | None, engine: Engine, lease: Lease) -> Home:
    spec = _stored_spec(engine)
    if spec is None:
        if wanted is None:
            raise CoordinatorError(f"{place.name} holds no federation yet: name a federation file to make one")
        place.of_blobs.must_be_free()
        blobs = Blobs(place.of_blobs.wanted)
        spec = _store_spec(engine, wanted, place.of_blobs.to_record)
        place.of_blobs.mark(spec.federation_id)
    else:
        if wanted is not None:
            _must_be_same(place.name, spec, wanted)
        blobs = Blobs(place.of_blobs.find(engine), editions(engine))
        if wanted is not None:
            _follow_operator(engine, spec, wanted)
    return Home(place, spec, engine, lease, blobs)


def _stored_spec(engine: Engine) -> FederationSpec | None:
    with engine.connect() as connection:
        said = connection.execute(select(tables.federation.c.spec)).scalar_one_or_none()
    if said is None:
        return None
    return json_format.Parse(said, FederationSpec(), ignore_unknown_fields=True)  # those of older releases


def _known_spec(engine: Engine) -> FederationSpec | None:
    """None also where the store is away just now, or has no schema yet."""
    with suppress(DBAPIError, OSError):
        return _stored_spec(engine) if inspect(engine).has_table(tables.federation.name) else None
    return None


def _store_spec(engine: Engine, wanted: FederationSpec, blobs: str) -> FederationSpec:
    spec = FederationSpec()
    spec.CopyFrom(wanted)
    spec.federation_id = uuid.uuid4().hex
    with tables.writer(engine).begin() as connection:
        connection.execute(
            insert(tables.federation).values(id=spec.federation_id, spec=json_format.MessageToJson(spec), blobs=blobs)
        )
    return spec


FIXED = ("name", "base", "modules", "rank", "tolerance", "seed", "directions", "start", "recipe", "policies")
"""What a federation is made with, and keeps."""


OPERATORS = ("quarantine", "budget", "versions_kept")
"""What its operator may change at any time: nothing that is stored depends on it."""


def _follow_operator(engine: Engine, spec: FederationSpec, wanted: FederationSpec) -> None:
    """Take over what a changed file says of these; where it says the same, nothing is written."""
    changed = [field for field in OPERATORS if getattr(spec, field) != getattr(wanted, field)]
    if not changed:
        return
    for field in changed:
        spec.ClearField(field)
    spec.MergeFrom(FederationSpec(**{field: getattr(wanted, field) for field in changed}))
    with tables.writer(engine).begin() as connection:
        connection.execute(update(tables.federation).values(spec=json_format.MessageToJson(spec)))


def _must_be_same(place: str, have: FederationSpec, wanted: FederationSpec) -> None:
    if changed := [field for field in FIXED if getattr(have, field) != getattr(wanted, field)]:
        raise CoordinatorError(
            f"{place} belongs to the federation {have.name!r}, and keeps what it was made with:"
            f" {differences(have, wanted, changed)}:"
            " put that back in the file, start without the file, or use another --home"
        )
