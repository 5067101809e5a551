"""Who may write (the lease), and how far each task is from what was merged (its certificate)."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    number: dict[str, Any] = {"type_": sa.Integer, "nullable": False}
    op.create_table(
        "lease",
        sa.Column("id", **number, primary_key=True, autoincrement=False),
        sa.Column("token", **number),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("beats", **number),
    )
    with op.batch_alter_table("entries") as entries:
        for name in ("norm", "error", "loose"):
            entries.add_column(sa.Column(name, sa.Float, nullable=False, server_default="0"))
        entries.add_column(sa.Column("is_bound", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("entries") as entries:
        for name in ("norm", "error", "loose", "is_bound"):
            entries.alter_column(name, server_default=None)
