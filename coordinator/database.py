"""How a coordinator's database is opened: a SQLite file, or PostgreSQL. Whatever differs between the two is here.

Transactions of `writer(engine)` come one after the other, so that what they read is still true when they write; those
of the engine itself read one consistent state and block nobody. Every commit is on disk when it returns, but for those
of `unsynced`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, InternalError, OperationalError

from coordinator.errors import CoordinatorError
from coordinator.fence import Fence
from coordinator.tables import metadata

BUSY_SECONDS_MAX = 30.0
"""How long one writer waits for another: far longer than any write here takes."""
HURRIED_SECONDS_MAX = 0.1
WIPE_SECONDS_MAX = 2.0
"""How long wiping what was deleted waits for others who read it: no merge happens meanwhile. Then it is tried again."""
CONNECT_SECONDS_MAX = 5.0
IDLE_SECONDS_MAX = 5.0
"""PostgreSQL ends a transaction whose coordinator has said nothing for longer: a stopped process keeps no lock."""
NETWORK_SECONDS_MAX = 10.0
"""After so long without an answer to a packet, either side of a connection to PostgreSQL takes the other for gone."""
CONNECTIONS_MAX = 40
_POOL = {"pool_size": CONNECTIONS_MAX, "max_overflow": 0}
"""One for each thread that may want one: those beyond a pool's size would be opened and closed each time."""
POSTGRES_LOCKED = "55P03"
POSTGRES_DAMAGED = ("XX001", "XX002")

_POSTGRES_SETTINGS = {
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": f"{IDLE_SECONDS_MAX:.0f}s",
    "lock_timeout": f"{BUSY_SECONDS_MAX:.0f}s",
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": f"{NETWORK_SECONDS_MAX:.0f}s",
}
_POSTGRES_CONNECTION = {
    "connect_timeout": int(CONNECT_SECONDS_MAX),
    "tcp_user_timeout": int(1000 * NETWORK_SECONDS_MAX),
    "options": " ".join(f"-c {name}={value}" for name, value in _POSTGRES_SETTINGS.items()),
    "application_name": "fedshare",
}


def open_sqlite(path: Path) -> Engine:
    """Open or create the file: WAL, every commit is on disk when it returns, what is deleted is overwritten."""
    connect_args = {"timeout": BUSY_SECONDS_MAX}
    engine = create_engine(
        f"sqlite:///{path}", connect_args=connect_args, **_POOL, pool_use_lifo=True, execution_options=_settings()
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection, _record):
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection):
        options = connection.get_execution_options()
        if options.get("writes"):
            seconds = HURRIED_SECONDS_MAX if options.get("hurried") else BUSY_SECONDS_MAX
            _set(connection, "busy_timeout", f"{1000 * seconds:.0f}")
            _set(connection, "synchronous", "NORMAL" if options.get("unsynced") else "FULL")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    @event.listens_for(engine, "handle_error")
    def _on_error(context):
        """A torn page is the store's trouble, and in Python it has no name of its own."""
        error = context.original_exception
        return InternalError(context.statement, context.parameters, error) if _is_torn(error) else None

    return engine


def _set(connection: Connection, pragma: str, value: str) -> None:
    """Unless it is so already: these settings outlive a transaction, and nothing else changes them."""
    if connection.info.get(pragma) != value:
        connection.exec_driver_sql(f"PRAGMA {pragma}={value}")
        connection.info[pragma] = value


def open_postgres(url: str) -> Engine:
    """Connect to `postgresql://user@host/database`. Raises CoordinatorError."""
    parsed = _parsed(url)
    try:
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args=_POSTGRES_CONNECTION,
            isolation_level="REPEATABLE READ",
            pool_pre_ping=True,
            **_POOL,
            execution_options=_settings(isolation_level="READ COMMITTED"),  # the lease's row puts writers in line
        )
    except ImportError:
        raise CoordinatorError("PostgreSQL needs one more package: pip install 'fedshare[postgres]'") from None

    @event.listens_for(engine, "begin")
    def _on_begin(connection):
        options = connection.get_execution_options()
        if options.get("unsynced"):
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
        if options.get("hurried"):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{HURRIED_SECONDS_MAX:g}s'")

    _must_keep_commits(engine, shown(url))
    return engine


def _settings(**for_writing: object) -> dict[str, object]:
    return {"turn": Lock(), "fence": Fence(), "for_writing": {"writes": True, **for_writing}}


def fence_of(engine: Engine) -> Fence:
    return engine.get_execution_options()["fence"]


def _must_keep_commits(engine: Engine, name: str) -> None:
    """Raises CoordinatorError where nobody answers, and where a commit would not be on disk."""
    try:
        with engine.connect() as connection:
            fsync = connection.exec_driver_sql("SHOW fsync").scalar()
    except DatabaseError as error:
        raise unusable(name, error) from None
    if fsync != "on":
        raise CoordinatorError(f"{name} runs with fsync={fsync}: no receipt would be durable")


@contextmanager
def unfenced(engine: Engine, *, hurried: bool = False) -> Iterator[Connection]:
    """The one transaction that is checked against no token: the one that takes it.

    hurried: raises OperationalError instead of waiting for another writer.
    """
    settings = engine.get_execution_options()
    with settings["turn"], engine.execution_options(**settings["for_writing"], hurried=hurried).begin() as connection:
        yield connection


def wipe_deleted(engine: Engine) -> bool:
    """Whether nothing that was deleted is left in the database's own files: but see PostgreSQL's log of changes, and
    copies. False: another session still reads it, and it is to be tried again."""
    return _log_is_emptied(engine) if engine.dialect.name == "sqlite" else _tables_are_rewritten(engine)


def _log_is_emptied(engine: Engine) -> bool:
    """What is deleted is overwritten in SQLite's file (secure_delete); now it is gone from its log, too."""
    with engine.connect() as connection:
        cursor = connection.connection.cursor()  # not inside a transaction
        try:
            cursor.execute(f"PRAGMA busy_timeout={1000 * WIPE_SECONDS_MAX:.0f}")
            [is_busy, *_] = cursor.execute(_EMPTY_LOG).fetchone()
        except sqlite3.OperationalError as error:  # a full disk
            raise OperationalError(_EMPTY_LOG, None, error) from None
        finally:
            connection.info["busy_timeout"] = f"{1000 * BUSY_SECONDS_MAX:.0f}"
            cursor.execute(f"PRAGMA busy_timeout={connection.info['busy_timeout']}")
    return not is_busy


_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"


def _tables_are_rewritten(engine: Engine) -> bool:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        if not _old_readers_have_ended(connection):
            return False
        connection.exec_driver_sql(f"SET lock_timeout = '{WIPE_SECONDS_MAX:g}s'")
        try:
            for table in metadata.tables:
                connection.exec_driver_sql(f'VACUUM (FULL) "{table}"')
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != POSTGRES_LOCKED:
                raise
            return False
        finally:
            connection.exec_driver_sql("RESET lock_timeout")
    return True


def _old_readers_have_ended(connection: Connection) -> bool:
    """VACUUM keeps what a transaction that began before may read."""
    newest = connection.exec_driver_sql("SELECT pg_current_xact_id()::xid::text").scalar_one()
    deadline = time.monotonic() + WIPE_SECONDS_MAX
    while connection.execute(_OLD_READERS, {"newest": newest}).scalar_one():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


_OLD_READERS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    " AND backend_xmin IS NOT NULL AND age(backend_xmin) > age(CAST(:newest AS xid))"
)


def unusable(name: str, error: DatabaseError) -> CoordinatorError:
    """For the operator of the database that is called so."""
    said = (str(error.orig).strip().splitlines() or [""])[0]
    if _is_torn(error.orig) or getattr(error.orig, "sqlstate", None) in POSTGRES_DAMAGED:
        return CoordinatorError(
            f"{name} is damaged ({said}): put a copy of it in its place,"
            " and `fedshare check` says whether all blobs that the copy names are there"
        )
    return CoordinatorError(f"cannot use {name}: {said}")


def _is_torn(error: BaseException | None) -> bool:
    """SQLite's file is malformed, or no database: all other errors are of classes that are derived from this one."""
    return type(error) is sqlite3.DatabaseError


def shown(url: str) -> str:
    """As it is called in a sentence: without its password. Raises CoordinatorError."""
    return _parsed(url).render_as_string(hide_password=True)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in ("postgresql", "postgres") or not parsed.database:
        raise CoordinatorError("a --store looks like postgresql://user@host/database")
    return parsed
