"""Every refusal has its name, comes before the journal, and leaves the home as it was."""

from __future__ import annotations

import io
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import Coordinator, CoordinatorHere, RawWorker, honest_blob, random_adapter, small_home, until

from coordinator.admit import LABELS_BYTES_MAX, LABELS_MAX, METRICS_MAX, update_bytes_max
from coordinator.service import SUBMITS_MAX
from protos.chunks import CHUNK_BYTES_MAX
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis, Factors
from share_algo.codec import METADATA
from workers.client import Client
from workers.errors import Refusal

A, B = "encoder.a", "encoder.b"
HOSTILE_NAMES = ["../../evil", "-x", ".hidden", "", "a" * 101, "a/b", "a b", "naïve", "x\n", "a\0b"]


@pytest.fixture(scope="module")
def raw(shared_small: Coordinator) -> Iterator[RawWorker]:
    """A member of a federation that has learned one task already."""
    with RawWorker(shared_small.address) as raw:
        raw.teach(random_adapter(raw.spec, 1))
        shared_small.drained()
        yield raw


@pytest.fixture(autouse=True)
def nothing_changes(shared_small: Coordinator, raw: RawWorker) -> Iterator[None]:
    before = kept(shared_small)
    yield
    assert kept(shared_small) == before


def kept(coordinator: Coordinator) -> tuple[object, ...]:
    """Everything that an update could change."""
    status = coordinator.status()
    blobs = sorted(path.name for path in (coordinator.home / "blobs").glob("*.safetensors"))
    return status.head, status.queued, status.merged, status.skipped, status.bytes_tasks, blobs


def refused(receipt: pb.Receipt, outcome: pb.Outcome, *words: str) -> None:
    assert receipt.outcome == outcome, receipt
    assert receipt.is_transient == (outcome >= 30)
    assert (receipt.position, receipt.version, receipt.repeated) == (0, 0, False)
    for word in words:
        assert word in receipt.reason
    assert receipt.reason and "\n" not in receipt.reason


def honest(raw: RawWorker, seed: int = 2) -> bytes:
    return raw.blob(random_adapter(raw.spec, seed), 0)[1]


def changed(blob: bytes, **tensors: torch.Tensor | None) -> bytes:
    """The blob with some tensors replaced, or removed where None; `__` in a name stands for the slash."""
    by_name = safetensors.torch.load(blob)
    for name, tensor in tensors.items():
        by_name.pop(name.replace("__", "/"), None)
        if tensor is not None:
            by_name[name.replace("__", "/")] = tensor
    return safetensors.torch.save(by_name)


def pickled(blob: bytes) -> bytes:
    file = io.BytesIO()
    torch.save(safetensors.torch.load(blob), file)
    return file.getvalue()


def with_value(blob: bytes, name: str, value: float) -> bytes:
    tensor = safetensors.torch.load(blob)[name].clone()
    tensor.view(-1)[-1] = value
    return changed(blob, **{name: tensor})


def as_type(blob: bytes, name: str, dtype: torch.dtype) -> bytes:
    return changed(blob, **{name: safetensors.torch.load(blob)[name].to(dtype)})


def int8_with_scale(*scales: float) -> dict[str, torch.Tensor]:
    """For the directions of A, which are two columns."""
    return {f"out/{A}": torch.ones(12, 2, dtype=torch.int8), f"out/{A}.scale": torch.tensor(scales)}


def with_metadata(blob: bytes, said: str) -> bytes:
    return safetensors.torch.save(safetensors.torch.load(blob), {METADATA: said})


def with_packed_head(blob: bytes, layout: str) -> bytes:
    packed = {"steps": torch.ones(6, dtype=torch.int8), "scales": torch.ones(2)}
    return with_metadata(changed(blob, **packed), f'{{"packed": {layout}}}')


MALFORMED = {
    "cut off": lambda blob: blob[:-10],
    "longer than its header says": lambda blob: blob + b"\0" * 8,
    "not safetensors": lambda blob: b"nonsense" * 10,
    "a pickle": pickled,
    "a header longer than the blob": lambda blob: struct.pack("<Q", 1 << 40) + blob[8:],
    "a tensor of unknown kind": lambda blob: changed(blob, **{"X/encoder.a": torch.zeros(2, 2)}),
    "a tensor without a module": lambda blob: changed(blob, **{"P/": torch.zeros(2, 2)}),
    "NaN in coefficients": lambda blob: with_value(blob, f"P/{A}", float("nan")),
    "infinity in directions": lambda blob: with_value(blob, f"in/{B}", float("inf")),
    "NaN in the head": lambda blob: with_value(blob, "head/classifier.weight", float("nan")),
    "P without Q": lambda blob: changed(blob, **{f"Q/{A}": None}),
    "out without in": lambda blob: changed(blob, **{f"in/{A}": None}),
    "P and Q of different rank": lambda blob: changed(blob, **{f"P/{A}": torch.zeros(2, 3)}),
    "coefficients in one dimension": lambda blob: changed(blob, **{f"P/{A}": torch.zeros(2)}),
    "whole numbers": lambda blob: as_type(blob, f"P/{A}", torch.int32),
    "complex numbers": lambda blob: as_type(blob, f"P/{A}", torch.complex64),
    "half precision": lambda blob: as_type(blob, f"P/{A}", torch.float16),
    "int8 without its scales": lambda blob: as_type(blob, f"out/{A}", torch.int8),
    "int8 with an infinite scale": lambda blob: changed(blob, **int8_with_scale(float("inf"), float("inf"))),
    "int8 with a scale too few": lambda blob: changed(blob, **int8_with_scale(1.0)),
    "metadata that is not JSON": lambda blob: with_metadata(blob, "{"),
    "metadata that is a list": lambda blob: with_metadata(blob, "[]"),
    "metadata without end": lambda blob: with_metadata(blob, "[" * 100_000),
    "settings that are a number": lambda blob: with_metadata(blob, '{"settings": 1}'),
    "a layout that is not there": lambda blob: with_metadata(blob, f'{{"layouts": {{"{A}": "spiral"}}}}'),
    "a name that no encoding has": lambda blob: with_packed_head(blob, r'{"x\ud800": {"head": [2, 3]}}'),
    "a name that a scale needs": lambda blob: changed(
        blob, **{f"head/{n}": torch.ones(2, 3) for n in ("x", "x.scale")}
    ),
    "double precision": lambda blob: as_type(blob, f"Q/{B}", torch.float64),
    "float8": lambda blob: as_type(blob, f"Q/{B}", torch.float8_e4m3fn),
    "float8 in the head": lambda blob: as_type(blob, "head/classifier.weight", torch.float8_e5m2),
}


@pytest.mark.parametrize("damage", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_blob_is_refused(raw: RawWorker, damage: Callable[[bytes], bytes]):
    blob = damage(honest(raw))
    refused(raw.submit(raw.header(blob), blob), pb.OUTCOME_REFUSED_MALFORMED)


def of_rank(raw: RawWorker, rank: int) -> bytes:
    return raw.blob(random_adapter(raw.spec, 3, rank), 0)[1]


def for_modules(raw: RawWorker, **shapes: tuple[int, int]) -> bytes:
    factors = {name.replace("_", "."): Factors(torch.randn(N, 2), torch.randn(2, D)) for name, (N, D) in shapes.items()}
    return honest_blob(raw.spec, Adapter(factors), Basis())


WRONG_SHAPE = {
    "a module is missing": (lambda raw: for_modules(raw, encoder_a=(12, 10)), B),
    "a module too many": (lambda raw: for_modules(raw, encoder_a=(12, 10), encoder_b=(8, 16), pooler=(4, 4)), "pooler"),
    "directions of another height": (lambda raw: for_modules(raw, encoder_a=(11, 10), encoder_b=(8, 16)), A),
    "rank above the federation's": (lambda raw: of_rank(raw, 5), "rank 5"),
    "rank zero": (
        lambda raw: changed(honest(raw), **{f"P/{A}": torch.zeros(2, 0), f"Q/{A}": torch.zeros(2, 0)}), "rank 0"),
    "one column too few": (lambda raw: changed(honest(raw), **{f"P/{A}": torch.zeros(1, 2)}), A),
    "new directions without coefficients": (
        lambda raw: changed(honest(raw), **{f"P/{A}": None, f"Q/{A}": None}), A),
    "coefficients without directions": (
        lambda raw: changed(honest(raw), **{f"out/{A}": None, f"in/{A}": None}), A),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_SHAPE.values(), ids=WRONG_SHAPE.keys())
def test_wrong_shape_is_refused_and_the_module_is_named(raw: RawWorker, case: tuple[Any, str]):
    make, word = case
    blob = make(raw)
    refused(raw.submit(raw.header(blob), blob), pb.OUTCOME_REFUSED_SHAPE, word)


def test_update_read_in_another_version_than_it_was_made_for_is_refused(raw: RawWorker):
    blob = honest(raw)
    refused(raw.submit(raw.header(blob, base_version=1), blob), pb.OUTCOME_REFUSED_SHAPE, A)


@pytest.mark.parametrize("version", [2, 99, 2**63 - 1, 2**63, 2**64 - 1])
def test_unknown_base_version_is_refused(raw: RawWorker, version: int):
    blob = honest(raw)
    receipt = raw.submit(raw.header(blob, base_version=version), blob)
    refused(receipt, pb.OUTCOME_REFUSED_BASE_VERSION, str(version))


@pytest.mark.parametrize("other", ["", "0" * 32])
def test_update_for_another_federation_is_refused(raw: RawWorker, other: str):
    blob = honest(raw)
    refused(raw.submit(raw.header(blob, federation_id=other), blob), pb.OUTCOME_REFUSED_FEDERATION, "small")


@pytest.mark.parametrize("other", ["", "e" * 64])
def test_update_made_on_another_base_model_is_refused(raw: RawWorker, other: str):
    blob = honest(raw)
    refused(raw.submit(raw.header(blob, base_fingerprint=other), blob), pb.OUTCOME_REFUSED_BASE_MODEL)


def test_older_incarnation_is_refused_after_a_newer_one_has_joined(raw: RawWorker, shared_small: Coordinator):
    with RawWorker(shared_small.address, "twin") as old, RawWorker(shared_small.address, "twin") as new:
        assert new.joined.incarnation == old.joined.incarnation + 1
        blob = honest(old)
        receipt = old.submit(old.header(blob), blob)
    refused(receipt, pb.OUTCOME_REFUSED_INCARNATION, f"incarnation {new.joined.incarnation} has joined since")


@pytest.mark.parametrize("incarnation", [0, 2, 2**64 - 1])
def test_incarnation_that_never_joined_is_refused(raw: RawWorker, incarnation: int):
    blob = honest(raw)
    receipt = raw.submit(raw.header(blob, incarnation=incarnation), blob)
    refused(receipt, pb.OUTCOME_REFUSED_INCARNATION, str(incarnation))


def test_stranger_is_refused(raw: RawWorker):
    blob = honest(raw)
    receipt = raw.submit(raw.header(blob, worker="stranger"), blob)
    refused(receipt, pb.OUTCOME_REFUSED_INCARNATION, "stranger", "join first")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("field", ["worker", "task"])
def test_hostile_name_in_an_update_is_refused(raw: RawWorker, field: str, name: str):
    blob = honest(raw)
    refused(raw.submit(raw.header(blob, **{field: name}), blob), pb.OUTCOME_REFUSED_MALFORMED, field, "not a name")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("field", ["worker", "task"])
def test_hostile_name_cannot_join(raw: RawWorker, field: str, name: str):
    names = {"worker": "new", "task": "task", field: name}
    with pytest.raises(Refusal, match=f"^{field} .* is not a name"):
        raw.client.join(names["worker"], names["task"], "", raw.spec.base.fingerprint)


def test_other_base_model_and_other_federation_cannot_join(raw: RawWorker):
    members = len(raw.client.status().members)
    with pytest.raises(Refusal, match="base model"):
        raw.client.join("new", "task", "", "e" * 64)
    with pytest.raises(Refusal, match="this is the federation 'small'"):
        raw.client.join("new", "task", "0" * 32, raw.spec.base.fingerprint)
    assert len(raw.client.status().members) == members


BAD_HEADERS = {
    "no update id": {"update_id": ""},
    "an update id that is not hex": {"update_id": "g" * 32},
    "a short update id": {"update_id": "a" * 31},
    "a digest that is a path": {"digest": "../" * 21 + "a"},
    "a digest in capitals": {"digest": "A" * 64},
    "a metric that is NaN": {"metrics": {"accuracy": float("nan")}},
    "a metric that is infinite": {"metrics": {"accuracy": float("-inf")}},
    "a metric with a hostile name": {"metrics": {"../x": 1.0}},
    "too many metrics": {"metrics": {f"m{i}": 1.0 for i in range(METRICS_MAX + 1)}},
    "a label with a NUL": {"labels": ["no\0", "yes"]},
    "too many labels": {"labels": ["x"] * (LABELS_MAX + 1)},
    "labels of too many bytes": {"labels": ["ü" * 100] * (LABELS_BYTES_MAX // 200 + 1)},
}


@pytest.mark.parametrize("bad", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_malformed_header_is_refused(raw: RawWorker, bad: dict[str, Any]):
    blob = honest(raw)
    refused(raw.submit(raw.header(blob, **bad), blob), pb.OUTCOME_REFUSED_MALFORMED)


def test_update_without_a_header_is_refused(raw: RawWorker):
    receipt = raw.stub.Submit(iter([pb.SubmitRequest(chunk=b"x")]), timeout=30)
    refused(receipt, pb.OUTCOME_REFUSED_MALFORMED)


@pytest.mark.parametrize("beyond", [1, 1 << 40, 2**64 - 1])
def test_too_large_an_update_is_refused_before_any_of_it_has_come(raw: RawWorker, beyond: int):
    nbytes = min(update_bytes_max(raw.spec) + beyond, 2**64 - 1)
    answered = threading.Event()

    def nothing_yet() -> Iterator[bytes]:
        answered.wait(30)
        yield from ()

    receipt = raw.submit(raw.header(b"x", nbytes=nbytes), nothing_yet())
    answered.set()
    refused(receipt, pb.OUTCOME_REFUSED_TOO_LARGE, str(nbytes))


def test_empty_update_is_refused(raw: RawWorker):
    refused(raw.submit(raw.header(b""), b""), pb.OUTCOME_REFUSED_TOO_LARGE)


NOT_WHOLE = {
    "ends early": (lambda blob: iter([blob[:100]]), "did not come whole"),
    "never begins": (lambda blob: iter([]), "did not come whole"),
    "more bytes than announced": (lambda blob: iter([blob + b"x"]), "more than the announced"),
    "more bytes in a later chunk": (lambda blob: iter([blob[:-1], b"xx"]), "more than the announced"),
    "other bytes": (lambda blob: iter([blob[:-1] + bytes([blob[-1] ^ 1])]), "announced digest"),
    "a chunk that is too large": (lambda blob: iter([b"x" * (CHUNK_BYTES_MAX + 1)]), "at most"),
}


@pytest.mark.parametrize("case", NOT_WHOLE.values(), ids=NOT_WHOLE.keys())
def test_update_that_does_not_come_whole_may_be_sent_again(raw: RawWorker, case: tuple[Any, str]):
    cut_wrongly, word = case
    blob = honest(raw)
    refused(raw.submit(raw.header(blob), cut_wrongly(blob)), pb.OUTCOME_RETRY_DIGEST, word)


def test_senders_that_vanish_in_the_middle_take_no_place_for_ever(raw: RawWorker, shared_small: Coordinator):
    for _ in range(SUBMITS_MAX + 2):
        vanish_in_the_middle(raw, shared_small.address)
    blob = honest(raw)
    refused(raw.submit(raw.header(blob), iter([blob[:100]])), pb.OUTCOME_RETRY_DIGEST)


def test_sender_that_takes_far_too_long_is_told_to_come_again(here: CoordinatorHere, monkeypatch: pytest.MonkeyPatch):
    """It is never silent for long."""
    monkeypatch.setattr("coordinator.service.TRANSFER_SECONDS_MAX", 0.5)

    def bit_by_bit(blob: bytes) -> Iterator[bytes]:
        for byte in blob[:100]:
            yield bytes([byte])
            time.sleep(0.1)

    with RawWorker(here.address) as raw:
        blob = honest(raw)
        refused(raw.submit(raw.header(blob), bit_by_bit(blob)), pb.OUTCOME_RETRY_DIGEST, "within 0.5 s: send it again")
        assert raw.submit(raw.header(blob), blob).outcome == pb.OUTCOME_QUEUED


def test_sender_that_hangs_up_keeps_its_place_until_what_it_sent_is_taken(
    here: CoordinatorHere, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("coordinator.service.SUBMITS_MAX", 1)
    with RawWorker(here.address) as raw, closing(sqlite3.connect(here.home / "journal.sqlite")) as other:
        first, second = (raw.blob(random_adapter(raw.spec, seed))[1] for seed in range(2))
        other.execute("BEGIN IMMEDIATE")  # whoever commits waits
        header = raw.header(first)
        call = raw.stub.Submit.future(iter([pb.SubmitRequest(header=header), pb.SubmitRequest(chunk=first)]))
        until((here.home / "blobs" / f"{header.digest}.safetensors").exists, "the update is being taken")
        call.cancel()
        time.sleep(0.2)
        assert raw.submit(raw.header(second), second).outcome == pb.OUTCOME_RETRY_BUSY
        other.rollback()
        until(lambda: raw.submit(raw.header(second), second).position, "its place is free")
        assert raw.submit(header, first).repeated


def vanish_in_the_middle(raw: RawWorker, address: str) -> None:
    blob, gone = honest(raw), threading.Event()

    def half() -> Iterator[pb.SubmitRequest]:
        yield pb.SubmitRequest(header=raw.header(blob))
        yield pb.SubmitRequest(chunk=blob[:100])
        gone.wait(30)

    with grpc.insecure_channel(address) as channel:
        call = pb_stub(channel).Submit.future(half(), timeout=30)
        call.add_done_callback(lambda _: gone.set())
        call.cancel()


def pb_stub(channel: grpc.Channel) -> Any:
    from protos.fedshare.v1.federation_pb2_grpc import FederationStub

    return FederationStub(channel)


BAD_REPORTS = {
    "a hostile task": ({"task": "../x"}, "is not a name"),
    "a hostile worker": ({"worker": "a\0b"}, "is not a name"),
    "a metric that is NaN": ({"metrics": {"accuracy": float("nan")}}, "not a finite number"),
    "an older incarnation": ({"incarnation": 0}, "no longer current"),
    "a stranger": ({"worker": "stranger"}, "join first"),
    "a version that is not there": ({"version": 99}, "no version 99"),
    "a version beyond all numbers": ({"version": 2**64 - 1}, "no version"),
}


@pytest.mark.parametrize("case", BAD_REPORTS.values(), ids=BAD_REPORTS.keys())
def test_bad_report_is_refused(raw: RawWorker, case: tuple[dict[str, Any], str]):
    changes, word = case
    good = {"worker": "raw", "incarnation": raw.joined.incarnation, "task": "task", "version": 1, "metrics": {"a": 1.0}}
    before = raw.client.metrics()
    with pytest.raises(Refusal, match=word):
        raw.client.report(**{**good, **changes})
    assert raw.client.metrics() == before


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_name_cannot_leave(raw: RawWorker, name: str):
    with pytest.raises(Refusal, match=r"^worker .* is not a name"):
        raw.client.leave(name, 1)


@pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if name])  # without a name it is all tasks
def test_hostile_name_has_no_metrics(raw: RawWorker, name: str):
    with pytest.raises(Refusal, match=r"^task .* is not a name"):
        raw.client.metrics(name)


@pytest.mark.parametrize("version", [2, 2**63, 2**64 - 1])
def test_version_that_is_not_there_cannot_be_fetched(raw: RawWorker, version: int):
    with pytest.raises(Refusal, match=f"there is no version {version}: the newest is 1"):
        raw.client.fetch(version)


def test_task_that_is_not_there_cannot_be_fetched(raw: RawWorker):
    with pytest.raises(Refusal, match="has no task 'nobody'; it has: task"):
        raw.client.fetch(None, tasks=["nobody"])


def test_records_beyond_the_last_version_are_an_empty_list(raw: RawWorker):
    assert raw.client.versions(2) == raw.client.versions(2**64 - 1) == []


@pytest.mark.parametrize("prefix", ["", "abc", "zzzzzz", "%%%%%%", "______", "a" * 100, "abcdef\0", "abcdef\n"])
def test_story_of_no_update_is_refused(raw: RawWorker, prefix: str):
    with pytest.raises(Refusal, match="no update has an id that starts with"):
        raw.client.story(prefix)


def test_any_damage_to_a_blob_is_refused_or_merged_and_never_stops_the_coordinator(
    tmp_path_factory: pytest.TempPathFactory,
):
    home = small_home(tmp_path_factory.mktemp("fuzz") / "home")
    with Coordinator(home, "--no-lineage") as coordinator, RawWorker(coordinator.address) as raw:
        whole = honest(raw)

        @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def damaged(data: st.DataObject) -> None:
            at = data.draw(st.integers(0, len(whole) - 1))
            blob = whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + data.draw(st.integers(0, 4)) :]
            receipt = raw.submit(raw.header(blob), blob)
            assert receipt.outcome in EXPECTED_OF_DAMAGE, receipt

        damaged()
        raw.teach(random_adapter(raw.spec, 9))
        assert coordinator.drained().merged >= 1


EXPECTED_OF_DAMAGE = {pb.OUTCOME_QUEUED, pb.OUTCOME_REFUSED_MALFORMED, pb.OUTCOME_REFUSED_SHAPE}


def test_client_knows_a_refusal_from_a_coordinator_that_is_away(raw: RawWorker, shared_small: Coordinator):
    with Client(shared_small.address) as client, pytest.raises(Refusal, match="join first"):
        client.leave("stranger", 1)
