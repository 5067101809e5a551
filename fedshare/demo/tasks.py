"""Seven small English text-classification tasks, made from a seed: no data files, no network.

Every sentence sets two labels against each other and says which of the two it is: "ben has a red cup and a
blue hat" is red, "ben has a blue cup and a red hat" is blue. Both labels' words are always there and every
form of sentence serves every label, so counting single words can do no better than guess between the two. The
answer is in how the sentence is put together, which a frozen encoder's sentence vectors tell only in part.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random

Example = tuple[str, str]
Words = Mapping[str, Sequence[str]]

HELD_OUT = 0.2
"""This share of every list of words, rounded, occurs in test sentences only; a list of one word is shared."""
PATIENCE = 1000
"""After so many draws without a new sentence a task is taken to have no more."""


@dataclass(frozen=True)
class Generator:
    """A task: what it asks, the words that stand for each label, and the forms of its sentences.

    In a form ``{this}`` is a word for the right label and ``{other}`` a word for another label;
    ``{slot}`` and ``{slot2}`` are two different words from the list of that name.
    """

    asks: str
    labels: Words
    forms: Sequence[str]
    slots: Words

    def sentence(self, rng: Random, label: str, words: Words) -> str:
        """A sentence whose label is ``label``, with words from these lists for labels and slots."""
        rival = rng.choice([other for other in self.labels if other != label])
        chosen = {"this": rng.choice(words[label]), "other": rng.choice(words[rival])}
        for slot in self.slots:
            chosen[slot], chosen[f"{slot}2"] = rng.sample(words[slot], 2)
        return rng.choice(self.forms).format(**chosen)


def _words(text: str) -> list[str]:
    return text.split()


def _literal(text: str) -> dict[str, list[str]]:
    """Labels that occur in the sentence as they are."""
    return {word: [word] for word in text.split()}


NAMES = _words("anna ben carl dora emma fred gina hugo iris jack kate liam mary nina oscar paul rosa sam tina")

DEMO_TASKS: dict[str, Generator] = {
    "agent": Generator(
        asks="Who acts, the person or the animal?",
        labels={
            "person": _words("nurse farmer pilot teacher lawyer baker sailor doctor singer painter judge poet"),
            "animal": _words("dog cat horse goat fox bear wolf pig duck rabbit monkey tiger"),
        },
        forms=["the {this} {verb} the {other}", "the {other} was {verb} by the {this}"],
        slots={"verb": _words("chased followed found watched saved trapped scared carried attacked noticed")},
    ),
    "choice": Generator(
        asks="Which drink was it?",
        labels=_literal("tea milk juice water"),
        forms=[
            "{name} {took} {this} instead of {other}",
            "instead of {other} {name} {took} {this}",
            "{name} {took} {this} , not {other}",
            "{name} {took} not {other} but {this}",
        ],
        slots={"name": NAMES, "took": _words("ordered wanted chose bought drank took liked got")},
    ),
    "colour": Generator(
        asks="What colour is the cup?",
        labels=_literal("red blue green white"),
        forms=[
            "{name} {verb} a {this} cup and a {other} {thing}",
            "{name} {verb} a {other} {thing} and a {this} cup",
        ],
        slots={
            "name": NAMES,
            "verb": _words("saw wants sold bought likes found has lost drew kept"),
            "thing": _words("box chair lamp door hat pen bag plate shoe coat ball ring"),
        },
    ),
    "first": Generator(
        asks="What was done first?",
        labels=_literal("cooked sang swam"),
        forms=[
            "{name} {this} before {name2} {other}",
            "{name} {other} after {name2} {this}",
            "after {name} {this} {name2} {other}",
            "{name} {this} , then {name2} {other}",
        ],
        slots={"name": NAMES},
    ),
    "negation": Generator(
        asks="Of whom is it true?",
        labels=_literal("boys girls men"),
        forms=[
            "the {this} were {state} {when} but the {other} were not",
            "the {other} were not {state} {when} but the {this} were",
        ],
        slots={
            "state": _words("late happy tired angry hungry quiet ready busy sick alone lucky cold"),
            "when": _words("today then again here yesterday outside"),
        },
    ),
    "travel": Generator(
        asks="Where does the journey end?",
        labels=_literal("paris rome london berlin"),
        forms=[
            "{name} {went} from {other} to {this}",
            "{name} {went} to {this} from {other}",
            "from {other} {name} {went} to {this}",
            "{name} left {other} for {this}",
        ],
        slots={"name": NAMES, "went": _words("flew drove went moved walked rode returned sailed")},
    ),
    "winner": Generator(
        asks="Who won the match?",
        labels=_literal("spain italy france brazil"),
        forms=[
            "{this} beat {other} in {place} {when}",
            "{other} lost to {this} in {place} {when}",
            "in {place} {this} won against {other} {when}",
            "{other} was beaten by {this} in {place} {when}",
        ],
        slots={
            "place": _words("tokyo oslo boston vienna cairo lima delhi athens"),
            "when": _words("today again twice easily yesterday"),
        },
    ),
}


def generate(name: str, seed: int, train_examples: int, test_examples: int) -> tuple[list[Example], list[Example]]:
    """Train and test examples as (text, label): shuffled, no sentence twice, the same for the same arguments.

    Both parts come from one grammar and have the labels in equal numbers, give or take one. Test sentences
    draw on all its words, train sentences on all but the held-out ones: part of the test is on new words.
    """
    task, rng = DEMO_TASKS[name], Random(f"{name}/{seed}")
    every = {key: rng.sample(words, len(words)) for key, words in {**task.labels, **task.slots}.items()}
    known = {key: words[round(len(words) * HELD_OUT) :] for key, words in every.items()}
    seen: set[str] = set()
    train = _unseen(task, rng, known, train_examples, seen)
    return train, _unseen(task, rng, every, test_examples, seen)


def _unseen(task: Generator, rng: Random, words: Words, count: int, seen: set[str]) -> list[Example]:
    """``count`` shuffled examples with sentences that are not in ``seen``; adds them to it."""
    examples = []
    for label in islice(cycle(task.labels), count):
        draws = (task.sentence(rng, label, words) for _ in range(PATIENCE))
        text = next((draw for draw in draws if draw not in seen), None)
        if text is None:
            raise ValueError(f"{task.asks!r} has fewer than {count} sentences left, ask for fewer examples")
        seen.add(text)
        examples.append((text, label))
    rng.shuffle(examples)
    return examples


def write_csv_folder(folder: Path, name: str, seed: int, train_examples: int = 240, test_examples: int = 200) -> None:
    """Write a task as ``train.csv`` and ``test.csv``, with the header ``text,label``."""
    train, test = generate(name, seed, train_examples, test_examples)
    folder.mkdir(parents=True, exist_ok=True)
    for part, examples in {"train": train, "test": test}.items():
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *examples])
