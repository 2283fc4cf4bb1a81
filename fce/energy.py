"""The energy-based model p(x) = exp(f(x) - c) (eq. 1; architectures of Table 4)."""

import math
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fce.flow.layers import halvings, one_of
from fce.flow.sampler import Sampler


class EnergyModel(nn.Module):
    """f(x) [B] by the paper's Table 4; `c` plays log Z and is a parameter of its own.

    Images of side 32: three 4x4 convolutions with stride 2 (64, 128, 256), then one that covers the 4x4 map that
    remains. Smaller sides are halved less often, by the last of these widths; the last kernel is what remains.

    Args:
        shape: of one x, without the batch: (2,), or (channels, side, side).
        layers: `conv` for images, `fc` for vectors.
        widths: of the hidden layers.
        slope: of the leaky ReLU below 0.

    Raises:
        ValueError: there are no such layers, or a side can't be halved.

    >>> energy = EnergyModel((3, 32, 32))
    >>> energy(torch.zeros(5, 3, 32, 32)).shape, energy.c.item()
    (torch.Size([5]), 0.0)
    """

    def __init__(self, shape: tuple[int, ...], layers: str = "conv", widths: Sequence[int] = (64, 128, 256),
                 slope: float = 0.2):
        super().__init__()
        one_of("layers", layers, "conv", "fc")
        self.slope = slope
        if layers == "fc":
            sizes = [math.prod(shape), *widths]
            self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.head: nn.Module = nn.Linear(widths[-1], 1)
        else:
            if not (count := halvings(shape[1], len(widths))):
                raise ValueError(f"shape: images of side {shape[1]}, but a side is even and 4 at least")
            sizes = [shape[0], *widths[len(widths) - count :]]
            self.hidden = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(sizes))
            self.head = nn.Conv2d(sizes[-1], 1, shape[1] // 2**count)
        self.c = nn.Parameter(torch.zeros(()))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Every hidden layer's outputs after the leaky ReLU, from x inward."""
        maps = [x]
        for layer in self.hidden:
            maps.append(F.leaky_relu(layer(maps[-1]), self.slope))
        return maps[1:]

    def forward(self, x: Tensor) -> Tensor:
        """f(x) [B], up to the constant c."""
        return self.head(self.maps(x)[-1]).flatten()

    def log_prob(self, x: Tensor) -> Tensor:
        """f(x) - c [B] in nats; a density's logarithm only if c is log Z."""
        return self(x) - self.c

    def log_ratio(self, x: Tensor, log_q: Tensor) -> Tensor:
        """log p(x) - log q(x) [B] in nats, given log q(x) [B] of the flow that it plays against."""
        return self.log_prob(x) - log_q

    def features(self, x: Tensor) -> Tensor:
        """The top layer's feature maps [B, F], after the leaky ReLU."""
        return self.maps(x)[-1].flatten(1)


class Residual(EnergyModel):
    """f = log q0 + g, g by Table 4 and zero at the start, with the pre-trained flow q0 as base measure (ours)."""

    def __init__(self, base: Sampler | None, shape: tuple[int, ...], layers: str = "conv",
                 widths: Sequence[int] = (64, 128, 256), slope: float = 0.2):
        super().__init__(shape, layers, widths, slope)
        # a copy, since the flow itself may play on
        self.base: Sampler | None = deepcopy(base).requires_grad_(False) if base is not None else None
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        if self.base is None:
            raise RuntimeError("this EBM is no density without the flow that it was trained with: set its base")
        return self.base.log_prob(x) + super().forward(x)


class Tilted(Residual):
    """f = log q + g, q the flow that it plays against, as it is now: an exponential tilt of the present flow (ours).

    So p = q exp(g - c) moves with q, and log p - log q = g - c whatever log q is: no logit saturates because a network
    can't follow 10^4 nats of log q, and Z = E_q exp(g) is near 1. How the flow learns from it: `fce/minibatch.py`,
    `tilted_value`. While it plays it has no `base`; a checkpoint's is the flow beside it (`fce/models.py`). Related:
    residual EBMs (arXiv 2004.11714), whose base stands still.
    """

    def __init__(self, shape: tuple[int, ...], **energy: Any):
        super().__init__(None, shape, **energy)

    def log_ratio(self, x: Tensor, log_q: Tensor) -> Tensor:
        return EnergyModel.forward(self, x) - self.c


def make_energy(shape: tuple[int, ...], kind: str = "plain", base: Sampler | None = None, **energy: Any) -> EnergyModel:
    """The EBM from an `energy:` section of params.yaml; `kind` is `joint.energy`, and residual needs a base flow."""
    if kind == "tilted":
        return Tilted(shape, **energy)
    return Residual(base, shape, **energy) if kind == "residual" else EnergyModel(shape, **energy)
