"""How far the bounds on log Z can be trusted: measured on an EBM whose log Z is known.

The EBM is planted: f = log q' + a constant, q' the flow of another seed, or of a seed alone after its joint training.
Its log Z is the constant, and q' gives exact samples, so that annealing backwards from these bounds log Z from above:
the two directions sandwich the truth, and the gap between them is the estimator's error. By Markov's inequality both
ends are certain: reverse chains have the mean weight 1/Z, so log Z <= -(log mean exp(their log-weights) + log delta)
with probability 1 - delta. A trained EBM gives no exact samples (what HMC gives is only near its law), so of its log Z
there is no upper end.
"""

import math

import torch
from torch import Tensor

from eval.annealing import estimates, explore
from eval.score import Score, write_scores
from fce.bounds import certificate, importance, markov
from fce.models import open_densities
from pipeline.checkpoint import load
from pipeline.errors import UserError
from pipeline.job import Job

CONSTANT = 100.0  # any: every estimate is measured against it


def run(job: Job) -> None:
    if job.hashes["flow"] == job.hashes["planted"]:
        raise UserError("--planted: the same flow as --flow, against which everything is right; take another seed's")
    settings = job.params.log_z
    flow, planted = (open_densities(load(job.inputs[name]), job.device)["flow"] for name in ("flow", "planted"))
    generator = torch.Generator().manual_seed(job.seed_for("noise"))

    def weight(x: Tensor, log_q: Tensor) -> Tensor:
        return planted.log_prob(x) + CONSTANT - log_q

    w, _, annealing, forward = explore(weight, flow, settings, generator, job)
    with torch.no_grad():
        exact = flow.encode(planted.sample(settings.chains, generator=generator))[0]
    reverse = annealing.reverse(exact, generator).log_weights
    low, high = importance(forward.log_weights), -importance(reverse)
    lower, upper = interval(w, forward.log_weights, reverse, settings.level)
    bounds = estimates(CONSTANT, w, forward.log_weights, settings)
    bounds["ais_reverse"] = (high, len(exact), "annealing from exact samples of the EBM, above log Z in expectation")
    holds = f"of an interval that holds log Z with probability {settings.level:g}"
    bounds["lower"] = (lower, len(w), f"lower end {holds}: the certificate at half its chance to fail")
    bounds["upper"] = (upper, len(exact), f"upper end {holds}: Markov's inequality on annealing from exact samples")
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


def interval(w: Tensor, forward: Tensor, reverse: Tensor, level: float) -> tuple[float, float]:
    """Both ends, in nats, of an interval that holds log Z with probability `level`; each fails with half of the rest.

    Args:
        w: log-weights of independent samples of the flow [N].
        forward: log-weights of annealed chains from the flow to the EBM [B].
        reverse: the same from exact samples of the EBM back to the flow [B].
    """
    half = (1 - level) / 2
    return certificate(w, forward, 1 - half)[0], -markov(reverse, half)
