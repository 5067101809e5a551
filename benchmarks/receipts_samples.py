"""Small updates for the benchmarks of the walk: two small modules, rank 2, 1.1 kB."""

from __future__ import annotations

import uuid

import torch

from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis, Factors, append
from share_algo.codec import encode_update

SHAPES = {"encoder.a": (12, 10), "encoder.b": (8, 16)}
EMPTY = Basis()


def header_of(spec: pb.FederationSpec, worker: str, task: str, blob: bytes) -> pb.UpdateHeader:
    return pb.UpdateHeader(
        update_id=uuid.uuid4().hex,
        federation_id=spec.federation_id,
        worker=worker,
        incarnation=1,
        task=task,
        base_fingerprint=spec.base.fingerprint,
        digest=digest_of(blob),
        nbytes=len(blob),
        labels=["no", "yes"],
    )


def small_spec() -> pb.FederationSpec:
    modules = [pb.TargetModule(name=name, out_features=N, in_features=D) for name, (N, D) in SHAPES.items()]
    base = pb.BaseModel(name="none", fingerprint="f" * 64)
    return pb.FederationSpec(name="receipts", base=base, modules=modules, rank=4, tolerance=1e-5)


def blob_of(spec: pb.FederationSpec, basis: Basis = EMPTY, times: float = 1.0) -> bytes:
    """An update that is so loud, made for this basis; always of the same columns."""
    g = torch.Generator().manual_seed(0)
    factors = {
        m.name: Factors(times * torch.randn(m.out_features, 2, generator=g), torch.randn(2, m.in_features, generator=g))
        for m in spec.modules
    }
    adapter = Adapter(factors, {"classifier.weight": torch.randn(2, 6, generator=g)})
    return encode_update(append(basis, adapter, tolerance=spec.tolerance).update)
