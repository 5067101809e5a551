"""A life that is cut short is led again: what was finished is delivered, once, and nothing is fitted twice."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from parts import (
    Coordinator,
    CoordinatorHere,
    Led,
    RawWorker,
    Walk,
    flip_a_byte,
    journal_blob,
    order,
    random_adapter,
    sentences,
    small_home,
    write_task_file,
)
from rich.console import Console

from coordinator.catalog import Catalog, Version
from coordinator.home import open_home
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from workers.errors import CoordinatorAway, Refusal, WorkerError
from workers.process_host import lead_here


class Cut(BaseException):
    """The end of a process, as its code sees it: nothing catches it."""


def cut() -> None:
    raise Cut


@pytest.fixture(scope="module")
def lives(tiny_spec: pb.FederationSpec, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """A coordinator for all tests here: each leads a worker, and a task, of its own."""
    folder = tmp_path_factory.mktemp("lives")
    with Coordinator(small_home(folder / "home", tiny_spec), "--no-lineage") as coordinator:
        yield Walk(coordinator, tasks, folder / "workers")


@dataclass(frozen=True)
class Own:
    """One test's own worker, task and home. All learn from the same sentences."""

    lives: Walk
    name: str

    @property
    def worker(self) -> str:
        return f"{self.name}-worker"

    @property
    def home(self) -> Path:
        return self.lives.homes / self.name

    def lead(
        self, at: Mapping[str, Callable[[], object]] | None = None, data: str = "colour", **changes: object
    ) -> Led:
        mine = {"worker": self.worker, "home": self.home, "source": str(self.lives.tasks / data)}
        return self.lives.lead(self.name, at, **{**mine, **changes})

    def outbox(self) -> list[Path]:
        return list((self.home / "outbox").iterdir())

    def versions(self) -> list[pb.VersionRecord]:
        return [r for r in self.lives.coordinator.versions() if r.task == self.name]


@pytest.fixture
def own(request: pytest.FixtureRequest, lives: Walk) -> Own:
    return Own(lives, f"task-{zlib.crc32(request.node.name.encode()):08x}")


def test_result_stays_in_the_outbox_while_nobody_answers_and_is_delivered_without_a_fit(own: Own):
    with pytest.raises(CoordinatorAway, match=f"no coordinator answers at {own.lives.coordinator.address}"):
        own.lead({"sending": own.lives.coordinator.kill}, patience_seconds=1)
    [parcel] = own.outbox()
    own.lives.coordinator.start()
    assert own.versions() == []
    back = own.lead()
    assert "fitting" not in back.stages and back.stages[-1] == "left"
    [record] = own.versions()
    assert record.update_id == parcel.name and back.end.version == record.version
    assert own.outbox() == []


def test_worker_gives_up_after_its_patience_and_not_before(own: Own):
    asked = time.monotonic()
    with pytest.raises(CoordinatorAway):
        own.lead(address="127.0.0.1:1", patience_seconds=1.5)
    assert 1.0 < time.monotonic() - asked < 10


def test_coordinator_that_dies_during_a_fit_and_comes_back_is_not_noticed(own: Own):
    def killed_and_started() -> None:
        own.lives.coordinator.kill()
        own.lives.coordinator.start()

    led = own.lead({"fitting": killed_and_started}, patience_seconds=30)
    assert led.stages[-1] == "left" and len(own.versions()) == 1


def test_worker_cut_off_after_the_receipt_finds_its_update_merged_once(own: Own):
    with pytest.raises(Cut):
        own.lead({"waiting for the merge": cut})
    [parcel] = own.outbox()
    back = own.lead()
    assert "fitting" not in back.stages and back.end.incarnation == 2
    assert [r.update_id for r in own.versions()] == [parcel.name]
    assert own.outbox() == []


def test_worker_cut_off_during_its_fit_fits_again_as_the_next_incarnation(own: Own):
    with pytest.raises(Cut):
        own.lead({"fitting": cut})
    back = own.lead()
    assert "fitting" in back.stages and back.end.incarnation == 2
    assert len(own.versions()) == 1


def test_worker_that_has_lost_its_home_does_not_learn_what_it_has_learned(own: Own):
    first = own.lead()
    back = own.lead(home=own.home.with_name("another-home"))
    assert "fitting" not in back.stages
    assert back.end.accuracy == first.end.accuracy
    assert len(own.versions()) == 1


def test_task_is_learned_again_where_that_is_asked_for_and_replaces_the_first(own: Own, tmp_path: Path):
    own.lead()
    for split in ("train", "test"):
        write_task_file(tmp_path / f"{split}.csv", sentences(f"new {split}", ("red", "green"), 8))
    again = own.lead(source=str(tmp_path), learn_again=True)
    assert "fitting" in again.stages
    first, second = own.versions()
    assert second.base_version >= first.version and again.end.version == second.version
    with own.lives.coordinator.client() as client:
        then, _ = client.fetch(first.version, tasks=[own.name], manifest_only=True)
        now, _ = client.fetch(None, tasks=[own.name], manifest_only=True)
    assert (then.tasks[0].version, now.tasks[0].version) == (first.version, second.version)
    assert then.tasks[0].entry != now.tasks[0].entry


def test_update_of_an_older_incarnation_is_refused_and_delivered_by_the_next(own: Own):
    spec = read_spec(own.lives)

    def twin_joins() -> None:
        with own.lives.coordinator.client() as client:
            client.join(own.worker, own.name, spec.federation_id, spec.base.fingerprint)

    with pytest.raises(Refusal, match=r"incarnation 1 of .* is no longer current: incarnation 2 has joined since"):
        own.lead({"fitting": twin_joins})
    [parcel] = own.outbox()
    assert own.versions() == []
    assert "fitting" not in own.lead().stages
    [version] = own.versions()
    assert (version.update_id, own.outbox()) == (parcel.name, [])


def test_version_that_is_collected_before_it_was_measured_costs_the_worker_nothing(own: Own):
    def collected() -> None:
        head = own.lives.coordinator.status().head
        order(own.lives.coordinator, rollback=pb.Rollback(version=head))
        assert order(own.lives.coordinator, collect=pb.Collect(keep=1)).outcome == pb.OUTCOME_DONE

    led = own.lead({"evaluating": collected})
    [record] = own.versions()
    assert record.gone == "collected" and led.end.version == record.version + 1
    assert led.end.accuracy is not None and own.outbox() == []


def test_worker_that_is_told_to_go_measures_the_head_first(own: Own):
    led = own.lead({"evaluating": lambda: Own(own.lives, f"{own.name}-late").lead()})
    head = own.lives.coordinator.status().head
    assert led.end.version == head > own.versions()[0].version
    assert own.lives.measured(own.name, "accuracy")[head] == led.end.accuracy


def test_home_with_another_tasks_update_is_refused_and_the_update_stays(own: Own):
    with pytest.raises(Cut):
        own.lead({"sending": cut})
    [parcel] = own.outbox()
    with pytest.raises(WorkerError, match=f"holds an update for the task {own.name}: start that task once more"):
        own.lives.lead("another", worker=own.worker, home=own.home, source=str(own.lives.tasks / "colour"))
    assert own.outbox() == [parcel]


def test_update_that_could_not_be_merged_is_kept_aside_and_the_task_is_learned_anew(
    tiny_spec: pb.FederationSpec, tasks: Path, tmp_path: Path
):
    with Coordinator(small_home(tmp_path / "home", tiny_spec), "--no-lineage") as coordinator:
        own = Own(Walk(coordinator, tasks, tmp_path / "workers"), "task")
        with pytest.raises(Cut):
            own.lead({"sending": cut})
        [parcel] = own.outbox()
        coordinator.kill()
        blob = (parcel / "update.safetensors").read_bytes()
        with open_home(coordinator.home) as home:
            header = journal_blob(home, blob, update_id=parcel.name, worker=own.worker, labels=["green", "red"])
            flip_a_byte(home.blobs.path(header.digest))
        coordinator.start()
        with pytest.raises(Refusal, match=f"{parcel.name} was received but is not in a version: .* is damaged"):
            own.lead()
        assert own.outbox() == [] and [kept.name for kept in (own.home / "refused").iterdir()] == [parcel.name]
        assert "fitting" in own.lead().stages
        [record] = own.versions()
    assert record.update_id != parcel.name


def test_worker_whose_update_waits_says_why(
    tiny_spec: pb.FederationSpec, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said, console = tmp_path / "said", Console(file=(tmp_path / "said").open("w"), width=200)

    def full(self: Catalog, *args: Any) -> Version:
        if "waiting for the merge" not in said.read_text():
            raise OSError(28, "No space left on device")
        return publish(self, *args)

    publish = Catalog.publish
    monkeypatch.setattr(Catalog, "publish", full)
    with CoordinatorHere(small_home(tmp_path / "home", tiny_spec)) as coordinator:
        plan = Walk(coordinator, tasks, tmp_path / "workers").plan("number")
        end = lead_here(plan, stay=False, console=console)
    receipt, why = said.read_text().splitlines()[1:3]
    assert receipt == f"receipt for update {end['update_id']}: it is on the coordinator's disk"
    assert why == "waiting for the merge: [Errno 28] No space left on device"
    assert (end["stage"], end["version"], end["detail"]) == ("left", 1, "")


def test_worker_whose_version_was_erased_for_anothers_sake_goes_home(
    tiny_spec: pb.FederationSpec, tasks: Path, tmp_path: Path
):
    with CoordinatorHere(small_home(tmp_path / "home", tiny_spec)) as coordinator:
        with RawWorker(coordinator.address, "another", "secret") as raw:
            raw.teach(random_adapter(raw.spec, 1))
        own = Own(Walk(coordinator, tasks, tmp_path / "workers"), "task")
        with pytest.raises(Cut):
            own.lead({"waiting for the merge": cut})
        coordinator.drained()
        order(coordinator, forget=pb.Forget(task="secret", erase=True))
        assert own.versions()[0].gone == "erased"
        back = own.lead()
        assert "fitting" not in back.stages and back.stages[-1] == "left" and own.outbox() == []
        assert back.end.version == coordinator.status().head == 3


def read_spec(lives: Walk) -> pb.FederationSpec:
    with lives.coordinator.client() as client:
        return client.describe()


def test_home_of_another_federation_is_refused_before_anything_is_joined(own: Own):
    own.home.mkdir(parents=True)
    (own.home / "federation").write_text("0" * 32)
    with pytest.raises(WorkerError, match=f"{own.home} belongs to another federation .* use another --home"):
        own.lead()
    assert own.worker not in {m.worker for m in own.lives.coordinator.status().members}


def test_second_worker_in_a_home_is_refused(own: Own):
    def another() -> None:
        with pytest.raises(WorkerError, match="another worker lives in"):
            own.lead()
        raise Cut

    with pytest.raises(Cut):
        own.lead({"loading": another})


def test_worker_with_another_base_model_cannot_join(own: Own, tiny_base: Path, tmp_path: Path):
    from transformers import BertModel

    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = BertModel.from_pretrained(tiny_base)
    model.embeddings.word_embeddings.weight.data[0, 0] += 1e-3
    model.save_pretrained(tmp_path)
    with pytest.raises(Refusal, match=r"base model .* is not this federation's .*: their weights differ"):
        own.lead(base_model=str(tmp_path))


def test_task_with_other_labels_than_the_federation_knows_is_refused(own: Own):
    own.lead()
    with pytest.raises(WorkerError, match=r"the federation knows .* with other labels"):
        own.lead(data="animal", home=own.home.with_name("labels"))


def test_damaged_parcel_is_named_and_never_sent(own: Own):
    with pytest.raises(Cut):
        own.lead({"sending": cut})
    [parcel] = own.outbox()
    flip_a_byte(parcel / "update.safetensors")
    with pytest.raises(WorkerError, match=f"{parcel}/update.safetensors is damaged: move {parcel} away"):
        own.lead()
    assert own.outbox() == [parcel] and own.versions() == []


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:30])


@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
def test_comparison_that_cannot_be_read_is_passed_over_and_the_update_is_delivered(
    own: Own, damage: Callable[[Path], object]
):
    with pytest.raises(Cut):
        own.lead({"waiting for the merge": cut})
    [parcel] = own.outbox()
    damage(parcel / "trained.safetensors")
    back = own.lead()
    assert back.stages[-4:] == ["waiting for the merge", "not compared", "evaluating", "left"] and own.outbox() == []
    assert back.end.detail == (
        f"{parcel}/trained.safetensors is damaged: the function kept is not compared with the function trained"
    )
    [version] = own.versions()
    assert own.lives.measured(own.name, "accuracy")[version.version] == back.end.accuracy
    assert own.lives.measured(own.name, "logits_difference") == {}


def test_damaged_and_torn_blobs_in_the_cache_are_fetched_again(own: Own):
    first = own.lead()
    cached = sorted((own.home / "blobs").iterdir())
    for blob in cached:
        flip_a_byte(blob)
    (own.home / "blobs" / "0123.part").write_bytes(b"half of a bl")
    back = own.lead()
    assert (back.stages[-1], back.end.accuracy) == ("left", first.end.accuracy)
    assert sorted((own.home / "blobs").iterdir()) == cached
    assert all(digest_of(blob.read_bytes()) == blob.stem for blob in cached)
