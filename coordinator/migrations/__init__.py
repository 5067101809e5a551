"""The schema of a coordinator's database, release by release: each file in versions/ is one step from the last.

tables.py is what queries are written with; a test proves that all steps together make exactly that. A step that
a release has shipped is never changed: whoever changes tables.py adds the next.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


class NewerRelease(Exception):
    """The database has a schema that this release does not know. The message says which."""


def migrate(connection: Connection) -> None:
    """The database has this release's schema once the caller's transaction is committed; an empty one too.

    Raises NewerRelease, with nothing changed.
    """
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent))
    script = ScriptDirectory.from_config(config)
    known = [step.revision for step in script.walk_revisions()]  # newest first
    have = MigrationContext.configure(connection).get_current_revision()
    if have is not None and have not in known:
        raise NewerRelease(f"its schema is {have}, the newest that is known here is {known[0]}")
    if have != known[0]:
        command.upgrade(config, "head")
