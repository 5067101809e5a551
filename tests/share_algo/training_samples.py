"""Small models for tests of training, plain gradient descent, and nothing random but by a seed."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from share_algo import Adapter, Basis, Subspace, constrain, merge, release
from share_algo.lora_layers import lora_pairs

RANK, N, D = 4, 20, 12
IDS = torch.arange(16).reshape(2, 8) % 11

torch.set_num_threads(1)


class Net(nn.Module):
    """Two linear layers and a head: `proj` gets LoRA, `head` is trained whole."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, D)
        self.proj = nn.Linear(D, N)
        self.head = nn.Linear(N, 3)
        self.config = {"model_type": "net"}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.proj(torch.tanh(self.inner(x)))))


class EveryLayer(nn.Module):
    """One of each layer that PEFT gives LoRA to, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.conv2 = nn.Conv2d(1, 4, (3, 2))
        self.conv1 = nn.Conv1d(4, 5, 3)
        self.gpt = Conv1D(7, 12)
        self.block = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 7))
        self.fc = nn.Linear(7, 3)
        self.score = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)  # (batch, 8, 12)
        y = self.conv1(self.conv2(x.unsqueeze(1)).flatten(3).amax(3)).mean((1, 2))
        return self.score(self.fc(self.block(self.gpt(x)))).mean(1) + y[:, None]


ALL = ["embed", "conv2", "conv1", "gpt", "block.0", "block.1", "fc"]


def net() -> Net:
    """The same base model at each call."""
    torch.manual_seed(0)
    return Net()


def every_layer() -> EveryLayer:
    torch.manual_seed(0)
    return EveryLayer().eval()


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))


def lora(base: nn.Module | None = None, **settings: object) -> PeftModel:
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["proj"], modules_to_save=["head"])
    return get_peft_model(net() if base is None else base, config, **settings)


def lora_everywhere(**config: object) -> PeftModel:
    config = {"r": 3, "lora_alpha": 8, "target_modules": ALL, "modules_to_save": ["score"], **config}
    return get_peft_model(every_layer(), LoraConfig(**config)).eval()


def trained(model: PeftModel, x: Tensor, steps: int = 5, rate: float = 0.1, shift: int = 0) -> PeftModel:
    """Plain gradient descent towards fixed labels; another `shift` is another task."""
    for _ in range(steps):
        gradients = gradients_of(model, x, shift)
        for name, parameter in model.named_parameters():
            if name in gradients:
                parameter.data -= (rate * gradients[name]).to(parameter.dtype)
    return model


def loss_of(model: nn.Module, x: Tensor, shift: int = 0) -> Tensor:
    logits = model(x)
    labels = (torch.arange(len(x)) + (torch.arange(len(x)) // 5) * shift) % logits.shape[1]
    return nn.functional.cross_entropy(logits.float(), labels)


def gradients_of(model: PeftModel, x: Tensor, shift: int = 0) -> dict[str, Tensor]:
    """In float32, of everything that requires one and is not empty."""
    model.zero_grad()
    loss_of(model, x, shift).backward()
    found = {n: p.grad.float().clone() for n, p in model.named_parameters() if p.requires_grad and p.numel()}
    model.zero_grad()
    return found


def closeness(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest relative difference of the gradients, tensor by tensor (those that are zero: absolute)."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - wanted[n]).norm() / (wanted[n].norm() or 1.0)) for n in wanted)


def learned(x: Tensor, tasks: int = 1, new_directions: int = 2) -> Subspace:
    """t0, t1, ...: Net's tasks of as many shifts, trained in turn and merged."""
    made = Subspace.empty()
    for task in range(tasks):
        model = constrain(lora(), made, new_directions=new_directions, seed=0)
        made = merge(made, f"t{task}", release(trained(model, x, steps=20, shift=task))).subspace
    return made


def learned_basis(x: Tensor) -> Basis:
    return learned(x).basis


def weights(model: PeftModel) -> list[Tensor]:
    """Copies of the LoRA weights that PEFT computes with."""
    return [side.weight.detach().clone() for _, p in lora_pairs(model) for side in (p.out, p.into)]


def distance(one: Adapter, other: Adapter) -> float:
    """Largest relative difference of dW over modules."""
    pairs = [[f.B_NR.double() @ f.A_RD.double() for f in (one.factors[m], other.factors[m])] for m in one.factors]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
