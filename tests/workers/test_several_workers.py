"""Several workers on one task: each begins with what the task is by then, and what they learned is added up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forks import fedshare
from learning import SAME
from parts import Coordinator, Walk, federation_text, sentences, write_task_file

from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import lift, mixed
from share_algo.canonical import whole_norm
from share_algo.codec import decode_entry, decode_update
from workers.errors import WorkerError
from workers.fit import fit

LABELS = ("red", "green")
FEDBUFF = '[[policies]]\ntask = "colour"\nkind = "fedbuff"\nbuffer_size = 2\nrule = "constant"\n'
FEDASYNC = '[[policies]]\nkind = "fedasync"\nmixing = 0.5\nrule = "hinge"\na = 10\nb = 4\n'

Federation = Callable[[str], Coordinator]


@pytest.fixture
def federation(tiny_base: Path, tmp_path: Path) -> Federation:
    """A coordinator for a federation file with these policies; two halves of the task's sentences in tmp_path."""
    for half in ("left", "right"):
        for split, count in (("train", 32), ("test", 16)):
            write_task_file(tmp_path / half / "colour" / f"{split}.csv", sentences(f"{half}/{split}", LABELS, count))

    def given(policies: str) -> Coordinator:
        file = tmp_path / "federation.toml"
        file.write_text(federation_text(tiny_base, tmp_path / "left", epochs=30) + policies)
        return Coordinator(tmp_path / "home", "--no-lineage", str(file))

    return given


def test_two_workers_whose_halves_are_buffered_learn_no_worse_than_each(federation: Federation, tmp_path: Path):
    with federation(FEDBUFF) as coordinator:
        left, right = (Walk(coordinator, tmp_path / half, tmp_path / f"at-{half}") for half in ("left", "right"))
        first = left.lead("colour", worker="left")
        assert "kept by the coordinator" in first.stages and first.end.accuracy is None
        given_again = left.lead("colour", worker="left")
        assert "fitting" not in given_again.stages  # it waits, and is not learned again
        for end in (first.end, given_again.end):
            assert end.waits == (
                f"update {first.end.update_id} waits in a buffer: it came with 1 of 2 contributions to its task,"
                " and is merged with the last of them"
            )
        second = right.lead("colour", worker="right")
        assert second.end.version == 1 and second.end.accuracy is not None
        came_back = left.lead("colour", worker="left")  # it waits no more, and is not learned again
        assert "fitting" not in came_back.stages and (came_back.end.version, came_back.end.waits) == (1, "")
        again = [w.lead("colour", worker=n, learn_again=True) for w, n in ((left, "left"), (right, "right"))]
        records = coordinator.versions()
        assert [(r.version, r.worker, r.base_version) for r in records] == [
            *((1, "left", 0), (1, "right", 0), (2, "left", 1), (2, "right", 1))
        ]
        alone = {(r.version, r.worker): r.metrics["accuracy_when_learned"] for r in records}
        assert second.end.accuracy >= min(alone[1, "left"], alone[1, "right"])
        assert again[1].end.accuracy >= max(0.8, alone[1, "left"], alone[1, "right"])
        reply = coordinator.client().replay()
        assert reply.versions == 3 and max(reply.task.value, reply.basis.value) < SAME


def test_fit_begins_with_what_the_task_is_and_sends_that_plus_what_it_learned(federation: Federation, tmp_path: Path):
    with federation(FEDASYNC) as coordinator:
        walk = Walk(coordinator, tmp_path / "left", tmp_path / "at")
        life = walk.lead("colour").life
        with coordinator.client() as life.client, life.home as life.home:
            begin = life.beginning()
            basis, start = begin.basis, begin.start
            spec = pb.FederationSpec()
            spec.CopyFrom(life.spec)
            spec.recipe.learning_rate = spec.recipe.learning_rate_directions = spec.recipe.learning_rate_head = 1e-9
            spec.directions.tolerance = 0.9  # of what is learned, which is nothing
            still = fit(life.base, spec, basis, life.task, start=start)
            sent = lift(decode_update(still.blob), basis)
            known = start.adapter(basis)
            assert whole_norm(mixed([(1.0, sent), (-1.0, known)])) < 0.02 * whole_norm(known)  # bytes, not cuts
            for name, tensor in decode_entry(still.blob).head.items():
                assert torch.allclose(tensor.float(), start.head[name].float(), rtol=0.02, atol=0.01)
            fresh = fit(life.base, spec, basis, life.task)
            assert whole_norm(lift(decode_update(fresh.blob), basis)) < 1e-3 * whole_norm(known)


def test_updates_of_a_fedasync_task_move_it_by_the_mixing_and_workers_see_it(federation: Federation, tmp_path: Path):
    with federation(FEDASYNC) as coordinator:
        left, right = (Walk(coordinator, tmp_path / half, tmp_path / f"at-{half}") for half in ("left", "right"))
        ends = [w.lead("colour", worker=n).end for w, n in ((left, "left"), (right, "right"))]
        assert [e.version for e in ends] == [1, 2] and ends[1].accuracy >= max(0.8, ends[0].accuracy)
        assert [r.weight for r in coordinator.versions()] == [1.0, 0.5]
        shown = fedshare("versions", "--coordinator", coordinator.address)
        assert "0.5" in shown.stdout.splitlines()[2]
        # what is kept is a mean, and not what was trained: no difference between the two is reported
        assert set(left.measured("colour", "logits_difference")) == set()


def test_worker_with_other_labels_is_told_before_it_fits(federation: Federation, tmp_path: Path):
    write_task_file(tmp_path / "other" / "colour" / "train.csv", sentences("x", ("blue", "one"), 8))
    write_task_file(tmp_path / "other" / "colour" / "test.csv", sentences("y", ("blue", "one"), 8))
    with federation(FEDASYNC) as coordinator:
        Walk(coordinator, tmp_path / "left", tmp_path / "at").lead("colour", worker="left")
        with pytest.raises(WorkerError, match="knows colour with other labels"):
            Walk(coordinator, tmp_path / "other", tmp_path / "at-other").lead("colour", worker="other")
