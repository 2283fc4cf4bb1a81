"""What a stage is given is checked, and its data opened, before it starts: whole files, that belong together.

A wrong file found later, in the middle of the mathematics, says nothing that its owner could mend.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fce.data import batches, toy
from fce.stages import images
from pipeline import processes
from pipeline.catalogue import STAGES
from pipeline.checkpoint import load
from pipeline.errors import UserError
from pipeline.fetch import own_input
from pipeline.files import Npz
from pipeline.job import Job
from pipeline.schema.data import Points

PARTS = ("train", "validation", "test")
Shape = tuple[int, ...]


def check(job: Job, files: dict[Path, Npz] | None = None) -> None:
    """Open the job's data; raise UserError where an input is damaged, or does not belong to the rest.

    Jobs that are checked with the same `files` read what they share once.
    """
    if "joint" in job.params and job.params.joint.needs_flow:
        job.need("flow")
    if path := own_input(job.stage, getattr(job.params, "data", None)):
        job.inputs["own"] = path
    shape = None
    if "data" in job.inputs:
        job.data = open_data(job, {} if files is None else files)
        shape = job.data.shape
    for flag, path in job.inputs.items():
        if flag == "samples":
            check_samples(path, job.data)
        elif flag == "features" and job.params.fid.features == "classifier":
            build = checkpoint(job, flag, path)["build"]
            belongs(f"--{flag}: {path}", (build["channels"], build["side"], build["side"]), shape)
        elif flag in STAGES[job.stage].takes and flag != "features":
            shape = model_shape(job, flag, path, shape)
    if "probe" in job.params:
        check_probe(job.params.probe.validation, job.data)
    for section in ("pretrain", "joint", "dcgan"):
        if section in job.params:
            check_batch(section, getattr(job.params, section).batch, job.data)


def belongs(what: str, found: Shape, shape: Shape | None) -> None:
    if shape not in (None, found):
        raise UserError(f"{what} is for x of shape {found}, the other inputs for {shape}: give those of one experiment")


def model_shape(job: Job, flag: str, path: Path, shape: Shape | None) -> Shape:
    """The shape of one x of a checkpoint's models, which must be `shape` where that is known."""
    content = checkpoint(job, flag, path)
    belongs(f"--{flag}: {path}", found := tuple(content["shape"]), shape)
    for section in ("data", "flow") if job.stage == "joint" else ("data",):
        made_with = content.get(f"{section}_params")
        if section in job.params and getattr(job.params, section).model_dump() != made_with:
            raise UserError(f"--{flag}: {path} was made with other parameters ({section}:); "
                            f"run {content['kind']} again")
    return found


def checkpoint(job: Job, flag: str, path: Path) -> dict[str, Any]:
    """A checkpoint of a kind that the stage takes there; its tensors stay on the disk."""
    kinds = STAGES[job.stage].takes[flag]
    try:
        content = load(path, lazy=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or "it is empty"
        raise UserError(f"--{flag}: {path} is no whole checkpoint ({reason}); delete it and run {' or '.join(kinds)} "
                        "again") from None
    whole = isinstance(content, dict) and not content.keys().isdisjoint(("shape", "build"))
    kind = str(content.get("kind")) if whole else ""
    if kind not in kinds:
        what = f"a checkpoint of the stage {kind}" if kind in STAGES else "no checkpoint"
        raise UserError(f"--{flag}: {path} is {what}; {job.stage} takes those of {', '.join(kinds)}")
    return content


def open_data(job: Job, files: dict[Path, Npz]) -> batches.Points | batches.Images:
    """The job's data, which it reads as it needs them."""
    path, data = job.inputs["data"], getattr(job.params, "data", None)
    if isinstance(data, Points):
        names = tuple(f"{part}{what}" for part in PARTS[1:] for what in ("", "_log_prob"))
        arrays = files.setdefault(path, Npz(path, names))
        points = batches.Points(arrays, toy.density(data.source, **data.shape()), job.device)
        x, log_prob = points.arrays["validation"], points.arrays["validation_log_prob"]
        here = x.shape == (data.validation, 2)
        if not here or not torch.allclose(points.density.log_prob(x), log_prob, atol=1e-3):
            raise UserError(f"--data: {path} is not of the {data.source} of these parameters; run data again")
        return points
    labelled = STAGES[job.stage].labelled
    labels = tuple(f"{part}_labels" for part in PARTS) if labelled else ()
    arrays = files.setdefault(path, Npz(path, (*(f"{part}_images" for part in PARTS), "levels", *labels)))
    if arrays["levels"].ndim or not 2 <= arrays["levels"] <= 256:
        raise UserError(f"--data: {path}: levels is {arrays['levels']}, not a number from 2 to 256; run data again")
    none_held = not getattr(data, "validation", 0) and batches.shape_of(arrays, "validation_images")[:1] == (0,)
    parts = tuple(part for part in PARTS if part != "validation" or not none_held)
    images.check(arrays, int(arrays["levels"]), f"--data: {path}", parts, labelled)
    if labelled and len(np.unique(arrays["train_labels"])) < 2:
        raise UserError(f"--data: {path}: the training images are all of one class, and nothing tells it from others")
    trains = [section for section in ("pretrain", "joint") if section in job.params]
    return batches.Images(arrays, job.device, getattr(job.params, trains[0]).augment if trains else 0.0)


def check_batch(section: str, batch: int, data: batches.Points | batches.Images) -> None:
    count = data.count if isinstance(data, batches.Images) else batch
    if batch > count:
        raise UserError(f"{section}.batch: {batch}, but there are only {count} training images; lower it")
    if batch % processes.count():
        raise UserError(f"{section}.batch: {batch} can't be shared equally by {processes.count()} processes; "
                        "change either")


def check_probe(validation: int, data: batches.Images) -> None:
    """Refuse data without labels to choose by."""
    if batches.shape_of(data.arrays, "validation_images")[0]:
        return
    if not validation:
        raise UserError("probe.validation: 0, and the data have no validation part; give one, to choose by its labels")
    if validation > data.count - 2:
        raise UserError(f"probe.validation: {validation} of only {data.count} training images; leave 2 or more")


def check_samples(path: Path, data: batches.Images) -> None:
    drawn = Npz(path, ("images",))
    found, wanted = drawn.header("images")[0][1:], batches.shape_of(data.arrays, "test_images")[1:]
    if found != wanted or ("levels" in drawn and int(drawn["levels"]) != data.levels):
        raise UserError(f"--samples: {path} holds images {found}, --data images {wanted}, or with other grey levels: "
                        "give those of one experiment")
