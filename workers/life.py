"""One worker's life, the same wherever it is led:

    join -> fetch -> fit -> outbox -> submit -> receipt -> evaluate on new versions -> leave

A life that is cut short is led again from the start, in the same home: what is in the outbox is delivered
first, and a task that is learned already is not learned twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from protos.policy import policy_of, replaces
from share_algo import Basis, TaskEntry, derive
from share_algo.codec import decode_basis, decode_entry
from share_algo.training import attach
from workers.base_model import BaseModel, find_base_model
from workers.client import SLOW_SECONDS, Client
from workers.errors import Refusal, Superseded, WorkerError
from workers.evaluate import accuracy, largest_difference, logits_of
from workers.fit import fit, is_inside, rank_of
from workers.home import Home
from workers.outbox import Parcel
from workers.tasks import TaskData, load_task, must_be_there
from workers.train import lora_model
from workers.watcher import Watcher
from workers.weights import weights_for

WAITING = "waiting for the coordinator"
POLL_SECONDS = 0.5
DERIVING_SECONDS_MIN = 1.0
"""What takes less is not spoken of."""
VERDICT_SECONDS_MAX = 3600.0
"""How long a worker waits for the verdict on a receipted update before it goes; the update is safe anyway."""
SAFE = (pb.OUTCOME_BUFFERED, pb.OUTCOME_QUARANTINED, pb.OUTCOME_SUPERSEDED)
"""Verdicts on updates that are in no version and that nobody need send again."""


@dataclass(frozen=True)
class Plan:
    """What a worker is to do. Examples 0: all there are."""

    worker: str
    task: str
    source: str
    address: str
    home: Path
    base_model: str = ""  # where to find it here; empty: by the federation's own name for it
    train_examples_max: int = 0
    test_examples_max: int = 0
    patience_seconds: float = 600.0
    pause_seconds: float = 0.0
    threads: int = 0  # 0: as torch decides
    learn_again: bool = False
    evaluate_every: bool = True  # False: only its own version and the last


@dataclass(frozen=True)
class Progress:
    """How far a life has come. accuracy: newest measured, 0..1."""

    stage: str = "starting"
    fraction: float = 0.0
    base_version: int = 0
    version: int = 0  # the newest evaluated
    incarnation: int = 0
    update_id: str = ""
    accuracy: float | None = None
    detail: str = ""
    waits: str = ""  # one sentence: why its update is in no version yet


@dataclass(frozen=True)
class Beginning:
    """What a fit begins with: a version's basis; what its task is in it already; other tasks that it may begin as."""

    manifest: pb.Manifest
    basis: Basis
    start: TaskEntry | None = None
    known: Mapping[str, TaskEntry] = field(default_factory=dict)


class Life:
    """`tell` is called at every change; `stay` is asked whether to go on watching versions."""

    def __init__(self, plan: Plan, tell: Callable[[Progress], None], stay: Callable[[], bool]):
        self.plan, self._tell, self._stay = plan, tell, stay
        self.progress = Progress()

    def lead(self) -> Progress:
        """The whole life. Raises WorkerError with one sentence; what was finished is then in the outbox."""
        if self.plan.threads:
            torch.set_num_threads(self.plan.threads)
        with Home(self.plan.home) as self.home, self._client() as self.client:
            self._must_have_no_parcels_of_others()
            learned = self._join()
            self.watcher = Watcher(self.client, self.plan.worker, self.progress.incarnation)
            try:
                for parcel in self.home.outbox.parcels() or self._learn_unless(learned):
                    self._deliver(parcel)
                self._follow()
                self.client.leave(self.plan.worker, self.progress.incarnation)
            finally:
                self.watcher.stop()
        return self._now("left")

    def _must_have_no_parcels_of_others(self) -> None:
        for parcel in self.home.outbox.parcels():
            if parcel.header.task != self.plan.task:
                raise WorkerError(
                    f"the outbox in {self.plan.home} holds an update for the task {parcel.header.task}:"
                    f" start that task once more to deliver it, or use another --home"
                )

    @cached_property
    def task(self) -> TaskData:
        p = self.plan
        return load_task(
            p.task,
            p.source,
            train_examples_max=p.train_examples_max,
            test_examples_max=p.test_examples_max,
            seed=self.spec.seed,
        )

    @cached_property
    def base(self) -> BaseModel:
        return find_base_model(self.plan.base_model or self.spec.base.name)

    @cached_property
    def _weights(self) -> Mapping[str, Tensor]:
        return weights_for(self.spec, self.base)

    @cached_property
    def model(self) -> PeftModel:
        """Plain LoRA, into which versions are loaded."""
        return lora_model(self.base, self.spec, len(self.task.labels))

    def _client(self) -> Client:
        def waiting(seconds: float) -> None:
            self._now(detail=f"{WAITING} ({seconds:.0f} s)")

        return Client(self.plan.address, patience_seconds=self.plan.patience_seconds, waiting=waiting)

    def _join(self) -> pb.Verdict | None:
        self._now("joining")
        must_be_there(self.plan.source)
        self.spec = self.client.describe()
        self.home.must_not_belong_elsewhere(self.spec.federation_id)
        self._now("loading")
        _ = self.task  # a mistake in the data must show before anything is joined
        reply = self.client.join(self.plan.worker, self.plan.task, self.home.federation_id(), self.base.fingerprint)
        self.home.belong_to(reply.federation_id)
        self._now(incarnation=reply.incarnation, detail="")
        return reply.learned if reply.HasField("learned") else None

    def _learn_unless(self, learned: pb.Verdict | None) -> list[Parcel]:
        if learned is None or self.plan.learn_again:
            return [self._learn()]
        verdict = self._verdict(learned)
        if verdict.outcome == pb.OUTCOME_MERGED:
            return []
        if verdict.outcome not in SAFE:
            return [self._learn()]
        self._now("kept by the coordinator", update_id=verdict.update_id, waits=_why_it_waits(verdict))
        return []

    def _learn(self) -> Parcel:
        self._now("fetching")
        begin = self.beginning()
        self._now("fitting", fraction=0.0, base_version=begin.manifest.version)
        fitted = fit(
            self.base,
            self.spec,
            begin.basis,
            self.task,
            start=begin.start,
            known=begin.known,
            progress=self._so_far,
            pause_seconds=self.plan.pause_seconds,
        )
        self.model = fitted.model
        logits = self._logits()
        measured = {
            "accuracy_when_learned": accuracy(logits, self.task.test),
            "train_examples": float(len(self.task.train)),
            "steps": float(fitted.steps),
            "fit_seconds": fitted.seconds,
        }
        return self.home.outbox.put(
            self.plan.task,
            begin.manifest.version,
            fitted.blob,
            digest_of(fitted.blob),
            self.task.labels,
            measured,
            logits,
            fitted.warm_start,
        )

    def beginning(self, version: int | None = None) -> Beginning:
        """In a version, the head where none is named. Others may have learned the task, where updates are added up."""
        version = self._head() if version is None else version
        if not replaces(policy_of(self.spec.policies, self.plan.task)):
            try:
                manifest, basis = self._fetch(version, self.plan.task)
                return Beginning(manifest, basis, self._entry(manifest.tasks[0]))
            except Superseded:
                raise
            except Refusal:  # nobody has learned it yet
                pass
        manifest, basis = self._fetch(version, *self._warm_starts(version))
        known = {ref.task: decode_entry(self._blob(ref.entry.digest)) for ref in manifest.tasks}
        return Beginning(manifest, basis, known=known)

    def _warm_starts(self, version: int) -> list[str]:
        """Other tasks that this one may begin with: the newest of that version."""
        if not is_inside(self.spec) or not self.spec.recipe.warm_starts:
            return []
        manifest, _ = self.client.fetch(version, every_task=True, manifest_only=True)
        others = sorted((t for t in manifest.tasks if t.task != self.plan.task), key=lambda t: t.version)
        return [t.task for t in others[-self.spec.recipe.warm_starts :]]

    def _deliver(self, parcel: Parcel) -> None:
        """Submit, wait for the verdict, check that the function kept is the function trained."""
        self._now("sending", update_id=parcel.header.update_id, waits="")
        try:
            receipt = self.client.submit(self._header(parcel), parcel.blob())
        except Superseded:
            raise
        except Refusal:
            kept = self.home.set_aside(parcel)
            self._now("refused", detail=f"kept in {kept}")
            raise
        self._now("waiting for the merge", detail="")
        verdict = self._verdict(receipt)
        if verdict.outcome == pb.OUTCOME_MERGED:
            is_kept = replaces(policy_of(self.spec.policies, self.plan.task))  # and not added to what there was
            trained = self._trained(parcel) if is_kept else None
            self._evaluate_if_there(verdict.version, parcel.header.metrics, trained)
        elif verdict.outcome in SAFE:
            self._now("kept by the coordinator", waits=_why_it_waits(verdict))
        else:
            self.home.set_aside(parcel)
            raise Refusal(f"update {parcel.header.update_id} was received but is not in a version: {verdict.reason}")
        self.home.outbox.done(parcel)

    def _trained(self, parcel: Parcel) -> Tensor | None:
        """None where it cannot be read: what was sent has a digest of its own, and its story ends well without this."""
        try:
            return parcel.trained_logits()
        except WorkerError as error:
            self._now("not compared", detail=str(error))
            return None

    def _verdict(self, receipt: pb.Receipt | pb.Verdict) -> pb.Verdict:
        """What became of it: final, or in the hands of the coordinator (SAFE)."""

        def decided(notice: pb.VersionNotice) -> bool:
            return notice.consumed_position >= receipt.position

        if not self.watcher.wait(decided, SLOW_SECONDS) and (why := self._why_nothing_is_merged()):
            self._now(detail=f"waiting for the merge: {why}")
        if not self.watcher.wait(decided, VERDICT_SECONDS_MAX):
            raise WorkerError(
                f"no verdict on {receipt.update_id} after {VERDICT_SECONDS_MAX:.0f} s: it is safe; come back later"
            )
        self._now(detail="")
        return self.client.story(receipt.update_id).verdict

    def _why_nothing_is_merged(self) -> str:
        """Asked once, without patience."""
        with suppress(WorkerError), Client(self.plan.address) as client:
            return client.status().waiting
        return ""

    def _follow(self) -> None:
        """Evaluate each new version, or only the last, until it is time to go."""
        seen = self.progress.version
        while True:
            last = not self._stay()
            newest = self._head() if last else self.watcher.newest.version
            if newest > seen and (last or self.plan.evaluate_every):
                seen = newest
                self._may_wait_no_more()
                self._evaluate_if_there(newest)
            elif last:
                return
            else:
                self._now("watching")
                self.watcher.wait(lambda n, seen=newest: n.version > seen, POLL_SECONDS)  # type: ignore[misc]

    def _may_wait_no_more(self) -> None:
        """Somebody has accepted it, or its buffer is full."""
        if self.progress.waits:
            verdict = self.client.story(self.progress.update_id).verdict
            self._now(waits=_why_it_waits(verdict) if verdict.outcome in SAFE else "")

    def _evaluate_if_there(
        self, version: int, measured: dict[str, float] | None = None, trained: Tensor | None = None
    ) -> None:
        """A version may be without this task, or may be gone: it was rolled back, forgotten or erased."""
        try:
            self._evaluate(version, measured, trained)
        except Superseded:
            raise
        except Refusal as refusal:
            if self.progress.waits:  # that is why
                self._now(version=0, accuracy=None)
                return
            self._now(version=version, accuracy=None, detail=str(refusal))

    def _head(self) -> int:
        """Asked, not watched: a notice may still be on its way."""
        return self.client.fetch(None, manifest_only=True)[0].version

    def _evaluate(self, version: int, measured: dict[str, float] | None = None, trained: Tensor | None = None) -> None:
        """Measure this task on a version, and report it."""
        self._now("evaluating")
        manifest, basis = self._fetch(version, self.plan.task)
        self._load(manifest, basis)
        logits = self._logits()
        found = {"accuracy": accuracy(logits, self.task.test)}
        if measured is not None:
            found["accuracy_when_learned"] = measured["accuracy_when_learned"]
        if trained is not None and trained.shape == logits.shape:
            found["logits_difference"] = largest_difference(trained, logits)
        self.client.report(self.plan.worker, self.progress.incarnation, self.plan.task, version, found)
        self._now(version=version, accuracy=found["accuracy"])

    def _load(self, manifest: pb.Manifest, basis: Basis) -> None:
        entry = self._entry(manifest.tasks[0])
        rank = rank_of(entry)
        if rank > self.model.peft_config["default"].r:  # type: ignore[attr-defined]
            # several contributions to one task: their ranks add up
            self.model = lora_model(self.base, self.spec, len(self.task.labels), rank)
        attach(self.model, entry.adapter(basis))

    def _entry(self, ref: pb.TaskRef) -> TaskEntry:
        if tuple(ref.labels) != self.task.labels:
            raise WorkerError(f"the federation knows {self.plan.task} with other labels than {self.plan.source} has")
        return decode_entry(self._blob(ref.entry.digest))

    def _fetch(self, version: int | None, *tasks: str) -> tuple[pb.Manifest, Basis]:
        """A version's basis; only what is not on this disk yet travels."""
        manifest, blobs = self.client.fetch(version, tasks=tasks, have=self.home.blobs.digests())
        for digest, blob in blobs.items():
            self.home.blobs.put(digest, blob)
        basis = decode_basis((self._blob(ref.digest) for ref in manifest.blocks), self._weights)
        self._derive(basis)
        return manifest, basis

    def _derive(self, basis: Basis) -> None:
        """Held until the next one is there, so that what both begin with is derived once."""
        began = time.monotonic()

        def told(done: int, total: int) -> None:
            if time.monotonic() - began > DERIVING_SECONDS_MIN:
                self._now(detail=f"deriving directions: {done} of {total} modules" if done < total else "")

        derive(basis.blocks, told, threads=torch.get_num_threads())
        self._basis = basis

    def _blob(self, digest: str) -> bytes:
        blob = self.home.blobs.get(digest)
        if blob is None:
            raise WorkerError(f"blob {digest[:12]} in {self.plan.home} was damaged and is removed: start again")
        return blob

    def _logits(self) -> Tensor:
        return logits_of(self.model, self.base.tokenizer, self.task.test, self.spec.recipe.tokens_max)

    def _header(self, parcel: Parcel) -> pb.UpdateHeader:
        return pb.UpdateHeader(
            **parcel.header.model_dump(),
            federation_id=self.spec.federation_id,
            worker=self.plan.worker,
            incarnation=self.progress.incarnation,
            base_fingerprint=self.base.fingerprint,
        )

    def _so_far(self, done: int, total: int) -> None:
        self._now(fraction=done / total)

    def _now(self, stage: str = "", **changes: object) -> Progress:
        if stage:
            changes = {"stage": stage, **changes}
        self.progress = replace(self.progress, **changes)  # type: ignore[arg-type]
        self._tell(self.progress)
        return self.progress


def _why_it_waits(verdict: pb.Verdict) -> str:
    """Of one that is in the hands of the coordinator (SAFE), and what may be done."""
    update, id = f"update {verdict.update_id}", verdict.update_id[:12]
    if verdict.outcome == pb.OUTCOME_QUARANTINED:
        may = f"`fedshare accept {id}` merges it, `fedshare reject {id}` never does"
        return f"{update} waits in quarantine: {verdict.reason}; {may}"
    if verdict.outcome == pb.OUTCOME_BUFFERED:
        return f"{update} waits in a buffer: it came {verdict.reason}, and is merged with the last of them"
    return f"{update} is in no version: it was superseded {verdict.reason}"
