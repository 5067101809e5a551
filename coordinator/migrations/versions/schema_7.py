"""With which task's coefficients an update began. In older releases none did."""

import sqlalchemy as sa
from alembic import op

from coordinator.tables import Text

revision = "7"
down_revision = "6"


def upgrade() -> None:
    op.add_column("journal", sa.Column("warm_start", Text, nullable=False, server_default=""))
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE journal ALTER COLUMN warm_start SET STATISTICS 0")  # as schema_5
