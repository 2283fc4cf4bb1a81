"""Between images and the models' coordinates, and the code length of the one from the density of the other.

Conventions: uint8 images, NHWC on disk, NCHW in training; x = (k + u) / levels - 1/2 with u uniform on [0, 1), for grey
level k.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

EDGE = 1e-4  # the noise keeps this far from its bin's walls, so that float32 cannot round it into the next bin


def padded(side: int) -> int:
    """The side the models see: 28 is padded to 32, others to a multiple of 4."""
    return 4 * math.ceil(side / 4) if side != 28 else 32


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 NHWC arrays as uint8 NCHW tensors, padded with level 0 where the models need it."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    extra = padded(x.shape[2]) - x.shape[2]
    return F.pad(x, (extra // 2, extra - extra // 2) * 2) if extra else x


def to_images(x: Tensor, side: int) -> np.ndarray:
    """The inverse of to_tensor."""
    start = (x.shape[2] - side) // 2
    return x[:, :, start : start + side, start : start + side].permute(0, 2, 3, 1).cpu().numpy()


def dequantize(images: Tensor, levels: int, generator: torch.Generator | None = None) -> Tensor:
    """Model coordinates x in (-1/2, 1/2) from uint8 images, with fresh uniform noise."""
    noise = torch.rand(images.shape, generator=generator, device=generator.device if generator else images.device)
    noise = noise.to(images.device).clamp(EDGE, 1 - EDGE)
    return (images + noise) / levels - 0.5


def shifted(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """uint8 images [B, C, H, W], each moved down and across by up to `share` of its side.

    As Keras 2.2.0 does it for openai/glow (get_mnist_cifar.py): shifts are uniform, not whole pixels; between pixels
    the image is linear, beyond its walls as at them, and rounded down to grey levels.
    """
    x = images.float()
    for dim, side in ((2, x.shape[2]), (3, x.shape[3])):
        by = share * side * (2 * torch.rand(len(x), 1, generator=generator, device=x.device) - 1)
        at = (torch.arange(side, device=x.device) + by).clamp(0, side - 1)
        at = at.view(len(x), 1, side, 1) if dim == 2 else at.view(len(x), 1, 1, side)
        low = at.long()
        first, second = (x.gather(dim, index.expand_as(x)) for index in (low, (low + 1).clamp(max=side - 1)))
        x = torch.lerp(first, second, at - low)  # exact where both are equal: no rounding takes a level off
    return x.to(torch.uint8)


def quantize(x: Tensor, levels: int) -> Tensor:
    """uint8 grey levels of model coordinates: floor, then clip into the box."""
    return ((x + 0.5) * levels).floor().clamp(0, levels - 1).to(torch.uint8)


def bits_per_dim(log_prob: Tensor, levels: int, dims: int, seen: int | None = None) -> Tensor:
    """Bits per dimension from log-densities in nats of dequantised x in [-1/2, 1/2): Theis et al., eq. 8.

    Where padding adds to an image's `dims` dimensions, the density is over `seen` of them, and so is its code.
    """
    return ((seen or dims) * math.log2(levels) - log_prob / math.log(2)) / dims
