"""Commands in the journal, verdicts that they change, versions of which only the record is left.

A version has a list of records from now on: one for each update that was merged in it.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    for name, columns in _tables().items():
        op.create_table(name, *columns)
    versions = sa.table("versions", sa.column("version", sa.Integer), sa.column("record", sa.JSON))
    connection = op.get_bind()
    for row in connection.execute(sa.select(versions)).all():
        records = [row.record] if row.version else []
        connection.execute(sa.update(versions).where(versions.c.version == row.version).values(record=records))


def _tables() -> dict[str, list[sa.Column]]:
    return {
        "past_verdicts": [
            _position(), _number("ordinal", primary_key=True), _number("outcome"), _number("version"),
            _text("reason"), sa.Column("decided_at", sa.Float, nullable=False),
        ],
        "commands": [_position(), _text("request")],
        "restated": [_position(), _text("digest"), _number("nbytes")],
        "gone": [
            sa.Column("version", sa.Integer, sa.ForeignKey("versions.version"), primary_key=True), _text("why"),
        ],
    }  # fmt: skip


def _position() -> sa.Column:
    return sa.Column("position", sa.Integer, sa.ForeignKey("journal.position"), primary_key=True)


def _number(name: str, **options: Any) -> sa.Column:
    return sa.Column(name, sa.Integer, nullable=False, **options)


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.String, nullable=False)
