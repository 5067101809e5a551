"""Where the blobs lie. Of a home of an older release it is not known: NULL, until it is opened with this one.

And a sweep that is wanted says by itself that the database is to be wiped, too.
"""

import sqlalchemy as sa
from alembic import op

from coordinator.tables import Text

revision = "8"
down_revision = "7"


def upgrade() -> None:
    op.add_column("federation", sa.Column("blobs", Text))
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE federation ALTER COLUMN blobs SET STATISTICS 0")  # as schema_5
    op.execute("INSERT INTO cursors (name, position) SELECT 'wipe', 1 FROM cursors WHERE name = 'sweep'")
