"""The data of an experiment: held-out points of a 2D density, or images in three parts.

Writes data.npz, which every other stage reads.
"""

import torch

from fce.data import toy
from fce.stages import images
from pipeline.files import Arrays, write_arrays
from pipeline.job import Job
from pipeline.schema.data import Points


def run(job: Job) -> None:
    data = job.params.data
    if not isinstance(data, Points):
        write_arrays(job.out, images.load(data))
        return
    density, generator = toy.density(data.source, **data.shape()), torch.Generator().manual_seed(0)
    arrays: Arrays = {}
    for part in ("validation", "test"):
        x = density.sample(getattr(data, part), generator)
        arrays |= {part: x.numpy(), f"{part}_log_prob": density.log_prob(x).numpy()}
    write_arrays(job.out, arrays)
