"""Glow (arXiv 1807.03039) in its convolutional and its fully connected form."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fce.flow.layers import LOG_SCALE, Logit, ZeroOutput, border, halvings, one_of, sum_features
from fce.flow.sampler import Sampler, normal_log_prob
from fce.flow.steps import Steps


class Gaussianize(nn.Module):
    """Turns factored-out latents into standard noise: eps = (z - mean) exp(-logs), given a context or learned."""

    taps: nn.Parameter | None

    def __init__(self, channels: int, context: int, layers: str, edge: bool = False):
        super().__init__()
        self.net = ZeroOutput(context, 2 * channels, layers, edge) if context else None
        if not context:  # openai/glow's top prior convolves zeros: a mean and a scale per channel are left, and edges
            self.mean, self.logs = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
            self.taps = nn.Parameter(torch.zeros(2 * channels, 1, 3, 3)) if edge else None

    def moments(self, like: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.net is None:
            mean, logs = self.mean, self.logs
            if self.taps is not None:
                mean, logs = border(like, self.taps, torch.cat([mean, logs])).chunk(2, -1)
            return mean.expand_as(like), (LOG_SCALE * logs).expand_as(like)
        h = self.net(context)
        return h[..., 0::2], h[..., 1::2]

    def encode(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, logs = self.moments(z, context)
        return (z - mean) * (-logs).exp(), -sum_features(logs)

    def decode(self, eps: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, logs = self.moments(eps, context)
        return mean + logs.exp() * eps, sum_features(logs)


def squeeze(z: Tensor) -> Tensor:
    """[B, H, W, C] to [B, H/2, W/2, 4 C]: of 2x2 pixels, channel c of row dy and column dx goes to 4 c + 2 dy + dx."""
    b, h, w, c = z.shape
    return z.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze(z: Tensor) -> Tensor:
    """The inverse of squeeze."""
    b, h, w, c = z.shape
    return z.reshape(b, h, w, c // 4, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, c // 4)


class Glow(Sampler):
    """A normalised density q(x) on R^D (or on the box, with `input: logit`).

    x is [B, C, H, W] in model coordinates, or [B, 2]; eps is [B, D], standard normal; log q is [B] in nats and
    exact in both directions.

    Args:
        shape: of one x, without the batch: (2,), or (channels, side, side).
        levels: squeezes; each halves the side.
        steps: of each level, K.
        width: of the networks inside the couplings.
        layers: `conv` for images (arXiv 1807.03039), `fc` for vectors (the paper's Table 3).
        coupling: `additive` or `affine`.
        scale_floor: the least scale of an affine coupling.
        input: `centered` (images in [-1/2, 1/2]), `logit` (the same, as a density on that box) or `identity`.
        edge: whether 3x3 convolutions see where the image ends, as openai/glow's do.

    Raises:
        ValueError: there is no such layer, coupling or input, or the levels don't fit the side.

    >>> x = torch.randn(64, 2)
    >>> flow = Glow((2,), levels=1, steps=4, width=32, layers="fc", coupling="affine", input="identity")
    >>> flow.initialize(x)
    >>> eps, log_q = flow.encode(x)
    >>> eps.shape, log_q.shape, bool(torch.allclose(flow.decode(eps)[0], x, atol=1e-4))
    (torch.Size([64, 2]), torch.Size([64]), True)
    """

    initialized: Tensor

    def __init__(self, shape: tuple[int, ...], levels: int = 3, steps: int = 8, width: int = 128, layers: str = "conv",
                 coupling: str = "affine", scale_floor: float = 0.0,
                 input: str = "centered", edge: bool = False):  # noqa: A002 - its name in params.yaml
        super().__init__()
        one_of("layers", layers, "conv", "fc")
        one_of("coupling", coupling, "additive", "affine")
        one_of("input", input, "centered", "logit", "identity")
        self.shape, self.dims, self.conv = tuple(shape), math.prod(shape), layers == "conv"
        self.logit = Logit() if input == "logit" else None
        channels = shape[0]
        self.levels = nn.ModuleList()
        self.priors = nn.ModuleList()
        self.latents: list[tuple[int, ...]] = []
        sides = shape[1:]
        for level in range(levels):
            if self.conv:
                if any(side % 2 for side in sides):
                    raise ValueError(
                        f"flow.levels: {levels} levels halve the side {shape[1]} to an odd number; at most {level} fit"
                    )
                channels, sides = channels * 4, tuple(side // 2 for side in sides)
            self.levels.append(Steps(steps, channels, width, layers, coupling, scale_floor, edge))
            last = level == levels - 1
            out = channels if last else channels // 2
            self.priors.append(Gaussianize(out, 0 if last else channels - out, layers, edge))
            self.latents.append((*sides, out))
            channels -= 0 if last else out
        self.register_buffer("initialized", torch.tensor(False))
        self.ready = False  # the same for Python: asking a tensor on a GPU stops it

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Data-dependent initialisation of every actnorm, from one large batch in model coordinates."""
        z = self.channels_last(self.logit.encode(x)[0] if self.logit else x)
        for level, steps in enumerate(self.levels):
            z = steps.initialize(squeeze(z) if self.conv else z)
            if level < len(self.levels) - 1:
                z = z[..., : z.shape[-1] // 2]
        self.initialized.fill_(True)
        self.ready = True

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(eps [B, D], log q(x) [B]); with gradients through both."""
        self.require_initialized()
        log_q = x.new_zeros(len(x))
        if self.logit:
            x, log_det = self.logit.encode(x)
            log_q = log_q + log_det
        eps = []
        z = self.channels_last(x)
        for level, (steps, prior) in enumerate(zip(self.levels, self.priors, strict=True)):
            z, log_det = steps.encode(squeeze(z) if self.conv else z)
            log_q = log_q + log_det
            context, out = (None, z) if level == len(self.levels) - 1 else z.chunk(2, -1)
            noise, log_det = prior.encode(out, context)
            log_q = log_q + log_det
            eps.append(noise.flatten(1))
            z = context
        flat = torch.cat(eps, 1)
        return flat, log_q + normal_log_prob(flat)

    def decode(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(x, log q(x) [B]) from eps [B, D]; with gradients through both, and without a second pass."""
        self.require_initialized()
        log_q = normal_log_prob(eps)
        parts = eps.split([math.prod(latent) for latent in self.latents], 1)
        z: Tensor | None = None
        for level in reversed(range(len(self.levels))):
            out, log_det = self.priors[level].decode(parts[level].view(-1, *self.latents[level]), z)
            log_q = log_q - log_det
            z, log_det = self.levels[level].decode(out if z is None else torch.cat([z, out], -1))
            log_q = log_q - log_det
            z = unsqueeze(z) if self.conv else z
        assert z is not None
        x = z.permute(0, 3, 1, 2) if self.conv else z
        if self.logit:
            x, log_det = self.logit.decode(x)
            log_q = log_q - log_det
        return x, log_q

    def channels_last(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1) if self.conv else x

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x) [B] in nats."""
        return self.encode(x)[1]

    def max_log_scale(self) -> Tensor:
        """The largest |log-scale| of the actnorms and 1x1 convolutions: an explosion's first sign."""
        scales = [scale for level in self.levels for step in level
                  for scale in (LOG_SCALE * step.norm.logs, step.linear.packed.diagonal())]
        return torch.cat(scales).abs().max()

    def require_initialized(self) -> None:
        self.ready = self.ready or bool(self.initialized)
        if not self.ready:
            raise RuntimeError("Glow is not initialised: call initialize(x) with data, or load a state, first")


def make_glow(shape: tuple[int, ...], levels: int, layers: str, **others: Any) -> Glow:
    """Glow from a `flow:` section of params.yaml; small images get fewer levels than it asks for."""
    return Glow(shape, halvings(shape[1], levels) if layers == "conv" else levels, layers=layers, **others)
