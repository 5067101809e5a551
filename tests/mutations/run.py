"""Run the tests of a mutation on a copy of the project that has it, and read what failed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .plan import PROJECT, Mutation

TEST_SECONDS_MAX = 120
"""A test that takes longer fails: a break that makes something hang is caught so."""
RUN_SECONDS_MAX = 600
LEFT_OUT = (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "mlruns", "*-home")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::[^\s\[]+(?:\[.*?\])?)(?: - .*)?$", re.MULTILINE)
SOME_FAILED = 1
"""pytest's exit code when tests ran, and some failed."""


@dataclass(frozen=True)
class Result:
    """What the tests say of one mutation. `said` is why it is not caught."""

    mutation: str
    caught: bool
    failed: tuple[str, ...] = ()
    said: str = ""


def tried(mutation: Mutation) -> Result:
    """Caught when each of its tests fails."""
    try:
        text = mutation.applied()
    except ValueError as error:
        return Result(mutation.name, False, said=str(error))
    with copy_of_project() as copy:
        (copy / mutation.file).write_text(text)
        code, output = pytest_in(copy, mutation.tests)
    failed = tuple(FAILED.findall(output))
    passed = [test for test in mutation.tests if not any(is_of(test, one) for one in failed)]
    if code == SOME_FAILED and not passed:
        return Result(mutation.name, True, failed)
    said = f"passed: {', '.join(passed)}" if code in (0, SOME_FAILED) else f"pytest ended with {code}: {output[-500:]}"
    return Result(mutation.name, False, failed, said)


def sound(mutations: Sequence[Mutation]) -> str:
    """Empty when all named tests pass on the project as it is; else what pytest says."""
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    with copy_of_project() as copy:
        code, output = pytest_in(copy, tests, seconds=RUN_SECONDS_MAX * len(mutations))
    return "" if code == 0 else output[-4000:]


@contextmanager
def copy_of_project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        yield Path(shutil.copytree(PROJECT, Path(folder) / "project", ignore=shutil.ignore_patterns(*LEFT_OUT)))


def pytest_in(copy: Path, tests: Sequence[str], seconds: float = RUN_SECONDS_MAX) -> tuple[int, str]:
    """(exit code, output). -1 after `seconds`."""
    options = ["-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS_MAX}", "--color=no"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "400"}
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        ended = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"not over after {seconds:.0f} s"
    return ended.returncode, ended.stdout + ended.stderr


def is_of(test: str, failed: str) -> bool:
    """Whether what failed is this test, or one of its parameters."""
    return failed == test or failed.partition("[")[0] == test
