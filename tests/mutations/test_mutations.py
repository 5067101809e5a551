"""The mutations are still what they say: each old text is there once, each break compiles, each named test exists."""

from __future__ import annotations

from collections import Counter

import pytest

from .plan import Mutation, every, is_there

MUTATIONS = every()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_old_text_occurs_once_and_the_break_compiles(mutation: Mutation):
    assert mutation.old != mutation.new
    compile(mutation.applied(), mutation.file, "exec")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_tests_that_must_fail_exist(mutation: Mutation):
    assert mutation.tests and [test for test in mutation.tests if not is_there(test)] == []


def test_no_two_mutations_have_one_name():
    assert [name for name, count in Counter(m.name for m in MUTATIONS).items() if count > 1] == []
