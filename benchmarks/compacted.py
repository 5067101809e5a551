"""What a compaction costs on real tasks: accuracy and bytes of the head of a federation that has run, in fewer columns.

python -m benchmarks.compacted --home HOME --data DIR [--sizes 48,32,24]

HOME is what `benchmarks.real_tasks --methods federation` has left. Nothing in it is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.real_tasks import FILE, measure, task_data
from coordinator.history import History
from coordinator.home import open_home
from coordinator.rebuild import compacted
from coordinator.transition import State
from fedshare.federation_file import FederationFile, read_federation_file, with_sources
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis
from share_algo.certificate import largest
from share_algo.codec import encode_block, encode_entry
from share_algo.training import attach
from workers.base_model import BaseModel, find_base_model
from workers.fit import rank_of
from workers.train import lora_model


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with open_home(options.home) as home:
        history = History.of(home.spec, home.engine, home.blobs)
        head, spec = history.state_of(history.catalog.head()), home.spec
    file = with_sources(read_federation_file(FILE), FILE.parent, options.data, ",".join(head.tasks))
    base = find_base_model(file.base.model)
    table = Table("columns", "largest relative error", "accuracy, %", "coefficients, bytes", "with the basis, bytes")
    for name, state in _states(head, options.sizes):
        accuracy = sum(_accuracies(state, spec, file, base)) / len(state.tasks)
        error = largest(task.certificate for task in state.tasks.values())
        entries = sum(len(encode_entry(task.entry)) for task in state.tasks.values())
        basis = sum(len(encode_block(block)) for block in state.basis.blocks)
        table.add_row(name, f"{error:.3f}", f"{100 * accuracy:.2f}", f"{entries:,}", f"{entries + basis:,}")
    Console().print(table)


def _states(head: State, sizes: str) -> Iterator[tuple[str, State]]:
    yield f"as it is, up to {_widest(head.basis)}", head
    for size in map(int, sizes.split(",")):
        yield f"{size}", compacted(head, pb.Compact(size=size))


def _accuracies(state: State, spec: pb.FederationSpec, file: FederationFile, base: BaseModel) -> Iterator[float]:
    for task in track(file.tasks, "evaluating"):
        data, entry = task_data(file, task.name, task.source), state.tasks[task.name].entry
        model = lora_model(base, spec, len(data.labels), max(spec.rank, rank_of(entry)))
        yield measure(attach(model, entry.adapter(state.basis)), base, spec, data)


def _widest(basis: Basis) -> int:
    return max(max(widths) for widths in basis.widths().values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", default="48,32,24", help="columns a side of a module, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
