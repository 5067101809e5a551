"""Training inside a subspace: PEFT's own LoRA layers, constrained and released. The oracle is PEFT itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from training_samples import RANK, D, N, distance, inputs, learned, learned_basis, lora, net, trained

from share_algo import (
    Adapter,
    AlgebraError,
    Basis,
    Directions,
    TaskEntry,
    append,
    attach,
    coefficients,
    constrain,
    lift,
    release,
)
from share_algo.constraint import COEFFICIENTS, NEW_DIRECTIONS
from share_algo.lora_layers import lora_pairs
from share_algo.training import read


@pytest.fixture
def x() -> torch.Tensor:
    return inputs()


def test_it_starts_as_the_base_model_with_a_gradient_on_both_kinds_of_parameter(x: torch.Tensor) -> None:
    basis = learned_basis(x)
    plain = net()(x)
    model = constrain(lora(), basis, new_directions=2, seed=0)
    assert torch.equal(model(x), plain)
    model(x).square().sum().backward()
    out_side = model.base_model.model.proj.lora_B["default"].parametrizations.weight[0]
    assert out_side.coefficients.grad.abs().max() > 0 and out_side.new_directions.grad.abs().max() > 0


def test_only_coefficients_new_directions_and_head_are_trained(x: torch.Tensor) -> None:
    basis = learned_basis(x)
    frozen = {m: (basis[m].out_NK.clone(), basis[m].in_DL.clone()) for m in basis}
    model = trained(constrain(lora(), basis, new_directions=1, seed=0), x)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name.endswith((COEFFICIENTS, NEW_DIRECTIONS)) or ".head." in name for name in names)
    for module, (out, inn) in frozen.items():
        assert torch.equal(basis[module].out_NK, out) and torch.equal(basis[module].in_DL, inn)


def test_what_is_learned_stays_in_the_basis_and_the_new_directions(x: torch.Tensor) -> None:
    basis = learned_basis(x)
    model = trained(constrain(lora(), basis, new_directions=1, seed=0), x)
    report = append(basis, release(model)).modules["proj"]
    assert report.new_out <= 1 and report.new_in <= 1 and report.relative_error <= 1e-5
    inside = trained(constrain(lora(), basis, new_directions=0, seed=0), x)
    assert not append(basis, release(inside)).update.block


def test_with_an_empty_basis_and_all_ranks_new_it_is_plain_lora_step_by_step(x: torch.Tensor) -> None:
    constrained = constrain(lora(), Basis(), new_directions=RANK, seed=0)
    start = dict(lora_pairs(constrained))["proj"].into.matrix()
    plain = lora()
    plain.base_model.model.proj.lora_A["default"].weight.data = start
    for model in (constrained, plain):  # only what LoRA itself moves
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and not name.endswith(COEFFICIENTS))
    assert torch.allclose(trained(constrained, x)(x), trained(plain, x)(x), atol=1e-6)


def test_begun_inside_it_is_the_base_model_with_lora_a_in_the_basis_and_no_saddle(x: torch.Tensor) -> None:
    basis, plain = learned_basis(x), net()(x)
    model = constrain(lora(), basis, new_directions=2, seed=0, inside=True)
    assert torch.equal(model(x), plain)
    pair = dict(lora_pairs(model))["proj"]
    A_RD, in_DL = pair.into.matrix(), basis["proj"].in_DL
    assert A_RD.norm() > 0.1 and torch.allclose(A_RD @ in_DL @ in_DL.T, A_RD, atol=1e-6)
    trained(model, x)
    for side in (pair.out.constraint, pair.into.constraint):
        assert side is not None and side.coefficients.abs().max() > 0 and side.new_directions.abs().max() > 0


def test_coefficients_say_all_that_was_learned_inside(x: torch.Tensor) -> None:
    made = learned(x, tasks=2)
    model = trained(constrain(lora(), made, new_directions=0, start=made.tasks["t1"]), x)
    inside = TaskEntry(coefficients(model))
    assert distance(Adapter(inside.adapter(made.basis).factors), release(model)) < 1e-6
    own = inside.coefficients["proj"]
    assert own.widths == made.basis["proj"].widths and not torch.equal(
        own.P_KR, made.tasks["t1"].coefficients["proj"].P_KR
    )


def test_without_spare_ranks_only_those_of_the_start_are_ever_used(x: torch.Tensor) -> None:
    made = learned(x, tasks=2)
    start = made.tasks["t0"]
    rank = start.coefficients["proj"].P_KR.shape[1]
    assert rank < RANK
    model = constrain(lora(), made, new_directions=0, start=start, spare=False)
    assert distance(read(model), made.adapter("t0")) < 1e-6
    trained(model, x)
    (B_NR, A_RD) = (side.matrix() for pair in dict(lora_pairs(model)).values() for side in (pair.out, pair.into))
    assert not B_NR[:, :-rank].any() and not A_RD[:-rank].any()
    assert coefficients(model)["proj"].P_KR.shape[1] == rank
    spare = trained(constrain(lora(), made, new_directions=0, start=start), x)
    assert coefficients(spare)["proj"].P_KR.shape[1] == RANK


def test_neither_a_start_nor_a_spare_rank_is_refused_and_the_model_left_alone(x: torch.Tensor) -> None:
    model, basis = lora(), learned_basis(x)
    with pytest.raises(AlgebraError, match="without a start every rank is spare"):
        constrain(model, basis, new_directions=2, spare=False)
    with pytest.raises(AlgebraError, match="proj: not constrained"):
        coefficients(model)


def test_coefficients_are_refused_where_they_do_not_say_all(x: torch.Tensor) -> None:
    with pytest.raises(AlgebraError, match="proj: not constrained"):
        coefficients(lora())
    with pytest.raises(AlgebraError, match="proj: new directions are trained"):
        coefficients(constrain(lora(), learned_basis(x), new_directions=1))


def test_without_a_basis_there_is_no_inside_to_begin_in(x: torch.Tensor) -> None:
    models = [constrain(lora(), Basis(), new_directions=2, seed=0, inside=inside) for inside in (True, False)]
    one, other = (trained(model, x)(x) for model in models)
    assert torch.equal(one, other)


def test_releasing_changes_no_output_and_leaves_plain_lora(x: torch.Tensor, tmp_path: Path) -> None:
    model = trained(constrain(lora(), learned_basis(x), new_directions=2, seed=0), x)
    before = model(x)
    release(model)
    assert torch.equal(model(x), before)
    [(_, pair)] = lora_pairs(model)
    assert pair.out.weight.requires_grad and pair.into.weight.requires_grad
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(net(), tmp_path)
    assert torch.allclose(again(x), before, atol=1e-6)


def test_an_adapter_attached_to_a_fresh_model_computes_the_same(x: torch.Tensor) -> None:
    basis = learned_basis(x)
    model = trained(constrain(lora(), basis, new_directions=1, seed=0), x)
    adapter = release(model)
    kept = lift(append(basis, adapter).update, basis)
    fresh = attach(lora(), kept)
    assert torch.allclose(fresh(x), model(x), atol=1e-5)
    assert torch.allclose(read(fresh).factors["proj"].delta_ND(), adapter.factors["proj"].delta_ND(), atol=1e-5)


def test_workers_with_one_seed_start_alike_and_with_another_they_do_not() -> None:
    def first_row(seed: int) -> torch.Tensor:
        model = constrain(lora(), Basis(), new_directions=RANK, seed=seed)
        return dict(lora_pairs(model))["proj"].into.matrix()

    assert torch.equal(first_row(5), first_row(5))
    assert not torch.allclose(first_row(5), first_row(6))


def test_no_direction_to_train_in_is_refused_by_name() -> None:
    with pytest.raises(AlgebraError, match="proj: no directions"):
        constrain(lora(), Basis(), new_directions=0, seed=0)


def test_an_adapter_for_other_modules_is_refused_by_name(x: torch.Tensor) -> None:
    adapter = read(lora())
    renamed = type(adapter)({"other": adapter.factors["proj"]}, adapter.head)
    with pytest.raises(AlgebraError, match="other"):
        attach(lora(), renamed)


def test_data_decide_how_many_new_directions_are_kept() -> None:
    """Trained wide every time: a task inside the basis needs none, one with two strange directions needs two."""
    known = orthonormal(0, N, 5), orthonormal(1, D, 5)
    basis = Basis(({"proj": Directions(known[0][:, :3], known[1][:, :3])},))
    counts = []
    for strange in range(3):
        picked = slice(strange, strange + 3)  # so many columns lie outside the basis
        wanted = known[0][:, picked] @ torch.diag(torch.tensor([1.0, 0.8, 0.6])) @ known[1][:, picked].T
        adapter = release(fitted(constrain(lora(), basis, new_directions=RANK), wanted))
        assert (adapter.factors["proj"].delta_ND() - wanted).norm() < 0.02 * wanted.norm()
        report = append(basis, adapter, tolerance=0.1).modules["proj"]
        counts.append((report.new_out, report.new_in))
    assert counts == [(0, 0), (1, 1), (2, 2)]


def orthonormal(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))).Q


def fitted(model: PeftModel, wanted_ND: torch.Tensor) -> PeftModel:
    """`proj` trained until its update is `wanted_ND`."""
    [(_, pair)] = lora_pairs(model)
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if "lora_" in n and p.requires_grad], lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        (pair.scaling * pair.out.weight @ pair.into.weight - wanted_ND).square().sum().backward()
        optimizer.step()
    return model


def test_a_head_that_the_model_lacks_is_refused_by_name() -> None:
    adapter = read(lora())
    with pytest.raises(AlgebraError, match=r"head classifier\.weight"):
        attach(lora(), type(adapter)(adapter.factors, {"classifier.weight": torch.zeros(3, N)}))
    with pytest.raises(AlgebraError, match="the head does not fit"):
        attach(lora(), type(adapter)(adapter.factors, {"head.weight": torch.zeros(7, N), "head.bias": torch.zeros(7)}))
    with pytest.raises(AlgebraError, match=r"head head\.bias: the model has this part"):
        attach(lora(), type(adapter)(adapter.factors, {"head.weight": torch.zeros(3, N)}))
