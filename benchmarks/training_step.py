"""What a training step inside a subspace costs beside plain LoRA's: MiniLM, rank 8 on query and value.

A step is forward, backward and AdamW. Every round times each variant once, plain LoRA among them; a figure is the
median over the rounds of the ratio to the same round's plain LoRA. CPU seconds, so that other work on the machine
counts less. kept_MB: what the forward pass keeps for the backward pass beside parameters and basis.

python -m benchmarks.training_step [--rounds 10] [--sentences 16] [--tokens 32]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import product

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor

from share_algo import Basis, constrain, derived_block, release
from workers.base_model import MINILM, find_base_model

WIDTHS = (0, 24, 64, 128, 256)
NEW_DIRECTIONS = (0, 8)
RANK, LABELS = 8, 4

Variant = tuple[int, int] | None
"""(basis width, new directions), None for plain LoRA."""


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    model = _model()
    bases = {width: Basis((derived_block(_shapes(model), width, 0),)) for width in WIDTHS}
    batch = _batch(options.sentences, options.tokens)
    rows = [row for checkpointing in (False, True) for row in _rows(model, bases, batch, options.rounds, checkpointing)]
    Console().print(_table(rows))
    print(json.dumps(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sentences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    return parser.parse_args()


def _model() -> PeftModel:
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["query", "value"], task_type=TaskType.SEQ_CLS)
    return get_peft_model(find_base_model(MINILM).classifier(LABELS, seed=0), config).train()


def _shapes(model: PeftModel) -> dict[str, tuple[int, int]]:
    linear = model.get_base_model().named_modules()
    return {name: tuple(m.base_layer.weight.shape) for name, m in linear if hasattr(m, "lora_A")}


def _batch(sentences: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(1000, 20000, (sentences, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(sentences) % LABELS}


def _rows(
    model: PeftModel, bases: dict[int, Basis], batch: dict[str, Tensor], rounds: int, checkpointing: bool
) -> Iterator[dict]:
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    variants: list[Variant] = [None, *(v for v in product(WIDTHS, NEW_DIRECTIONS) if any(v))]
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    kept = {}
    for number in range(rounds):
        turn = number * len(variants) // rounds  # nothing is always first, or always after the same
        for variant in variants[turn:] + variants[:turn]:
            second, kept[variant] = _measured(model, bases, batch, variant)
            seconds[variant].append(second)
    for variant in variants:
        ratios = [mine / plain for mine, plain in zip(seconds[variant], seconds[None], strict=True)]
        width, new = variant or ("plain LoRA", "")
        yield {
            "checkpointing": checkpointing, "width": width, "new": new, "cpu_s": statistics.median(seconds[variant]),
            "ratio": statistics.median(ratios), "kept_MB": kept[variant] / 1e6,
        }  # fmt: skip


def _measured(
    model: PeftModel, bases: dict[int, Basis], batch: dict[str, Tensor], variant: Variant
) -> tuple[float, int]:
    """CPU seconds of a second step, and bytes that the forward pass of the first one keeps for the backward pass."""
    if variant is not None:
        constrain(model, bases[variant[0]], new_directions=variant[1])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad and p.numel()], lr=1e-5)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch).loss
    _finish(loss, optimizer)
    started = time.process_time()
    _finish(model(**batch).loss, optimizer)
    seconds = time.process_time() - started
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    if variant is not None:
        release(model)
    return seconds, sum(size for pointer, size in kept.items() if pointer not in held)


def _finish(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _table(rows: list[dict]) -> Table:
    shown = Table(title=f"one training step, {torch.get_num_threads()} thread")
    for name in rows[0]:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    return shown


if __name__ == "__main__":
    main()
