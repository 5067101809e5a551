"""Databases other than SQLite come in: in PostgreSQL every number has 64 bits, and text is sorted by code points.

Nor does its planner note what stands in a column of text: it would go on knowing what was erased.
"""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return  # SQLite's integers have 64 bits, and its text is sorted so
    look = sa.inspect(op.get_bind())
    for table in sorted(set(look.get_table_names()) - {"alembic_version"}):
        for column in look.get_columns(table):
            if isinstance(column["type"], sa.Integer):
                op.alter_column(table, column["name"], type_=sa.BigInteger)
            elif isinstance(column["type"], sa.String):
                op.alter_column(table, column["name"], type_=sa.String(collation="C"))
            if isinstance(column["type"], sa.String | sa.JSON):
                op.execute(f'ALTER TABLE "{table}" ALTER COLUMN "{column["name"]}" SET STATISTICS 0')
    op.execute("ALTER SEQUENCE metrics_id_seq AS BIGINT")
