"""What a head alone can make of features: to judge a start by, and for a head to begin with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from share_algo.errors import AlgebraError

RIDGES = tuple(10.0**power for power in range(-4, 3))
"""Tried by `probe_loss`, relative to the features' mean squared length."""
PENALTY = 0.01
"""Of `linear_probe`'s weights, relative to the features' variance, shared by the classes: of many, each has but few
examples to answer with."""
ITERATIONS_MAX = 100
HISTORY = 10
"""Steps that L-BFGS remembers, each two copies of the weight."""


@torch.no_grad()
def probe_loss(features_EF: Tensor, labels_E: Tensor) -> float:
    """Mean squared leave-one-out error of ridge regression from features to one-hot labels, for the best ridge.

    features_EF: E examples' features as a head would get them. Exact without fitting E times: a residual of a linear
    smoother H, left out, is residual / (1 - H_ii) (Allen's PRESS statistic, Technometrics 1974). Cost: E^2 (E + F).
    """
    _must_match(features_EF, labels_E)
    features = features_EF.double()
    targets = one_hot(labels_E.unique(return_inverse=True)[1]).double()
    targets, features = targets.to(features.device) - targets.mean(0).to(features.device), features - features.mean(0)
    energy, vectors = torch.linalg.eigh(features @ features.T)
    energy = energy.clamp(min=0.0)
    scale = float(energy.mean()) or 1.0
    rotated = vectors.T @ targets
    return min(_left_out(vectors, energy, rotated, targets, ridge * scale) for ridge in RIDGES)


def linear_probe(
    features_EF: Tensor, labels_E: Tensor, classes: int, *, penalty: float = PENALTY
) -> tuple[Tensor, Tensor]:
    """(weight (classes, F), bias (classes,)), float64, of logistic regression from features to labels 0..classes - 1.

    Least mean cross-entropy + penalty / classes * variance * ||weight||^2, variance the features' mean squared
    distance from their mean: features twice as long give the same logits. A head that begins so does not spoil what it
    is given while it is learned (LP-FT, Kumar et al., arXiv:2202.10054). Cost: L-BFGS's, some hundred passes over the
    features, and twenty times the weight in memory.
    """
    _must_match(features_EF, labels_E)
    features, labels = features_EF.detach().double(), labels_E.to(features_EF.device)
    centre = features.mean(0)
    length = float((features - centre).square().sum(1).mean().sqrt()) or 1.0
    features = (features - centre) / length
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS_MAX, history_size=HISTORY, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(features @ weight.T + bias, labels) + penalty / classes * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    weight_CF = weight.detach() / length
    return weight_CF, bias.detach() - weight_CF @ centre


def _must_match(features_EF: Tensor, labels_E: Tensor) -> None:
    if len(features_EF) != len(labels_E) or len(labels_E) < 2:
        raise AlgebraError(f"{len(features_EF)} rows of features and {len(labels_E)} labels")


def _left_out(vectors: Tensor, energy: Tensor, rotated: Tensor, targets: Tensor, ridge: float) -> float:
    kept = energy / (energy + ridge)
    own = (vectors.square() @ kept) + 1 / len(targets)  # the mean is fitted too
    residual = targets - vectors @ (kept[:, None] * rotated)
    return float((residual / (1 - own).clamp(min=1e-12)[:, None]).square().sum(1).mean())
