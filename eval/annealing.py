"""Annealed importance sampling of an EBM's log Z, by Hamiltonian Monte Carlo in its flow's noise space."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.bounds import importance
from fce.flow.sampler import Sampler
from pipeline.job import Job
from pipeline.progress import Progress
from pipeline.resume import Keeper, State
from pipeline.schema.measures import LogZ

Energy = Callable[[Tensor], Tensor]  # x [B, ...] -> f [B]
LogWeight = Callable[[Tensor], Tensor]  # noise eps [B, D] -> w at the flow's sample g(eps), [B]
START = 0.2  # the leapfrog's step size, to begin with


class Chains(State):
    """Chains on their way: the steps behind them, and what these gave.

    Attributes:
        eps: where they are, [B, D].
        total: their log-weights so far, [B].
        accepted: the share of accepted proposals of each trajectory.
        sizes: the step sizes found so far.
    """

    def __init__(self, eps: Tensor):
        self.step, self.eps, self.total = 0, eps, torch.zeros(len(eps), dtype=torch.float64)
        self.accepted, self.sizes = list[float](), [START]


@dataclass
class Annealing:
    """AIS between the flow (b = 0) and the EBM (b = 1), by HMC on log N(eps; 0, I) + b w(g(eps)).

    Attributes:
        log_weight: eps [B, D] -> w [B], differentiable.
        temperatures: how many b, closer together near both ends.
        leapfrog: steps of a trajectory.
        sizes: the leapfrog's step size at each b; `adapt` finds them on chains of its own, else AIS is biased.
        keeper: makes what keeps the state of a loop, of its name and parts.
    """

    log_weight: LogWeight
    temperatures: int
    leapfrog: int
    target: float = 0.65  # acceptance at which HMC moves fastest (arXiv 1001.4460)
    accepted: float = math.nan
    keeper: Callable[..., Keeper] = lambda _, **parts: Keeper(**parts)

    def __post_init__(self) -> None:
        ends = torch.sigmoid(torch.tensor([-4.0, 4.0]))
        curve = torch.sigmoid(torch.linspace(-4, 4, self.temperatures + 1))
        self.betas: list[float] = ((curve - ends[0]) / (ends[1] - ends[0])).double().tolist()
        self.sizes = [START] * len(self.betas)

    def adapt(self, eps: Tensor, generator: torch.Generator) -> None:
        """Choose each step size so that about `target` of the proposals are accepted, from chains that start at eps."""
        chains = Chains(eps)
        keeper = self.keeper("adapt", chains=chains, generator=generator)
        keeper.load()
        for b in self.betas[chains.step :]:
            size = chains.sizes[-1]
            chains.eps, accepted = self.move(chains.eps.to(eps), b, size, generator)
            chains.sizes.append(size * math.exp(accepted - self.target))
            chains.step += 1
            keeper.tick()
        keeper.save()
        self.sizes = chains.sizes[1:]

    def forward(self, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Log-weights [B] of chains from the flow's noise eps [B, D] to the EBM: log mean exp is below log Z."""
        return self.run(eps, range(self.temperatures), +1, generator)

    def reverse(self, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Log-weights [B] of chains from exact samples of the EBM back to the flow.

        Minus log mean exp of these is above log Z (Grosse et al., arXiv 1511.02543).
        """
        return self.run(eps, range(self.temperatures, 0, -1), -1, generator)

    def run(self, eps: Tensor, places: range, way: int, generator: torch.Generator) -> Tensor:
        chains = Chains(eps)
        keeper = self.keeper("forward" if way > 0 else "reverse", chains=chains, generator=generator)
        keeper.load()
        progress = Progress(self.temperatures, len(eps), chains.step)
        for i in places[chains.step :]:
            chains.eps = chains.eps.to(eps)
            # in both directions the state is one of betas[i] before the weight is taken
            if way < 0 or i > 0:
                chains.eps, accepted = self.move(chains.eps, self.betas[i], self.sizes[i], generator)
                chains.accepted.append(accepted)
            with torch.no_grad():
                chains.total += (self.betas[i + way] - self.betas[i]) * self.log_weight(chains.eps).double().cpu()
            chains.step += 1
            progress(chains.step, log_z=way * importance(chains.total))
            keeper.tick()
        keeper.save()
        self.accepted = float(np.mean(chains.accepted)) if chains.accepted else math.nan
        return torch.where(chains.total.isfinite(), chains.total, -math.inf)  # weight 0: a bound stays a bound

    def move(self, eps: Tensor, b: float, size: float, generator: torch.Generator) -> tuple[Tensor, float]:
        """One trajectory of each chain; returns the chains and the share that was accepted."""
        momentum = torch.randn(eps.shape, generator=generator).to(eps)
        energy, slope = self.potential(eps, b)
        start = energy + 0.5 * momentum.square().sum(1)
        x = eps
        for _ in range(self.leapfrog):
            momentum = momentum - 0.5 * size * slope
            x = x + size * momentum
            new, slope = self.potential(x, b)
            momentum = momentum - 0.5 * size * slope
        end = new + 0.5 * momentum.square().sum(1)
        chance = torch.rand(len(eps), generator=generator).to(eps)
        accept = chance.log() < start - end  # False where the end is not finite
        return torch.where(accept[:, None], x, eps), accept.float().mean().item()

    def potential(self, eps: Tensor, b: float) -> tuple[Tensor, Tensor]:
        """-log of the annealed density [B] but for its constant, infinite where no number; its gradient [B, D]."""
        with torch.enable_grad():
            eps = eps.detach().requires_grad_()
            value = 0.5 * eps.square().sum(1) - b * self.log_weight(eps)
            slope = torch.autograd.grad(value.sum(), eps)[0]
        fine = value.isfinite() & slope.isfinite().all(1)
        return torch.where(fine, value, torch.inf).detach(), torch.where(fine[:, None], slope, 0)


def explore(
    energy: Energy, flow: Sampler, settings: LogZ, generator: torch.Generator, job: Job
) -> tuple[Tensor, float, Annealing, Tensor]:
    """What every estimate of an EBM's log Z is made of.

    Returns:
        Log-weights [N] of the flow's samples; the share of these that leave the data's box; the annealing, adapted; and
        the log-weights [chains] that it gives.
    """
    def noise(n: int) -> Tensor:
        return torch.randn(n, flow.dims, generator=generator).to(job.device)

    def log_weight(eps: Tensor) -> Tensor:
        x, log_q = flow.decode(eps)
        return energy(x) - log_q

    parts, outside, left = [], 0, settings.samples
    with torch.no_grad():
        while left:
            x, log_q = flow.decode(noise(min(settings.batch, left)))
            parts.append((energy(x) - log_q).double().cpu())
            outside += int((x.flatten(1).abs() > 0.5).any(1).sum())
            left -= len(x)
    w = torch.cat(parts)
    annealing = Annealing(log_weight, settings.temperatures, settings.leapfrog, keeper=job.keeper)
    annealing.adapt(noise(settings.chains), generator)
    chains = annealing.forward(noise(settings.chains), generator)
    # a sample that is no number counts as weight 0: every bound stays one
    return torch.where(w.isfinite(), w, -math.inf), outside / len(w), annealing, chains
