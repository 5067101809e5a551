"""The SQLite file of a coordinator: its tables, and how it is opened. Who changes a table adds a migration.

federation   one row: what this home is for                      members      who joined, newest incarnation
journal      every update and command with a receipt, in order   verdicts     what has become of each
commands     what a command asks for                             past_verdicts     what a verdict was before
versions     one row a version, immutable                        blocks, entries   which blobs a version is made of
gone         versions of which only the record is left           restated     what stands in for a journaled blob
metrics      what workers measured                               cursors      how far each reader has come
lease        who may write

An entry belongs to versions  version_from <= v < version_until (NULL: still), so a merge writes O(1) rows
however many tasks there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
)

from coordinator.migrations import migrate

BUSY_SECONDS_MAX = 30.0
"""How long one writer waits for another: far longer than any write here takes."""

metadata = MetaData()

federation = Table(
    "federation",
    metadata,
    Column("id", String, primary_key=True),
    Column("spec", String, nullable=False),  # FederationSpec as protobuf JSON
)
members = Table(
    "members",
    metadata,
    Column("worker", String, primary_key=True),
    Column("task", String, nullable=False),
    Column("incarnation", Integer, nullable=False),
    Column("joined_at", Float, nullable=False),
    Column("left_at", Float),
)
journal = Table(
    "journal",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("update_id", String, nullable=False, unique=True),
    Column("worker", String, nullable=False),
    Column("incarnation", Integer, nullable=False),
    Column("task", String, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("digest", String, nullable=False),
    Column("nbytes", Integer, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("received_at", Float, nullable=False),
    Index("journal_by_task", "task", "worker"),
)
verdicts = Table(
    "verdicts",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("outcome", Integer, nullable=False),
    Column("version", Integer, nullable=False),  # that it is in, or that took it back; 0 where there is none
    Column("reason", String, nullable=False),
    Column("decided_at", Float, nullable=False),
)
past_verdicts = Table(
    "past_verdicts",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("ordinal", Integer, primary_key=True),  # 0, 1, 2 ... the first verdict, the second ...
    Column("outcome", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("reason", String, nullable=False),
    Column("decided_at", Float, nullable=False),
)
commands = Table(
    "commands",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("request", String, nullable=False),  # CommandRequest as protobuf JSON
)
restated = Table(
    "restated",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("digest", String, nullable=False),  # the same update, made for version 0
    Column("nbytes", Integer, nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("parent", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("position", Integer, unique=True),  # journal entry it was made for; NULL for version 0
    Column("blocks", Integer, nullable=False),  # how many of its generation's blocks are its basis
    Column("digest", String, nullable=False),
    Column("record", JSON, nullable=False),  # a list of transition.Record, one for each update
    Column("created_at", Float, nullable=False),
)
blocks = Table(
    "blocks",
    metadata,
    Column("generation", Integer, primary_key=True),
    Column("ordinal", Integer, primary_key=True),  # 0, 1, 2 ...
    Column("digest", String, nullable=False),
    Column("nbytes", Integer, nullable=False),
)
gone = Table(
    "gone",
    metadata,
    Column("version", ForeignKey("versions.version"), primary_key=True),
    Column("why", String, nullable=False),  # erased, collected
)
entries = Table(
    "entries",
    metadata,
    Column("version_from", Integer, primary_key=True),
    Column("task", String, primary_key=True),
    Column("version_until", Integer),
    Column("digest", String, nullable=False),
    Column("nbytes", Integer, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("norm", Float, nullable=False),  # these four: share_algo's Certificate; norm 0 where none was kept
    Column("error", Float, nullable=False),
    Column("loose", Float, nullable=False),
    Column("is_bound", Boolean, nullable=False),
    Index("entries_by_task", "task", "version_from"),
)
lease = Table(
    "lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("token", Integer, nullable=False),  # grows by 1 with each holder; who has an older one may not write
    Column("holder", String, nullable=False),
    Column("beats", Integer, nullable=False),  # grows while the holder lives
)
metrics = Table(
    "metrics",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("worker", String, nullable=False),
    Column("task", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("name", String, nullable=False),
    Column("value", Float, nullable=False),
    Column("at", Float, nullable=False),
)
cursors = Table(
    "cursors",
    metadata,
    Column("name", String, primary_key=True),
    Column("position", Integer, nullable=False),
)


def open_database(path: Path) -> Engine:
    """Open or create the file, with this release's schema: WAL, every commit is on disk when it returns, and what is
    deleted is overwritten (secure_delete).

    Transactions of `writer(engine)` come one after the other, so that what they read is still true when they
    write; those of the engine itself read one consistent state and block nobody.
    """
    connect_args = {"timeout": BUSY_SECONDS_MAX}
    engine = create_engine(f"sqlite:///{path}", connect_args=connect_args, execution_options={"turn": Lock()})

    @event.listens_for(engine, "connect")
    def _on_connect(connection, _record):  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection):  # type: ignore[no-untyped-def]
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    with writer(engine).begin() as connection:
        migrate(connection)
    return engine


class Writer:
    """Threads wait for their turn here: SQLite would let them sleep and ask again, for up to 100 ms each time."""

    def __init__(self, engine: Engine):
        self._engine = engine.execution_options(writes=True)
        self._turn = engine.get_execution_options()["turn"]

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        with self._turn, self._engine.begin() as connection:
            yield connection


def writer(engine: Engine) -> Writer:
    """The same database, for transactions that write."""
    return Writer(engine)
