"""Bits per dimension on the test part (Table 2), and on training images beside it, which show over-fitting.

The flow's is exact up to the dequantisation noise, which is part of the standard error over images. The EBM's uses the
learned c: it is a likelihood only if c is log Z, and is marked unverified. All models of a seed, and the stage log_z,
see the same images with the same noise.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eval.score import Score, mean_score, write_scores
from fce.data.batches import Images, at_once
from fce.data.pixels import bits_per_dim, dequantize
from fce.models import open_densities
from pipeline.checkpoint import load
from pipeline.job import Job

LogProb = Callable[[Tensor], Tensor]  # x [B, C, H, W] -> log-density [B] in nats

NAMES = {"test": "bits_per_dim", "validation": "bits_per_dim_validation", "train": "bits_per_dim_train"}
WORDS = {"test": "test images", "validation": "validation images",
         "train": "random training images, as many as test images"}


def run(job: Job) -> None:
    models = open_densities(load(job.inputs["model"]), job.device)
    scores = [] if "ebm" in models else simple_codes(job.data)  # once per seed, not once per arm
    for part in [part for part in NAMES if len(job.data.images[part])]:
        for model, density in models.items():
            draws = measure(density.log_prob, job, part)
            caution = "; by the learned c, unverified" if model == "ebm" else ""
            protocol = f"{WORDS[part]}, {len(draws)} dequantisation draws, averaged weights{caution}"
            # each image has noise of its own, so the spread of the images' means over draws contains the noise's
            # and each seed draws training images of its own
            scores.append(mean_score(NAMES[part], model, draws.mean(0), protocol, shared=part != "train"))
    write_scores(job, scores)


def measure(log_prob: LogProb, job: Job, part: str) -> Tensor:
    """Bits per dimension [draws, images], float64."""
    data = job.data
    nats = log_densities(log_prob, job, part, job.params.bits_per_dim.draws)
    return bits_per_dim(nats, data.levels, data.dims, math.prod(data.shape))


@torch.no_grad()
def log_densities(log_prob: LogProb, job: Job, part: str, draws: int) -> Tensor:
    """log_prob [draws, images] of a part's images, in nats, float64.

    The dequantisation noise is the same for every model of a seed, at any stage, and is never that of training.
    """
    generator, rows = torch.Generator().manual_seed(job.shared_seed_for(f"noise of {part}")), []
    batches = chosen(job, part).split(job.params.bits_per_dim.batch)
    for _ in range(draws):
        parts = [log_prob(dequantize(images, job.data.levels, generator)) for images in batches]
        rows.append(torch.cat(parts).double().cpu())
    return torch.stack(rows)


def chosen(job: Job, part: str) -> Tensor:
    """uint8 images [n, C, H, W]: all of a part, but of the training part at most as many as of the test part.

    These are a random subset, the same for every model of a seed.
    """
    images, n = job.data.images[part], len(job.data.images["test"])
    if part != "train":
        return images
    random = torch.Generator().manual_seed(job.shared_seed_for("training images"))
    return images[torch.randperm(len(images), generator=random)[:n].sort().values.to(images.device)]


def simple_codes(data: Images) -> list[Score]:
    """What knowing nothing, and knowing each pixel's histogram, would cost."""
    size, most = math.prod(data.shape), at_once(data.shape, 1000)
    pixels, counts = torch.arange(size), torch.ones(data.levels * size)  # one of each: no level costs infinity
    for part in data.images["train"].split(most):
        counts += torch.bincount((part.flatten(1).cpu().long() * size + pixels).flatten(), minlength=len(counts))
    counts = counts.view(data.levels, size)
    log2_p = torch.log2(counts / counts.sum(0))
    test = data.images["test"].flatten(1).cpu().split(most)
    bits = torch.cat([-log2_p.gather(0, part.long()).sum(1).double() for part in test]) / data.dims
    return [
        Score(name="bits_per_dim_uniform", model="data", value=math.log2(data.levels), n=len(bits),
              protocol=f"{data.levels} equally likely levels"),
        mean_score("bits_per_dim_histogram", "data", bits,
                   "independent pixels, add-one histograms of the training part, on the test part"),
    ]
