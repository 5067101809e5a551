"""What differs between two versions of a federation, as functions: by dW, whatever basis each is written in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis
from share_algo.canonical import difference_norm, norm
from share_algo.codec import decode_basis, decode_entry
from workers.client import Client
from workers.weights import weights_for


@dataclass(frozen=True)
class Compared:
    """changed: relative difference of dW, by task, of tasks whose coefficients, basis or head are not the same."""

    came: list[str]
    went: list[str]
    changed: dict[str, float]
    same: int
    blocks_shared: int
    blocks_before: int
    blocks_after: int


def compare(client: Client, before: int, after: int) -> Compared:
    """Fetches both manifests, then only what tells. Raises Refusal where a version cannot be read."""
    old, new = (client.fetch(v, every_task=True, manifest_only=True)[0] for v in (before, after))
    entries = [{t.task: t.entry.digest for t in manifest.tasks} for manifest in (old, new)]
    blocks = [[b.digest for b in manifest.blocks] for manifest in (old, new)]
    prefix = blocks[0] == blocks[1][: len(blocks[0])] or blocks[1] == blocks[0][: len(blocks[1])]
    both = sorted(entries[0].keys() & entries[1].keys())
    asked = [task for task in both if not prefix or entries[0][task] != entries[1][task]]
    adapters = _adapters(client, (before, after), asked) if asked else [{}, {}]
    shared = len(set(blocks[0]) & set(blocks[1]))
    return Compared(
        came=sorted(entries[1].keys() - entries[0].keys()),
        went=sorted(entries[0].keys() - entries[1].keys()),
        changed={task: _difference(adapters[0][task], adapters[1][task]) for task in asked},
        same=len(both) - len(asked),
        blocks_shared=shared,
        blocks_before=len(blocks[0]) - shared,
        blocks_after=len(blocks[1]) - shared,
    )


def _adapters(client: Client, versions: Iterable[int], tasks: list[str]) -> list[Mapping[str, Adapter]]:
    """Of each version, by task."""
    weights = weights_for(client.describe())
    return [_adapters_of(*client.fetch(version, tasks=tasks), weights) for version in versions]


def _adapters_of(
    manifest: pb.Manifest, blobs: Mapping[str, bytes], weights: Mapping[str, Tensor]
) -> Mapping[str, Adapter]:
    basis = decode_basis((blobs[ref.digest] for ref in manifest.blocks), weights)
    return {ref.task: _adapter(blobs, ref, basis) for ref in manifest.tasks}


def _adapter(blobs: Mapping[str, bytes], ref: pb.TaskRef, basis: Basis) -> Adapter:
    return decode_entry(blobs[ref.entry.digest]).adapter(basis)


def _difference(a: Adapter, b: Adapter) -> float:
    """|| a - b || / || a || over all modules."""
    lost = math.hypot(*(difference_norm(f, b.factors[m]) for m, f in a.factors.items()))
    size = math.hypot(*(norm(f) for f in a.factors.values()))
    return lost / size if size else lost
