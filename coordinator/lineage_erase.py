"""Runs that MLflow has marked as deleted, really deleted from its own SQLite file in a coordinator's home.

A tracking server elsewhere keeps what is marked until its owner runs `mlflow gc`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

BUSY_SECONDS_MAX = 30.0


def erase_runs(database: Path, run_ids: Sequence[str]) -> None:
    """Every row of these runs, their inputs, and data sets that no other run has; nothing of it stays in the file."""
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS_MAX)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        of_runs = [t for t in tables if "run_uuid" in {row[1] for row in connection.execute(f"PRAGMA table_info({t})")}]
        with connection:
            for run_id in run_ids:
                inputs = "SELECT input_uuid FROM inputs WHERE destination_id = ?"
                connection.execute(f"DELETE FROM input_tags WHERE input_uuid IN ({inputs})", (run_id,))
                connection.execute("DELETE FROM inputs WHERE destination_id = ?", (run_id,))
                for table in sorted(of_runs, key=lambda name: name == "runs"):
                    connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run_id,))
            connection.execute("DELETE FROM datasets WHERE dataset_uuid NOT IN (SELECT source_id FROM inputs)")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
