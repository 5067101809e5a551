"""The list of mutations: every *.toml of this folder.

[[mutation]]
name = "..."             a claim about what is broken, unique
file = "ROOM/FILE.py"    what is changed
old = '''...'''          occurs there exactly once
new = '''...'''          what stands there instead
tests = ["FILE::TEST"]   each must fail; with parameters, for one of them at least
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Mutation:
    """One break. `listed` is the file that lists it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    listed: str

    def applied(self, project: Path = PROJECT) -> str:
        """The file's text with the break in it. Raises ValueError where the old text is not there exactly once."""
        text = (project / self.file).read_text()
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.listed}, {self.name!r}: the old text occurs {found} times in {self.file}")
        return text.replace(self.old, self.new)


def every() -> list[Mutation]:
    return [mutation for file in sorted(HERE.glob("*.toml")) for mutation in _listed(file)]


def _listed(file: Path) -> Iterator[Mutation]:
    for m in tomllib.loads(file.read_text())["mutation"]:
        yield Mutation(m["name"], m["file"], m["old"], m["new"], tuple(m["tests"]), file.name)


def is_there(test: str, project: Path = PROJECT) -> bool:
    """Whether FILE::TEST names a function of that file. Parameters are not looked at."""
    file, _, name = test.partition("::")
    if not (project / file).is_file():
        return False
    tree = ast.parse((project / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return name.partition("[")[0].split("::")[-1] in functions
