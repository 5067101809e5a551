"""The constraint itself: a weight that is computed from frozen columns, coefficients and new directions.

Numbers are held in float32 (or better) whatever the layer's own type is, and no autocast touches their product: so what
is learned lies in the subspace to float32's rounding, and a released layer holds the very weights it was trained with.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from share_algo.errors import AlgebraError
from share_algo.types import Coefficients

COEFFICIENTS = "coefficients"
NEW_DIRECTIONS = "new_directions"


class InSubspace(nn.Module):
    """weight = frozen @ coefficients + [new_directions, 0], transposed for the in side. H: height (N or D).

    A new direction belongs to one rank; its own coefficient is 1 and stays so, as its length is free.
    """

    frozen: Tensor

    def __init__(self, frozen_HK: Tensor, new_Ha: Tensor, coefficients_KR: Tensor, transpose: bool):
        super().__init__()
        self.register_buffer("frozen", frozen_HK, persistent=False)
        self.new_directions = nn.Parameter(new_Ha)
        self.coefficients = nn.Parameter(coefficients_KR)
        self.transpose = transpose

    def matrix(self) -> Tensor:
        """lora_B (N, R), or lora_A (R, D)."""
        free = self.coefficients.shape[1] - self.new_directions.shape[1]
        with torch.autocast(self.frozen.device.type, enabled=False):
            weight = self.frozen @ self.coefficients + nn.functional.pad(self.new_directions, (0, free))
        return weight.T if self.transpose else weight

    def forward(self, replaced: Tensor) -> Tensor:
        """In the type and shape of the weight that it replaces (a convolution's has more dimensions)."""
        return self.matrix().to(replaced.dtype).reshape(replaced.shape)


def zero_side(frozen_HK: Tensor, new: int, like_HR: Tensor, transpose: bool) -> InSubspace:
    """All zero. As in LoRA, the first `new` ranks have a column of their own."""
    (H, K), R = frozen_HK.shape, like_HR.shape[1]
    return _side(frozen_HK, torch.zeros(H, new), torch.zeros(K, R), like_HR, transpose)


def random_side(
    key: str, frozen_HK: Tensor, new: int, like_HR: Tensor, transpose: bool, shortness: float, inside: bool
) -> InSubspace:
    """Columns of mean squared length 1 / shortness. The first `new` in random directions, the rest in the basis;
    or, where the basis has columns, all `inside` it and the new directions zero."""
    (H, K), R = frozen_HK.shape, like_HR.shape[1]
    directions = torch.stack([_normal(f"{key}/{j}", H) for j in range(new)], 1) if new else torch.zeros(H, 0)
    coefficients = _normal(f"{key}/coefficients", K, R) / math.sqrt(shortness * max(1, K))
    if inside and K:
        directions = torch.zeros(H, new)
    else:
        coefficients[:, :new] = 0.0
    return _side(frozen_HK, directions / math.sqrt(shortness * H), coefficients, like_HR, transpose)


@torch.no_grad()
def begin_with(module: str, out: InSubspace, into: InSubspace, own: Coefficients, scaling: float) -> None:
    """Set both sides to compute the dW that `own` means, in the last ranks; the other ranks keep dW = 0 as they are.

    The last, as the first are where new directions begin; that of a rank used here begins at zero, with a gradient.
    lora_A's rows get the length that PEFT's own begin with, so that learning rates mean what they mean there.
    """
    (K, L), r, R = own.widths, own.P_KR.shape[1], out.coefficients.shape[1]
    if r > R:
        raise AlgebraError(f"{module}: coefficients of rank {r} do not fit a layer of rank {R}")
    have = (len(out.coefficients), len(into.coefficients))
    if have[0] < K or have[1] < L:
        raise AlgebraError(f"{module}: coefficients for {(K, L)} columns, but the model is constrained to {have}")
    P, Q = (side.to(out.coefficients) for side in (own.P_KR, own.Q_LR))
    lengths = Q.norm(dim=0) * math.sqrt(3)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    for side, values in ((out, P * lengths / scaling), (into, Q / lengths)):
        side.coefficients[:, R - r :] = nn.functional.pad(values, (0, 0, 0, len(side.coefficients) - len(values)))
        side.new_directions[:, R - r :] = 0.0


@torch.no_grad()
def only_ranks(out: InSubspace, into: InSubspace, ranks: int) -> None:
    """Zero all but the last `ranks` on both sides. There the gradient is zero too: what is so stays so."""
    for side in (out, into):
        free = side.coefficients.shape[1] - ranks
        side.coefficients[:, :free] = 0.0
        side.new_directions[:, :free] = 0.0


def _side(frozen_HK: Tensor, new_Ha: Tensor, coefficients_KR: Tensor, like: Tensor, transpose: bool) -> InSubspace:
    like = like.new_zeros(0, dtype=torch.promote_types(like.dtype, torch.float32))
    return InSubspace(frozen_HK.to(like), new_Ha.to(like), coefficients_KR.to(like), transpose)


def _normal(key: str, *shape: int) -> Tensor:
    """Random numbers that depend on the key only: the same on every machine, for every column by itself."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
