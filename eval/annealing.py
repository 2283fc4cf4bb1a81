"""Every estimate of an EBM's log Z, made by a stage: with its settings, its progress and its state kept."""

import math

import torch
from torch import Tensor

from fce import annealing
from fce.annealing import Annealed, Annealing, Path, Weight
from fce.bounds import certificate, importance
from fce.flow.sampler import Sampler
from pipeline.job import Job
from pipeline.progress import Progress
from pipeline.schema.measures import LogZ


def explore(
    weight: Weight, flow: Sampler, settings: LogZ, generator: torch.Generator, job: Job
) -> tuple[Tensor, float, Annealing, Annealed]:
    """As the library's, by a stage."""
    path = Path(lambda eps: weight(*flow.decode(eps)), flow.dims, settings.temperatures, settings.leapfrog, job.device,
                job.keeper, Progress)
    return annealing.explore(weight, flow, path, settings.samples, settings.batch, settings.chains, generator)


def estimates(c: float, w: Tensor, chains: Tensor, settings: LogZ) -> dict[str, tuple[float, int, str]]:
    """{kind: (log Z in nats, number of samples, protocol in words)}."""
    finite, (certain, by) = w[w.isfinite()], certificate(w, chains, settings.level)
    mean = finite.mean().item() + math.log(len(finite) / len(w)) if len(finite) else -math.inf
    how = f"{len(w)} samples of the flow, {len(w) - len(finite)} of them not finite"
    path = f"{settings.temperatures} temperatures, {settings.leapfrog} leapfrog steps each"
    return {
        "learned": (c, 1, "the learned constant c, neither an estimate nor a bound"),
        "jensen": (mean, len(w), f"mean of f - log q; {how}"),
        "importance": (importance(w), len(w), f"importance sampling, below log Z in expectation; {how}"),
        "certificate": (certain, len(w), f"{by}; {how}; {len(chains)} chains, {path}"),
        "ais": (importance(chains), len(chains), f"annealed importance sampling, below log Z in expectation; {path}"),
    }
