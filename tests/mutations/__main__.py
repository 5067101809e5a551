"""Break the code in one place at a time, and see whether the tests that are named for it fail.

Each mutation is made in a copy of the project. Exit code 1: one is not caught, or its old text is not there, or a
named test fails without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .plan import Mutation, every
from .run import Result, sound, tried


def main() -> int:
    options = _options()
    chosen = [m for m in every() if options.only in m.name and m.listed.startswith(options.list)]
    if not chosen:
        print(f"error: no mutation of {options.list or 'any list'} has {options.only!r} in its name", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        bar = progress.add_task("without any mutation", total=len(chosen) + 1)
        if wrong := sound(chosen):
            console.print(f"some of the tests fail without any mutation:\n{wrong}", highlight=False, markup=False)
            return 1
        results = []
        for mutation in chosen:
            progress.update(bar, advance=1, description=mutation.name)
            results.append(tried(mutation))
            if not console.is_terminal:  # which shows no bar
                console.print(f"{len(results)}/{len(chosen)} {_verdict(results[-1])}: {mutation.name}", highlight=False)
        progress.update(bar, advance=1, description="done")
    _show(chosen, results, options.json)
    return int(not all(result.caught for result in results))


def _show(chosen: Sequence[Mutation], results: Sequence[Result], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    table = Table("mutation", "file", "", box=None)
    table.add_column("by", overflow="fold")
    for mutation, result in zip(chosen, results, strict=True):
        said = "\n".join(test.partition("::")[2] for test in result.failed) if result.caught else result.said
        table.add_row(mutation.name, mutation.file, _verdict(result), said)
    Console().print(table)
    caught = sum(result.caught for result in results)
    print(f"{caught} of {len(results)} mutations are caught")


def _verdict(result: Result) -> str:
    return "caught" if result.caught else "[red]NOT CAUGHT[/]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="mutations with this in their name")
    parser.add_argument("--list", default="", metavar="FILE", help="of this list: algebra, walk ...")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
