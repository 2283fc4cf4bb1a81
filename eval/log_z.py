"""The EBM's log Z, bounded from below, and the bits/dim that each bound implies.

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

import torch
from torch import Tensor

from eval.annealing import explore
from eval.bits_per_dim import measure
from eval.bounds import certificate, effective_sample_size, estimates, importance, pareto_k
from eval.score import Score, mean_score, standard_error, write_scores
from fce.data.batches import Images
from fce.energy import EnergyModel
from fce.flow.glow import Glow
from fce.flow.sampler import Gaussian
from fce.models import open_players
from pipeline.checkpoint import load
from pipeline.job import Job
from pipeline.progress import log


def run(job: Job) -> None:
    settings, coding, data = job.params.log_z, job.params.bits_per_dim, job.data
    energy, flow = open_players(load(job.inputs["model"]), job.device)
    generator = torch.Generator().manual_seed(job.seed_for("noise"))
    w, outside, annealing, chains = explore(energy, flow, settings, generator, job)
    for n in [settings.samples // 2**k for k in range(8, -1, -1)]:
        job.record.log(n, log_z_importance=importance(w[:n]), log_z_certificate=certificate(w[:n], settings.level))
    bits = measure(energy, data, "test", coding, job.seed_for("test"))  # as if log Z were 0
    c = energy.c.item()
    kinds = estimates(c, w, chains, settings)
    log.info("log Z: %s", ", ".join(f"{kind} {value:.3f}" for kind, (value, *_) in kinds.items()))
    scores = []
    for kind, (value, n, protocol) in kinds.items():
        implied = bits.mean().item() + value / (data.dims * math.log(2))
        scores += [Score(name=f"log_z_{kind}", model="ebm", value=value, n=n, protocol=protocol),
                   Score(name=f"bits_per_dim_{kind}", model="ebm", value=implied, n=bits.shape[1],
                         protocol=f"test part, {len(bits)} dequantisation draws; log Z: {protocol}")]
    r_data = log_ratios(energy, flow, data, coding.batch, job.seed_for("contrast"))
    real, fake = (r_data > 0).double(), (w < c).double()
    scores += [
        mean_score("told_apart_data", "ebm", real, "test images with p > q"),
        mean_score("told_apart_gen", "ebm", fake, "samples of the flow with p < q"),
        Score(name="told_apart", model="ebm", value=(real.mean() + fake.mean()).item() / 2,
              n=len(real) + len(fake), standard_error=standard_error(real, fake),
              protocol="accuracy of the posterior p/(p + q): mean of test images and samples of the flow"),
    ]
    facts = {
        "excess_mass": (max(0.0, kinds["certificate"][0] - c),
                        "certificate minus c, where positive: exp(f - c) integrates to e^this or more"),
        "effective_sample_size": (effective_sample_size(w), "of importance sampling"),
        "pareto_k": (pareto_k(w), "of the largest importance weights; above 0.7 they are not to be trusted"),
        "effective_chains": (effective_sample_size(chains), "effective sample size of the annealed chains"),
        "acceptance": (annealing.accepted, "of HMC's proposals, mean over temperatures"),
        "outside_box": (outside, "flow samples with a pixel outside the data's box"),
    }
    scores += [Score(name=name, model="ebm", value=value, n=len(w), protocol=protocol)
               for name, (value, protocol) in facts.items()]
    write_scores(job, scores)


@torch.no_grad()
def log_ratios(energy: EnergyModel, flow: Glow | Gaussian, data: Images, batch: int, seed: int) -> Tensor:
    """log p - log q [N] in nats, by the learned c, on the test images, dequantised once."""
    x = data.part("test", torch.Generator().manual_seed(seed))
    return torch.cat([energy.log_prob(part) - flow.log_prob(part) for part in x.split(batch)]).double().cpu()
