"""Measure: the EBM's normalising constant log Z, bounded from below, and the bits/dim that each bound implies.

With w(x) = f(x) - log q(x), Z = E_q exp(w). Every estimate here but the learned c errs towards small Z, so towards
an EBM that looks better than it is: a claim "the EBM's bits/dim are below Glow's" can be refuted, never confirmed.

- jensen: log Z >= E_q w.
- importance: log mean exp(w), below log Z in expectation; trust it as far as its effective sample size goes.
- certificate: holds with the stated probability whatever w's distribution (Markov and order statistics).
- ais: annealed importance sampling (arXiv physics/9803008) with Hamiltonian Monte Carlo in the flow's noise space,
  below log Z in expectation and far closer than importance sampling where w is spread out.

The same samples tell how well the EBM, as a classifier, knows real images from its flow's.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, genpareto
from torch import Tensor

from eval.bits_per_dim import measure
from eval.score import Score, mean_score, standard_error, write_scores
from fce.data.data import Images, open_data
from fce.energy import EnergyModel
from fce.flow.glow import Gaussian, Glow, Sampler
from fce.joint import load_models
from fce.progress import Progress, log
from fce.resume import Keeper
from fce.stage import Job, main

RANKS = tuple(r * 10**d for d in range(1, 8) for r in (1, 3))  # the certificate's order statistics, fixed beforehand
Energy = Callable[[Tensor], Tensor]  # x [B, ...] -> f [B]
LogWeight = Callable[[Tensor], Tensor]  # noise eps [B, D] -> w at the flow's sample g(eps), [B]


def importance(w: Tensor) -> float:
    """log mean exp(w) in nats, of log-weights [N]."""
    return torch.logsumexp(w.double(), 0).item() - math.log(len(w))


def effective_sample_size(w: Tensor) -> float:
    """(sum of weights)^2 / sum of squared weights: N where all are equal, 1 where one outweighs the rest."""
    return math.exp(2 * torch.logsumexp(w.double(), 0).item() - torch.logsumexp(2 * w.double(), 0).item())


def pareto_k(w: Tensor) -> float:
    """Shape of the largest weights' generalised Pareto distribution (arXiv 1507.02646); above 0.7 don't trust them."""
    largest = min(len(w) // 5, math.ceil(3 * math.sqrt(len(w))))
    top = (w.double() - w.max()).exp().sort(descending=True).values[: largest + 1].numpy()
    excess = top[:-1] - top[-1]
    return float(genpareto.fit(excess, floc=0)[0]) if excess[0] > 0 else -math.inf


def certificate(w: Tensor, level: float) -> float:
    """A lower bound on log Z, in nats, that fails with probability at most 1 - level, whatever q and f are.

    Z >= e^t P_q(w >= t) for every t. At t = the k-th largest of N weights, P is at least the (1 - level)-quantile of
    Beta(k, N - k + 1) (Clopper-Pearson), here for the ranks RANKS and N together (Bonferroni).
    """
    n, falling = len(w), w.double().sort(descending=True).values.numpy()
    ranks = np.array([k for k in RANKS if k < n] + [n])
    return float((falling[ranks - 1] + np.log(beta.ppf((1 - level) / len(ranks), ranks, n - ranks + 1))).max())


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
        self.sizes = [0.2] * (self.temperatures + 1)

    def adapt(self, eps: Tensor, generator: torch.Generator) -> None:
        """Choose each step size so that about `target` of the proposals are accepted, from chains that start at eps."""
        keeper = self.keeper("adapt", generator=generator)
        done = keeper.load() or {"step": 0, "eps": eps, "sizes": self.sizes}
        self.sizes = done["sizes"]
        for i in range(done["step"], len(self.betas)):
            size = self.sizes[max(i - 1, 0)]
            done["eps"], accepted = self.move(done["eps"].to(eps), self.betas[i], size, generator)
            self.sizes[i] = size * math.exp(accepted - self.target)
            done["step"] = i + 1
            keeper.tick(lambda: done)
        keeper.save(done)

    def forward(self, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Log-weights [B] of chains from the flow's noise eps [B, D] to the EBM: log mean exp is below log Z."""
        return self.run(eps, range(self.temperatures), +1, generator)

    def reverse(self, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Log-weights [B] of chains from exact samples of the EBM back to the flow.

        Minus log mean exp of these is above log Z (Grosse et al., arXiv 1511.02543).
        """
        return self.run(eps, range(self.temperatures, 0, -1), -1, generator)

    def run(self, eps: Tensor, places: range, way: int, generator: torch.Generator) -> Tensor:
        keeper = self.keeper("forward" if way > 0 else "reverse", generator=generator)
        done = keeper.load() or {"step": 0, "eps": eps, "accepted": [],
                                 "total": torch.zeros(len(eps), dtype=torch.float64)}
        progress = Progress(self.temperatures, len(eps), done["step"])
        for step, i in enumerate(places[done["step"] :], done["step"] + 1):
            here = done["eps"].to(eps)
            # in both directions the state is one of betas[i] before the weight is taken
            if way < 0 or i > 0:
                here, share = self.move(here, self.betas[i], self.sizes[i], generator)
                done["accepted"].append(share)
            with torch.no_grad():
                done["total"] += (self.betas[i + way] - self.betas[i]) * self.log_weight(here).double().cpu()
            done["eps"], done["step"] = here, step
            progress(step, log_z=way * importance(done["total"]))
            keeper.tick(lambda: done)
        keeper.save(done)
        self.accepted = float(np.mean(done["accepted"])) if done["accepted"] else math.nan
        total: Tensor = done["total"]
        return torch.where(total.isfinite(), total, -math.inf)  # weight 0: a bound stays a bound

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


def run(job: Job) -> None:
    settings = job.params["log_z"]
    data = open_data(job.inputs["data"], {"source": "images"}, job.device)
    assert isinstance(data, Images)
    energy, flow = load_models(job.inputs["model"], job.device)
    generator = torch.Generator().manual_seed(job.seed_for("noise"))
    w, outside, annealing, chains = explore(energy, flow, settings, generator, job)
    for n in [settings["samples"] // 2**k for k in range(8, -1, -1)]:
        job.record.log(n, log_z_importance=importance(w[:n]), log_z_certificate=certificate(w[:n], settings["level"]))
    bits = measure(energy, data, "test", job.params["bits_per_dim"], job.seed_for("test"))  # as if log Z were 0
    c = energy.c.item()
    kinds = estimates(c, w, chains, settings)
    log.info("log Z: %s", ", ".join(f"{kind} {value:.3f}" for kind, (value, *_) in kinds.items()))
    scores = []
    for kind, (value, n, protocol) in kinds.items():
        implied = bits.mean().item() + value / (data.dims * math.log(2))
        scores += [Score(name=f"log_z_{kind}", model="ebm", value=value, unit="nats", n=n, protocol=protocol),
                   Score(name=f"bits_per_dim_{kind}", model="ebm", value=implied, unit="bits/dim", n=bits.shape[1],
                         protocol=f"test part, {len(bits)} dequantisation draws; log Z: {protocol}")]
    r_data = log_ratios(energy, flow, data, job.params["bits_per_dim"]["batch"], job.seed_for("contrast"))
    real, fake = (r_data > 0).double(), (w < c).double()
    scores += [
        mean_score("told_apart_data", "ebm", real, "share", "test images with p > q"),
        mean_score("told_apart_gen", "ebm", fake, "share", "samples of the flow with p < q"),
        Score(name="told_apart", model="ebm", value=(real.mean() + fake.mean()).item() / 2, unit="share",
              n=len(real) + len(fake), standard_error=standard_error(real, fake),
              protocol="accuracy of the posterior p/(p + q): mean of test images and samples of the flow"),
    ]
    facts = {
        "excess_mass": (max(0.0, kinds["certificate"][0] - c), "nats",
                        "certificate minus c, where positive: exp(f - c) integrates to e^this or more"),
        "effective_sample_size": (effective_sample_size(w), "samples", "of importance sampling"),
        "pareto_k": (pareto_k(w), "shape", "of the largest importance weights; above 0.7 they are not to be trusted"),
        "effective_chains": (effective_sample_size(chains), "chains", "effective sample size of the annealed chains"),
        "acceptance": (annealing.accepted, "share", "of HMC's proposals, mean over temperatures"),
        "outside_box": (outside, "share", "flow samples with a pixel outside the data's box"),
    }
    scores += [Score(name=name, model="ebm", value=value, unit=unit, n=len(w), protocol=protocol)
               for name, (value, unit, protocol) in facts.items()]
    write_scores(job, scores)


@torch.no_grad()
def log_ratios(energy: EnergyModel, flow: Glow | Gaussian, data: Images, batch: int, seed: int) -> Tensor:
    """log p - log q [N] in nats, by the learned c, on the test images, dequantised once."""
    x = data.part("test", torch.Generator().manual_seed(seed))
    return torch.cat([energy.log_prob(part) - flow.log_prob(part) for part in x.split(batch)]).double().cpu()


def explore(
    energy: Energy, flow: Sampler, settings: dict[str, Any], generator: torch.Generator, job: Job
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

    parts, outside, left = [], 0, settings["samples"]
    with torch.no_grad():
        while left:
            x, log_q = flow.decode(noise(min(settings["batch"], left)))
            parts.append((energy(x) - log_q).double().cpu())
            outside += int((x.flatten(1).abs() > 0.5).any(1).sum())
            left -= len(x)
    w = torch.cat(parts)
    annealing = Annealing(log_weight, settings["temperatures"], settings["leapfrog"], keeper=job.keeper)
    annealing.adapt(noise(settings["chains"]), generator)
    chains = annealing.forward(noise(settings["chains"]), generator)
    # a sample that is no number counts as weight 0: every bound stays one
    return torch.where(w.isfinite(), w, -math.inf), outside / len(w), annealing, chains


def estimates(c: float, w: Tensor, chains: Tensor, settings: dict[str, Any]) -> dict[str, tuple[float, int, str]]:
    """{kind: (log Z in nats, number of samples, protocol in words)}."""
    finite, level = w[w.isfinite()], settings["level"]
    mean = finite.mean().item() + math.log(len(finite) / len(w)) if len(finite) else -math.inf
    how = f"{len(w)} samples of the flow, {len(w) - len(finite)} of them not finite"
    path = f"{settings['temperatures']} temperatures, {settings['leapfrog']} leapfrog steps each"
    return {
        "learned": (c, 1, "the learned constant c, neither an estimate nor a bound"),
        "jensen": (mean, len(w), f"mean of f - log q; {how}"),
        "importance": (importance(w), len(w), f"importance sampling, a lower bound in expectation; {how}"),
        "certificate": (certificate(w, level), len(w), f"a lower bound with probability {level:g}; {how}"),
        "ais": (importance(chains), len(chains), f"annealed importance sampling, a lower bound in expectation; {path}"),
    }


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data", "model"], resumes=True))
