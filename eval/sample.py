"""Stage: sample. Draws the images of each flow, and of the DCGAN, once; every measure of samples shares them."""

import sys
from pathlib import Path

import numpy as np
import torch

from fce.data.data import Images, open_data
from fce.data.images import quantize, to_images
from fce.dcgan import Generator, load_dcgan
from fce.flow.glow import Sampler
from fce.joint import load_models
from fce.pretrain import load_flow
from fce.progress import Progress, log
from fce.stage import Job, Stopped, main
from fce.state import atomic, load


def run(job: Job) -> None:
    settings = job.params["sample"]
    data = open_data(job.inputs["data"], {"source": "images"}, job.device)
    assert isinstance(data, Images)
    path = job.inputs["model"]
    sampler = load_sampler(path, job.device)
    generator = torch.Generator().manual_seed(job.seed_for("noise"))
    count, dropped, outside = settings["count"], 0, 0
    kept: list[np.ndarray] = []
    progress = Progress(count)
    while (have := sum(len(images) for images in kept)) < count:
        x = sampler.sample(min(settings["batch"], count - have), settings["temperature"], generator)
        fine = x.flatten(1).isfinite().all(1)
        dropped += int((~fine).sum())
        if dropped > count:
            raise Stopped(f"sample: {dropped} non-finite samples; {path} is broken (of a flow, raise "
                          "flow.scale_floor), or sample.temperature is too high")
        outside += int((x[fine].flatten(1).abs() > 0.5).any(1).sum())
        kept.append(to_images(quantize(x[fine], data.levels), data.side))
        progress(have)
    images = np.concatenate(kept)
    job.record.log(0, non_finite=dropped, outside_box=outside / count)
    log.info(
        "%d samples, %d non-finite ones redrawn, %.1f %% leave the data's box before clipping",
        count,
        dropped,
        100 * outside / count,
    )
    with atomic(job.out) as partial:
        np.savez_compressed(
            partial,
            images=images,
            levels=data.levels,
            temperature=settings["temperature"],
            non_finite=dropped,
            outside_box=outside / count,
        )


def load_sampler(path: Path, device: str) -> Sampler | Generator:
    """What samples images in a checkpoint of the stages pretrain, dcgan or joint."""
    if path.stem == "pretrain":
        return load_flow(load(path)).to(device)
    return load_dcgan(path, device)[0] if path.stem == "dcgan" else load_models(path, device)[1]


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data", "model"]))
