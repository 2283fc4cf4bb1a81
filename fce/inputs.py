"""What a stage is given is checked before it starts: whole files, of the right kind, that belong together.

A wrong file found later, in the middle of the mathematics, says nothing that its owner could mend.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fce.arrays import read_arrays
from fce.data import images, toy
from fce.stage import Job, UserError

HOLDS = {  # what a checkpoint holds, by the stage that makes it
    "joint": ("energy", "flow", "flow_params", "energy_params", "joint_params", "data_params", "shape"),
    "pretrain": ("flow", "flow_params", "data_params", "shape"),
    "dcgan": ("generator", "discriminator", "dcgan_params", "shape"),
    "classifier": ("classifier", "build"),
}
MODELS = {  # whose checkpoints a stage takes as --model
    "sample": ("pretrain", "joint", "dcgan"),
    "density": ("pretrain", "joint"),
    "bits_per_dim": ("pretrain", "joint"),
    "log_z": ("joint",),
    "probe": ("joint", "dcgan"),
}
FLOWS = ("flow", "planted")  # flags for a checkpoint of the stage pretrain
LABELLED = ("classifier", "probe", "supervised")
PARTS = ("train", "validation", "test")


def check(job: Job) -> None:
    """Raise UserError where an input is damaged, of another kind, or of other data than the rest."""
    joint = job.params.get("joint")
    if joint and joint["start"] != "random" and joint["noise"] != "gaussian":
        job.need("flow")
    shape = data_shape(job) if "data" in job.inputs else None
    for name, path in job.inputs.items():
        if name == "model":
            shape = model_shape(job, name, path, MODELS[job.stage], shape)
        elif name in FLOWS:
            shape = model_shape(job, name, path, ("pretrain",), shape)
        elif name == "features" and job.params["fid"]["features"] == "classifier":
            build = checkpoint(name, path, "classifier")["build"]
            belongs(f"--{name}: {path}", (build["channels"], build["side"], build["side"]), shape)
        elif name == "samples":
            check_samples(path, job.inputs["data"])


def belongs(what: str, found: tuple[int, ...], shape: tuple[int, ...] | None) -> None:
    if shape not in (None, found):
        raise UserError(f"{what} is for x of shape {found}, the other inputs for {shape}: give those of one experiment")


def model_shape(
    job: Job, name: str, path: Path, kinds: tuple[str, ...], shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The shape of one x of a checkpoint's models, which must be `shape` where that is known."""
    kind = path.stem if path.stem in HOLDS and name == "model" else "pretrain" if name in FLOWS else "joint"
    if kind not in kinds:
        raise UserError(f"--{name}: {path} is made by the stage {kind}; {job.stage} takes those of {', '.join(kinds)}")
    content = checkpoint(name, path, kind)
    found = tuple(content["shape"])
    belongs(f"--{name}: {path}", found, shape)
    for section in ("data", "flow") if job.stage == "joint" else ("data",):
        if job.params.get(section) not in (None, content.get(f"{section}_params"), {"source": "images"}):
            raise UserError(f"--{name}: {path} was made with other parameters ({section}:); run {kind} again")
    return found


def checkpoint(name: str, path: Path, kind: str) -> dict[str, Any]:
    """A checkpoint of the stage `kind`; its tensors stay on the disk."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or "it is empty"
        raise UserError(f"--{name}: {path} is no whole checkpoint ({reason}); delete it and run {kind} again") from None
    keys = set(content) if isinstance(content, dict) else set()
    found = next((stage for stage, held in HOLDS.items() if keys.issuperset(held)), None)
    if found != kind:
        what = f"a checkpoint of the stage {found}" if found else "no checkpoint"
        raise UserError(f"--{name}: {path} is {what}, but one of the stage {kind} is needed there")
    whole: dict[str, Any] = content
    return whole


def data_shape(job: Job) -> tuple[int, ...]:
    """The shape of one x of data.npz, as the models see it."""
    path, data = job.inputs["data"], job.params.get("data", {})
    if data.get("source") in toy.MAKERS:
        arrays = read_arrays(path, tuple(f"{part}{what}" for part in PARTS[1:] for what in ("", "_log_prob")))
        x, log_prob = (torch.from_numpy(arrays[name]) for name in ("validation", "validation_log_prob"))
        here = x.shape == (data["validation"], 2)
        if not here or not torch.allclose(toy.density(data).log_prob(x), log_prob, atol=1e-3):
            raise UserError(f"--data: {path} is not of the {data['source']} of these parameters; run data again")
        return (2,)
    labels = tuple(f"{part}_labels" for part in PARTS) if job.stage in LABELLED else ()
    arrays = read_arrays(path, (*(f"{part}_images" for part in PARTS), "levels", *labels))
    if arrays["levels"].ndim or not 2 <= arrays["levels"] <= 256:
        raise UserError(f"--data: {path}: levels is {arrays['levels']}, not a number from 2 to 256; run data again")
    images.check(arrays, int(arrays["levels"]), f"--data: {path}", PARTS)
    if labels and len(np.unique(arrays["train_labels"])) < 2:
        raise UserError(f"--data: {path}: the training images are all of one class, and nothing tells it from others")
    count, side, _, channels = arrays["train_images"].shape
    for section in ("pretrain", "joint", "dcgan"):
        if (batch := job.params.get(section, {}).get("batch", 0)) > count:
            raise UserError(f"{section}.batch: {batch}, but there are only {count} training images; lower it")
    return channels, images.padded(side), images.padded(side)


def check_samples(path: Path, data: Path) -> None:
    drawn = read_arrays(path, ("images",), ("levels",))
    real = read_arrays(data, ("test_images", "levels"))
    found, wanted = drawn["images"].shape[1:], real["test_images"].shape[1:]
    if found != wanted or not np.array_equal(drawn.get("levels", real["levels"]), real["levels"]):
        raise UserError(f"--samples: {path} holds images {found}, --data images {wanted}, or with other grey levels: "
                        "give those of one experiment")
