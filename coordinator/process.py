"""A running coordinator: the rooms wired together, started in order, stopped in reverse."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import time

import torch

from coordinator.broadcast import Broadcast
from coordinator.errors import CoordinatorError, Fenced
from coordinator.history import History
from coordinator.home import Home, has_journal, open_home
from coordinator.integrate import Announcement, Integrator
from coordinator.lineage import Lineage, LineageOff
from coordinator.measured import Measured
from coordinator.members import Members
from coordinator.receive import Receiver
from coordinator.service import SUBMITS_MAX, Edge, Service, port_in_use
from coordinator.start import FindWeights, start_block
from protos.fedshare.v1.federation_pb2 import FederationSpec
from share_algo import Block
from share_algo.types import NO_TENSORS

log = logging.getLogger(__name__)

MERGE_THREADS = 1
"""A merge is many small matrices: more threads than free cores make it up to a hundred times slower."""

THREADS = 2 * SUBMITS_MAX
"""For whatever blocks: updates that arrive together share their commits, and nobody waits behind them."""


def serve(
    folder: Path,
    wanted: FederationSpec | None,
    *,
    host: str,
    port: int,
    lineage: bool = True,
    tracking_uri: str = "",
    store: str = "",
    blobs: str = "",
    standby: bool = False,
    find_weights: FindWeights = lambda _: NO_TENSORS,
) -> None:
    """Run until SIGINT or SIGTERM. Raises CoordinatorError when it cannot start, and when another has taken over."""
    _must_be_loopback(host)
    if standby or (wanted and not has_journal(folder)):  # no home is made, and nobody waits, for a port that is taken
        _must_be_free(host, port)
    host = f"[{host}]" if ":" in host else host
    torch.set_num_threads(MERGE_THREADS)
    held: list[Block] = []  # derived before it is needed

    def prepare(spec: FederationSpec) -> None:
        held.append(start_block(spec, find_weights(spec)))

    with open_home(folder, wanted, store=store, blobs=blobs, standby=standby, prepare=prepare) as home:
        try:
            asyncio.run(_serve_until_signal(home, host, port, lineage, tracking_uri, find_weights))
        except OSError as error:  # a bucket that is away, while it starts
            said = str(error).partition("\n")[0]
            raise CoordinatorError(f"cannot use the blobs of {home.place.name} ({said}): start again later") from None


async def _serve_until_signal(
    home: Home, host: str, port: int, with_lineage: bool, tracking_uri: str, find_weights: FindWeights
) -> None:
    await serve_home(home, _stop_on_signals(), host, port, with_lineage, tracking_uri, find_weights)


async def serve_home(
    home: Home,
    stop: asyncio.Event,
    host: str,
    port: int,
    with_lineage: bool = True,
    tracking_uri: str = "",
    find_weights: FindWeights = lambda _: NO_TENSORS,
) -> None:
    """Serve an open home until `stop` is set, then finish the entry at hand. Raises CoordinatorError when fenced."""
    loop = asyncio.get_running_loop()
    home.fence.when_lost(lambda: loop.call_soon_threadsafe(stop.set))
    with home.lease.beating(), suppress(Fenced, _Stopped):  # said below, whoever met it first
        await _serve(home, stop, host, port, with_lineage, tracking_uri, find_weights)
    if home.fence.lost.is_set():
        raise CoordinatorError(home.fence.why)


async def _serve(
    home: Home,
    stop: asyncio.Event,
    host: str,
    port: int,
    with_lineage: bool,
    tracking_uri: str,
    find_weights: FindWeights,
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    weights = await asyncio.to_thread(find_weights, home.spec)
    history = History.of(home.spec, home.engine, home.blobs, weights, partial(_must_go_on, stop))
    members, measured = Members(home.engine), Measured(home.engine)
    await asyncio.to_thread(history.begin, time())
    lineage = Lineage(home, history.catalog, measured, tracking_uri) if with_lineage else LineageOff()

    def announce(announcement: Announcement) -> None:
        broadcast.announce(announcement)
        lineage.wake()

    integrator = Integrator(home.spec, home.engine, history, announce)
    broadcast = Broadcast(integrator.announcement, asyncio.get_running_loop())
    receiver = Receiver(home.spec, history.journal, history.bases, home.blobs, integrator.wake)
    service = Service(home.spec, members, history, measured, receiver, broadcast, lineage)
    edge = Edge(service, host, port)
    await edge.start()
    integrator.start()
    lineage.start()
    try:
        home.address = f"{host}:{edge.port}"
        _write_address(home.address_file, home.address)
        log.info("serving federation=%s at %s:%d home=%s head=%d", home.spec.name, host, edge.port, home.folder,
                 integrator.announcement.head.version)  # fmt: skip
        await stop.wait()
    finally:
        log.info("stopping")
        broadcast.close()
        await edge.stop(at_once=home.fence.lost.is_set())
        await asyncio.to_thread(integrator.stop)
        await asyncio.to_thread(lineage.stop)


class _Stopped(Exception):
    """Before it served."""


def _must_go_on(stop: asyncio.Event) -> None:
    if stop.is_set():
        raise _Stopped


def _must_be_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise CoordinatorError(
            f"refusing to listen on {host}: the connection is not encrypted, so only loopback addresses are allowed"
        )


def _must_be_free(host: str, port: int) -> None:
    """Who stands by would otherwise find out when it is needed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise port_in_use(f"{host}:{port}") from None


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _write_address(file: Path, address: str) -> None:
    part = file.with_suffix(".part")
    try:
        part.write_text(address)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CoordinatorError(f"cannot write {file}: {error.strerror}") from None
