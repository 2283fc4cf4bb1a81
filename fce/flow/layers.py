"""Invertible layers of Glow (arXiv 1807.03039; conventions of openai/glow, commit 91b2c57).

Each layer has `encode(x) -> (y, log_det)` towards the noise and `decode(y) -> (x, log_det)` back; `log_det`
[B] or scalar is log |det| of the direction taken, in nats. Layers work on [B, C, H, W] and on [B, C].
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_SCALE = 3.0  # openai/glow multiplies every log-scale by 3: Adam's steps on them are then larger


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(1, -1, *([1] * (like.dim() - 2)))


def pixels(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def sum_features(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


class ActNorm(nn.Module):
    """Scale and shift per channel; `initialize` sets them to give zero mean and unit variance."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.logs = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        flat = x.transpose(0, 1).flatten(1).double()
        self.bias.copy_(-flat.mean(1))
        self.logs.copy_(-(flat.std(1, correction=0) + 1e-6).log() / LOG_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return (x + per_channel(self.bias, x)) * per_channel((LOG_SCALE * self.logs).exp(), x)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), LOG_SCALE * self.logs.sum() * pixels(x)

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = y * per_channel((-LOG_SCALE * self.logs).exp(), y) - per_channel(self.bias, y)
        return x, -LOG_SCALE * self.logs.sum() * pixels(y)


class InvertibleLinear(nn.Module):
    """The invertible 1x1 convolution W = P L (U + diag(sign * exp(log_s))), started at a random rotation.

    One matrix holds all: below its diagonal L, above it U, on it log |s|; so log |det W| is a trace.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        packed = lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag()
        self.packed = nn.Parameter(packed.float())
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())

    def factors(self) -> tuple[Tensor, Tensor]:
        lower = self.packed.tril(-1) + torch.eye(len(self.sign), dtype=self.packed.dtype, device=self.packed.device)
        upper = self.packed.triu(1) + (self.sign * self.packed.diagonal().exp()).diag()
        return lower, upper

    def weight(self) -> Tensor:
        lower, upper = self.factors()
        return self.permutation @ lower @ upper

    def inverse(self) -> Tensor:
        """W^-1 by triangular solves in float64."""
        lower, upper = (factor.double() for factor in self.factors())
        right = torch.linalg.solve_triangular(lower, self.permutation.double().T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, right, upper=True).to(self.packed.dtype)

    def log_det(self, x: Tensor) -> Tensor:
        return self.packed.diagonal().sum() * pixels(x)

    @staticmethod
    def apply_matrix(matrix: Tensor, x: Tensor) -> Tensor:
        return x @ matrix.T if x.dim() == 2 else F.conv2d(x, matrix[:, :, None, None])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.apply_matrix(self.weight(), x), self.log_det(x)

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.apply_matrix(self.inverse(), y), -self.log_det(y)


class ZeroOutput(nn.Module):
    """A last layer that starts at zero: linear or 3x3 convolution, times exp(3 logs) per channel."""

    def __init__(self, inputs: int, outputs: int, layers: str):
        super().__init__()
        shape = (outputs, inputs) if layers == "fc" else (outputs, inputs, 3, 3)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.logs = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        scale = (LOG_SCALE * self.logs).exp()  # folded into the weights: fewer passes over the activations
        weight = self.weight * scale.view(-1, *([1] * (self.weight.dim() - 1)))
        bias = self.bias * scale
        return F.linear(x, weight, bias) if x.dim() == 2 else F.conv2d(x, weight, bias, padding=1)


class CouplingNet(nn.Module):
    """Three layers, 3x3 - 1x1 - 3x3 convolutions or fully connected, an actnorm after the first two."""

    def __init__(self, inputs: int, outputs: int, width: int, layers: str):
        super().__init__()
        sizes = [(width, inputs), (width, width)]
        kernels: list[tuple[int, ...]] = [(), ()] if layers == "fc" else [(3, 3), (1, 1)]
        self.weights = nn.ParameterList(
            torch.randn(*size, *kernel) * 0.05 for size, kernel in zip(sizes, kernels, strict=True)
        )
        self.norms = nn.ModuleList(ActNorm(width) for _ in sizes)
        self.last = ZeroOutput(width, outputs, layers)

    def hidden(self, i: int, x: Tensor) -> Tensor:
        weight = self.weights[i]
        return F.linear(x, weight) if x.dim() == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        for i, norm in enumerate(self.norms):
            x = self.hidden(i, x)
            norm.initialize(x)
            x = norm(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        for i, norm in enumerate(self.norms):
            # the actnorm folded into the layer before it: (Wx + b) e^s = (e^s W) x + e^s b
            weight, scale = self.weights[i], (LOG_SCALE * norm.logs).exp()
            weight, bias = weight * scale.view(-1, *([1] * (weight.dim() - 1))), norm.bias * scale
            x = F.linear(x, weight, bias) if x.dim() == 2 else F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
            x = x.relu_()  # in place: half the memory traffic, and its gradient needs the result only
        return self.last(x)


class Coupling(nn.Module):
    """The first half of the channels shifts (additive) or shifts and scales (affine) the second.

    Affine: y2 = (x2 + shift) * scale, scale = floor + (1 - floor) sigmoid(h + 2), shift and h interleaved.
    """

    def __init__(self, channels: int, width: int, layers: str, coupling: str, scale_floor: float):
        super().__init__()
        self.affine, self.floor = coupling == "affine", scale_floor
        self.kept = channels // 2
        moved = channels - self.kept
        self.net = CouplingNet(self.kept, moved * (2 if self.affine else 1), width, layers)

    def shift_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        h = self.net(kept)
        if not self.affine:
            return h, h.new_zeros(())
        scale = self.floor + (1 - self.floor) * torch.sigmoid(h[:, 1::2] + 2)
        return h[:, 0::2], scale.log()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x[:, : self.kept], x[:, self.kept :]
        shift, log_scale = self.shift_and_log_scale(kept)
        y = torch.cat([kept, (moved + shift) * log_scale.exp()], 1)
        return y, sum_features(log_scale) if self.affine else log_scale

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = y[:, : self.kept], y[:, self.kept :]
        shift, log_scale = self.shift_and_log_scale(kept)
        x = torch.cat([kept, moved * (-log_scale).exp() - shift], 1)
        return x, -sum_features(log_scale) if self.affine else -log_scale


class Step(nn.Module):
    """One flow block: actnorm, invertible 1x1 convolution, coupling."""

    def __init__(self, channels: int, width: int, layers: str, coupling: str, scale_floor: float):
        super().__init__()
        self.norm = ActNorm(channels)
        self.linear = InvertibleLinear(channels)
        self.coupling = Coupling(channels, width, layers, coupling, scale_floor)

    def parts(self) -> tuple[ActNorm, InvertibleLinear, Coupling]:
        return self.norm, self.linear, self.coupling

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Set the actnorms from the activations that x gives; return the block's output."""
        self.norm.initialize(x)
        x = self.linear.encode(self.norm(x))[0]
        self.coupling.net.initialize(x[:, : self.coupling.kept])
        return self.coupling.encode(x)[0]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for part in self.parts():
            x, log_det = part.encode(x)
            total = total + log_det
        return x, total

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(())
        for part in reversed(self.parts()):
            y, log_det = part.decode(y)
            total = total + log_det
        return y, total


class Logit(nn.Module):
    """From the box [-1/2, 1/2]^D to R^D and back: y = logit(s), s = margin + (1 - 2 margin)(x + 1/2).

    A flow behind it leaves the box by at most the margin's share of a side. Without a margin, samples at the box's
    walls lose their place to float32's rounding, and log q of such an x is off by up to hundreds of nats.
    """

    margin = 1e-3
    smallest = 1e-7

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.logit(self.margin + (1 - 2 * self.margin) * (x + 0.5), eps=self.smallest)
        return y, self.log_det(y)

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.sigmoid(y) - self.margin) / (1 - 2 * self.margin) - 0.5, -self.log_det(y)

    def log_det(self, y: Tensor) -> Tensor:
        """log dy/dx = softplus(y) + softplus(-y) + log(1 - 2 margin), summed over the features."""
        return sum_features(F.softplus(y) + F.softplus(-y) + math.log(1 - 2 * self.margin))
