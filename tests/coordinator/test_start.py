"""Version 0 may hold columns that everybody derives: a federation grows out of them; nobody sends or stores them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from learning import SAME, SENT_IS_KEPT
from parts import (
    CoordinatorHere,
    RawWorker,
    dense_adapter,
    order,
    random_adapter,
    relative_error,
    small_home,
    small_spec,
)

from coordinator.errors import CoordinatorError
from coordinator.home import open_home
from coordinator.process import serve_home
from coordinator.start import start_block
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis, Coefficients, append
from share_algo import weights as room
from share_algo.codec import decode_basis, decode_entry, encode_update

COLUMNS = 6
"""Of sides of 8 to 16."""


def spec_with(kind: pb.StartKind) -> pb.FederationSpec:
    spec = small_spec()
    spec.start.kind, spec.start.columns = kind, COLUMNS
    return spec


def weights(spec: pb.FederationSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {m.name: torch.randn(m.out_features, m.in_features, generator=g) for m in spec.modules}


def inside(basis: Basis, seed: int) -> Adapter:
    """Of rank 2, in the derived columns alone."""
    g = torch.Generator().manual_seed(seed)
    sides = {m: [torch.randn(COLUMNS, 2, generator=g) for _ in "PQ"] for m in basis}
    factors = {m: Coefficients(*PQ).read(basis[m]) for m, PQ in sides.items()}
    return Adapter(factors, {"classifier.weight": torch.randn(2, 6, generator=g)})


class Derived:
    """A coordinator whose version 0 is derived, and what somebody who derives it as well reads from it."""

    def __init__(self, coordinator: CoordinatorHere, spec: pb.FederationSpec):
        self.coordinator, self.weights = coordinator, weights(spec)
        self.start = Basis((start_block(spec, self.weights),))
        self.adapters: dict[str, Adapter] = {}

    def learn(self, task: str, adapter: Adapter, base: int | None = None) -> pb.VersionRecord:
        with RawWorker(self.coordinator.address, f"{task}-worker", task, self.weights) as raw:
            raw.teach(adapter, base)
        self.coordinator.drained()
        self.adapters[task] = adapter
        return self.coordinator.versions()[-1]

    def read(self, version: int | None = None) -> tuple[Basis, dict[str, Adapter], list[pb.BlobRef]]:
        with self.coordinator.client() as client:
            manifest, blobs = client.fetch(version, every_task=True)
        basis = decode_basis((blobs[ref.digest] for ref in manifest.blocks), self.weights)
        tasks = {ref.task: decode_entry(blobs[ref.entry.digest]).adapter(basis) for ref in manifest.tasks}
        return basis, tasks, list(manifest.blocks)

    def off(self, task: str, version: int | None = None) -> float:
        return relative_error(dense_adapter(self.adapters[task]), dense_adapter(self.read(version)[1][task]))


@pytest.fixture(params=[pb.START_KIND_SEED, pb.START_KIND_WEIGHTS], ids=["seed", "weights"])
def derived(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Derived]:
    spec = spec_with(request.param)
    with CoordinatorHere(small_home(tmp_path / "home", spec), weights) as coordinator:
        yield Derived(coordinator, spec)


def test_version_0_is_a_recipe_of_a_few_bytes_from_which_everybody_derives_the_same(derived: Derived):
    basis, tasks, blocks = derived.read(0)
    assert not tasks and len(blocks) == 1 and blocks[0].nbytes < 400
    assert basis.nbytes() == 0 and basis.widths() == {m: (COLUMNS, COLUMNS) for m in derived.start}
    for module in derived.start:
        assert torch.equal(basis[module].out_NK, derived.start[module].out_NK)
        assert torch.equal(basis[module].in_DL, derived.start[module].in_DL)


def test_what_is_learned_inside_brings_no_direction_and_what_is_not_brings_its_own(derived: Derived):
    record = derived.learn("within", inside(derived.start, 1))
    assert (record.base_version, record.new_out, record.new_in) == (0, 0, 0)
    assert (record.basis_out, record.basis_in) == (COLUMNS, COLUMNS)
    with derived.coordinator.client() as client:
        strange = derived.learn("strange", random_adapter(client.describe(), 2), base=0)
    assert (strange.new_out, strange.new_in, strange.basis_out) == (2, 2, COLUMNS + 2)
    assert derived.off("within") < SENT_IS_KEPT and derived.off("strange") < SENT_IS_KEPT
    assert derived.read()[2][0] == derived.read(0)[2][0]


def test_what_is_learned_inside_is_stored_in_the_bytes_that_it_came_in_and_a_forget_leaves_it_so(derived: Derived):
    blob = encode_update(append(derived.start, inside(derived.start, 1)).update, compact=True)
    with RawWorker(derived.coordinator.address, "worker", "within", derived.weights) as raw:
        assert raw.submit(raw.header(blob, 0), blob).outcome == pb.OUTCOME_QUEUED
    with derived.coordinator.client() as client:
        derived.learn("strange", random_adapter(client.describe(), 2))
    assert {t.task: t.entry.digest for t in _manifest(derived).tasks}["within"] == digest_of(blob)
    assert order(derived.coordinator, forget=pb.Forget(task="strange")).outcome == pb.OUTCOME_DONE
    assert [t.entry.digest for t in _manifest(derived).tasks] == [digest_of(blob)]


def test_forget_rollback_and_replay_begin_with_the_same_columns(derived: Derived):
    derived.learn("kept", inside(derived.start, 1))
    derived.learn("gone", inside(derived.start, 2))
    assert order(derived.coordinator, forget=pb.Forget(task="gone", erase=True)).outcome == pb.OUTCOME_DONE
    assert derived.off("kept") < SENT_IS_KEPT and list(derived.read()[1]) == ["kept"]
    assert order(derived.coordinator, rollback=pb.Rollback(version=0)).outcome == pb.OUTCOME_DONE
    assert derived.read()[2] == derived.read(0)[2]
    again = derived.learn("again", inside(derived.start, 3))
    assert (again.new_out, again.basis_out) == (0, COLUMNS)
    with derived.coordinator.client() as client:
        replayed = client.replay()
    assert replayed.versions > 1 and replayed.task.value < SAME and replayed.basis.value < SAME


def test_compacted_it_is_learned_inside_derived_columns_and_still_read(derived: Derived):
    for n in range(3):
        derived.learn(f"t{n}", inside(derived.start, n))
    verdict = order(derived.coordinator, compact=pb.Compact(size=COLUMNS - 1))
    basis, _, [block] = derived.read()
    sides = sum(2 * COLUMNS * (COLUMNS - 1) for _ in derived.start)
    assert verdict.outcome == pb.OUTCOME_DONE and basis.nbytes() == 4 * sides
    assert set(basis.widths().values()) == {(COLUMNS - 1, COLUMNS - 1)} and block.nbytes < 4 * sides + 1000
    certified = {t.task: t.relative_error for t in _manifest(derived).tasks}
    assert all(1e-3 < derived.off(t) <= certified[t] + SAME for t in derived.adapters)


def _manifest(derived: Derived) -> pb.Manifest:
    with derived.coordinator.client() as client:
        return client.fetch(None, every_task=True, manifest_only=True)[0]


def test_collected_and_started_again_it_goes_on_and_its_damaged_block_is_mended(derived: Derived):
    for n in range(3):
        derived.learn(f"t{n}", inside(derived.start, n))
    assert order(derived.coordinator, collect=pb.Collect(keep=1)).outcome == pb.OUTCOME_DONE
    [name] = derived.read(0)[2]
    derived.coordinator.stop()
    (derived.coordinator.home / "blobs" / f"{name.digest}.safetensors").write_bytes(b"damaged")
    derived.coordinator.start()
    record = derived.learn("more", inside(derived.start, 9), base=0)
    assert record.new_out == 0 and all(derived.off(t) < SENT_IS_KEPT for t in derived.adapters)


def test_a_federation_keeps_its_start(tmp_path: Path):
    home = small_home(tmp_path / "home", spec_with(pb.START_KIND_SEED))
    with pytest.raises(CoordinatorError, match=r"subspace\.start is \w+ there"):
        small_home(home, small_spec())
    with open_home(home) as opened:
        assert opened.spec.start.columns == COLUMNS


def test_without_the_weights_it_needs_a_coordinator_does_not_start(tmp_path: Path):
    spec = spec_with(pb.START_KIND_WEIGHTS)
    with pytest.raises(CoordinatorError, match=r"'small' begins in directions of none's weights, .* are not here"):
        start_block(spec, {})


def test_deriving_says_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("coordinator.start.TOLD_SECONDS", 0.0)
    spec = spec_with(pb.START_KIND_WEIGHTS)
    with caplog.at_level("INFO", logger="coordinator.start"):
        start_block(spec, weights(spec))
    assert caplog.messages == [f"the first directions of {n} of 2 modules are derived" for n in (1, 2)]


def test_a_coordinator_that_is_stopped_while_it_derives_ends_and_can_be_started_again(tmp_path: Path):
    home = small_home(tmp_path / "home", spec_with(pb.START_KIND_WEIGHTS))

    async def stopped() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def find(spec: pb.FederationSpec) -> dict[str, torch.Tensor]:
            loop.call_soon_threadsafe(stop.set)
            while not stop.is_set():
                time.sleep(0.01)
            return weights(spec)

        with open_home(home) as opened:
            await serve_home(opened, stop, "127.0.0.1", 0, False, "", find)
            assert opened.address == ""

    asyncio.run(stopped())
    with CoordinatorHere(home, weights) as coordinator:
        assert [record.version for record in coordinator.versions()] == [] and coordinator.status().head == 0


def test_nothing_more_is_derived_where_nobody_wants_the_rest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coordinator.start.os.cpu_count", lambda: 1)
    shapes = {f"m{n}": (12, 12) for n in range(20)}
    spec = small_spec(shapes=shapes)
    spec.start.kind, spec.start.columns = pb.START_KIND_WEIGHTS, COLUMNS
    made = list[int]()
    real = room._leading
    monkeypatch.setattr(room, "_leading", lambda *given: made.append(1) or time.sleep(0.05) or real(*given))

    def nobody_does() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        start_block(spec, weights(spec, seed=7), None, nobody_does)
    assert 1 <= len(made) < 5
