"""Every version that can be read holds what was expected, and says how far it is from that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from parts import spans

from coordinator import views
from coordinator.catalog import Version
from protos.fedshare.v1 import federation_pb2 as pb

from .expected import Expected, Held
from .formulas import HEAD, Dense, norm, of_task, off
from .here import Here

ROUNDING = 1e-4
"""Relative: what float32 and the tolerances of two appends may lose."""


class Contents:
    def __init__(self, here: Here, expected: Expected):
        self._here, self._expected = here, expected
        self._read: dict[int, tuple[pb.Manifest, dict[str, Dense]]] = {}
        self._spans: dict[int, dict[str, np.ndarray]] = {}

    def check(self, version: Version, commands: dict[str, pb.CommandRequest]) -> int:
        """How many tasks it has. Raises AssertionError. Versions come in their order."""
        number, wanted = version.version, self._expected.versions[version.version].tasks
        self._read[number] = self._stored(number)
        tasks = self._read[number][1]
        assert sorted(tasks) == sorted(wanted), f"version {number} holds other tasks"
        for task, held in wanted.items():
            self._is_true(version, task, held)
        self._has_columns(version)
        kind = version.records[-1].kind if version.records else pb.VERSION_KIND_UNSPECIFIED
        request = commands.get(version.records[-1].update_id) if version.records else None
        if kind == pb.VERSION_KIND_ROLLBACK and request:
            self._is_again(number, request.rollback.version)
        if kind == pb.VERSION_KIND_COMPACT and request:
            self._is_projected(number, request.compact)
        if kind == pb.VERSION_KIND_MERGE and number - 1 in self._read:
            self._leaves_others_alone(number, {r.task for r in version.records})
        return len(wanted)

    def _stored(self, number: int) -> tuple[pb.Manifest, dict[str, Dense]]:
        request = pb.FetchRequest(version=number, every_task=True)
        manifest = views.manifest(self._here.catalog, request)
        blobs = {name: self._here.home.blobs.path(name).read_bytes() for name in _names(manifest)}
        self._spans[number] = spans(manifest, blobs)
        return manifest, {ref.task: of_task(manifest, blobs, ref.task) for ref in manifest.tasks}

    def _is_true(self, version: Version, task: str, held: Held) -> None:
        """It is what it should be; where columns were cut away, within its certificate."""
        stored, where = self._read[version.version][1][task], f"version {version.version}: {task}"
        kept = self._here.catalog.task_of(version.version, task)
        assert kept is not None
        lost, certificate, slack = off(held.value, stored), kept.kept.certificate, ROUNDING * held.scale
        assert off(held.value, stored, heads=True) < ROUNDING * max(1.0, held.scale), f"{where}: its head is another's"
        assert held.is_cut or lost < slack, f"{where} is off by {lost / held.scale:.1e}"
        assert lost <= certificate.error + slack, f"{where} is off by {lost:.1e}, certified are {certificate.error:.1e}"
        assert held.is_cut or certificate.error < slack, f"{where} was never cut, and is certified as if"
        quieter = norm(held.value) - certificate.norm  # a sum of what was cut counts as the quietest that it can be
        assert -slack <= quieter <= 2 * certificate.error + slack, f"{where}: another's certificate"
        if version.records:
            assert version.largest_error >= certificate.relative_error * (1 - 1e-9), (
                f"{where} has lost more than is said"
            )

    def _has_columns(self, version: Version) -> None:
        """A projector's trace is how many."""
        columns = {side: round(np.trace(P)) for side, P in self._spans[version.version].items()}
        said, start = version.records[-1] if version.records else None, self._here.home.spec.start.columns
        for side, wanted in (("out", said.basis_out if said else start), ("in", said.basis_in if said else start)):
            found = max((n for name, n in columns.items() if name.startswith(f"{side}/")), default=0)
            assert found == wanted, f"version {version.version} has {found} {side} columns, its record says {wanted}"

    def _is_again(self, number: int, target: int) -> None:
        if target in self._read:
            mine, other = ({t.task: t.entry.digest for t in self._read[v][0].tasks} for v in (number, target))
            assert mine == other, f"version {number} is not what version {target} was"
            blocks = [[ref.digest for ref in self._read[v][0].blocks] for v in (number, target)]
            assert blocks[0] == blocks[1], f"version {number} has another basis than version {target}"

    def _is_projected(self, number: int, command: pb.Compact) -> None:
        """Every task is what it was, projected on the columns that are left: as many, or as near, as was asked for."""
        if command.size:
            assert all(np.trace(P) < command.size + 0.5 for P in self._spans[number].values()), (
                "too many columns are left"
            )
        before = self._read.get(number - 1)
        if before is None:
            return
        for task, now in self._read[number][1].items():
            was = before[1][task]
            wanted = {m: self._projected(number, m, x) for m, x in was.items() if not m.startswith(HEAD)}
            assert off(wanted, now) < ROUNDING * norm(was), f"version {number}: {task} is no projection"
            lost = off(now, was)
            within = (command.tolerance or 1.0) + ROUNDING
            assert lost <= within * norm(was), f"version {number}: {task} has lost {lost / norm(was):.2f}"

    def _projected(self, number: int, module: str, dW: np.ndarray) -> np.ndarray:
        P = self._spans[number]
        if f"out/{module}" not in P:
            return 0 * dW
        return P[f"out/{module}"] @ dW @ P[f"in/{module}"]

    def _leaves_others_alone(self, number: int, changed: set[str]) -> None:
        """The same blobs, in a basis that begins with the same blocks: bitwise the same."""
        now, before = self._read[number][0], self._read[number - 1][0]
        assert now.blocks[: len(before.blocks)] == before.blocks, f"version {number} has changed the basis"
        entries = {ref.task: ref.entry.digest for ref in now.tasks}
        for ref in before.tasks:
            same = ref.task in changed or entries[ref.task] == ref.entry.digest
            assert same, f"version {number} has changed {ref.task}, of which it says nothing"


def _names(manifest: pb.Manifest) -> Iterator[str]:
    yield from (ref.digest for ref in manifest.blocks)
    yield from (ref.entry.digest for ref in manifest.tasks)
