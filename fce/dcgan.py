"""The networks of DCGAN, the GAN that Table 1 compares with.

The architecture is DCGAN's (arXiv 1511.06434) as TTUR (arXiv 1706.08500) ran it: bioinf-jku/TTUR, DCGAN_FID_batched,
a fork of carpedm20/DCGAN-tensorflow. The paper's DCGAN column is that article's, not a run of its authors.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fce.flow.layers import halvings

WEIGHTS_STD = 0.02  # DCGAN, section 4; TTUR's ops.py


def used(side: int, widths: list[int]) -> tuple[list[int], int]:
    """The widths that images of this side use, the last ones, and the side of the map that remains."""
    count = halvings(side, len(widths))
    return widths[len(widths) - count :], side // 2**count


class Generator(nn.Module):
    """Images [B, C, H, W] in the box of model coordinates, [-1/2, 1/2], from z [B, latent] in (-1, 1).

    At side 32 a linear map to 512x2x2, then transposed 5x5 convolutions to 256x4x4, 128x8x8, 64x16x16 and Cx32x32;
    batch norm and ReLU before each of them, tanh at the end. Smaller sides are doubled less often.

    Args:
        shape: of one image.
        latent: the length of z.
        widths: of the discriminator, from the image inward; the generator has them from the inside out.
    """

    def __init__(self, shape: tuple[int, ...], latent: int, widths: list[int]):
        super().__init__()
        sizes, side = used(shape[1], widths)
        self.shape, self.latent = shape, latent
        self.start = nn.Sequential(nn.Linear(latent, sizes[-1] * side**2), nn.Unflatten(1, (sizes[-1], side, side)))
        layers: list[nn.Module] = []
        for a, b in pairwise([*sizes[::-1], shape[0]]):
            bias = len(layers) == 3 * (len(sizes) - 1)  # a batch norm takes any other layer's away
            layers += [nn.BatchNorm2d(a), nn.ReLU(), nn.ConvTranspose2d(a, b, 5, 2, 2, output_padding=1, bias=bias)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * self.layers(self.start(z))

    def noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        """z [n, latent], uniform on (-1, 1)."""
        device = generator.device if generator else None
        z = 2 * torch.rand(n, self.latent, generator=generator, device=device) - 1
        return z.to(next(self.parameters()).device)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """n images; a temperature below 1 shrinks z. In eval mode, an image does not depend on its batch."""
        return self(temperature * self.noise(n, generator))


class Discriminator(nn.Module):
    """Logits [B] that images [B, C, H, W] in model coordinates are real.

    At side 32 four 5x5 convolutions with stride 2 (64, 128, 256, 512), with leaky ReLU .2 and batch norm from the
    second, then a linear map. Smaller sides are halved less often, by the last of these widths.
    """

    def __init__(self, shape: tuple[int, ...], widths: list[int]):
        super().__init__()
        sizes, side = used(shape[1], widths)
        first = nn.Sequential(nn.Conv2d(shape[0], sizes[0], 5, 2, 2), nn.LeakyReLU(0.2))
        further = [nn.Sequential(nn.Conv2d(a, b, 5, 2, 2, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
                   for a, b in pairwise(sizes)]
        self.hidden = nn.ModuleList([first, *further])
        self.head = nn.Linear(sizes[-1] * side**2, 1)
        self.apply(initialize)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Every hidden layer's maps, from the image inward."""
        maps = [2 * x]  # TTUR's images lie in [-1, 1]
        for layer in self.hidden:
            maps.append(layer(maps[-1]))
        return maps[1:]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[-1].flatten(1)).flatten()


def initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):  # TTUR cuts the tails off for convolutions only
        nn.init.trunc_normal_(module.weight, std=WEIGHTS_STD, a=-2 * WEIGHTS_STD, b=2 * WEIGHTS_STD)
    elif isinstance(module, nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, std=WEIGHTS_STD)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def make_dcgan(shape: tuple[int, ...], latent: int, widths: list[int]) -> tuple[Generator, Discriminator]:
    """Both players."""
    return Generator(shape, latent, widths), Discriminator(shape, widths)
