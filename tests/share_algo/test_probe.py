"""What a head alone can make of features. The oracle: numpy, from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from share_algo import AlgebraError, linear_probe, probe_loss


def features_and_labels(shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    g, labels = torch.Generator().manual_seed(0), torch.arange(60) % 3
    return torch.randn(60, 5, generator=g) + labels[:, None] * torch.randn(5, generator=g) + shift, labels


def test_probe_loss_is_the_best_leave_one_out_error_of_ridge_regression() -> None:
    g = np.random.RandomState(0)
    X, labels = g.standard_normal((12, 5)), np.arange(12) % 3
    Y = np.eye(3)[labels]
    scale = np.linalg.eigvalsh((X - X.mean(0)) @ (X - X.mean(0)).T).mean()
    errors = []
    for ridge in 10.0 ** np.arange(-4, 3) * scale:
        lost = 0.0
        for i in range(12):
            rest = np.arange(12) != i
            mean, targets = X[rest].mean(0), Y[rest].mean(0)
            C = X[rest] - mean
            W = np.linalg.solve(C.T @ C + ridge * np.eye(5), C.T @ (Y[rest] - targets))
            lost += np.square(Y[i] - targets - (X[i] - mean) @ W).sum()
        errors.append(lost / 12)
    assert probe_loss(torch.from_numpy(X), torch.from_numpy(labels)) == pytest.approx(min(errors), rel=1e-6)


def test_probe_loss_prefers_features_that_tell_the_labels_apart() -> None:
    noise, labels = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    assert probe_loss(noise + 2 * labels[:, None], labels) < 0.1 < probe_loss(noise, labels)


def test_linear_probe_is_where_the_gradient_of_what_it_minimises_is_zero() -> None:
    features, labels = features_and_labels(shift=2.0)
    weight, bias = (part.numpy() for part in linear_probe(features, labels, 3, penalty=0.03))
    X = features.double().numpy()
    variance = np.square(X - X.mean(0)).sum(1).mean()
    odds = np.exp(X @ weight.T + bias)
    wrong = odds / odds.sum(1, keepdims=True) - np.eye(3)[labels.numpy()]
    gradient = wrong.T @ X / len(X) + 2 * 0.01 * variance * weight
    assert np.abs(gradient).max() < 1e-4 > np.abs(wrong.mean(0)).max()


def test_linear_probe_gives_the_same_logits_of_features_that_are_longer_and_elsewhere() -> None:
    features, labels = features_and_labels()
    changed = 1000 * features + 7
    (weight, bias), (other, shifted) = linear_probe(features, labels, 3), linear_probe(changed, labels, 3)
    logits, again = features.double() @ weight.T + bias, changed.double() @ other.T + shifted
    assert (logits - again).abs().max() < 1e-3 * logits.abs().max()
    assert (logits.argmax(1) == labels).double().mean() > 0.8


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 3, 3]])
def test_linear_probe_is_finite_where_features_tell_nothing_or_a_label_is_never_seen(labels: list[int]) -> None:
    weight, bias = linear_probe(torch.ones(4, 3), torch.tensor(labels), 4)
    assert not weight.any() and bias.isfinite().all()
    share = torch.tensor(labels).bincount(minlength=4).double() / 4
    assert (bias.softmax(0) - share).abs().max() < 0.01


@pytest.mark.parametrize("count", [1, 2])
def test_features_and_labels_that_do_not_match_are_refused(count: int) -> None:
    for probe in (probe_loss, lambda X, y: linear_probe(X, y, 2)):
        with pytest.raises(AlgebraError, match="1 rows of features"):
            probe(torch.ones(1, 3), torch.zeros(count, dtype=torch.long))
