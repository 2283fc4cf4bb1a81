"""Measure: bits per dimension on the test part (Table 2).

The flow's is exact up to the dequantisation noise, which is part of the standard error over images. The EBM's uses the
learned c: it is a likelihood only if c is log Z, and is marked unverified.
"""

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from eval.score import Model, Score, mean_score, write_scores
from fce.data.data import Images, open_data
from fce.data.images import bits_per_dim, dequantize
from fce.joint import load_models
from fce.pretrain import load_flow
from fce.stage import Job, main
from fce.state import load


def run(job: Job) -> None:
    settings = job.params["bits_per_dim"]
    data = open_data(job.inputs["data"], {"source": "images"}, job.device)
    assert isinstance(data, Images)
    path = job.inputs["model"]
    scores = []
    if path.stem == "pretrain":
        flow = load_flow(load(path)).to(job.device)
        models: dict[Model, Callable[[Tensor], Tensor]] = {"flow": flow.log_prob}
        scores += simple_codes(data)
    else:
        energy, noise = load_models(path, job.device)
        models = {"flow": noise.log_prob, "ebm": energy.log_prob}
    for part in ("test", "validation"):
        name = "bits_per_dim" if part == "test" else "bits_per_dim_validation"
        for model, log_prob in models.items():
            draws = measure(log_prob, data, part, settings, seed=job.seed_for(part))
            caution = "; by the learned c, unverified" if model == "ebm" else ""
            protocol = f"{part} part, {len(draws)} dequantisation draws, averaged weights{caution}"
            # each image has noise of its own, so the spread of the images' means over draws contains the noise's
            scores.append(mean_score(name, model, draws.mean(0), "bits/dim", protocol))
    write_scores(job, scores)


@torch.no_grad()
def measure(log_prob: Callable[[Tensor], Tensor], data: Images, part: str, settings: dict, seed: int) -> Tensor:
    """Bits per dimension [draws, images], float64; the dequantisation noise is the same for every model of a seed."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(settings["draws"]):
        parts = [log_prob(dequantize(x, data.levels, generator)) for x in data.images[part].split(settings["batch"])]
        rows.append(bits_per_dim(torch.cat(parts).double().cpu(), data.levels, data.dims, math.prod(data.shape)))
    return torch.stack(rows)


def simple_codes(data: Images) -> list[Score]:
    """What knowing nothing, and knowing each pixel's histogram, would cost."""
    train, test = (data.images[part].flatten(1).long().cpu() for part in ("train", "test"))
    counts = (
        torch.stack([(train == level).sum(0) for level in range(data.levels)]) + 1.0
    )  # one of each: no level costs infinity
    log2_p = torch.log2(counts / counts.sum(0))
    bits = -log2_p.gather(0, test).sum(1).double() / data.dims
    rate = math.log2(data.levels) * train.shape[1] / data.dims
    return [
        Score(
            name="bits_per_dim_uniform",
            model="data",
            value=rate,
            unit="bits/dim",
            n=len(test),
            protocol=f"{data.levels} equally likely levels",
        ),
        mean_score(
            "bits_per_dim_histogram",
            "data",
            bits,
            "bits/dim",
            "independent pixels, add-one histograms of the training part, on the test part",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data", "model"]))
