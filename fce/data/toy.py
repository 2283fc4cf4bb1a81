"""Two-dimensional densities with exact log-densities: mixtures of Gaussians, one of them swirled; a checkerboard.

The paper (Figure 1) shows a ring of 8 Gaussians, a 5-armed pinwheel and a spiral, and gives no formulas. The others
are the field's usual ones, in the sizes of rtqichen/ffjord (arXiv 1810.01367), the checkerboard at half of its.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK = 2000  # points at once: a thousand components for each still fit into a core's cache


class Mixture:
    """A mixture of equally weighted Gaussians, then rotated by an angle that depends on the radius alone.

    Such a rotation keeps areas, so the log-density stays exact: rotate back and look up the mixture.

    Args:
        means: centres [K, 2].
        factors: Cholesky factors of the covariances [K, 2, 2].
        modes: to how many modes the components belong, equally many to each, one mode after the other.
        swirl: the angle at radius r is `swirl[0] * exp(r / swirl[1])`; None for no rotation.
    """

    def __init__(self, means: Tensor, factors: Tensor, modes: int, swirl: tuple[float, float] | None = None):
        self.modes = modes
        self.means, self.factors, self.swirl = means.double(), factors.double(), swirl
        # a component's log-density is a quadratic form: one product with 1, x, y, x^2, y^2, xy gives all of them
        log_norm = -math.log(2 * math.pi) - self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        p = torch.cholesky_inverse(self.factors)
        pm = (p @ self.means[:, :, None]).squeeze(2)
        constant = log_norm - 0.5 * (pm * self.means).sum(1)
        self.form = torch.stack([constant, *pm.T, -0.5 * p[:, 0, 0], -0.5 * p[:, 1, 1], -p[:, 0, 1]])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, 2], float32."""
        which = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        x = self.means[which] + torch.einsum("nij,nj->ni", self.factors[which], noise)
        return self.rotate(x, +1).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density [n] in nats at points x [n, 2], float64."""
        return torch.cat([self.chunk_log_prob(part) for part in x.double().split(CHUNK)])

    def mode_of(self, x: Tensor) -> Tensor:
        """The mode [n] that each point most likely comes from."""
        nearest = [self.terms(part).argmax(1) for part in x.double().split(CHUNK)]
        return torch.cat(nearest) // (len(self.means) // self.modes)

    def chunk_log_prob(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self.terms(x), 1) - math.log(len(self.means))

    def terms(self, x: Tensor) -> Tensor:
        """The log-density of each component [n, K]."""
        a, b = self.rotate(x, -1).unbind(1)
        return torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b], 1) @ self.form

    def rotate(self, x: Tensor, sign: int) -> Tensor:
        if self.swirl is None:
            return x
        angle = sign * self.swirl[0] * torch.exp(x.norm(dim=1) / self.swirl[1])
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)


def ring(modes: int, radius: float, std: float) -> Mixture:
    """`modes` round Gaussians, evenly on a circle."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return round_mixture(means, std, modes)


def pinwheel(arms: int, radial_std: float, tangential_std: float, rate: float, scale: float) -> Mixture:
    """Elongated Gaussians around the origin, swirled.

    As in Johnson et al. (arXiv 1603.06277), but the angle depends on the radius, not on the radial coordinate
    before the swirl; the picture is the same and the density is exact.
    """
    angle = torch.arange(arms, dtype=torch.float64) * (2 * math.pi / arms)
    cos, sin = angle.cos(), angle.sin()
    frame = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    factors = frame * torch.tensor([radial_std, tangential_std], dtype=torch.float64)
    means = scale * torch.stack([cos, sin], 1)
    covariances = scale**2 * factors @ factors.transpose(1, 2)
    return Mixture(means, torch.linalg.cholesky(covariances), arms, swirl=(rate, scale))


def spiral(turns: float, radius: float, std: float, components: int) -> Mixture:
    """Round Gaussians closely along one arm whose radius grows as the square root of the angle's share."""
    share = (torch.arange(components, dtype=torch.float64) + 0.5) / components
    angle, length = 2 * math.pi * turns * share.sqrt(), radius * share.sqrt()
    means = torch.stack([length * angle.cos(), length * angle.sin()], 1)
    return round_mixture(means, std, 1)


def moons(std: float, scale: float, components: int) -> Mixture:
    """Two half circles that reach into each other (scikit-learn's make_moons), as round Gaussians along them."""
    angle = (torch.arange(components, dtype=torch.float64) + 0.5) * (math.pi / components)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    centre = torch.tensor([0.5, 0.25], dtype=torch.float64)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
    return round_mixture(scale * (torch.cat([upper, lower]) - centre), std, 2)


def rings(count: int, radius: float, std: float, components: int) -> Mixture:
    """Concentric circles of equal mass, the outermost at `radius`, as round Gaussians closely along them."""
    circles = [ring(components, radius * (i + 1) / count, std).means for i in range(count)]
    return round_mixture(torch.cat(circles), std, count)


def round_mixture(means: Tensor, std: float, modes: int) -> Mixture:
    return Mixture(means, std * torch.eye(2, dtype=torch.float64).repeat(len(means), 1, 1), modes)


class Checkerboard:
    """Uniform on every second of `squares` x `squares` squares with sides of length `side`, around the origin."""

    edge = 1e-6  # points keep this share of a side away from the walls: float32 would put some beyond them

    def __init__(self, squares: int, side: float):
        self.squares, self.side = squares, side
        index = torch.cartesian_prod(torch.arange(squares), torch.arange(squares))
        self.dark = index[index.sum(1) % 2 == 0]
        self.modes = len(self.dark)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, 2], float32."""
        which = torch.randint(self.modes, (n,), generator=generator)
        inside = torch.rand(n, 2, generator=generator, dtype=torch.float64) * (1 - 2 * self.edge) + self.edge
        return ((self.dark[which] + inside - self.squares / 2) * self.side).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density [n] in nats at points x [n, 2], float64; -inf off the dark squares."""
        index = (x.double() / self.side + self.squares / 2).floor()
        on_board = ((index >= 0) & (index < self.squares)).all(1)
        log_p = torch.full((len(x),), -math.log(self.modes * self.side**2), dtype=torch.float64)
        return log_p.where(on_board & (index.sum(1) % 2 == 0), -math.inf)

    def mode_of(self, x: Tensor) -> Tensor:
        """The dark square [n] whose centre is nearest to each point."""
        centres = (self.dark + 0.5 - self.squares / 2) * self.side
        return torch.cat([torch.cdist(part.double(), centres.double()).argmin(1) for part in x.split(20_000)])


Density = Mixture | Checkerboard
MAKERS: dict[str, Callable[..., Density]] = {
    "ring": ring, "pinwheel": pinwheel, "spiral": spiral, "checkerboard": Checkerboard, "moons": moons, "rings": rings
}


def density(source: str, **shape: Any) -> Density:
    """The density that a `data:` section of params.yaml describes, but for the number of its held-out points."""
    return MAKERS[source](**shape)


def grid(box: float, points: int, device: str | torch.device = "cpu") -> Tensor:
    """Midpoints of points x points cells over [-box, box]^2, as [points^2, 2]; x varies slowest."""
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) * (2 * box / points) - box
    return torch.cartesian_prod(axis, axis).float().to(device)


def log_mass(log_density: Tensor, box: float) -> float:
    """log of the integral over [-box, box]^2 by the midpoint rule, from log-densities on such a grid."""
    cell = (2 * box) ** 2 / len(log_density)
    return torch.logsumexp(log_density.double(), 0).item() + math.log(cell)
