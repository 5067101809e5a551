"""Shared low-rank subspaces for LoRA adapters: the algebra, and nothing else.

This room knows tensors. It knows no version numbers, no workers, no clocks and no network.

Shape legend, used as suffixes of tensor names throughout:

    N  out_features of a target module        R  rank of an adapter
    D  in_features of a target module         K  columns of the out basis    L  columns of the in basis

An adapter's update of a weight is ``dW = B_NR @ A_RD`` with LoRA's scaling already folded into B. In a
subspace it becomes ``dW = (out_NK @ P_KR) @ (in_DL @ Q_LR).T``: out and in bases belong to every task,
P and Q to one. Source of the method: Share (arXiv:2602.06043); where we depart from it, the module says so.
"""

import importlib
from typing import Any

from share_algo.append import Appended, ModuleReport, append, keep
from share_algo.average import average, combine, mixed
from share_algo.build import BuildReport, build
from share_algo.certificate import Certificate
from share_algo.compact import Compacted, CompactReport, compact
from share_algo.derived import derive, derived_block
from share_algo.edit import remove, rename
from share_algo.errors import AlgebraError
from share_algo.forms import QuantiseReport, dequantise, quantise
from share_algo.lift import lift
from share_algo.probe import linear_probe, probe_loss
from share_algo.subspace import Merged, MergeReport, Result, Subspace, measured, merge
from share_algo.types import Adapter, Basis, Block, Coefficients, Directions, Factors, TaskEntry, Update
from share_algo.unite import UniteReport, unite
from share_algo.weights import LoadedWeights, weight_block, with_weights

__all__ = [
    "Adapter",
    "AlgebraError",
    "Appended",
    "Basis",
    "Block",
    "BuildReport",
    "Certificate",
    "Coefficients",
    "CompactReport",
    "Compacted",
    "Directions",
    "Factors",
    "LoadedWeights",
    "MergeReport",
    "Merged",
    "ModuleReport",
    "QuantiseReport",
    "Result",
    "Subspace",
    "TaskEntry",
    "UniteReport",
    "Update",
    "WarmStart",
    "append",
    "attach",
    "average",
    "build",
    "coefficients",
    "combine",
    "compact",
    "constrain",
    "dequantise",
    "derive",
    "derived_block",
    "keep",
    "lift",
    "linear_probe",
    "measured",
    "merge",
    "mixed",
    "probe_loss",
    "quantise",
    "refine",
    "release",
    "remove",
    "rename",
    "unite",
    "warm_start",
    "weight_block",
    "with_weights",
]

_NEED_PEFT = {
    **dict.fromkeys(("attach", "coefficients", "constrain", "release"), "training"),
    **dict.fromkeys(("WarmStart", "refine", "warm_start"), "transfer"),
}


def __getattr__(name: str) -> Any:
    """Training needs PEFT, merging does not: it is imported when first asked for."""
    if name not in _NEED_PEFT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"share_algo.{_NEED_PEFT[name]}"), name)
