"""Fréchet distance against bits/dim while a flow trains: at the moments whose samples its checkpoint keeps.

Few samples raise a Fréchet distance, the same at every moment: these distances compare with each other only.
"""

import numpy as np

from eval.features import extract, kept, open_look
from eval.frechet import frechet, moments
from eval.score import Score, write_scores
from pipeline.checkpoint import load
from pipeline.errors import UserError
from pipeline.job import Job

GRID = 32  # samples of each moment that are kept for figures


def run(job: Job) -> None:
    known = load(job.inputs["model"], lazy=True).get("trajectory")
    if known is None:
        raise UserError(f"--model: {job.inputs['model']} has no trajectory: its flow stood still")
    images, look, parts = known["images"].numpy(), open_look(job), job.data.arrays
    train = np.concatenate([parts["train_images"], parts["validation_images"]])
    real = moments(kept(job, "train", look, train))
    distances = [frechet(extract(look, each, job.params.fid.batch, job.device), real) for each in images]
    bits, updates = known["bits_per_dim"], known["updates"]
    what = f"at update {updates[-1]} minus at update {updates[0]}, averaged weights, the same noise at both"
    n = images.shape[1]
    part, held = job.data.held_out(n)
    scores = [
        Score(name=f"{look.names.frechet}_change", model="flow", value=distances[-1] - distances[0], n=n, shared=False,
              protocol=f"{n} samples {what}; against {len(train)} training images, {look.words}"),
        Score(name="bits_per_dim_change", model="flow", value=bits[-1] - bits[0], n=len(held),
              protocol=f"{len(held)} images of the {part} part {what}"),
    ]
    write_scores(job, scores, {"updates": np.array(updates), "bits_per_dim": np.array(bits),
                               "distance": np.array(distances), "images": images[:, :GRID],
                               "levels": np.array(job.data.levels), "samples": np.array(n)})
