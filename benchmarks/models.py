"""What benchmarks/glow.py compares, made alike: our Glow, normflows' and nflows', of the same sizes; and their work."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import PEERS
from fce.flow.glow import Glow, make_glow
from fce.flow.layers import halvings
from pipeline.catalogue import ROOT
from pipeline.params import load

OURS = "ours"


@dataclass(frozen=True)
class Sizes:
    """A Glow for images [3, side, side]: `steps` flow steps on each of `levels` levels, coupling nets `width` wide."""

    side: int = 32
    levels: int = 3
    steps: int = 8
    width: int = 512
    coupling: str = "additive"


def flops(sizes: Sizes) -> int:
    """Floating-point operations of one image's log-probability; sampling takes as many, a training step thrice.

    Counted are the multiplications and additions (2 for each weight and pixel) of the coupling nets' convolutions, the
    1x1 convolutions and the convolutions of the priors; padding counts as pixels do. Not counted is what is
    element-wise (actnorms, activations) or done once a batch (the 1x1 matrices and their inverses).
    """
    total, channels, side = 0, 3, sizes.side
    levels = halvings(sizes.side, sizes.levels)
    for level in range(levels):
        channels, side = 4 * channels, side // 2
        half = channels // 2
        moved = half * (2 if sizes.coupling == "affine" else 1)
        net = 9 * half * sizes.width + sizes.width**2 + 9 * sizes.width * moved
        prior = 9 * half * channels if level < levels - 1 else 0
        total += 2 * side**2 * (sizes.steps * (channels**2 + net) + prior)
        channels = half
    return total


def images(batch: int, side: int, device: str) -> Tensor:
    """Smooth 8-bit images with dequantisation noise, [batch, 3, side, side] in [-1/2, 1/2)."""
    smooth = F.interpolate(torch.rand(batch, 3, 4, 4), size=(side, side), mode="bilinear")
    return ((255 * smooth).floor() + torch.rand(smooth.shape)).div(256).sub(0.5).to(device)


def make_ours(sizes: Sizes) -> Glow:
    """Our Glow of these sizes, all else as the full profile has it for CIFAR-10, but edges, which no peer has."""
    flow = load(ROOT / "params.yaml").experiments["full"]["cifar10"].flow.model_dump()
    changes = {key: value for key, value in asdict(sizes).items() if key != "side"}
    return make_glow((3, sizes.side, sizes.side), **flow | changes | {"edge": False})


def make_model(name: str, sizes: Sizes, x: Tensor) -> Any:
    """Ours or a peer, its actnorms initialised by x.

    All layers that start at zero are given N(0, 0.01^2), so that no product is with zeros.
    """
    model: Any = make_ours(sizes) if name == OURS else PEERS[name](**asdict(sizes))
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    model.to(x.device)
    with torch.no_grad():
        model.initialize(x) if name == OURS else model.log_prob(x)  # theirs initialise themselves from the first batch
    return model


def reconstruction_error(name: str, model: Any, x: Tensor) -> float:
    """max |decode(encode(x)) - x|.

    It grows with what the coupling nets give, and ours give four times as much: their inner actnorms keep the hidden
    units' variance at 1, the peers' have none. With ours scaled down to theirs, all three err by about 1e-6.
    """
    with torch.no_grad():
        again = model.decode(model.encode(x)[0])[0] if name == OURS else model.reconstruct(x)
    return (again - x).abs().max().item()
