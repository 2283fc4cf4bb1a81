"""Real SVHN and CIFAR-10 images through every image stage, at the paper's architectures, for a few steps.

The images come from the folder that FCE_DATA names (svhn_subset.npz, cifar10_subset.npz).
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT, run_stage

from pipeline.params import load

FOLDER = Path(os.environ.get("FCE_DATA", ""))
SHORT = {
    "pretrain": {"steps": 2, "batch": 4, "validate_every": 2, "trajectory": {"moments": 1, "images": 4}},
    "joint": {"ebm_updates": 2, "batch": 2, "head_start": 0, "log_every": 2, "trajectory": {"moments": 1, "images": 4},
              "ebm_per_round": 1, "flow_per_round": 1},
    "dcgan": {"orig": {"discriminator_lr": 1.0e-4, "generator_lr": 1.0e-4, "updates": 2}, "batch": 4},
    "classifier": {"epochs": 1, "features": 7},  # fewer than the images of a part
    "sample": {"count": 16, "batch": 8},
    "bits_per_dim": {"draws": 2, "batch": 6},
    "fid": {
        "features": "classifier",
        "batch": 4,
        "draws": 2,
        "infinity": {"points": 3, "smallest": 0.5},
        "kid": {"subsets": 2, "size": 4},
        "neighbours": {"images": 6, "k": 1},
    },
    "probe": {"labels": [20], "draws": 2, "validation": 8, "inverse_l2": [0.01]},
    "supervised": {"updates": 2, "epochs": 1, "validations": 1, "lr": [1.0e-3], "weight_decay": [0.01]},
}


def stage(name: str, params: dict, out: Path, **inputs: Path | int) -> Path:
    """Run one stage by its command line, in this process, which has torch already; returns its output."""
    out.parent.mkdir(parents=True, exist_ok=True)
    slice_file = out.with_suffix(".params.json")
    slice_file.write_text(json.dumps(params))
    flags = [part for flag, value in inputs.items() for part in (f"--{flag}", str(value))]
    assert run_stage(name, "--params", str(slice_file), "--out", str(out), *flags) == 0
    return out


def values(path: Path) -> dict[tuple[str, str], float]:
    return {(s["model"], s["name"]): s["value"] for s in json.loads(path.read_text())["scores"]}


@pytest.mark.parametrize("name", ["svhn", "cifar10"])
def test_real_images_go_through_every_stage(name: str, tmp_path: Path) -> None:
    file = FOLDER / f"{name}_subset.npz"
    if not os.environ.get("FCE_DATA") or not file.exists():
        pytest.skip(
            f"{name}_subset.npz is not in the folder that FCE_DATA names ({os.environ.get('FCE_DATA') or 'unset'})"
        )
    whole = load(ROOT / "params.yaml").experiments["full"][name].model_dump()
    params = {key: {**whole[key], **SHORT.get(key, {})} for key in whole if key not in ("data", "arms")}
    params["data"] = {
        "source": "npz",
        "file": str(cut_down(file, tmp_path)),
        "levels": 256,
        "validation": 0,
        "split_seed": 0,
    }
    assert (params["flow"]["levels"], params["flow"]["width"], params["flow"]["coupling"]) == (3, 512, "additive")
    run = tmp_path / "build" / "full" / name

    def some(*keys: str) -> dict:
        return {key: params[key] for key in keys}

    data = stage("data", some("data"), run / "data.npz")
    flow = stage("pretrain", some("flow", "pretrain", "data"), run / "seed-0/pretrain.pt", data=data, seed=0)
    classifier = stage("classifier", some("classifier"), run / "classifier.pt", data=data)
    gan = stage("dcgan", some("dcgan"), run / "seed-0/dcgan/dcgan.pt", data=data, seed=0)
    models = {"mle": flow, "dcgan": gan}
    for arm in ("joint", "tilted") if name == "svhn" else ("joint",):  # one Glow of the paper's depth is enough
        joint = {**whole["arms"][arm], **SHORT["joint"], "warm_start": 1 if arm == "joint" else 0}
        models[arm] = stage(
            "joint",
            {**some("flow", "energy", "data"), "joint": joint},
            run / f"seed-0/{arm}/joint.pt",
            data=data,
            flow=flow,
            seed=0,
        )
    for arm, model in models.items():
        place = run / "seed-0" / arm
        samples = stage("sample", some("sample"), place / "samples.npz", data=data, model=model, seed=0)
        with np.load(samples) as drawn:
            assert drawn["images"].shape == (16, 32, 32, 3)
        fid = stage(
            "fid", some("fid"), place / "fid.json", data=data, samples=samples, features=classifier, seed=0
        )
        assert values(fid)["generator" if arm == "dcgan" else "flow", "frechet_distance"] > 0
        if arm != "dcgan":
            out = place / "bits_per_dim.json"
            bits = values(stage("bits_per_dim", some("bits_per_dim"), out, data=data, model=model, seed=0))
            assert 2 < bits["flow", "bits_per_dim"] < 12
        if arm == "mle":
            assert bits["data", "bits_per_dim_uniform"] == 8
        else:
            probe = stage("probe", some("probe", "energy"), place / "probe.json", data=data, model=model, seed=0)
            assert 0 <= values(probe)["features", "accuracy"] <= 1  # of six test images
    place = run / "seed-0/supervised/supervised.json"
    supervised = stage("supervised", some("supervised", "probe", "energy"), place, data=data, seed=0)
    assert 0 <= values(supervised)["network", "accuracy"] <= 1


def cut_down(file: Path, folder: Path) -> Path:
    """The first images of a file, enough for a few steps."""
    with np.load(file) as arrays:
        small = {key: arrays[key][: 40 if key.startswith("train") else 6] for key in arrays.files}
    np.savez(folder / file.name, **small)
    return folder / file.name
