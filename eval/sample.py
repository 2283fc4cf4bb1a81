"""The images of each flow, and of the DCGAN, drawn once for every measure of samples."""

import numpy as np
import torch

from fce.data.pixels import quantize, to_images
from fce.models import open_sampler
from pipeline.checkpoint import load
from pipeline.errors import Stopped
from pipeline.files import write_arrays
from pipeline.job import Job
from pipeline.progress import Progress, log


def run(job: Job) -> None:
    settings, data, checkpoint = job.params.sample, job.data, load(job.inputs["model"])
    sampler = open_sampler(checkpoint, job.device)
    generator = torch.Generator().manual_seed(job.seed_for("noise"))
    count, dropped, outside = settings.count, 0, 0
    kept: list[np.ndarray] = []
    progress = Progress(count)
    while (have := sum(len(images) for images in kept)) < count:
        x = sampler.sample(min(settings.batch, count - have), settings.temperature, generator)
        fine = x.flatten(1).isfinite().all(1)
        dropped += int((~fine).sum())
        if dropped > count:
            raise Stopped(f"sample: {dropped} non-finite samples; {job.inputs['model']} is broken (of a flow, raise "
                          "flow.scale_floor), or sample.temperature is too high")
        outside += int((x[fine].flatten(1).abs() > 0.5).any(1).sum())
        kept.append(to_images(quantize(x[fine], data.levels), data.side))
        progress(have)
    facts = {"non_finite": dropped, "outside_box": outside / count}
    job.record.log(0, **facts)
    log.info("%d samples, %d non-finite ones redrawn, %.1f %% leave the data's box before clipping", count, dropped,
             100 * outside / count)
    write_arrays(job.out, {"images": np.concatenate(kept), "levels": data.levels, "kind": checkpoint["kind"],
                           "temperature": settings.temperature, **facts}, compressed=True)
