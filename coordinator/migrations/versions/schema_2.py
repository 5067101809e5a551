"""Which schema a home has is alembic's mark alone."""

from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    with op.batch_alter_table("federation") as federation:
        federation.drop_column("schema")
