"""Two workers learn in turn; then each version is what was learned, and nothing that was there has changed."""

from __future__ import annotations

import pytest
from parts import Walk

from protos.fedshare.v1 import federation_pb2 as pb


def manifest(walk: Walk, version: int) -> pb.Manifest:
    with walk.coordinator.client() as client:
        return client.fetch(version, every_task=True, manifest_only=True)[0]


def test_each_worker_makes_a_version_on_top_of_the_one_before(walk: Walk):
    found = [(r.version, r.parent, r.task, r.worker, r.base_version) for r in walk.coordinator.versions()]
    assert found == [(1, 0, "colour", "colour-worker", 0), (2, 1, "animal", "animal-worker", 1)]
    assert (walk.led[0].end.version, walk.led[1].end.version) == (1, 2)


def test_life_goes_through_its_stages_in_order(walk: Walk):
    assert walk.led[0].stages == [
        "joining", "loading", "fetching", "fitting", "sending", "waiting for the merge", "evaluating", "left",
    ]  # fmt: skip


def test_basis_grows_with_each_task_and_keeps_what_it_had(walk: Walk):
    first, second = walk.coordinator.versions()
    assert 0 < first.basis_out < second.basis_out
    assert (second.basis_out, second.new_out) == (first.basis_out + second.new_out, second.basis_out - first.basis_out)
    before, after = (list(manifest(walk, v).blocks) for v in (1, 2))
    assert len(before) == 1 and after[:1] == before and len(after) == 2


def test_function_kept_is_the_function_that_was_trained(walk: Walk):
    for task, version in (("colour", 1), ("animal", 2)):
        [difference] = walk.measured(task, "logits_difference").items()
        assert difference[0] == version and 0 <= difference[1] <= 1e-4


def test_accuracy_at_the_head_is_the_accuracy_when_learned_after_a_later_append(walk: Walk):
    accuracy = walk.measured("colour", "accuracy")
    assert set(accuracy) == {1, 2}
    assert accuracy[2] == accuracy[1] == walk.measured("colour", "accuracy_when_learned")[1]
    assert 0 <= accuracy[1] <= 1


def test_earlier_task_keeps_its_entry_byte_for_byte(walk: Walk):
    [before], after = manifest(walk, 1).tasks, manifest(walk, 2).tasks
    assert [t.task for t in after] == ["animal", "colour"]
    assert after[1] == before
    assert (before.version, list(before.labels)) == (1, ["green", "red"])


def test_worker_fetches_only_the_blobs_it_lacks(walk: Walk):
    """Animal's worker began at version 1 and went on at version 2; it never saw colour's coefficients."""
    kept = {path.stem for path in (walk.homes / "animal" / "blobs").iterdir()}
    second = manifest(walk, 2)
    [own] = [t.entry.digest for t in second.tasks if t.task == "animal"]
    assert kept == {*(b.digest for b in second.blocks), own}


def test_worker_that_has_learned_measures_the_head_and_learns_nothing_again(walk: Walk):
    again = walk.led[2]
    assert "fitting" not in again.stages and "sending" not in again.stages
    assert (again.end.version, again.end.incarnation) == (2, 2)
    assert again.end.accuracy == walk.led[0].end.accuracy


def test_update_is_much_smaller_than_the_adapter_as_lora(walk: Walk):
    for record in walk.coordinator.versions():
        assert 0 < record.bytes_sent < record.bytes_lora
        assert record.metrics["train_examples"] == 32 and record.metrics["steps"] > 0


def test_delivered_update_leaves_nothing_in_the_outbox(walk: Walk):
    assert list((walk.homes / "colour" / "outbox").iterdir()) == []
    assert list((walk.homes / "animal" / "outbox").iterdir()) == []


def test_members_that_left_are_known_with_the_time_they_left(walk: Walk):
    members = {m.worker: m for m in walk.coordinator.status().members}
    assert set(members) == {"colour-worker", "animal-worker"}
    assert members["colour-worker"].incarnation == 2
    assert all(m.joined_at < m.left_at for m in members.values())


def test_bytes_kept_are_those_of_the_heads_blobs(walk: Walk):
    status, head = walk.coordinator.status(), manifest(walk, 2)
    assert status.bytes_basis == sum(b.nbytes for b in head.blocks) > 0
    assert status.bytes_tasks == sum(t.entry.nbytes for t in head.tasks) > 0
    assert (status.head, status.merged, status.queued, status.skipped) == (2, 2, 0, 0)


@pytest.mark.parametrize("task", ["colour", "animal"])
def test_story_tells_the_update_from_receipt_to_measurement(walk: Walk, task: str):
    [record] = [r for r in walk.coordinator.versions() if r.task == task]
    with walk.coordinator.client() as client:
        story = client.story(record.update_id[:8])
    assert story.update_id == record.update_id
    what = [event.what for event in story.events]
    assert what[:2] == ["received", "merged"] and set(what[2:]) == {"reported"}
    assert f"made for version {record.base_version}" in story.events[0].detail
    assert f"into version {record.version}" in story.events[1].detail
    assert [e.at for e in story.events] == sorted(e.at for e in story.events)
    assert (story.verdict.outcome, story.verdict.version) == (pb.OUTCOME_MERGED, record.version)


def test_coordinator_serves_what_the_federation_file_says(walk: Walk, tiny_spec: pb.FederationSpec):
    served = walk.coordinator.status().spec
    assert len(served.federation_id) == 32
    served.federation_id = ""
    assert served == tiny_spec
