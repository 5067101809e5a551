"""Starting from a known task, and refining one. The oracles: PEFT's own forward, and fits without each example."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from training_samples import (
    N,
    distance,
    every_layer,
    gradients_of,
    inputs,
    learned,
    lora,
    lora_everywhere,
    loss_of,
    net,
    trained,
)

from share_algo import (
    Adapter,
    AlgebraError,
    Basis,
    Coefficients,
    Subspace,
    TaskEntry,
    attach,
    compact,
    constrain,
    merge,
    refine,
    release,
    warm_start,
)
from share_algo.training import attach_head, read

TASKS = 3


@pytest.fixture
def x() -> torch.Tensor:
    return inputs()


@pytest.fixture
def made(x: torch.Tensor) -> Subspace:
    return learned(x, TASKS)


def started(made: Subspace, start: str | None, new_directions: int = 1) -> PeftModel:
    return constrain(lora(), made, new_directions=new_directions, start=made.tasks[start] if start else None)


def test_a_model_starts_with_the_function_of_the_task_and_its_own_head(x: torch.Tensor, made: Subspace) -> None:
    for new_directions in (0, 1, 4):
        model = started(made, "t1", new_directions)
        known = attach(lora(), Adapter(made.adapter("t1").factors))
        assert torch.allclose(model(x), known(x), atol=1e-6)
        assert distance(read(model), made.adapter("t1")) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_layer_starts_with_the_function_of_the_task() -> None:
    ids = torch.arange(16).reshape(2, 8) % 11
    first = trained(constrain(lora_everywhere(), Basis(), new_directions=2), ids, steps=20)
    expected = first(ids)
    made = merge(Subspace.empty(), "first", release(first)).subspace
    model = constrain(lora_everywhere(), made, new_directions=1, start=made.tasks["first"])
    assert not torch.allclose(model(ids), every_layer()(ids), atol=1e-3)
    assert torch.allclose(attach_head_of(model, made, "first")(ids), expected, atol=1e-5)


def attach_head_of(model: PeftModel, made: Subspace, task: str) -> PeftModel:
    attach_head(model, made.tasks[task].head)
    return model


def test_ranks_and_directions_that_the_start_does_not_use_are_off_the_saddle(x: torch.Tensor, made: Subspace) -> None:
    one = Coefficients(*(side[:, :1] for side in coefficients(made, "t0")))
    model = constrain(lora(), made, new_directions=2, start=TaskEntry({"proj": one}))
    out_side = {n.rpartition(".")[2]: g for n, g in gradients_of(model, x).items() if "lora_B" in n}
    assert out_side["coefficients"].norm(dim=0).min() > 0
    assert out_side["new_directions"].norm(dim=0).min() > 0


def coefficients(made: Subspace, task: str) -> tuple[torch.Tensor, torch.Tensor]:
    own = made.tasks[task].coefficients["proj"]
    return own.P_KR, own.Q_LR


def test_lora_a_starts_as_long_as_pefts_own(made: Subspace) -> None:
    rows = read(started(made, "t1", new_directions=0)).factors["proj"].A_RD
    rank = made.tasks["t1"].coefficients["proj"].P_KR.shape[1]
    assert torch.allclose(rows[-rank:].norm(dim=1), torch.full((rank,), 1 / math.sqrt(3)), rtol=1e-5)


@pytest.mark.parametrize("task", [f"t{i}" for i in range(TASKS)])
def test_warm_start_finds_the_task_whose_data_it_is_shown(task: str, x: torch.Tensor, made: Subspace) -> None:
    model = own_head_started(made, task)
    head = read(model).head
    found = warm_start(model, made, lambda m: loss_of(m, x, shift=int(task[1])).item())
    assert found.task == task and set(found.losses) == {None, *made.tasks}
    assert found.losses[task] == min(found.losses.values())
    assert distance(read(model), made.adapter(task)) < 1e-6
    assert all(torch.equal(head[n], t) for n, t in read(model).head.items())
    assert model.training


def own_head_started(made: Subspace, task: str) -> PeftModel:
    """At dW = 0 with the head of `task`, so that its loss can be judged as it is."""
    return attach_head_of(started(made, None).train(), made, task)


@pytest.mark.parametrize("loss", [math.nan, 1.0, 2.0], ids=["not a number", "as good", "worse"])
def test_where_nothing_is_better_training_starts_bitwise_as_it_would_have(
    loss: float, x: torch.Tensor, made: Subspace
) -> None:
    model, untouched = started(made, None), started(made, None)
    at_zero = iter([1.0])
    assert warm_start(model, made, lambda _: next(at_zero, loss)).task is None
    assert torch.equal(model(x), net()(x))
    for (name, one), (_, other) in zip(model.named_parameters(), untouched.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert any(g.any() for n, g in gradients_of(model, x).items() if "coefficients" in n)


def test_a_loss_that_fails_leaves_the_model_as_it_was(x: torch.Tensor, made: Subspace) -> None:
    model = started(made, None).train()

    def fails_later(judged: PeftModel) -> float:
        if judged(x).equal(net()(x)):
            return 1.0
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        warm_start(model, made, fails_later)
    assert torch.equal(model(x), net()(x)) and model.training


def test_only_the_tasks_named_are_tried(made: Subspace) -> None:
    found = warm_start(started(made, None), made, lambda _: 0.0, tasks=["t2"])
    assert set(found.losses) == {None, "t2"}


def test_refining_improves_one_task_and_leaves_basis_and_others_bitwise(x: torch.Tensor, made: Subspace) -> None:
    small = compact(made, size=2).subspace
    before = loss_of(attach(lora(), small.adapter("t1")), x, shift=1).item()
    seen = {}

    def train(model: PeftModel) -> None:
        seen["start"] = loss_of(model, x, shift=1).item()
        names = [n for n, p in model.named_parameters() if p.requires_grad and p.numel()]
        assert not any("new_directions" in n for n in names)
        trained(model, x, steps=30, shift=1)
        seen["learned"] = read(model)

    result = refine(lora(), small, "t1", train)
    assert seen["start"] == pytest.approx(before, rel=1e-5)
    kept = result.subspace.adapter("t1")
    assert loss_of(attach(lora(), kept), x, shift=1).item() < before - 0.01
    assert result.report.new_directions == (0, 0) and result.subspace.basis is small.basis
    assert all(result.subspace.tasks[t] is small.tasks[t] for t in ("t0", "t2"))
    assert distance(kept, seen["learned"]) <= 1e-5
    claimed = result.subspace.certificates["t1"]
    assert distance(kept, seen["learned"]) <= claimed.relative_error * 1.01 + 1e-9
    assert claimed.relative_error < small.certificates["t1"].relative_error


def test_refining_that_fails_gives_back_plain_lora(made: Subspace) -> None:
    model = lora()
    with pytest.raises(ZeroDivisionError):
        refine(model, made, "t0", lambda _: 1 / 0)
    assert read(model).factors and not any("parametrizations" in n for n, _ in model.named_parameters())


def test_starts_that_do_not_fit_are_refused_by_name(made: Subspace) -> None:
    P, Q = coefficients(made, "t0")
    wide = torch.zeros(N, 1)
    for own, said in (
        ({"other": Coefficients(P, Q)}, "other: in the start"),
        ({"proj": Coefficients(wide, wide)}, r"proj: coefficients for \(20, 20\) columns"),
        ({"proj": Coefficients(P.repeat(1, 5), Q.repeat(1, 5))}, "proj: coefficients of rank"),
        ({"proj": Coefficients(P, Q, "embedding")}, "proj: embedding coefficients"),
    ):
        model = lora()
        with pytest.raises(AlgebraError, match=said):
            constrain(model, made, new_directions=0, start=TaskEntry(own))
        assert not any("parametrizations" in n for n, _ in model.named_parameters())


def test_a_model_that_is_not_constrained_is_refused_by_name(made: Subspace) -> None:
    with pytest.raises(AlgebraError, match="proj: not constrained"):
        warm_start(lora(), made, lambda _: 0.0)
    with pytest.raises(AlgebraError, match="proj: constrained already"):
        constrain(started(made, None), made, new_directions=0)
