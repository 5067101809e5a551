"""The tables of the first release. A home that it made has them already, and no mark of alembic's."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    for name, columns in _tables().items():
        op.create_table(name, *columns, if_not_exists=True)
    op.create_index("journal_by_task", "journal", ["task", "worker"], if_not_exists=True)
    op.create_index("entries_by_task", "entries", ["task", "version_from"], if_not_exists=True)


def _tables() -> dict[str, list[sa.Column | sa.Constraint]]:
    return {
        "federation": [_text("id", primary_key=True), _number("schema"), _text("spec")],
        "members": [
            _text("worker", primary_key=True), _text("task"), _number("incarnation"),
            _real("joined_at"), _real("left_at", nullable=True),
        ],
        "journal": [
            _number("position", primary_key=True, autoincrement=True), _text("update_id", unique=True),
            _text("worker"), _number("incarnation"), _text("task"), _number("base_version"),
            _text("digest"), _number("nbytes"), _json("labels"), _json("metrics"), _real("received_at"),
        ],
        "verdicts": [
            sa.Column("position", sa.Integer, sa.ForeignKey("journal.position"), primary_key=True),
            _number("outcome"), _number("version"), _text("reason"), _real("decided_at"),
        ],
        "versions": [
            _number("version", primary_key=True), _number("parent"), _number("generation"),
            _number("position", nullable=True, unique=True), _number("blocks"), _text("digest"),
            _json("record"), _real("created_at"),
        ],
        "blocks": [
            _number("generation", primary_key=True), _number("ordinal", primary_key=True),
            _text("digest"), _number("nbytes"),
        ],
        "entries": [
            _number("version_from", primary_key=True), _text("task", primary_key=True),
            _number("version_until", nullable=True), _text("digest"), _number("nbytes"), _json("labels"),
        ],
        "metrics": [
            _number("id", primary_key=True, autoincrement=True), _text("worker"), _text("task"),
            _number("version"), _text("name"), _real("value"), _real("at"),
        ],
        "cursors": [_text("name", primary_key=True), _number("position")],
    }  # fmt: skip


def _column(kind: type) -> Callable[..., sa.Column]:
    def column(name: str, *, nullable: bool = False, **options: Any) -> sa.Column:
        return sa.Column(name, kind, nullable=nullable, **options)

    return column


_text, _number, _real, _json = map(_column, (sa.String, sa.Integer, sa.Float, sa.JSON))
