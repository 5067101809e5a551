"""The norm of an update that was stated anew: its stand-in may be a difference, and say another.

Of those that an older release stated anew it is not known: NULL.
"""

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    op.add_column("restated", sa.Column("norm", sa.Float))
