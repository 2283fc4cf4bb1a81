"""The energy-based model p(x) = exp(f(x) - c) (eq. 1; architectures of Table 4)."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fce.flow.glow import Glow
from fce.flow.layers import halvings


class EnergyModel(nn.Module):
    """f(x) [B] by the paper's Table 4; `c` plays log Z and is a parameter of its own.

    Images of side 32: three 4x4 convolutions with stride 2 (64, 128, 256), then one that covers the 4x4 map that
    remains. Smaller sides are halved less often, by the last of these widths; the last kernel is what remains.

    Args:
        shape: of one x, without the batch.
        layers, widths, slope: as in params.yaml, `energy:`.
    """

    def __init__(self, shape: tuple[int, ...], layers: str, widths: list[int], slope: float):
        super().__init__()
        self.slope = slope
        if layers == "fc":
            sizes = [math.prod(shape), *widths]
            self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.head: nn.Module = nn.Linear(widths[-1], 1)
        else:
            count = halvings(shape[1], len(widths))
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

    def features(self, x: Tensor) -> Tensor:
        """The top layer's feature maps [B, F], after the leaky ReLU."""
        return self.maps(x)[-1].flatten(1)


class Residual(EnergyModel):
    """f = log q0 + g, g by Table 4 and zero at the start, with the pre-trained flow q0 as base measure (ours)."""

    def __init__(self, base: Glow, shape: tuple[int, ...], layers: str, widths: list[int], slope: float):
        super().__init__(shape, layers, widths, slope)
        self.base = base.requires_grad_(False)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.base.log_prob(x) + super().forward(x)


def make_energy(shape: tuple[int, ...], base: Glow | None = None, **energy: Any) -> EnergyModel:
    """The EBM from an `energy:` section of params.yaml; with a base flow, the residual form."""
    return Residual(base, shape, **energy) if base is not None else EnergyModel(shape, **energy)
