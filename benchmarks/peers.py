"""Glow as a user of normflows and of nflows would build it from what these packages offer.

They are not the same model as ours to the last bias. Where each differs: normflows has by default no actnorm inside the
coupling net; nflows has residual coupling nets only, so it gets the plain one below, and its 1x1 convolution is a
permutation and two triangular products. Neither predicts the moments of factored-out latents from those that are kept,
which costs ours 0.04 % of its multiplications.
"""

from importlib.util import find_spec

from torch import Tensor, nn


class NormFlows(nn.Module):
    """normflows: GlowBlock and MultiscaleFlow, with the diagonal Gaussians of GlowBase for every level's latents.

    Args:
        side, levels, steps, width, coupling: as in benchmarks.glow.Sizes.
    """

    def __init__(self, side: int, levels: int, steps: int, width: int, coupling: str):
        super().__init__()
        import normflows

        bases, flows = [], []
        for level in range(levels):  # normflows counts from the noise: its first level is the coarsest
            channels, pixels = 6 * 2 ** (levels - level), side // 2 ** (levels - level)
            blocks = [normflows.flows.GlowBlock(channels, width, scale=coupling == "affine") for _ in range(steps)]
            flows.append([*blocks, normflows.flows.Squeeze()])
            bases.append(normflows.distributions.GlowBase((channels // 2 if level else channels, pixels, pixels)))
        merges = [normflows.flows.Merge() for _ in range(levels - 1)]
        self.flow = normflows.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x) [B] of x [B, 3, side, side], in nats."""
        return self.flow.log_prob(x, None)

    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)[0]

    def reconstruct(self, x: Tensor) -> Tensor:
        """x, encoded and decoded."""
        return self.flow.forward_and_log_det(self.flow.inverse_and_log_det(x)[0])[0]


class NFlows(nn.Module):
    """nflows: ActNorm, OneByOneConvolution and coupling transforms in a MultiscaleCompositeTransform.

    Args:
        side, levels, steps, width, coupling: as in benchmarks.glow.Sizes.
    """

    def __init__(self, side: int, levels: int, steps: int, width: int, coupling: str):
        super().__init__()
        from nflows import distributions, flows, transforms

        couple = transforms.AffineCouplingTransform if coupling == "affine" else transforms.AdditiveCouplingTransform
        whole = transforms.MultiscaleCompositeTransform(levels)
        channels, pixels = 3, side
        for _ in range(levels):
            channels, pixels = 4 * channels, pixels // 2
            parts = [transforms.SqueezeTransform()]
            for _ in range(steps):
                half = channels // 2
                parts += [
                    transforms.ActNorm(channels),
                    transforms.OneByOneConvolution(channels),
                    couple([0] * half + [1] * half, lambda inputs, outputs: CouplingNet(inputs, outputs, width)),
                ]
            whole.add_transform(transforms.CompositeTransform(parts), (channels, pixels, pixels))
            channels //= 2
        self.flow = flows.Flow(whole, distributions.StandardNormal([3 * side * side]))

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x) [B] of x [B, 3, side, side], in nats."""
        return self.flow.log_prob(x)

    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x, encoded and decoded."""
        return self.flow._transform.inverse(self.flow.transform_to_noise(x))[0]


class CouplingNet(nn.Sequential):
    """3x3 - 1x1 - 3x3 convolutions, the last one zero at first; [B, inputs, H, W] to [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, width: int):
        last = nn.Conv2d(width, outputs, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        super().__init__(nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 1),
                         nn.ReLU(inplace=True), last)

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


PEERS = {"normflows": NormFlows, "nflows": NFlows}


def installed() -> list[str]:
    """The peers that this environment has (envs/bench.lock)."""
    return [name for name in PEERS if find_spec(name)]
