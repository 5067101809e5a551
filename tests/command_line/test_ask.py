"""status, versions, show and story say what the coordinator knows: in words, and with --json as JSON with numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forks import fedshare, fedshare_anew
from parts import Walk, one_sentence

from protos.fedshare.v1 import federation_pb2 as pb


def said(walk: Walk, *args: object) -> str:
    ended = fedshare(*args, "-c", walk.coordinator.address, COLUMNS="200")
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def as_json(walk: Walk, *args: object) -> Any:
    return json.loads(said(walk, *args, "--json"))


@pytest.fixture(scope="module")
def record(walk: Walk) -> pb.VersionRecord:
    """Of animal's version."""
    return walk.coordinator.versions()[1]


def test_status_in_words(walk: Walk):
    text = said(walk, "status")
    for words in ("tiny", "version 2", "2 merged, 0 queued, 0 skipped", "lineage     off", "colour-worker", "animal"):
        assert words in text


def test_status_as_json_has_numbers_as_numbers(walk: Walk):
    status, known = as_json(walk, "status"), walk.coordinator.status()
    assert (status["head"], status["merged"], status["queued"], status["skipped"]) == (2, 2, 0, 0)
    assert (status["bytes_basis"], status["bytes_tasks"]) == (known.bytes_basis, known.bytes_tasks)
    assert (status["spec"]["seed"], status["spec"]["rank"], status["spec"]["name"]) == (3, 4, "tiny")
    assert [(m["worker"], m["incarnation"]) for m in status["members"]] == [("animal-worker", 1), ("colour-worker", 2)]


def test_versions_in_words_has_a_line_for_each(walk: Walk, record: pb.VersionRecord):
    lines = said(walk, "versions").splitlines()
    assert len(lines) == 3
    assert lines[2].split()[:5] == ["2", "animal", "animal-worker", "1", "0"]
    assert f"{record.bytes_sent:,}" in lines[2]


def test_versions_as_json_are_the_records(walk: Walk, record: pb.VersionRecord):
    root, first, second = as_json(walk, "versions")
    assert (root["version"], root["task"], first["task"]) == (0, "", "colour")
    for name in (
        "version",
        "parent",
        "base_version",
        "staleness",
        "bytes_sent",
        "bytes_lora",
        "basis_out",
        "created_at",
    ):
        assert second[name] == getattr(record, name) and type(second[name]) in (int, float)
    assert second["metrics"] == dict(record.metrics)
    assert second["update_id"] == record.update_id


def test_show_in_words_names_tasks_and_their_versions(walk: Walk, record: pb.VersionRecord):
    text = said(walk, "show", 2)
    assert record.update_id in text and record.digest in text and "basis: 2 blocks" in text
    assert [line.split()[:3] for line in text.splitlines()[-2:]] == [["animal", "2", "2"], ["colour", "1", "2"]]


def test_show_as_json_has_the_record_and_the_manifest(walk: Walk, record: pb.VersionRecord):
    shown = as_json(walk, "show", 2)
    assert (shown["version"], shown["digest"]) == (2, record.digest)
    manifest = shown["manifest"]
    assert [b["nbytes"] > 0 for b in manifest["blocks"]] == [True, True]
    assert {t["task"]: (t["version"], t["labels"]) for t in manifest["tasks"]} == {
        "animal": (2, ["cat", "dog"]),
        "colour": (1, ["green", "red"]),
    }


def test_version_zero_is_shown_as_empty(walk: Walk):
    shown = as_json(walk, "show", 0)
    assert (shown["version"], shown["manifest"]["blocks"], shown["manifest"]["tasks"]) == (0, [], [])


def test_every_version_is_shown_in_the_same_order_and_in_words(walk: Walk):
    texts = [said(walk, "show", version) for version in (0, 2)]
    orders = [[line.split()[0] for line in text.partition("\n\n")[0].splitlines()] for text in texts]
    assert orders[0] == orders[1] == [field.name for field in pb.VersionRecord.DESCRIPTOR.fields]
    assert [list(as_json(walk, "show", version))[: len(orders[0])] for version in (0, 2)] == orders
    for text, kind in zip(texts, ("start", "merge"), strict=True):
        assert f"\n{'kind':<20} {kind}\n" in text and "VERSION_KIND" not in text and "{" not in text


@pytest.mark.parametrize("digits", [6, 12, 32])
def test_story_is_found_by_the_first_digits_of_the_id(walk: Walk, record: pb.VersionRecord, digits: int):
    text = said(walk, "story", record.update_id[:digits])
    assert text.splitlines()[0] == f"update {record.update_id}"
    what = [line.split()[2] for line in text.splitlines()[1:]]
    assert what[:2] == ["received", "merged"] and "reported" in what


def test_story_as_json_has_the_verdict_and_times_as_numbers(walk: Walk, record: pb.VersionRecord):
    story = as_json(walk, "story", record.update_id)
    assert (story["verdict"]["outcome"], story["verdict"]["version"]) == ("OUTCOME_MERGED", 2)
    assert (story["verdict"]["position"], story["update_id"]) == (2, record.update_id)
    assert all(isinstance(event["at"], float) for event in story["events"])


MISTAKES = {
    "a version that is not there": (("show", 9), "there is no version 9: the newest is 2"),
    "a version beyond all numbers": (("show", 2**63 - 1), "there is no version"),
    "a prefix that is too short": (("story", "abc"), "no update has an id that starts with 'abc' (give 6 or more"),
    "an update that is not there": (("story", "0" * 32), "no update has an id that starts with"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_question_without_an_answer_is_one_sentence(walk: Walk, mistake: tuple[tuple[object, ...], str]):
    args, sentence = mistake
    assert one_sentence(fedshare(*args, "-c", walk.coordinator.address)).startswith(sentence)


@pytest.mark.parametrize("command", [["status"], ["versions"], ["show", "1"], ["story", "abcdef"]])
def test_coordinator_that_is_not_there_is_one_sentence(command: list[str]):
    said = one_sentence(fedshare(*command, "--coordinator", "127.0.0.1:1"))
    assert said == "no coordinator answers at 127.0.0.1:1: start it, or name another --coordinator"


def test_host_that_is_none_is_one_sentence():
    assert "coordinator" in one_sentence(fedshare_anew("status", "--coordinator=no.such.host.invalid:1"))


@pytest.mark.parametrize(
    "address",
    ["nonsense", "127.0.0.1", "127.0.0.1:", ":7303", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:99999", "http://h:7303"],
)
def test_address_that_is_none_is_one_sentence(walk: Walk, address: str):
    for said in (address, f"{walk.coordinator.address},{address}"):
        sentence = one_sentence(fedshare("status", f"--coordinator={said}"))
        assert sentence == f"the coordinator {address!r} is not HOST:PORT: name it like 127.0.0.1:50051"


@pytest.mark.parametrize("address", ["", ",,", " , "])
def test_no_address_is_one_sentence(address: str):
    said = one_sentence(fedshare("status", f"--coordinator={address}"))
    assert said == "no coordinator is named: say its HOST:PORT with --coordinator"


def test_addresses_that_are_empty_are_passed_over(walk: Walk):
    assert fedshare("status", f"--coordinator=,{walk.coordinator.address}, ,").returncode == 0


def test_address_may_come_from_the_environment(walk: Walk):
    ended = fedshare("status", "--json", FEDSHARE_COORDINATOR=walk.coordinator.address)
    assert json.loads(ended.stdout)["spec"]["name"] == "tiny"
