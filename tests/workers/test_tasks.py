"""A task is read as it is written, and every mistake in its data is one sentence that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from parts import sentences, write_task_file

from workers.errors import WorkerError
from workers.tasks import load_task, tasks_in

ROWS = [("a b", "no"), ("c d", "yes"), ("e f", "no")]


def write(folder: Path, train: str | bytes, test: str | bytes = "text,label\na,no\n", suffix: str = "csv") -> None:
    for split, content in (("train", train), ("test", test)):
        (folder / f"{split}.{suffix}").write_bytes(content if isinstance(content, bytes) else content.encode())


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = "text,label\na,no\nb,yes\n"
MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no test split": (lambda f: (f / "train.csv").write_text(GOOD), "{f} has no test.csv and no test.jsonl"),
    "no such column": (lambda f: write(f, "text,class\na,no\n"), "{f}/train.csv: row 1 has no field 'label'"),
    "a short row": (lambda f: write(f, "text,label\na,no\nb\n"), "{f}/train.csv: row 2 has no field 'label'"),
    "an empty label": (
        lambda f: write(f, "text,label\na,no\nb,\n"),
        "{f}/train.csv: row 2 has an empty label: give it one, or leave the row out"),
    "a label of spaces": (
        lambda f: write(f, GOOD, "text,label\na,no\nb,  \n"),
        "{f}/test.csv: row 2 has an empty label: give it one, or leave the row out"),
    "a label with a control character": (
        lambda f: write(f, "text,label\na,no\nb,ye\x00s\n"),
        "{f}/train.csv: row 2 has the label 'ye\\x00s', with a character that no label may hold"),
    "a label with half a character": (
        lambda f: write(f, lines({"text": "a", "label": "no"}, {"text": "b", "label": "\ud800"}), "", "jsonl"),
        "{f}/train.jsonl: row 2 has the label '\\ud800', with a character that no label may hold"),
    "an empty file": (lambda f: write(f, ""), "{f}/train.csv has no examples"),
    "an empty split": (lambda f: write(f, GOOD, "text,label\n"), "{f}/test.csv has no examples"),
    "one label": (
        lambda f: write(f, "text,label\na,no\n"),
        "{f}: the train split has only the label 'no'; a task needs two or more"),
    "a label only in test": (
        lambda f: write(f, GOOD, "text,label\na,maybe\n"),
        "{f}: the test split has the label 'maybe', which the train split never shows"),
    "bytes that are not text": (lambda f: write(f, b"text,label\na\xff,no\n"), "{f}/train.csv cannot be read: 'utf-8'"),
    "a field without end": (
        lambda f: write(f, 'text,label\n"' + "x" * 1_100_000), "{f}/train.csv cannot be read: field larger than"),
    "broken JSON": (
        lambda f: write(f, lines({"text": "a", "label": "no"}) + '{"text": ', "", "jsonl"),
        "{f}/train.jsonl: line 2 is no JSON: Expecting value"),
    "a text with half a character": (
        lambda f: write(f, lines({"text": "a", "label": "no"}, {"text": "\ud800", "label": "yes"}), "", "jsonl"),
        "{f}/train.jsonl: row 2 has half of a character in its text ('\\ud800'): mend it"),
    "JSON without end": (lambda f: write(f, "[" * 100_000, "", "jsonl"), "{f}/train.jsonl cannot be read: "),
    "JSON that is no object": (
        lambda f: write(f, "[1, 2]\n", "", "jsonl"), "{f}/train.jsonl: row 1 has no field 'text'"),
    "JSON without a text": (
        lambda f: write(f, lines({"label": "no"}), "", "jsonl"), "{f}/train.jsonl: row 1 has no field 'text'"),
    "JSON whose label is null": (
        lambda f: write(f, lines({"text": "a", "label": None}), "", "jsonl"),
        "{f}/train.jsonl: row 1 has no field 'label'"),
    "a file that cannot be read": (
        lambda f: (write(f, GOOD), (f / "test.csv").unlink(), (f / "test.csv").symlink_to("/proc/self/mem")),
        "{f}/test.csv cannot be read: "),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_in_the_data_is_one_sentence_with_the_place(tmp_path: Path, mistake: tuple):
    make, sentence = mistake
    make(tmp_path)
    with pytest.raises(WorkerError) as raised:
        load_task("task", str(tmp_path))
    said = str(raised.value)
    assert said.startswith(sentence.format(f=tmp_path)) and "\n" not in said


def test_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(WorkerError, match=f"there is no folder {tmp_path}/nothing: name one with train.csv"):
        load_task("task", str(tmp_path / "nothing"))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_are_sorted_and_examples_keep_their_order(tmp_path: Path, suffix: str):
    if suffix == "csv":
        for split in ("train", "test"):
            write_task_file(tmp_path / f"{split}.csv", ROWS)
    else:
        rows = lines(*({"text": text, "label": label} for text, label in ROWS))
        write(tmp_path, rows, "\n" + rows, "jsonl")
    task = load_task("task", str(tmp_path))
    assert task.labels == ("no", "yes")
    assert task.train == task.test == (("a b", 0), ("c d", 1), ("e f", 0))


def test_file_that_a_spreadsheet_wrote_is_read(tmp_path: Path):
    """With a byte order mark, carriage returns, quoted commas and line breaks."""
    write(tmp_path, '\ufefftext,label\r\n"a, b",no\r\n"c\r\nd",yes\r\n')
    assert load_task("task", str(tmp_path)).train == (("a, b", 0), ("c\r\nd", 1))


def test_label_may_hold_tabs_and_line_ends(tmp_path: Path):
    write(tmp_path, 'text,label\na,no\nb,"y\te\r\ns"\n')
    assert load_task("task", str(tmp_path)).labels == ("no", "y\te\r\ns")


def test_limit_keeps_a_choice_that_depends_on_the_seed_only(tmp_path: Path):
    for split in ("train", "test"):
        write_task_file(tmp_path / f"{split}.csv", sentences(split, ("red", "green"), 40))

    def chosen(seed: int) -> tuple:
        return load_task("task", str(tmp_path), train_examples_max=10, test_examples_max=5, seed=seed)

    assert chosen(1) == chosen(1) != chosen(2)
    assert (len(chosen(1).train), len(chosen(1).test)) == (10, 5)
    assert set(chosen(1).train) <= set(load_task("task", str(tmp_path)).train)


def test_tasks_of_a_folder_are_its_sub_folders_with_a_train_split(tmp_path: Path):
    with pytest.raises(WorkerError, match=f"no sub-folder of {tmp_path} has a train.csv or train.jsonl"):
        tasks_in(tmp_path)
    write_task_file(tmp_path / "b" / "train.csv", ROWS)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text("")
    (tmp_path / "notes").mkdir()
    assert tasks_in(tmp_path) == ["a", "b"]
    with pytest.raises(WorkerError, match="nothing is not a folder"):
        tasks_in(tmp_path / "nothing")


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    pytest.importorskip("datasets")
    return tmp_path / "dataset"


def test_datasets_library_reads_a_local_folder(hub_folder: Path):
    for split in ("train", "test"):
        write_task_file(hub_folder / f"{split}.csv", ROWS)
    task = load_task("task", f"hf:{hub_folder}")
    assert task.labels == ("no", "yes") and task.train == (("a b", 0), ("c d", 1), ("e f", 0))


def write_class_labels(folder: Path, test_label: int) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["zero", "one"])})
    for split, label in (("train", 1), ("test", test_label)):
        rows = {"text": ["a", "b"], "label": [0, label]}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


def test_labels_with_names_are_shown_by_their_names(hub_folder: Path):
    hub_folder.mkdir()
    write_class_labels(hub_folder, test_label=1)
    task = load_task("task", f"hf:{hub_folder}")
    assert task.labels == ("one", "zero") and task.test == (("a", 1), ("b", 0))


def test_split_whose_labels_are_withheld_is_refused(hub_folder: Path):
    """A hub's test split often has label -1 everywhere: that is no label."""
    hub_folder.mkdir()
    write_class_labels(hub_folder, test_label=-1)
    with pytest.raises(WorkerError, match=r"\(test\): row 2 has no field 'label'"):
        load_task("task", f"hf:{hub_folder}")


def test_data_that_the_datasets_library_cannot_read_is_one_sentence(hub_folder: Path):
    hub_folder.mkdir()
    (hub_folder / "train.jsonl").write_text('{"text": ')
    with pytest.raises(WorkerError, match=f"hf:{hub_folder}: the train split cannot be loaded: ") as raised:
        load_task("task", f"hf:{hub_folder}")
    assert "\n" not in str(raised.value)


def test_dataset_that_is_not_there_is_one_sentence(hub_folder: Path):
    with pytest.raises(WorkerError, match="hf:nobody/nothing: the train split cannot be loaded: ") as raised:
        load_task("task", "hf:nobody/nothing")
    assert "\n" not in str(raised.value)
