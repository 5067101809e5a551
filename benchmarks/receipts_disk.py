"""What the disk itself allows receipts: rows committed by SQLite alone, with their blobs as files, and plain fsyncs.

One after the other, each on disk (WAL, synchronous=FULL; write, fsync, rename, fsync the folder) before it counts.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from pathlib import Path

from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from coordinator.shelves import sync_folder
from coordinator.tables import journal


def commits(folder: Path, rows: int, blob: bytes = b"") -> float:
    """Commits a second of journal-like rows, one row a commit; where there is a blob, after a file that holds it."""
    folder.mkdir()
    database = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {setting}")
    database.execute(str(CreateTable(journal).compile(dialect=sqlite.dialect())))
    insert = f"INSERT INTO journal VALUES ({', '.join('?' * len(journal.columns))})"
    began = time.perf_counter()
    for n in range(1, rows + 1):
        if blob:
            _keep(folder, str(n), blob)
        row = (n, uuid.uuid4().hex, "worker", 1, f"task-{n}", 0, "0" * 64, 1120, '["no", "yes"]', "{}", time.time(), "")
        database.execute(insert, row)
    return rows / (time.perf_counter() - began)


def fsync_seconds(folder: Path, times: int) -> float:
    """Of a small file that is written anew each time."""
    with (folder / "fsync").open("wb", buffering=0) as file:
        began = time.perf_counter()
        for n in range(times):
            os.pwrite(file.fileno(), n.to_bytes(8, "little"), 0)
            os.fsync(file.fileno())
        return (time.perf_counter() - began) / times


def _keep(folder: Path, name: str, blob: bytes) -> None:
    part = folder / f"{name}.part"
    with part.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, folder / name)
    sync_folder(folder)
