"""fedshare: many workers fine-tune one task each; one shared low-rank subspace keeps them all.

Each command imports what it needs when it is called: --help answers at once.
"""

from __future__ import annotations

import os
import sys

import typer

from fedshare.commands import ask, check, export, federate, judge, reverse, room
from fedshare.errors import Stopped, is_one_sentence

USER_MISTAKE = 2
INTERRUPTED = 130

app = typer.Typer(
    help=__doc__.splitlines()[0] if __doc__ else None,
    epilog="Start with `fedshare demo`, or with `fedshare coordinator FILE` and `fedshare worker` on two terminals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (federate, ask, reverse, room, judge, export, check):
    group.add_to(app)


def main() -> None:
    """Run the command line. A user's mistake is one sentence on stderr and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say, we say in one sentence
    try:
        app(standalone_mode=True)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not is_one_sentence(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except (KeyboardInterrupt, SystemExit) as end:
        interrupted = isinstance(end, KeyboardInterrupt) or end.code == INTERRUPTED  # Typer makes one of the other
        if not interrupted:
            raise
        print("stopped; what was finished is kept: give the same command to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
