"""Tasks: text classification from a folder of CSV or JSON lines, or from the `datasets` library.

A folder holds train.csv and test.csv (or .jsonl), each with the fields `text` and `label`. Labels are read
as text; their order in the head is their sorted order.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from protos.labels import IN_NO_LABEL
from workers.errors import WorkerError

HUB_PREFIX = "hf:"
SPLITS = ("train", "test")
FIELD_CHARACTERS_MAX = 1_000_000
SURROGATE = re.compile("[\ud800-\udfff]")

Example = tuple[str, int]
"""(text, index of its label)."""


@dataclass(frozen=True)
class TaskData:
    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def load_task(
    name: str, source: str, *, train_examples_max: int = 0, test_examples_max: int = 0, seed: int = 0
) -> TaskData:
    """Read a task. `source` is a folder, or `hf:DATASET` or `hf:DATASET:CONFIG`. 0 examples: all there are.

    A limit keeps a random choice that depends on the seed only. Raises WorkerError for anything missing.
    """
    read = _from_hub if source.startswith(HUB_PREFIX) else _from_folder
    train, test = (read(source, split) for split in SPLITS)
    labels = tuple(sorted({label for _, label in train}))
    if len(labels) < 2:
        raise WorkerError(f"{source}: the train split has only the label {labels[0]!r}; a task needs two or more")
    if unknown := sorted({label for _, label in test} - set(labels)):
        raise WorkerError(f"{source}: the test split has the label {unknown[0]!r}, which the train split never shows")
    index = {label: i for i, label in enumerate(labels)}
    chosen = (
        tuple((text, index[label]) for text, label in _choice(rows, limit, seed))
        for rows, limit in ((train, train_examples_max), (test, test_examples_max))
    )
    return TaskData(name, labels, *chosen)


def must_be_there(source: str) -> None:
    """Raises WorkerError for a folder without its files: what can be known before anything else is waited for."""
    if not source.startswith(HUB_PREFIX):
        for split in SPLITS:
            _file_of(source, split)


def tasks_in(folder: Path) -> list[str]:
    """Names of the sub-folders that are tasks. Raises WorkerError when there is none."""
    if not _reachable(folder).is_dir():
        raise WorkerError(f"{folder} is not a folder: name one that holds a sub-folder for each task")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and _split_file(p, "train"))
    if not found:
        raise WorkerError(f"no sub-folder of {folder} has a train.csv or train.jsonl")
    return found


def _choice(rows: list[tuple[str, str]], limit: int, seed: int) -> list[tuple[str, str]]:
    return rows if not limit or limit >= len(rows) else random.Random(seed).sample(rows, limit)


def _reachable(folder: Path) -> Path:
    """Raises WorkerError where it cannot even be asked for."""
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise WorkerError(f"cannot read {str(folder)[:300]}: {error.strerror}") from None
    return folder


def _file_of(source: str, split: str) -> Path:
    folder = _reachable(Path(source))
    if not folder.is_dir():
        raise WorkerError(f"there is no folder {folder}: name one with train.csv and test.csv, or {HUB_PREFIX}DATASET")
    try:
        file = _split_file(folder, split)
    except OSError as error:
        raise WorkerError(f"cannot read {folder}: {error.strerror}") from None
    if file is None:
        raise WorkerError(f"{folder} has no {split}.csv and no {split}.jsonl")
    return file


def _from_folder(source: str, split: str) -> list[tuple[str, str]]:
    file = _file_of(source, split)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:  # spreadsheets write a byte order mark
            return _examples(str(file), _csv_rows(lines) if file.suffix == ".csv" else _json_rows(str(file), lines))
    except (OSError, UnicodeDecodeError, csv.Error, RecursionError) as error:
        raise WorkerError(f"{file} cannot be read: {error}") from None


def _csv_rows(lines: Iterable[str]) -> Iterable[Mapping[str, str]]:
    csv.field_size_limit(FIELD_CHARACTERS_MAX)
    return csv.DictReader(lines)


def _json_rows(where: str, lines: Iterable[str]) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkerError(f"{where}: line {number} is no JSON: {error.msg}") from None


def _split_file(folder: Path, split: str) -> Path | None:
    return next((p for s in (".csv", ".jsonl") if (p := folder / f"{split}{s}").is_file()), None)


def _examples(where: str, rows: Iterable[Mapping[str, object]]) -> list[tuple[str, str]]:
    examples = []
    for number, row in enumerate(rows, start=1):
        place = f"{where}: row {number}"
        for field in ("text", "label"):
            if not isinstance(row, Mapping) or row.get(field) is None:
                raise WorkerError(f"{place} has no field {field!r}")
        examples.append((_text(place, str(row["text"])), _label(place, str(row["label"]))))
    if not examples:
        raise WorkerError(f"{where} has no examples")
    return examples


def _text(where: str, text: str) -> str:
    if half := SURROGATE.search(text):
        raise WorkerError(f"{where} has half of a character in its text ({half[0]!a}): mend it")
    return text


def _label(where: str, label: str) -> str:
    """Looked at before the fit: after it, the coordinator would refuse what was learned."""
    if not label.strip():
        raise WorkerError(f"{where} has an empty label: give it one, or leave the row out")
    if IN_NO_LABEL.search(label):
        shown = ascii(label[:100])
        raise WorkerError(f"{where} has the label {shown}, with a character that no label may hold: rename it")
    return label


def _from_hub(source: str, split: str) -> list[tuple[str, str]]:
    try:
        import datasets
    except ImportError:
        raise WorkerError(f"{source} needs the datasets library: pip install 'fedshare[hub]'") from None
    name, _, config = source.removeprefix(HUB_PREFIX).partition(":")
    if not name.strip():
        raise WorkerError(f"{source} names no dataset: say {HUB_PREFIX}DATASET or {HUB_PREFIX}DATASET:CONFIG")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkerError(f"{source}: the {split} split cannot be loaded: {first_line}") from None
    names = getattr(rows.features.get("label"), "names", None)
    if names:
        rows = ({**row, "label": _named(row["label"], names)} for row in rows)
    return _examples(f"{source} ({split})", rows)


def _named(label: int | None, names: list[str]) -> str | None:
    """None where a hub's split withholds its labels: it says -1 then."""
    return names[label] if label is not None and 0 <= label < len(names) else None
