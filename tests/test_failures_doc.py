"""docs/failures.md says what is so: its tests are there, its table of waits is the code's, and lacks none."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from mutations.plan import is_there

PROJECT = Path(__file__).resolve().parents[1]
TEXT = (PROJECT / "docs" / "failures.md").read_text()
ROOMS = ("coordinator", "workers", "fedshare", "protos", "share_algo")
TESTS = re.findall(r"`(tests/[^`]+)`", TEXT)
BOUNDS = dict(re.findall(r"^\| `([a-z_.]+\.[A-Z_]+)` \| ([0-9.]+) \|", TEXT, re.MULTILINE))
IN_SECONDS = re.compile(r"^([A-Z_]*SECONDS[A-Z_]*)(?:: float)? = ", re.MULTILINE)


def test_every_row_names_a_test():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") == 5]
    assert [row for row in rows if not row.startswith("| what fails") and "`tests/" not in row] == []


@pytest.mark.parametrize("test", TESTS)
def test_test_that_is_named_is_there(test: str):
    assert is_there(test)


@pytest.mark.parametrize("constant", BOUNDS)
def test_bound_is_what_the_code_has(constant: str):
    module, _, name = constant.rpartition(".")
    assert float(BOUNDS[constant]) == getattr(importlib.import_module(module), name)


def test_no_wait_of_the_code_is_missing_in_the_table():
    files = [file for room in ROOMS for file in (PROJECT / room).rglob("*.py")]
    found = {
        f"{'.'.join(file.relative_to(PROJECT).with_suffix('').parts)}.{name}"
        for file in files
        for name in IN_SECONDS.findall(file.read_text())
    }
    assert found - BOUNDS.keys() == set()
