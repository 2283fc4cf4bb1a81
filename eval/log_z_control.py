"""How far the bounds on log Z can be trusted: measured on an EBM whose log Z is known.

The EBM is planted: f = log q' + a constant, q' the flow of another seed. Its log Z is the constant, and q' gives exact
samples, so that annealing backwards from these bounds log Z from above: the two directions sandwich the truth, and the
gap between them is the estimator's error.
"""

import math

import torch
from torch import Tensor

from eval.annealing import explore
from eval.bounds import estimates, importance
from eval.score import Score, write_scores
from fce.models import open_densities
from pipeline.checkpoint import load
from pipeline.job import Job

CONSTANT = 100.0  # any: every estimate is measured against it


def run(job: Job) -> None:
    settings = job.params.log_z
    flow, planted = (open_densities(load(job.inputs[name]), job.device)["flow"] for name in ("flow", "planted"))
    generator = torch.Generator().manual_seed(job.seed_for("noise"))

    def energy(x: Tensor) -> Tensor:
        return planted.log_prob(x) + CONSTANT

    w, _, annealing, forward = explore(energy, flow, settings, generator, job)
    with torch.no_grad():
        exact = flow.encode(planted.sample(settings.chains, generator=generator))[0]
    low, high = importance(forward), -importance(annealing.reverse(exact, generator))
    bounds = estimates(CONSTANT, w, forward, settings)
    bounds["ais_reverse"] = (high, len(exact), "annealing from exact samples of the EBM, an upper bound in expectation")
    del bounds["learned"]
    scores = [Score(name=f"log_z_error_{kind}", model="ebm", value=value - CONSTANT, n=n,
                    protocol=f"minus the true log Z; {protocol}") for kind, (value, n, protocol) in bounds.items()]
    scores += [
        Score(name="ais_gap", model="ebm", value=high - low, n=settings.chains,
              protocol="upper minus lower annealed bound: the estimator's error"),
        Score(name="ais_gap_bits", model="ebm", value=(high - low) / (flow.dims * math.log(2)),
              n=settings.chains, protocol="the same in bits/dim"),
        Score(name="dimensions", model="ebm", value=flow.dims, n=1, protocol="of x"),
    ]
    write_scores(job, scores)
