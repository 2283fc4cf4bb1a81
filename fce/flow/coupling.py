"""Affine and additive coupling, with the networks inside in the form that hardware multiplies best.

Channels come last, so a convolutional net is three products of matrices, pixels by channels: a 3x3 convolution of few
channels gathers each pixel's neighbours first, one to few channels multiplies first and sums the neighbours then. In
narrow nets that moves more numbers than it multiplies; there a CPU's own convolution of channels that come last is
faster.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fce.flow.layers import LOG_SCALE, ActNorm, ZeroOutput, border, linear, ring

Precision = Literal["fp32", "tf32", "bf16"]
Layers = tuple[Tensor, ...]  # the three layers' weights and biases, in turn; with an edge channel the last one's taps
LARGE = 2**17  # numbers of one layer's weights, from which on to copy them takes longer than to call for each
NARROW = 64  # widths up to which a CPU's 3x3 convolution is faster than to gather, multiply and collect
BLOCK = 2**18  # numbers of one layer's activations, for each core: with so few they stay in its cache
reduced: dict[str, torch.dtype] = {}  # {"dtype": what the middle layers multiply in}, empty for float32


@contextmanager
def net_precision(name: Precision) -> Iterator[None]:
    """What coupling nets multiply in, inside the block; all else stays float32, where a log-ratio of 1e4 nats needs it.

    tf32: TF32 where the hardware has it, else float32. bf16: the same in the outer layers, a sixth of the work, whose
    rounding costs most; bfloat16 in the middle one. On images the nets are the only float32 products of matrices (all
    other layers are convolutions, or float64), so that torch's switch of TF32 for products touches nothing else.
    """
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, name != "fp32"
    reduced.update({"dtype": torch.bfloat16} if name == "bf16" else {})
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        reduced.clear()


def middle(x: Tensor) -> Tensor:
    """x as the middle layer multiplies it."""
    return x.to(reduced["dtype"]) if reduced else x


def padded(x: Tensor, edge: bool = False) -> Tensor:
    """x [B, H, W, C] with zeros beyond the walls; with `edge` a channel more, which is one there."""
    walled = F.pad(x, (0, 0, 1, 1, 1, 1))
    if not edge:
        return walled
    # a channel more of some dozen: to add a map of the layer's width instead moves more numbers
    return torch.cat([walled, ring(x.shape, x).permute(0, 2, 3, 1).expand(len(x), -1, -1, -1)], -1)


def gather(walled: Tensor) -> Tensor:
    """Each pixel's 3x3 neighbours [B H W, 9 C], of x `padded`."""
    (b, h, w, c), (s0, s1, s2, s3) = walled.shape, walled.stride()
    near = walled.as_strided((b, h - 2, w - 2, 3, 3, c), (s0, s1, s2, s1, s2, s3))
    return near.reshape(-1, 9 * c)


def collect(y: Tensor, shape: torch.Size) -> Tensor:
    """The sum [B, H, W, C] over each pixel's neighbours of what y [B H W, 9 C] has for it; nothing beyond the walls."""
    b, h, w = shape[:3]
    parts = y.view(b, h, w, 9, -1)
    total = parts[:, :, :, 4].clone()
    for i in (0, 1, 2, 3, 5, 6, 7, 8):
        down, right = i // 3 - 1, i % 3 - 1  # where the neighbour lies
        inside = total[:, max(0, -down) : h - max(0, down), max(0, -right) : w - max(0, right)]
        inside.add_(parts[:, max(0, down) : h + min(0, down), max(0, right) : w + min(0, right), i])
    return total


def few_to_many(walled: Tensor, near: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 3x3 convolution [B H W, width] of x `padded`, whose neighbours are at hand or not; weight [width, 9 C]."""
    if near is not None:
        return near @ weight.T if bias is None else torch.addmm(bias, near, weight.T)
    return convolved(walled, weight.reshape(len(weight), 3, 3, -1), bias)


def many_to_few(y: Tensor, shape: torch.Size, weight: Tensor, narrow: bool) -> Tensor:
    """A 3x3 convolution [B, H, W, outputs] of y [B H W, width]; weight [9 outputs, width]."""
    if not narrow:
        return collect(y @ weight.T, shape)
    kernel = weight.view(3, 3, -1, weight.shape[-1]).permute(2, 0, 1, 3).contiguous()
    return convolved(y.view(*shape[:3], -1), kernel, walls=1).view(*shape[:3], -1)


def convolved(x: Tensor, kernel: Tensor, bias: Tensor | None = None, walls: int = 0) -> Tensor:
    """The convolution [B H W, outputs] of x [B, H, W, C], channels last throughout; kernel [outputs, 3, 3, C]."""
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2), bias, padding=walls)
    return y.permute(0, 2, 3, 1).reshape(-1, len(kernel))


def turned(weight: Tensor, dim: int) -> Tensor:
    """A 3x3 layer's weights for the way back: the neighbours along `dim` in the opposite order."""
    return weight.unflatten(dim, (9, -1)).flip(dim).flatten(dim, dim + 1)


class ConvNet(torch.autograd.Function):
    """3x3, 1x1 and 3x3 convolutions with ReLU between, of x [B, H, W, C]; weights as matrices, see `stacked`.

    On a CPU the images pass in blocks: a layer's activations are still in the cache when the next one needs them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, keep: bool
    ) -> Tensor:
        narrow, w2, b2 = is_narrow(w1), middle(w2), middle(b2)
        outs: list[Tensor] = []
        kept: list[Tensor] = []
        for part in x.split(block(x, len(w1))):
            walled = padded(part, has_edge(x, w1))
            first = middle(few_to_many(walled, None if narrow else gather(walled), w1, b1).relu_())
            second = torch.addmm(b2, first, w2.T).relu_()
            outs.append(many_to_few(second.to(x.dtype), part.shape, w3, narrow))
            kept.extend((first, second) if keep else ())
        if keep:
            ctx.save_for_backward(x, w1, w2, w3, *kept)
        return torch.cat(outs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, w3, *kept = ctx.saved_tensors
        of_x = w1.unflatten(1, (9, -1))[..., : x.shape[-1]].flatten(1)
        back1, back3 = turned(of_x, 1).T, turned(w3, 0).T
        learned = ctx.needs_input_grad[1]  # of a frozen flow x alone needs a gradient
        narrow, images = is_narrow(w1), block(x, len(w1))
        sums: list[Tensor | None] = [None] * 5
        outs = []
        for g, part, first, second in zip(gradient.split(images), x.split(images), kept[::2], kept[1::2], strict=True):
            walled = padded(g)
            g3 = gather(walled) if learned or not narrow else None
            g2 = through_relu(few_to_many(walled, None if narrow else g3, back3).to(second.dtype), second)
            g1 = through_relu(g2 @ w2, first).to(g.dtype)
            outs.append(many_to_few(g1, part.shape, back1, narrow))
            if learned and g3 is not None:
                near = gather(padded(part, has_edge(x, w1)))  # nine times x in size: made again, not kept
                pairs = ((g1, near), (g1, None), (g2, first), (g2, None), (g3, second.to(g.dtype)))
                sums = [plus(total, *pair, g.dtype) for total, pair in zip(sums, pairs, strict=True)]
        if sums[4] is not None:
            sums[4] = turned(sums[4], 0)
        return torch.cat(outs), *sums, None


def has_edge(x: Tensor, w1: Tensor) -> bool:
    """Whether a first layer's weights [width, 9 inputs] are for one channel more than x has."""
    return w1.shape[1] > 9 * x.shape[-1]


def is_narrow(w1: Tensor) -> bool:
    """Whether a net's 3x3 layers are better left to a CPU's convolution."""
    return w1.device.type == "cpu" and len(w1) <= NARROW and not torch.compiler.is_compiling()


def block(x: Tensor, width: int) -> int:
    """Images whose activations a CPU's caches hold; on other devices, and where a compiler sees to it, all of them."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return len(x)
    return max(1, BLOCK * torch.get_num_threads() // (width * x.shape[1] * x.shape[2]))


def through_relu(gradient: Tensor, result: Tensor) -> Tensor:
    """ReLU's gradient, in place."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, result, 0, grad_input=gradient)


def plus(total: Tensor | None, g: Tensor, h: Tensor | None, dtype: torch.dtype) -> Tensor:
    """total + g^T h, or where h is None the sum of g's rows; in `dtype`."""
    if total is not None and h is not None and g.dtype == dtype:
        return total.addmm_(g.T, h)
    more = (g.sum(0) if h is None else g.T @ h).to(dtype)
    return more if total is None else total.add_(more)


class CouplingNet(nn.Module):
    """Three layers, 3x3 - 1x1 - 3x3 convolutions or fully connected, an actnorm after the first two.

    With `edge` the 3x3 convolutions have an edge channel.
    """

    def __init__(self, inputs: int, outputs: int, width: int, layers: str, edge: bool = False):
        super().__init__()
        self.conv, self.edge = layers == "conv", edge
        sizes = [(width, inputs + edge), (width, width)]
        kernels: list[tuple[int, ...]] = [(3, 3), (1, 1)] if self.conv else [(), ()]
        self.weights = nn.ParameterList(
            torch.randn(*size, *kernel) * 0.05 for size, kernel in zip(sizes, kernels, strict=True)
        )
        self.norms = nn.ModuleList(ActNorm(width) for _ in sizes)
        self.last = ZeroOutput(width, outputs, layers, edge)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = linear(x, weight)
            norm.initialize(x)
            x = norm(x).relu()

    def forward(self, x: Tensor, layers: Layers | None = None) -> Tensor:
        """Of x [B, inputs] or [B, H, W, inputs]; `layers` are its own of `stacked`, where these are at hand."""
        w1, b1, w2, b2, w3, b3, *taps = layers or stacked([self])[0]
        if self.conv:
            keep = torch.is_grad_enabled() and (x.requires_grad or w1.requires_grad)
            return ConvNet.apply(x, w1, b1, w2, b2, w3, keep) + (border(x, taps[0], b3) if taps else b3)
        # in place: half the memory traffic, and ReLU's gradient needs the result only
        return F.linear(F.linear(F.linear(x, w1, b1).relu_(), w2, b2).relu_(), w3, b3)


def layers_of(nets: list[CouplingNet]) -> list[Layers]:
    """The layers of several nets: all at once where calls cost more than to copy the weights once more."""
    together = nets[0].weights[1].numel() < LARGE
    return stacked(nets) if together else [stacked([net])[0] for net in nets]


def stacked(nets: list[CouplingNet]) -> list[Layers]:
    """The layers of several nets at once, which takes as few calls as those of one.

    The actnorms are folded in, (W x + b) e^s = (e^s W) x + e^s b, and kernels are matrices: [width, 9 inputs] where
    neighbours are gathered, [9 outputs, width] where they are collected, neighbours in the order of the 3x3 kernel.
    The last layer's edge channel stays a kernel [outputs, 1, 3, 3].
    """
    taps = []
    first, second = (
        folded([net.weights[i] for net in nets], [net.norms[i] for net in nets]) for i in range(2)
    )
    last = folded([net.last.weight for net in nets], [net.last for net in nets])
    if nets[0].edge:
        last, taps = (last[0][:, :, :-1], last[1]), [last[0][:, :, -1:]]
    if nets[0].conv:
        first = first[0].permute(0, 1, 3, 4, 2).flatten(2), first[1]
        second = second[0].flatten(2), second[1]
        last = last[0].permute(0, 3, 4, 1, 2).flatten(1, 3), last[1]
    return list(zip(*(part.unbind() for part in (*first, *second, *last, *taps)), strict=True))


def folded(weights: list[Tensor], norms: list[Any]) -> tuple[Tensor, Tensor]:
    """Weights [K, outputs, ...] and biases [K, outputs] of K layers, times exp(3 logs) of each channel."""
    weight, bias = torch.stack(weights), torch.stack([norm.bias for norm in norms])
    scale = (LOG_SCALE * torch.stack([norm.logs for norm in norms])).exp()
    return weight * scale.view(*scale.shape, *([1] * (weight.dim() - 2))), bias * scale


class Coupling(nn.Module):
    """The first half of the channels shifts (additive) or shifts and scales (affine) the second.

    Affine: y2 = (x2 + shift) * scale, scale = floor + (1 - floor) sigmoid(h + 2), shift and h interleaved.
    """

    def __init__(self, channels: int, width: int, layers: str, coupling: str, scale_floor: float, edge: bool = False):
        super().__init__()
        self.affine, self.floor = coupling == "affine", scale_floor
        self.kept = channels // 2
        self.sizes = [self.kept, channels - self.kept]
        self.net = CouplingNet(self.kept, self.sizes[1] * (2 if self.affine else 1), width, layers, edge)

    def shift_and_log_scale(self, kept: Tensor, layers: Layers | None) -> tuple[Tensor, Tensor | None]:
        h = self.net(kept, layers)
        if not self.affine:
            return h, None
        scale = self.floor + (1 - self.floor) * torch.sigmoid(h[..., 1::2] + 2)
        return h[..., 0::2], scale.log()

    def encode(self, x: Tensor, layers: Layers | None = None) -> tuple[Tensor, Tensor | None]:
        """(y, the log-scales [B, ..., moved], whose sum is log |det|; None where nothing is scaled)."""
        kept, moved = x.split(self.sizes, -1)
        shift, log_scale = self.shift_and_log_scale(kept, layers)
        moved = moved + shift
        return torch.cat([kept, moved if log_scale is None else moved * log_scale.exp()], -1), log_scale

    def decode(self, y: Tensor, layers: Layers | None = None) -> tuple[Tensor, Tensor | None]:
        """The inverse; the log-scales are those of `encode`."""
        kept, moved = y.split(self.sizes, -1)
        shift, log_scale = self.shift_and_log_scale(kept, layers)
        return torch.cat([kept, (moved if log_scale is None else moved * (-log_scale).exp()) - shift], -1), log_scale
