"""fedshare: many workers fine-tune one task each; one shared low-rank subspace keeps them all.

Each command imports what it needs when it is called: --help answers at once.
"""

from __future__ import annotations

import typer

from fedshare.commands import ask, check, export, federate, judge, reverse, room

app = typer.Typer(
    help=__doc__.splitlines()[0] if __doc__ else None,
    epilog="Start with `fedshare demo`, or with `fedshare coordinator FILE` and `fedshare worker` on two terminals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    suggest_commands=False,  # click does
)
for group in (federate, ask, reverse, room, judge, export, check):
    group.add_to(app)
