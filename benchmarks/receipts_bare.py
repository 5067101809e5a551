"""What gRPC in Python alone allows receipts: a server that takes every update and says so, and does nothing else.

python -m benchmarks.receipts_bare        prints its address, serves until it is killed
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from benchmarks.receipts_samples import small_spec
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationServicer, add_FederationServicer_to_server


class Bare(FederationServicer):
    """No row, no file, no decoding: what a sender asks for is answered, and forgotten."""

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.FederationSpec:
        return small_spec()

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinReply:
        return pb.JoinReply(incarnation=1)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        return pb.StatusReply()

    async def Submit(self, requests: AsyncIterator[pb.SubmitRequest], context: Any) -> pb.Receipt:
        header = (await anext(requests)).header
        come = 0
        while come < header.nbytes:
            come += len((await anext(requests)).chunk)
        return pb.Receipt(update_id=header.update_id, outcome=pb.OUTCOME_QUEUED)


@contextmanager
def bare_server() -> Iterator[str]:
    """Its address; a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.receipts_bare"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def _serve() -> None:
    server = grpc.aio.server()
    add_FederationServicer_to_server(Bare(), server)
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
