"""Tensors stay on the device they came on, and a GPU finds what the CPU finds."""

from __future__ import annotations

import pytest
import torch
from algebra_samples import adapter, orthonormality, relative_error, subspace
from peft import PeftModel
from training_samples import (
    IDS,
    closeness,
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
    Basis,
    Factors,
    Subspace,
    append,
    attach,
    average,
    compact,
    constrain,
    dequantise,
    lift,
    merge,
    quantise,
    refine,
    release,
    remove,
    rename,
    unite,
    warm_start,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPES = {"m": (120, 90), "n": (60, 110)}
DEVICE = "cuda"


def on_gpu(one: Adapter) -> Adapter:
    factors = {m: Factors(f.B_NR.cuda(), f.A_RD.cuda()) for m, f in one.factors.items()}
    return Adapter(factors, {name: t.cuda() for name, t in one.head.items()})


def on_cpu(one: Adapter) -> Adapter:
    factors = {m: Factors(f.B_NR.cpu(), f.A_RD.cpu(), f.layout) for m, f in one.factors.items()}
    return Adapter(factors, {name: tensor.cpu() for name, tensor in one.head.items()})


def devices(made: Subspace) -> set[str]:
    tensors = [t for b in made.basis.blocks for d in b.values() for t in (d.out_NK, d.in_DL)]
    tensors += [t for e in made.tasks.values() for c in e.coefficients.values() for t in (c.P_KR, c.Q_LR)]
    return {t.device.type for t in tensors}


def test_every_operation_stays_on_the_gpu_and_agrees_with_the_cpu(tmp_path):
    cpu = [adapter(i, 3, SHAPES, head=True) for i in range(5)]
    made, other = subspace([on_gpu(a) for a in cpu[:3]]), subspace([on_gpu(a) for a in cpu[3:]])
    other = rename(rename(other, "t1", "t4"), "t0", "t3")
    made = unite(made, other).subspace
    made = average(made, "mean", [on_gpu(a) for a in cpu[:2]]).subspace
    made = remove(made, "t1").subspace
    for step in (made, compact(made, size=7).subspace, dequantise(quantise(made, "int8").subspace)):
        assert devices(step) == {"cuda"}
        for task, one in (("t0", cpu[0]), ("t2", cpu[2]), ("t3", cpu[3]), ("t4", cpu[4])):
            measured = relative_error(one, on_cpu(step.adapter(task)))
            assert measured <= step.certificates[task].relative_error + 1e-9
    small = compact(subspace(cpu), size=7).subspace
    large = compact(subspace([on_gpu(a) for a in cpu]), size=7).subspace
    for task in small.tasks:
        on_large = large.certificates[task].relative_error
        assert small.certificates[task].relative_error == pytest.approx(on_large, rel=1e-3)
    large.save(tmp_path)
    assert relative_error(on_cpu(large.adapter("t0")), Subspace.load(tmp_path).adapter("t0")) < 1e-6


def test_adapter_from_the_cpu_joins_a_basis_on_the_gpu():
    made = subspace([on_gpu(adapter(0, 3, SHAPES))])
    result = merge(made, "cpu", adapter(1, 3, SHAPES))
    assert devices(result.subspace) == {"cuda"}
    assert relative_error(adapter(1, 3, SHAPES), on_cpu(result.subspace.adapter("cpu"))) < 1e-5


def test_earlier_tasks_are_bitwise_alike_on_the_gpu():
    made = subspace([on_gpu(adapter(i, 3, SHAPES)) for i in range(2)])
    before = {m: f.B_NR.clone() for m, f in made.adapter("t0").factors.items()}
    for i in range(2, 6):
        made = merge(made, f"t{i}", on_gpu(adapter(i, 3, SHAPES))).subspace
    assert all(torch.equal(before[m], f.B_NR) for m, f in made.adapter("t0").factors.items())


def test_basis_on_the_gpu_is_orthonormal():
    made = subspace([on_gpu(adapter(i, 3, SHAPES)) for i in range(5)])
    blocks = tuple({m: type(d)(d.out_NK.cpu(), d.in_DL.cpu()) for m, d in b.items()} for b in made.basis.blocks)
    assert orthonormality(made.but(basis=type(made.basis)(blocks))) < 2e-6


def test_update_that_was_lifted_on_the_gpu_is_the_adapter():
    one = on_gpu(adapter(1, 3, SHAPES))
    assert relative_error(on_cpu(one), on_cpu(lift(append(Basis(), one).update, Basis()))) < 1e-5


def inside(made: Subspace, device: str, new_directions: int = 1) -> PeftModel:
    return constrain(lora(net().to(device)), made, new_directions=new_directions, start=made.tasks["t0"])


def test_training_on_the_gpu_learns_what_the_cpu_learns():
    x = inputs()
    made = learned(x)
    cpu, gpu = inside(made, "cpu"), inside(made, DEVICE)
    assert closeness(on_the_cpu(gradients_of(gpu, x.to(DEVICE))), gradients_of(cpu, x)) < 1e-3
    ours, theirs = (release(trained(model, data)) for model, data in ((gpu, x.to(DEVICE)), (cpu, x)))
    assert {f.B_NR.device.type for f in ours.factors.values()} == {DEVICE}
    assert distance(on_cpu(ours), theirs) < 1e-3
    merged = merge(made, "gpu", ours)
    assert max(merged.report.new_directions) <= 1
    assert torch.allclose(attach(lora(), merged.subspace.adapter("gpu"))(x), cpu(x), atol=1e-3)


def on_the_cpu(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: gradient.cpu() for name, gradient in gradients.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_the_gpu_leaves_what_is_learned_in_float32(dtype):
    x = inputs().to(DEVICE)
    made = learned(inputs())
    model, exact = inside(made, DEVICE, 0), gradients_of(inside(made, DEVICE, 0), x)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad and p.numel()], lr=1e-2)
    with torch.autocast(DEVICE, dtype, cache_enabled=False):
        assert closeness(gradients_of(model, x), exact) < 0.05
    for _ in range(3):
        with torch.autocast(DEVICE, dtype):
            loss = loss_of(model, x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    with torch.autocast(DEVICE, dtype):
        before = model(x)
        adapter = release(model)
        assert torch.equal(model(x), before)
    assert append(made.basis, adapter).relative_error < 1e-5 and not append(made.basis, adapter).update.block


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_layer_is_trained_on_the_gpu():
    ids = IDS.to(DEVICE)
    model = trained(constrain(lora_everywhere().to(DEVICE), Basis(), new_directions=2), ids)
    expected = model(ids)
    kept = merge(Subspace.empty(), "task", release(model)).subspace.adapter("task")
    assert not torch.allclose(every_layer()(IDS), expected.cpu(), atol=1e-3)
    assert torch.allclose(attach(lora_everywhere(), on_cpu(kept))(IDS), expected.cpu(), atol=1e-3)


def test_warm_start_and_refine_work_on_the_gpu():
    x = inputs()
    made = learned(x, 2)
    model = constrain(lora(net().to(DEVICE)), made, new_directions=0)
    assert warm_start(model, made, lambda m: loss_of(m, x.to(DEVICE)).item()).task in {None, *made.tasks}
    result = refine(lora(net().to(DEVICE)), made, "t1", lambda m: trained(m, x.to(DEVICE), shift=1))
    assert result.report.new_directions == (0, 0) and result.report.relative_error < 1e-5


def test_torch_compile_on_the_gpu_computes_the_same():
    x = inputs().to(DEVICE)
    model = inside(learned(inputs()), DEVICE)
    eager = model(x)
    assert torch.allclose(torch.compile(model, fullgraph=True)(x), eager, atol=1e-4)
