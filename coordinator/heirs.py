"""The tasks that began with what is forgotten and stay, as the end of a forget's note. Pure.

Such a note outlives the forget: where one of these tasks is erased later, its name goes from there, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

ERASED_TASK = "(erased)"
"""Stands for the name of a task of which nothing is left. No task can have this name."""
NAMES_MAX = 10
_MARK = "; what they had learned is where others began that stay: "


def noted(note: str, heirs: Sequence[str]) -> str:
    """`note`, and who began with what it says is forgotten."""
    if not heirs:
        return note
    more = [f"and {len(heirs) - NAMES_MAX} more"] if len(heirs) > NAMES_MAX else []
    return note + _MARK + ", ".join([*heirs[:NAMES_MAX], *more])


def without(note: str, tasks: Collection[str]) -> str:
    """The same without these names."""
    what, mark, heirs = note.partition(_MARK)
    return what + mark + ", ".join(ERASED_TASK if heir in tasks else heir for heir in heirs.split(", "))
