"""Layers of Glow (arXiv 1807.03039; conventions of openai/glow, commit 91b2c57).

Channels come last: x is [B, H, W, C] or [B, C]. `encode` goes towards the noise, `decode` back; log-determinants are
of the direction taken, in nats.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_SCALE = 3.0  # openai/glow multiplies every log-scale by 3: Adam's steps on them are then larger


def pixels(x: Tensor) -> int:
    return math.prod(x.shape[1:-1])


def sum_features(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def ring(shape: torch.Size, like: Tensor) -> Tensor:
    """openai/glow's edge channel (tfops.py, add_edge_padding) for x of a shape [B, H, W, C]: [1, 1, H + 2, W + 2], 1 on
    the padding of a 3x3 convolution, 0 inside; of the type and on the device of `like`.
    """
    return F.pad(like.new_zeros(1, 1, *shape[1:3]), (1, 1, 1, 1), value=1.0)


def border(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """What a 3x3 convolution of x [B, H, W, C] has of its edge channel, and its bias: [1, H, W, out].

    It is the same map for every image, so the channel itself needs no room among the activations.

    Args:
        taps: the edge channel's weights, [out, 1, 3, 3].
    """
    return F.conv2d(ring(x.shape, taps), taps, bias).permute(0, 2, 3, 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A layer of openai/glow: fully connected [out, in], or a convolution [out, in, k, k] that keeps the size.

    Of weights for one channel more than x has, the last are the edge channel's.
    """
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if weight.shape[1] > (channels := x.shape[-1]):
        return linear(x, weight[:, :channels]) + border(x, weight[:, channels:], bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2).permute(0, 2, 3, 1)


def halvings(side: int, most: int) -> int:
    """How often an image is halved, by the flow's levels and by the EBM's strides: the one rule for every size.

    At most `most` times, while the side is even and 2 or more remain: 8 -> 2 times, 16, 32 and 64 -> 3 of 3.
    """
    count = 0
    while count < most and side % 2 == 0 and side // 2 >= 2:
        side, count = side // 2, count + 1
    return count


class ActNorm(nn.Module):
    """Scale and shift per channel; `initialize` sets them to give zero mean and unit variance."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.logs = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        flat = x.flatten(0, -2).double()
        self.bias.copy_(-flat.mean(0))
        self.logs.copy_(-(flat.std(0, correction=0) + 1e-6).log() / LOG_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias) * (LOG_SCALE * self.logs).exp()


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
        dtype = torch.get_default_dtype()
        self.packed = nn.Parameter(packed.to(dtype))
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("sign", diagonal.sign().to(dtype))


def lu_factors(linears: list[InvertibleLinear]) -> tuple[Tensor, Tensor, Tensor]:
    """P, L and U [K, C, C] of K layers, in float64: their products and inverses are rounded once, at the end."""
    packed, sign, permutation = (
        torch.stack([getattr(each, name) for each in linears]).double() for name in ("packed", "sign", "permutation")
    )
    eye = torch.eye(packed.shape[-1], dtype=packed.dtype, device=packed.device)
    upper = packed.triu(1) + (sign * packed.diagonal(dim1=-2, dim2=-1).exp()).diag_embed()
    return permutation, packed.tril(-1) + eye, upper


def lu_weights(linears: list[InvertibleLinear]) -> Tensor:
    """W [K, C, C], float64."""
    permutation, lower, upper = lu_factors(linears)
    return permutation @ lower @ upper


def lu_inverses(linears: list[InvertibleLinear]) -> Tensor:
    """W^-1 [K, C, C], float64, by triangular solves."""
    permutation, lower, upper = lu_factors(linears)
    right = torch.linalg.solve_triangular(lower, permutation.mT, upper=False, unitriangular=True)
    return torch.linalg.solve_triangular(upper, right, upper=True)


def one_of(name: str, given: object, *valid: str) -> None:
    """Raise ValueError where what is given is none of the valid words."""
    if given not in valid:
        raise ValueError(f"{name}: {given!r}, but it is one of {', '.join(valid)}")


class ZeroOutput(nn.Module):
    """A last layer that starts at zero: linear or 3x3 convolution, times exp(3 logs) per channel."""

    def __init__(self, inputs: int, outputs: int, layers: str, edge: bool = False):
        super().__init__()
        shape = (outputs, inputs) if layers == "fc" else (outputs, inputs + edge, 3, 3)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.logs = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        scale = (LOG_SCALE * self.logs).exp()  # folded into the weights: fewer passes over the activations
        return linear(x, self.weight * scale.view(-1, *([1] * (self.weight.dim() - 1))), self.bias * scale)


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
