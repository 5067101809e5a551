"""The tables of a coordinator's database, and the one way to write to them. Who changes a table adds a migration.

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

from sqlalchemy import (
    JSON,
    BigInteger,
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
)

Number = BigInteger().with_variant(Integer, "sqlite")
"""64 bits everywhere: SQLite's INTEGER has them, and only that numbers rows by itself."""
Text = String().with_variant(String(collation="C"), "postgresql")
"""Sorted by code points everywhere."""

metadata = MetaData()

federation = Table(
    "federation",
    metadata,
    Column("id", Text, primary_key=True),
    Column("spec", Text, nullable=False),  # FederationSpec as protobuf JSON
    Column("blobs", Text),  # where they lie (blob_place.py); NULL: an older release made it, and did not say
)
members = Table(
    "members",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("incarnation", Number, nullable=False),
    Column("joined_at", Float, nullable=False),
    Column("left_at", Float),
)
journal = Table(
    "journal",
    metadata,
    Column("position", Number, primary_key=True, autoincrement=True),
    Column("update_id", Text, nullable=False, unique=True),
    Column("worker", Text, nullable=False),
    Column("incarnation", Number, nullable=False),
    Column("task", Text, nullable=False),
    Column("base_version", Number, nullable=False),
    Column("digest", Text, nullable=False),
    Column("nbytes", Number, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("warm_start", Text, nullable=False, server_default=""),  # the task with whose coefficients it began
    Index("journal_by_task", "task", "worker"),
)
verdicts = Table(
    "verdicts",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("outcome", Number, nullable=False),
    Column("version", Number, nullable=False),  # that it is in, or that took it back; 0 where there is none
    Column("reason", Text, nullable=False),
    Column("decided_at", Float, nullable=False),
)
past_verdicts = Table(
    "past_verdicts",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("ordinal", Number, primary_key=True),  # 0, 1, 2 ... the first verdict, the second ...
    Column("outcome", Number, nullable=False),
    Column("version", Number, nullable=False),
    Column("reason", Text, nullable=False),
    Column("decided_at", Float, nullable=False),
)
commands = Table(
    "commands",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("request", Text, nullable=False),  # CommandRequest as protobuf JSON
)
restated = Table(
    "restated",
    metadata,
    Column("position", ForeignKey("journal.position"), primary_key=True),
    Column("digest", Text, nullable=False),  # the same update, made for version 0
    Column("nbytes", Number, nullable=False),
    Column("norm", Float),  # ||dW|| of what was sent; NULL where an older release stated it anew
)
versions = Table(
    "versions",
    metadata,
    Column("version", Number, primary_key=True),
    Column("parent", Number, nullable=False),
    Column("generation", Number, nullable=False),
    Column("position", Number, unique=True),  # journal entry it was made for; NULL for version 0
    Column("blocks", Number, nullable=False),  # how many of its generation's blocks are its basis
    Column("digest", Text, nullable=False),
    Column("record", JSON, nullable=False),  # a list of transition.Record, one for each update
    Column("created_at", Float, nullable=False),
)
blocks = Table(
    "blocks",
    metadata,
    Column("generation", Number, primary_key=True),
    Column("ordinal", Number, primary_key=True),  # 0, 1, 2 ...
    Column("digest", Text, nullable=False),
    Column("nbytes", Number, nullable=False),
)
gone = Table(
    "gone",
    metadata,
    Column("version", ForeignKey("versions.version"), primary_key=True),
    Column("why", Text, nullable=False),  # erased, collected
)
entries = Table(
    "entries",
    metadata,
    Column("version_from", Number, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("version_until", Number),
    Column("digest", Text, nullable=False),
    Column("nbytes", Number, nullable=False),
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
    Column("id", Number, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("token", Number, nullable=False),  # grows by 1 with each holder; who has an older one may not write
    Column("holder", Text, nullable=False),  # as no other is ever called (fence.py)
    Column("beats", Number, nullable=False),  # grows while the holder lives
)
metrics = Table(
    "metrics",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("worker", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("version", Number, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Float, nullable=False),
    Column("at", Float, nullable=False),
)
cursors = Table(
    "cursors",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", Number, nullable=False),
)


class Writer:
    """Threads wait for their turn here: SQLite would let them sleep and ask again, for up to 100 ms each time.

    options: database.py's, on how its transactions begin.
    """

    def __init__(self, engine: Engine, **options: bool):
        settings = engine.get_execution_options()
        self._turn, self._fence = settings["turn"], settings["fence"]
        self._engine = engine.execution_options(**settings["for_writing"], **options)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Raises Fenced where another coordinator has taken over: otherwise nobody can until this is committed."""
        with self._turn, self._engine.begin() as connection:
            self._fence.check(connection)
            yield connection


def writer(engine: Engine, **options: bool) -> Writer:
    """The same database, for transactions that write."""
    return Writer(engine, **options)
