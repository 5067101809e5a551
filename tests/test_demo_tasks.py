"""The demo's tasks: deterministic, balanced, disjoint, and not to be solved by single words."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from fedshare.demo.tasks import DEMO_TASKS, generate, write_csv_folder

TRAIN, TEST = 240, 200

every_task = pytest.mark.parametrize("name", DEMO_TASKS)


def words(text: str) -> list[str]:
    return text.split()


@pytest.fixture
def parts(name):
    return generate(name, 0, TRAIN, TEST)


def test_there_are_six_tasks_and_one_for_a_late_joiner():
    assert list(DEMO_TASKS) == ["agent", "choice", "colour", "first", "negation", "travel", "winner"]


@every_task
def test_same_seed_same_examples_other_seed_others(name, parts):
    assert generate(name, 0, TRAIN, TEST) == parts
    assert generate(name, 1, TRAIN, TEST) != parts


def test_examples_do_not_depend_on_the_process():
    """A hash seed of its own must not change anything: two workers have to see one and the same task."""
    code = "from fedshare.demo.tasks import generate; print([generate(n, 7, 9, 5) for n in {names!r}])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code.format(names=list(DEMO_TASKS))],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(runs) == 1


@every_task
def test_train_does_not_depend_on_the_size_of_test(name, parts):
    assert generate(name, 0, TRAIN, 10)[0] == parts[0]


@every_task
def test_labels_are_the_tasks_labels_in_equal_numbers(name, parts):
    labels = DEMO_TASKS[name].labels
    assert 2 <= len(labels) <= 4
    for part, size in zip(parts, (TRAIN, TEST), strict=True):
        counts = Counter(label for _, label in part)
        assert counts.keys() == labels.keys()
        assert counts.total() == size
        assert max(counts.values()) - min(counts.values()) <= 1


@every_task
def test_no_sentence_occurs_twice(name):
    train, test = generate(name, 3, 2 * TRAIN, TEST)
    texts = [text for text, _ in train + test]
    assert len(set(texts)) == len(texts) == 2 * TRAIN + TEST


@every_task
def test_sentences_are_short_and_complete(name, parts):
    for text, _ in (*parts[0], *parts[1]):
        assert 4 <= len(words(text)) <= 12
        assert "{" not in text


@every_task
def test_labels_are_shuffled(name, parts):
    """The labels are drawn in turn; whoever takes a slice must not get a pattern."""
    turns = len(DEMO_TASKS[name].labels)
    for part in parts:
        labels = [label for _, label in part]
        assert any(label != labels[i % turns] for i, label in enumerate(labels))


@every_task
def test_test_sentences_have_words_that_training_never_saw(name, parts):
    seen, tested = ({word for text, _ in part for word in words(text)} for part in parts)
    assert tested - seen
    own = [word for words in DEMO_TASKS[name].labels.values() if len(words) == 1 for word in words]
    assert seen.issuperset(own)


@every_task
def test_every_sentence_has_a_word_of_its_label_and_of_exactly_one_other(name, parts):
    label_of = {word: label for label, own in DEMO_TASKS[name].labels.items() for word in own}
    for text, label in (*parts[0], *parts[1]):
        named = Counter(label_of[word] for word in words(text) if word in label_of)
        assert len(named) == 2 and set(named.values()) == {1}
        assert label in named


@every_task
def test_no_form_and_no_slot_can_name_a_label(name):
    """Otherwise a word could tell the label by itself."""
    task = DEMO_TASKS[name]
    own = [word for label_words in task.labels.values() for word in label_words]
    lists = [*task.slots.values(), [word for form in task.forms for word in words(form)]]
    assert len(set(own)) == len(own)
    assert not set(own) & {word for each in lists for word in each}
    assert all(form.count("{this}") == form.count("{other}") == 1 for form in task.forms)


@every_task
def test_a_bag_of_single_words_only_guesses_between_the_two_labels(name):
    """Naive Bayes on the words of a sentence; 0.5 is what the two labels named in it leave to chance."""
    train, test = generate(name, 0, TRAIN, 2 * TEST)
    count: dict[str, Counter[str]] = defaultdict(Counter)
    for text, label in train:
        count[label].update(set(words(text)))
    size = Counter(label for _, label in train)

    def score(label: str, text: str) -> float:
        odds = 1.0
        for word in set(words(text)):
            odds *= (count[label][word] + 1) / (size[label] + 2)
        return odds

    right = sum(max(count, key=lambda label: score(label, text)) == label for text, label in test)
    assert right / len(test) < 0.6


def test_asking_for_more_sentences_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="fewer"):
        generate("negation", 0, 100_000, 0)


def test_unknown_task():
    with pytest.raises(KeyError):
        generate("nonsense", 0, 1, 1)


@every_task
def test_csv_folder(tmp_path, name, parts):
    write_csv_folder(tmp_path / "new" / name, name, 0, TRAIN, TEST)
    for part, examples in zip(("train", "test"), parts, strict=True):
        with (tmp_path / "new" / name / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["text", "label"]
        assert [tuple(row) for row in rows] == examples
