"""Workers that begin in directions derived from the base model's weights, or from the seed: real ones, one in turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forks import fedshare
from learning import SAME
from parts import Coordinator, Walk, federation_text, one_sentence, order, small_home
from safetensors.torch import load_file, save_file

from fedshare.federation_file import read_federation_file
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo.codec import decode_block
from share_algo.derived import DerivedDirections
from workers.base_model import find_base_model
from workers.life import Life
from workers.weights import weights_for

COLUMNS = 12


def text(base: Path, tasks: Path, start: str) -> str:
    return federation_text(base, tasks, start=start, start_columns=COLUMNS)


@pytest.fixture(scope="module", params=["weights", "seed"])
def derived(
    request: pytest.FixtureRequest, tiny_base: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Walk]:
    """Colour and animal were learned in turn, in coefficients only; in between the coordinator was started again."""
    folder = tmp_path_factory.mktemp("derived")
    (folder / "federation.toml").write_text(text(tiny_base, tasks, request.param))
    with Coordinator(folder / "home", "--no-lineage", str(folder / "federation.toml")) as coordinator:
        walk = Walk(coordinator, tasks, folder / "workers")
        walk.led = [walk.lead("colour")]
        coordinator.stop()
        coordinator._options = ("--no-lineage",)  # what it needs, its home says
        coordinator.start()
        walk.led += [walk.lead("animal")]
        yield walk


def test_coefficients_only_are_sent_and_nothing_is_stored_beside_a_recipe(derived: Walk):
    for record in derived.coordinator.versions():
        assert (record.new_out, record.new_in, record.basis_out, record.basis_in) == (0, 0, COLUMNS, COLUMNS)
    with derived.coordinator.client() as client:
        manifest, blobs = client.fetch(None)
    [block] = [decode_block(blobs[ref.digest]) for ref in manifest.blocks]
    assert all(isinstance(d, DerivedDirections) and d.stored is None for d in block.values())
    assert derived.coordinator.status().bytes_basis == manifest.blocks[0].nbytes < 1500


def test_function_kept_is_the_function_that_was_trained(derived: Walk):
    for task, version in (("colour", 1), ("animal", 2)):
        [difference] = derived.measured(task, "logits_difference").items()
        assert difference[0] == version and 0 <= difference[1] <= 1e-4


def test_what_reads_versions_derives_as_well(derived: Walk, tmp_path: Path):
    address = derived.coordinator.address
    ended = fedshare("export", "--task=colour", "--to", tmp_path / "lora", "-c", address)
    assert ended.returncode == 0, ended.stderr
    assert load_file(tmp_path / "lora" / "adapter_model.safetensors")
    order(derived.coordinator, compact=pb.Compact(size=COLUMNS - 4))
    told = fedshare("diff", 2, 3, "-c", address)
    assert told.returncode == 0 and "colour" in told.stdout, told.stderr
    with derived.coordinator.client() as client:
        assert client.replay().task.value < SAME


def test_a_life_derives_once_for_its_fit_and_all_versions_and_says_how_far_it_is(
    tiny_base: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also in a basis that is learned inside derived columns, as the second one is."""
    from share_algo import weights

    made, told, leading = list[int](), set[str](), weights._leading
    monkeypatch.setattr(weights, "_leading", lambda *given: made.append(1) or leading(*given))
    monkeypatch.setattr("workers.life.DERIVING_SECONDS_MIN", -1.0)
    columns = COLUMNS - 1  # which nobody holds who was led in this process before
    (tmp_path / "federation.toml").write_text(federation_text(tiny_base, tasks, start="weights", start_columns=columns))
    with Coordinator(tmp_path / "home", "--no-lineage", str(tmp_path / "federation.toml")) as coordinator:
        walk, modules = Walk(coordinator, tasks, tmp_path / "workers"), len(coordinator.status().spec.modules)
        for number, task in enumerate(("colour", "animal"), start=1):
            end = Life(walk.plan(task), lambda progress: told.add(progress.detail), lambda: False).lead()
            assert end.accuracy is not None and end.detail == "" and modules <= len(made) <= number * modules
            order(coordinator, compact=pb.Compact(size=columns - 4))
    assert {f"deriving directions: {n} of {modules} modules" for n in range(1, modules)} <= told


@pytest.fixture
def other_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy whose weights will be another's."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def changed(base: Path, by: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(base / "model.safetensors")
    name = next(n for n in tensors if n.endswith("query.weight"))
    save_file({**tensors, name: by(tensors[name])}, base / "model.safetensors", metadata={"format": "pt"})


def test_a_coordinator_without_the_base_model_it_began_with_does_not_start(
    other_base: Path, tasks: Path, tmp_path: Path
):
    file = tmp_path / "federation.toml"
    file.write_text(text(other_base, tasks, "weights"))
    home = small_home(tmp_path / "home", read_federation_file(file).spec())
    again = ("coordinator", "--home", home, "--port", 0, "--no-lineage")
    changed(other_base, lambda W: W + 1e-3)
    said = f"the base model in {other_base} is not this federation's {other_base}: their weights differ"
    assert one_sentence(fedshare(*again)) == said
    shutil.rmtree(other_base)
    assert f"the base model {other_base} is not a folder" in one_sentence(fedshare(*again))


def test_where_they_were_derived_before_a_coordinator_starts_and_a_version_is_read_without_the_model(
    other_base: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDSHARE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "federation.toml").write_text(text(other_base, tasks, "weights"))
    with Coordinator(tmp_path / "home", "--no-lineage", str(tmp_path / "federation.toml")) as coordinator:
        Walk(coordinator, tasks, tmp_path / "workers").lead("colour")
        order(coordinator, compact=pb.Compact(size=COLUMNS - 4))
        coordinator.stop()
        shutil.rmtree(other_base)
        coordinator._options = ("--no-lineage",)
        coordinator.start()
        ended = fedshare("export", "--task=colour", "--to", tmp_path / "lora", "-c", coordinator.address)
        assert ended.returncode == 0, ended.stderr
        with coordinator.client() as client:
            assert client.replay().task.value < SAME


def test_weights_whose_vectors_nobody_could_tell_apart_are_one_sentence(other_base: Path, tasks: Path, tmp_path: Path):
    changed(other_base, torch.zeros_like)
    file = tmp_path / "federation.toml"
    file.write_text(text(other_base, tasks, "weights"))
    said = one_sentence(fedshare("coordinator", file, "--home", tmp_path / "home", "--port", 0, "--no-lineage"))
    assert "query: singular values of the base weight are too close" in said


def test_no_model_is_looked_for_where_nothing_is_derived_from_one(tiny_base: Path):
    assert weights_for(pb.FederationSpec(start=pb.Start(kind=pb.START_KIND_SEED, columns=2))) == {}
    named = pb.BaseModel(name=str(tiny_base), fingerprint=find_base_model(str(tiny_base)).fingerprint)
    module = pb.TargetModule(name="bert.encoder.layer.0.attention.self.query", out_features=32, in_features=32)
    spec = pb.FederationSpec(start=pb.Start(kind=pb.START_KIND_WEIGHTS, columns=2), base=named, modules=[module])
    [(name, weight)] = weights_for(spec).items()
    assert name == module.name and weight.shape == (32, 32) and weight.any()
