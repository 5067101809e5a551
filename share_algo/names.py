"""Task names are keys, never file names, and are never cleaned: so no two of them can collide.

They still must be harmless as file names, because people write `folder / task`.
"""

from __future__ import annotations

import re

from share_algo.errors import AlgebraError

TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def check_task_name(task: str) -> None:
    """AlgebraError for anything but 1 to 100 letters, digits, '.', '_', '-' with no '.' or '-' in front."""
    if not isinstance(task, str) or not TASK_NAME.fullmatch(task):
        raise AlgebraError(
            f"task name {str(task)[:100]!r}: use 1 to 100 letters, digits, '.', '_' or '-', with no '.' or '-' in front"
        )
