"""Stage: dcgan. The GAN that Table 1 compares with, trained here and measured as the flows are.

The architecture is DCGAN's (arXiv 1511.06434) as TTUR (arXiv 1706.08500) ran it: bioinf-jku/TTUR, DCGAN_FID_batched,
a fork of carpedm20/DCGAN-tensorflow. The paper's DCGAN column is that article's, not a run of its authors.
"""

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fce.data.data import Images, open_data
from fce.flow.glow import halvings
from fce.progress import steps
from fce.stage import Job, Stopped, main
from fce.state import load, save

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
        self.latent = latent
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
        further = [
            nn.Sequential(nn.Conv2d(a, b, 5, 2, 2, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
            for a, b in pairwise(sizes)
        ]
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


def make_dcgan(shape: tuple[int, ...], dcgan: dict[str, Any]) -> tuple[Generator, Discriminator]:
    """Both players from a `dcgan:` section of params.yaml."""
    return Generator(shape, dcgan["latent"], dcgan["widths"]), Discriminator(shape, dcgan["widths"])


def run(job: Job) -> None:
    settings = job.params["dcgan"]
    rates = settings[settings["rates"]]
    data = open_data(job.inputs["data"], {"source": "images"}, job.device)
    assert isinstance(data, Images)
    random = data.generator(job.seed_for("batches"))
    generator, discriminator = make_dcgan(data.shape, settings)
    generator.to(job.device)
    discriminator.to(job.device)
    optimizers = [
        torch.optim.Adam(player.parameters(), lr=rates[lr], betas=(settings["beta1"], 0.999), fused=True)
        for player, lr in ((discriminator, "discriminator_lr"), (generator, "generator_lr"))
    ]
    players = {"generator": generator, "discriminator": discriminator}
    keeper = job.keeper("training", **players, optimizers=optimizers, data=data, random=random)
    done = keeper.load() or {"step": 0}

    def losses() -> dict[str, float]:
        values = {"discriminator": d_loss.item(), "generator": g_loss.item()}
        if not all(map(math.isfinite, values.values())):
            raise Stopped(f"dcgan: the losses are {values} at update {done['step']}; lower dcgan.{settings['rates']}."
                          f" States of earlier updates, if any, lie below {job.resume}")
        return values

    for step, progress in steps(rates["updates"], settings["batch"], done["step"]):
        x = generator(generator.noise(settings["batch"], random))
        # real and generated images in batches of their own: batch norm sees one kind at a time, as in TTUR's code
        real, fake = discriminator(data.batch(settings["batch"], random)), discriminator(x.detach())
        d_loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        update(optimizers[0], d_loss)
        g_loss = F.softplus(-discriminator(x)).mean()  # the same z, the new discriminator
        update(optimizers[1], g_loss)
        done["step"] = step
        if step % settings["log_every"] == 0 or step == rates["updates"]:
            job.record.log(step, **losses())
            progress(step, **losses())
        keeper.tick(lambda: {**done, "losses": losses()})  # no state of what is no number
    keeper.save(done)
    save(
        job.out,
        {
            **{name: player.state_dict() for name, player in players.items()},
            "shape": list(data.shape),
            "dcgan_params": settings,
            "provenance": job.provenance(),
        },
    )


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`, which this optimiser's parameters alone collect."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def load_dcgan(path: Path, device: str) -> tuple[Generator, Discriminator]:
    """Both players of a checkpoint, in eval mode."""
    checkpoint = load(path)
    players = make_dcgan(tuple(checkpoint["shape"]), checkpoint["dcgan_params"])
    for player, name in zip(players, ("generator", "discriminator"), strict=True):
        player.load_state_dict(checkpoint[name])
        player.eval().requires_grad_(False).to(device)
    return players


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data"], resumes=True))
