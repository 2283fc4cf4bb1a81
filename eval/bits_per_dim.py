"""Bits per dimension on the test part (Table 2).

The flow's is exact up to the dequantisation noise, which is part of the standard error over images. The EBM's uses the
learned c: it is a likelihood only if c is log Z, and is marked unverified.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eval.score import Score, mean_score, write_scores
from fce.data.batches import Images
from fce.data.pixels import bits_per_dim, dequantize
from fce.models import open_densities
from pipeline.checkpoint import load
from pipeline.job import Job
from pipeline.schema.measures import BitsPerDim


def run(job: Job) -> None:
    models = open_densities(load(job.inputs["model"]), job.device)
    scores = [] if "ebm" in models else simple_codes(job.data)  # once per seed, not once per arm
    for part in ("test", "validation") if len(job.data.images["validation"]) else ("test",):
        name = "bits_per_dim" if part == "test" else "bits_per_dim_validation"
        for model, density in models.items():
            draws = measure(density.log_prob, job.data, part, job.params.bits_per_dim, seed=job.seed_for(part))
            caution = "; by the learned c, unverified" if model == "ebm" else ""
            protocol = f"{part} part, {len(draws)} dequantisation draws, averaged weights{caution}"
            # each image has noise of its own, so the spread of the images' means over draws contains the noise's
            scores.append(mean_score(name, model, draws.mean(0), protocol))
    write_scores(job, scores)


@torch.no_grad()
def measure(log_prob: Callable[[Tensor], Tensor], data: Images, part: str, settings: BitsPerDim, seed: int) -> Tensor:
    """Bits per dimension [draws, images], float64; the dequantisation noise is the same for every model of a seed."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(settings.draws):
        parts = [log_prob(dequantize(x, data.levels, generator)) for x in data.images[part].split(settings.batch)]
        rows.append(bits_per_dim(torch.cat(parts).double().cpu(), data.levels, data.dims, math.prod(data.shape)))
    return torch.stack(rows)


def simple_codes(data: Images) -> list[Score]:
    """What knowing nothing, and knowing each pixel's histogram, would cost."""
    train, test = (data.images[part].flatten(1).long().cpu() for part in ("train", "test"))
    # one of each: no level costs infinity
    counts = 1.0 + torch.stack([(train == level).sum(0) for level in range(data.levels)])
    log2_p = torch.log2(counts / counts.sum(0))
    bits = -log2_p.gather(0, test).sum(1).double() / data.dims
    rate = math.log2(data.levels) * train.shape[1] / data.dims
    return [
        Score(name="bits_per_dim_uniform", model="data", value=rate, n=len(test),
              protocol=f"{data.levels} equally likely levels"),
        mean_score("bits_per_dim_histogram", "data", bits,
                   "independent pixels, add-one histograms of the training part, on the test part"),
    ]
