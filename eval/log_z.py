"""The EBM's log Z, bounded from below, the bits/dim that each bound implies, and whether p and q are told apart.

With w(x) = f(x) - log q(x), Z = E_q exp(w). Every estimate here but the learned c errs towards small Z, so towards
an EBM that looks better than it is: a claim "the EBM's bits/dim are below Glow's" can be refuted, never confirmed.

- jensen: log Z >= E_q w.
- importance: log mean exp(w), below log Z in expectation; trust it as far as its effective sample size goes.
- ais: annealed importance sampling (arXiv physics/9803008) with Hamiltonian Monte Carlo in the flow's noise space,
  below log Z in expectation and far closer than importance sampling where w is spread out.
- certificate: holds with the stated probability whatever w's distribution and whatever the chains did, since the mean
  weight of either has the expectation Z: the larger of order statistics of w and Markov's inequality on AIS.

The posterior p/(p + q), by the learned c, tells how well the EBM knows real images from its flow's samples. It is asked
of training images, the x_i of eq. 3 that both players learn from: on unseen ones p > q also where the flow over-fits
more than the EBM, whatever that has learned. The test part stands beside them.
"""

import math

import torch
from torch import Tensor

from eval.annealing import estimates, explore
from eval.bits_per_dim import WORDS, log_densities, measure
from eval.score import Score, mean_score, standard_error, write_scores
from fce.bounds import effective_sample_size, importance, order_statistics, pareto_k
from fce.energy import EnergyModel
from fce.flow.glow import Glow
from fce.flow.sampler import Gaussian
from fce.models import open_players
from pipeline.checkpoint import load
from pipeline.job import Job
from pipeline.progress import log


def run(job: Job) -> None:
    settings, data = job.params.log_z, job.data
    energy, flow = open_players(load(job.inputs["model"]), job.device)
    generator = torch.Generator().manual_seed(job.seed_for("noise"))
    c = energy.c.item()
    w, outside, _, annealed = explore(lambda x, log_q: energy.log_ratio(x, log_q) + c, flow, settings, generator, job)
    chains = annealed.log_weights
    for n in [settings.samples // 2**k for k in range(8, -1, -1)]:
        job.record.log(n, log_z_importance=importance(w[:n]), order_statistics=order_statistics(w[:n], settings.level))
    bits = measure(energy, job, "test")  # as if log Z were 0
    kinds = estimates(c, w, chains, settings)
    log.info("log Z: %s", ", ".join(f"{kind} {value:.3f}" for kind, (value, *_) in kinds.items()))
    scores = []
    for kind, (value, n, protocol) in kinds.items():
        scores += [Score(name=f"log_z_{kind}", model="ebm", value=value, n=n, protocol=protocol),
                   mean_score(f"bits_per_dim_{kind}", "ebm", bits.mean(0) + value / (data.dims * math.log(2)),
                              f"test part, {len(bits)} dequantisation draws, whose error alone is given; log Z: "
                              f"{protocol}")]
    facts = {
        "excess_mass": (max(0.0, kinds["certificate"][0] - c),
                        "certificate minus c, where positive: exp(f - c) integrates to e^this or more"),
        "effective_sample_size": (effective_sample_size(w), "of importance sampling"),
        "pareto_k": (pareto_k(w), "of the largest importance weights; above 0.7 they are not to be trusted"),
        "effective_chains": (effective_sample_size(chains), "effective sample size of the annealed chains"),
        "acceptance": (annealed.accepted, "of HMC's proposals, mean over temperatures"),
        "outside_box": (outside, "flow samples with a pixel outside the data's box"),
    }
    scores += told_apart(energy, flow, (w < c).double(), job)
    scores += [Score(name=name, model="ebm", value=value, n=len(w), protocol=protocol)
               for name, (value, protocol) in facts.items()]
    write_scores(job, scores)


def told_apart(energy: EnergyModel, flow: Glow | Gaussian, fake: Tensor, job: Job) -> list[Score]:
    """How often the posterior p/(p + q) is right of training images, of test images and, `fake` [N], of samples."""
    scores = [mean_score("told_apart_gen", "ebm", fake, "samples of the flow with p < q", shared=False)]
    for part, ending in (("train", ""), ("test", "_test")):
        # log p - log q [n] in nats, by the learned c, dequantised once
        ratios = log_densities(lambda x: energy.log_ratio(x, flow.log_prob(x)), job, part, 1)[0]
        real = (ratios > 0).double()
        scores += [
            mean_score(f"told_apart_data{ending}", "ebm", real, f"with p > q: {WORDS[part]}", shared=part == "test"),
            Score(name=f"told_apart{ending}", model="ebm", value=(real.mean() + fake.mean()).item() / 2,
                  n=len(real) + len(fake), standard_error=standard_error(real, fake), shared=part == "test",
                  protocol=f"accuracy of the posterior p/(p + q): mean of samples of the flow and of {WORDS[part]}"),
        ]
    return scores
