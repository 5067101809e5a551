"""Where `fedshare` begins and ends: what it lets out is one sentence. All else is imported in here, as Ctrl-C may come
meanwhile."""

from __future__ import annotations

import os
import sys

from fedshare.errors import Stopped, one_sentence

USER_MISTAKE = 2
INTERRUPTED = 130


def main() -> None:
    """Run the command line. A user's mistake is one sentence on stderr and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say, we say in one sentence
    # Nothing forked from here calls gRPC. Its handlers start threads in the child, which crash it (Ray forks to start).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        from fedshare.app import app

        app(standalone_mode=True)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not (said := one_sentence(error)):
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except (KeyboardInterrupt, SystemExit) as end:
        interrupted = isinstance(end, KeyboardInterrupt) or end.code == INTERRUPTED  # Typer makes one of the other
        if not interrupted:
            raise
        print("stopped; what was finished is kept: give the same command to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
