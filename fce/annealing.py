"""Annealed importance sampling of an EBM's log Z, by Hamiltonian Monte Carlo in its flow's noise space.

The mean weight of the chains has the expectation Z, however few the temperatures and however badly the chains mix, if
their moves leave the targets invariant and nothing was chosen by looking at them (`fce/bounds.py` makes a certificate
of that). So it goes in two steps that share no chance: `adapt` learns step sizes from chains of its own, and
`Annealing` runs new ones with sizes that are fixed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fce.bounds import certificate, effective_sample_size, importance
from fce.energy import EnergyModel
from fce.flow.sampler import Sampler

Weight = Callable[[Tensor, Tensor], Tensor]  # x [B, ...] and its log q(x) [B] -> w = f(x) - log q(x), [B]
LogWeight = Callable[[Tensor], Tensor]  # noise eps [B, D] -> w at the flow's sample g(eps), [B]
START = 0.2  # the leapfrog's step size, to begin with


class Unkept:
    """Keeps no state of a loop; what the suite gives in its place does."""

    def __init__(self, loop: str, **parts: Any):
        pass

    def load(self) -> bool:
        return False

    def tick(self) -> None:
        pass

    save = tick


class Chains:
    """Chains on their way: the steps behind them, and what these gave.

    Attributes:
        eps: where they are, [B, D].
        here: w there and its gradient, ([B], [B, D]); None where nobody has looked yet.
        total: their log-weights so far, [B].
        accepted: the share of accepted proposals of each trajectory.
        sizes: the step sizes found so far, by chains that look for them.
    """

    def __init__(self, eps: Tensor):
        self.step, self.eps, self.total = 0, eps, torch.zeros(len(eps), dtype=torch.float64)
        self.here: tuple[Tensor, Tensor] | None = None
        self.accepted, self.sizes = list[float](), [START]

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def look(self, path: "Path") -> tuple[Tensor, Tensor]:
        """w where they are and its gradient; computed once for each place, since it is most of the work."""
        self.eps = self.eps.to(path.device)  # of a saved state it is the CPU's
        w, slope = self.here or path.slope(self.eps)
        self.here = w.to(path.device), slope.to(path.device)
        return self.here


@dataclass(frozen=True)
class Path:
    """From the flow (b = 0) to the EBM (b = 1): log N(eps; 0, I) + b w(g(eps)), and HMC that leaves each invariant.

    Attributes:
        log_weight: eps [B, D] -> w [B], differentiable.
        dims: D.
        temperatures: how many b, closer together near both ends.
        leapfrog: steps of a trajectory.
        device: where eps lives; its chance is the CPU's.
        keeper: makes what keeps the state of a loop, of its name and parts (as `Unkept`).
        progress: makes what is told of each step, of the number of steps, chains, and steps that were done before.
    """

    log_weight: LogWeight
    dims: int
    temperatures: int
    leapfrog: int
    device: str = "cpu"
    keeper: Callable[..., Any] = Unkept
    progress: Callable[[int, int, int], Callable[..., None]] = lambda *_: lambda *_, **__: None

    def __post_init__(self) -> None:
        for name in ("temperatures", "leapfrog"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, but it is 1 at least")

    @cached_property
    def betas(self) -> list[float]:
        """The temperatures b, from 0 to 1."""
        ends = torch.sigmoid(torch.tensor([-4.0, 4.0]))
        curve = torch.sigmoid(torch.linspace(-4, 4, self.temperatures + 1))
        return ((curve - ends[0]) / (ends[1] - ends[0])).double().tolist()

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.dims, generator=generator).to(self.device)

    def move(self, chains: Chains, b: float, size: float, generator: torch.Generator) -> float:
        """One trajectory of each chain; returns the share that was accepted."""
        here, eps = chains.look(self), chains.eps
        momentum = torch.randn(eps.shape, generator=generator).to(eps)
        energy, force = self.potential(eps, b, *here)
        start = energy + 0.5 * momentum.square().sum(1)
        x = eps
        for _ in range(self.leapfrog):
            momentum = momentum - 0.5 * size * force
            x = x + size * momentum
            there = self.slope(x)
            new, force = self.potential(x, b, *there)
            momentum = momentum - 0.5 * size * force
        end = new + 0.5 * momentum.square().sum(1)
        chance = torch.rand(len(eps), generator=generator).to(eps)
        # never to where the density is no number, nor from there: either alone would not leave it invariant
        accept = (chance.log() < start - end) & start.isfinite()
        chains.eps = torch.where(accept[:, None], x, eps)
        chains.here = torch.where(accept, there[0], here[0]), torch.where(accept[:, None], there[1], here[1])
        return accept.float().mean().item()

    def slope(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """w [B], and its gradient [B, D]."""
        with torch.enable_grad():
            eps = eps.detach().requires_grad_()
            w = self.log_weight(eps)
            return w.detach(), torch.autograd.grad(w.sum(), eps)[0]

    def potential(self, eps: Tensor, b: float, w: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """-log of the annealed density [B] but for its constant, infinite where no number; its gradient [B, D]."""
        value, force = 0.5 * eps.square().sum(1) - b * w, eps - b * slope
        fine = value.isfinite() & force.isfinite().all(1)
        return torch.where(fine, value, torch.inf), torch.where(fine[:, None], force, 0)


def adapt(path: Path, n: int, generator: torch.Generator, target: float = 0.65) -> tuple[float, ...]:
    """The leapfrog's step size at each temperature, so that HMC accepts about `target` of its proposals.

    0.65 is where HMC moves fastest (arXiv 1001.4460). The n chains that this is learned from are its own: their chance
    comes from a generator that one draw of the given one seeds, so that no later chain can be one of these.
    """
    own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    chains = Chains(path.noise(n, own))
    keeper = path.keeper("adapt", chains=chains, generator=own)
    keeper.load()
    for b in path.betas[chains.step :]:
        size = chains.sizes[-1]
        chains.sizes.append(size * math.exp(path.move(chains, b, size, own) - target))
        chains.step += 1
        keeper.tick()
    keeper.save()
    return tuple(chains.sizes[1:])


class Annealed(NamedTuple):
    """Log-weights [B] of annealed chains, and the share of HMC's proposals that was accepted (nan: none was made)."""

    log_weights: Tensor
    accepted: float


@dataclass(frozen=True)
class Annealing:
    """AIS along a path, by steps of sizes that were fixed beforehand, which nothing here can change.

    That is what makes the mean weight unbiased, with any number of temperatures and chains, converged or not: a size
    that had been chosen by looking at the chains that it moves would leave no target invariant.

    Attributes:
        sizes: the leapfrog's step size at each of the path's temperatures, e.g. from `adapt`.
    """

    path: Path
    sizes: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))  # a list could still be changed by its owner
        if len(self.sizes) != len(self.path.betas):
            raise ValueError(f"sizes: {len(self.sizes)}, but the path has {len(self.path.betas)} temperatures, both "
                             "ends among them; give each its step size")

    def forward(self, n: int, generator: torch.Generator) -> Annealed:
        """n chains from the flow's noise, drawn here, to the EBM: the mean of exp(log-weight) has the expectation Z."""
        return self.run(self.path.noise(n, generator), range(self.path.temperatures), +1, generator)

    def reverse(self, eps: Tensor, generator: torch.Generator) -> Annealed:
        """Chains from exact samples of the EBM, eps [B, D], back: the mean of exp(log-weight) has the expectation 1/Z.

        So minus its logarithm is above log Z but for chance (Grosse et al., arXiv 1511.02543).
        """
        return self.run(eps, range(self.path.temperatures, 0, -1), -1, generator)

    def run(self, eps: Tensor, places: range, way: int, generator: torch.Generator) -> Annealed:
        path, chains = self.path, Chains(eps)
        keeper = path.keeper("forward" if way > 0 else "reverse", chains=chains, generator=generator)
        keeper.load()
        progress = path.progress(path.temperatures, len(eps), chains.step)
        for i in places[chains.step :]:
            # in both directions the state is one of betas[i] before the weight is taken
            if way < 0 or i > 0:
                chains.accepted.append(path.move(chains, path.betas[i], self.sizes[i], generator))
            chains.total += (path.betas[i + way] - path.betas[i]) * chains.look(path)[0].double().cpu()
            chains.step += 1
            progress(chains.step, log_z=way * importance(chains.total))
            keeper.tick()
        keeper.save()
        total = torch.where(chains.total.isfinite(), chains.total, -math.inf)  # weight 0: a bound stays a bound
        return Annealed(total, float(np.mean(chains.accepted)) if chains.accepted else math.nan)


def explore(weight: Weight, flow: Sampler, path: Path, samples: int, batch: int, chains: int,
            generator: torch.Generator) -> tuple[Tensor, float, Annealing, Annealed]:
    """What every estimate of an EBM's log Z is made of.

    Returns:
        Log-weights [N] of the flow's samples; the share of these that leave the images' box; the annealing, its step
        sizes fixed; and what it gives from the flow to the EBM.
    """
    parts, outside, left = [], 0, samples
    with torch.no_grad():
        while left:
            x, log_q = flow.decode(path.noise(min(batch, left), generator))
            parts.append(weight(x, log_q).double().cpu())
            outside += int((x.flatten(1).abs() > 0.5).any(1).sum())
            left -= len(x)
    w = torch.cat(parts)
    annealing = Annealing(path, adapt(path, chains, generator))
    forward = annealing.forward(chains, generator)
    # a sample that is no number counts as weight 0: every bound stays one
    return torch.where(w.isfinite(), w, -math.inf), outside / len(w), annealing, forward


def bound_log_z(energy: EnergyModel, flow: Sampler, samples: int = 10_000, chains: int = 100, temperatures: int = 100,
                leapfrog: int = 5, level: float = 0.99, seed: int = 0) -> dict[str, float]:
    """What can be known of log Z of exp(f), in nats: that of p(x) = exp(f(x) - c) should be c.

    Args:
        energy, flow: the players of one game, on one device.
        samples: of the flow, for importance sampling; chains, temperatures, leapfrog: of annealed importance sampling.
        level: the probability with which `certificate` is a lower bound.

    Returns:
        `learned`: c. `importance`, `ais`: estimates, each below log Z in expectation. `certificate`: a lower bound with
        probability `level`, whatever the players are. `effective_samples`, `effective_chains`: how far to trust them.

    Raises:
        ValueError: a number below 1, or a level that is no probability.
    """
    if min(samples, chains) < 1 or not 0 < level < 1:
        raise ValueError(f"samples: {samples}, chains: {chains}, level: {level}; the first two are 1 at least, "
                         "the level lies between 0 and 1")
    c, device = energy.c.item(), str(energy.c.device)

    def weight(x: Tensor, log_q: Tensor) -> Tensor:
        return energy.log_ratio(x, log_q) + c

    path = Path(lambda eps: weight(*flow.decode(eps)), flow.dims, temperatures, leapfrog, device)
    w, _, _, annealed = explore(weight, flow, path, samples, 1000, chains, torch.Generator().manual_seed(seed))
    ends = annealed.log_weights
    return {"learned": c, "importance": importance(w), "ais": importance(ends),
            "certificate": certificate(w, ends, level)[0], "effective_samples": effective_sample_size(w),
            "effective_chains": effective_sample_size(ends)}
