"""A home of an older release is brought up to this one and served; a home of a newer release is left alone."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from forks import fedshare
from parts import (
    Coordinator,
    CoordinatorHere,
    RawWorker,
    history_of,
    one_sentence,
    order,
    random_adapter,
    small_home,
)
from sqlalchemy import Engine, create_engine, inspect, text

from coordinator import lease, tables
from coordinator.database import open_sqlite
from coordinator.errors import CoordinatorError
from coordinator.home import open_home
from coordinator.tables import writer
from protos.fedshare.v1 import federation_pb2 as pb

HERE = Path(__file__).parent
QUEUED = "1e65949791c14666962b06127e2486e3"


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """Made by the first release: two versions, one update still queued, two members of whom one has left."""
    return made_by(HERE / "first_release", tmp_path / "home")


def made_by(release: Path, home: Path) -> Path:
    shutil.copytree(release / "blobs", home / "blobs")
    database = sqlite3.connect(home / "journal.sqlite")
    database.executescript((release / "journal.sql").read_text())
    database.close()
    return home


def test_home_of_the_first_release_is_served_and_goes_on(old_home: Path):
    for _ in range(2):
        with Coordinator(old_home, "--no-lineage") as coordinator, coordinator.client() as client:
            status = coordinator.drained()
            assert (status.spec.federation_id, status.head) == ("d55821ec725a4f3a8491ea9f554ea6cc", 3)
            assert [(m.worker, m.left_at > 0) for m in status.members] == [("ann", True), ("bob", False)]
            assert [m.value for m in client.metrics("spam")] == [0.75, 0.75]
            assert client.story(QUEUED).verdict.outcome == pb.OUTCOME_MERGED
            manifest, blobs = client.fetch(None, every_task=True)
            assert [(t.task, t.version) for t in manifest.tasks] == [("spam", 1), ("topics", 3)]
            assert len(manifest.blocks) == 3 and manifest.tasks[0].entry.digest in blobs
            assert coordinator.stop() == 0


def test_what_a_home_of_the_first_release_holds_can_be_erased(old_home: Path):
    """Its records say less than those of later releases."""
    with CoordinatorHere(old_home) as coordinator:
        coordinator.drained()
        assert order(coordinator, forget=pb.Forget(worker="ann", erase=True)).outcome == pb.OUTCOME_DONE
        assert "ann" not in {record.worker for record in coordinator.versions()}


def test_contribution_that_an_older_release_stated_anew_is_merged_with_the_norm_that_is_known(tmp_path: Path):
    """That of its difference: cid's, made for version 1, which was collected while it waited in the buffer."""
    home = made_by(HERE / "with_stand_in", tmp_path / "home")
    with open_home(home) as opened:
        history = history_of(opened)
        [waiting] = history.journal.waiting("sum")
        assert waiting.stand_in is not None and waiting.stand_in.norm is None
        difference = history.arrived(waiting, staleness=0).norm
    with CoordinatorHere(home) as coordinator, RawWorker(coordinator.address, "dan", "sum") as raw:
        raw.teach(random_adapter(raw.spec, 9), 0)
        coordinator.drained()
        merged = [r for r in coordinator.versions() if r.version == 3]
        assert [r.worker for r in merged] == ["cid", "dan"]
        assert merged[0].norm == pytest.approx(difference, rel=1e-6)


def test_home_of_an_older_release_whose_blobs_are_elsewhere_asks_for_them_once(old_home: Path, tmp_path: Path):
    (old_home / "blobs").rename(tmp_path / "elsewhere")
    with pytest.raises(CoordinatorError, match=f"^none of the blobs of {old_home} is at {old_home}/blobs: say with"):
        open_home(old_home)
    for options in ({"blobs": str(tmp_path / "elsewhere")}, {}):
        with open_home(old_home, **options) as opened:
            assert opened.blobs.path("x").parent == tmp_path / "elsewhere"


def test_home_of_a_newer_release_is_refused_and_left_as_it_was(tmp_path: Path):
    home = small_home(tmp_path / "home")
    database = sqlite3.connect(home / "journal.sqlite")
    [known] = database.execute("SELECT version_num FROM alembic_version").fetchone()
    with database:
        database.execute("UPDATE alembic_version SET version_num = 'later'")
    before = list(database.iterdump())
    said = one_sentence(fedshare("coordinator", "--home", home, "--port", 0, "--no-lineage"))
    assert said == (
        f"{home} was made by a newer release of fedshare (its schema is later, the newest that is known here is"
        f" {known}): use that one"
    )
    assert list(database.iterdump()) == before


def test_migration_that_is_cut_off_leaves_the_home_as_it_was(old_home: Path, monkeypatch: pytest.MonkeyPatch):
    def cut(connection: object) -> None:
        migrate(connection)
        raise KeyboardInterrupt

    migrate = lease.migrate
    monkeypatch.setattr(lease, "migrate", cut)
    database = sqlite3.connect(old_home / "journal.sqlite")
    before = list(database.iterdump())
    with pytest.raises(KeyboardInterrupt):
        open_home(old_home)
    assert list(database.iterdump()) == before


def test_migrations_make_exactly_the_tables_that_queries_are_written_with(tmp_path: Path, old_home: Path):
    declared = create_engine("sqlite://")
    tables.metadata.create_all(declared)
    stood_in = made_by(HERE / "with_stand_in", tmp_path / "stood-in")
    for home in (small_home(tmp_path / "new"), opened(old_home), opened(stood_in)):
        migrated = open_sqlite(home / "journal.sqlite")
        with migrated.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        assert shape(migrated) == shape(declared)


def opened(home: Path) -> Path:
    with open_home(home):
        return home


def shape(engine: Engine) -> dict[str, object]:
    """What alembic's comparison does not look at: keys, and what is unique or refers to another table."""
    look = inspect(engine)
    return {
        table: (
            look.get_pk_constraint(table)["constrained_columns"],
            sorted(u["column_names"] for u in look.get_unique_constraints(table)),
            sorted((f["constrained_columns"], f["referred_table"]) for f in look.get_foreign_keys(table)),
            [(c["name"], str(c["type"]), c["nullable"]) for c in look.get_columns(table)],
        )
        for table in look.get_table_names()
        if table != "alembic_version"
    }


def test_disk_holds_a_commit_when_it_returns(tmp_path: Path):
    with open_home(small_home(tmp_path / "home")) as home:
        with writer(home.engine, unsynced=True).begin():
            pass  # of a beat, on the one connection there is
        with writer(home.engine).begin() as connection:
            settings = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("synchronous", "journal_mode")]
    assert settings == [2, "wal"]  # 2: FULL
