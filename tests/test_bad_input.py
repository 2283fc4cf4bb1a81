"""A wrong file, flag or folder ends with one message and exit code 2, before anything is written.

Wrong parameters are in test_params.py, a user's own images in test_data.py, too few of them in test_fid.py.
"""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ROOT, TINY, flags, read_yaml, run_stage, write_all, write_yaml

from pipeline.params import merge
from reports import build

PARTS = {"train": 1257, "validation": 140, "test": 400}  # images of the quick profile's digits


def run(root: Path, experiment: str, stage: str, *more: str, **changes: Any) -> int:
    """A stage as a user runs it, in this process; paths lie below build/quick/<experiment>/."""
    return run_stage(stage, *flags(stage, root / "build/quick" / experiment, **changes), *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the ring, of the digits and of some images of 16 x 16, of seconds."""
    root = tmp_path_factory.mktemp("made")
    larger = {"experiments": [*TINY["experiments"], "larger"], "overrides": {"larger": TINY["overrides"]["digits"]}}
    params = read_yaml(ROOT / "params.yaml") | {"quick": merge(TINY, larger)}
    own = {"source": "npz", "file": str(root / "own.npz"), "levels": 16, "validation": 8, "split_seed": 0}
    params["experiments"]["larger"] = params["experiments"]["digits"] | {"data": own}
    write_yaml(root / "params.yaml", params)
    write_all(root)
    rng = np.random.default_rng(0)
    parts = {
        f"{part}_images": rng.integers(0, 16, (n, 16, 16, 1)).astype(np.uint8)
        for part, n in (("train", 80), ("test", 20))
    }
    np.savez(root / "own.npz", **parts, train_labels=np.arange(80) % 10, test_labels=np.arange(20) % 10)
    for experiment in ("ring", "digits", "larger"):
        assert run(root, experiment, "data") == 0
        assert run(root, experiment, "pretrain", seeds=(0, 1) if experiment == "digits" else (0,)) == 0
        assert run(root, experiment, "joint") == 0
    assert run(root, "digits", "dcgan") == 0
    assert run(root, "digits", "classifier") == 0
    for experiment in ("digits", "larger"):
        assert run(root, experiment, "sample", arms=["mle"]) == 0
    return root


def test_right_inputs_pass(made):
    for stage, arm, inputs in (
        *(("fid", "mle", {}), ("bits_per_dim", "mle", {}), ("bits_per_dim", "joint", {}), ("log_z", "joint", {})),
        *(("log_z_control", "planted", {}), ("probe", "joint", {}), ("probe", "random-init", {"model": None})),
        *(("probe", "dcgan", {}), ("supervised", "supervised", {})),
    ):
        assert run(made, "digits", stage, arms=[arm], **inputs) == 0
        assert (made / f"build/quick/digits/seed-0/{arm}/{stage}.json").exists()
    assert run(made, "ring", "density") == 0


def test_what_a_checkpoint_is_stands_in_it_and_not_in_its_name(made, tmp_path, capfd):
    home, renamed = made / "build/quick/digits", {"joint": "weights.pt", "dcgan": "pretrain.pt", "mle": "dcgan.pt"}
    for arm, source in (("joint", "joint/joint.pt"), ("dcgan", "dcgan/dcgan.pt"), ("mle", "pretrain.pt")):
        shutil.copy(home / "seed-0" / source, tmp_path / renamed[arm])
    for stage, arm in (("log_z", "joint"), *(("sample", arm) for arm in renamed), ("probe", "dcgan")):
        out = tmp_path / f"of-{arm}.{stage}"
        assert run(made, "digits", stage, model=tmp_path / renamed[arm], out=out, arms=[arm]) == 0 and out.exists()
    for stage, flag in (("log_z", "model"), ("joint", "flow")):
        says = f"pretrain.pt is a checkpoint of the stage dcgan; {stage} takes those of"
        refused(capfd, made, tmp_path, "digits", stage, says, **{flag: tmp_path / "pretrain.pt"})


Make = Callable[[Path, Path], Path]  # (folder of the experiment, folder to write to) -> a wrong file


def arrays(name: str, **changes) -> Make:
    """An npz file with other arrays; None takes one away."""

    def make(folder: Path, to: Path) -> Path:
        with np.load(folder / name) as file:
            content = {key: file[key] for key in file.files} | changes
        np.savez(to / "wrong.npz", **{key: value for key, value in content.items() if value is not None})
        return to / "wrong.npz"

    return make


def cut(name: str) -> Make:
    """The first half of a file."""

    def make(folder: Path, to: Path) -> Path:
        whole = (folder / name).read_bytes()
        return write(to / Path(name).name, whole[: len(whole) // 2])

    return make


def holding(content: bytes) -> Make:
    return lambda folder, to: write(to / "wrong.pt", content)


def checkpoint(content: object) -> Make:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return holding(buffer.getvalue())


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(capfd, made: Path, tmp_path: Path, experiment: str, stage: str, says: str, **inputs) -> None:
    """The stage ends with code 2 and one message, and has written nothing."""
    folder = made / "build/quick" / experiment
    paths = {name: given(folder, tmp_path) if callable(given) else given for name, given in inputs.items()}
    capfd.readouterr()
    out = tmp_path / f"build/quick/{experiment}/seed-0/an-arm/{stage}.out"
    assert run(made, experiment, stage, out=out, **paths) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert re.search(says, lines[0]), lines[0]
    assert not (tmp_path / "build").exists()


PIXELS = np.zeros((5, 8, 8, 1), np.uint8)
DATA = {  # name: experiment, stage, what --data is, what the message says
    "empty": ("digits", "pretrain", holding(b""), "wrong.pt is not a readable npz"),
    "text": ("digits", "pretrain", holding(b"hello"), "not a readable npz"),
    "truncated": ("digits", "pretrain", cut("data.npz"), "not a readable npz"),
    "points for images": ("digits", "pretrain", "../ring/data.npz", "no array 'train_images'"),
    "images for points": ("ring", "density", "../digits/data.npz", "no array 'validation'"),
    "another ring": (
        "ring",
        "pretrain",
        arrays("data.npz", validation_log_prob=np.zeros(2000)),
        "not of the ring of these parameters; run data again",
    ),
    "NaN points": (
        "ring",
        "pretrain",
        arrays("data.npz", validation=np.full((2000, 2), np.nan, "f")),
        "not of the ring",
    ),
    "other points": ("ring", "pretrain", arrays("data.npz", validation=np.zeros((3, 5), "f")), "not of the ring"),
    "no validation part": (
        "digits",
        "dcgan",
        arrays("data.npz", validation_images=None),
        "no array 'validation_images'",
    ),
    "empty validation part": (
        "digits",
        "pretrain",
        arrays("data.npz", validation_images=PIXELS[:0], validation_labels=np.arange(0)),
        "validation_images: 0 images",
    ),
    "float images": ("digits", "pretrain", arrays("data.npz", train_images=PIXELS / 16), "dtype float64"),
    "NaN pixels": ("digits", "sample", arrays("data.npz", test_images=PIXELS + np.nan), "test_images: dtype float"),
    "no images but a number": (
        "digits",
        "pretrain",
        arrays("data.npz", train_images=PIXELS[0, 0, 0, 0]),
        r"shape \(\)",
    ),
    "mixed sides": (
        "digits",
        "pretrain",
        arrays("data.npz", test_images=np.zeros((5, 12, 12, 1), np.uint8)),
        r"test_images: shape \(5, 12, 12, 1\), but train_images",
    ),
    "a level too many": (
        "digits",
        "pretrain",
        arrays("data.npz", test_images=PIXELS + np.uint8(17)),
        "grey level 17, but data.levels is 17",
    ),
    "levels in words": ("digits", "pretrain", arrays("data.npz", levels=np.array([17, 17])), "levels is"),
    "no labels": ("digits", "classifier", arrays("data.npz", train_labels=None), "no array 'train_labels'"),
    "a label out of range": (
        "digits",
        "supervised",
        arrays("data.npz", test_labels=np.full(400, 10)),
        "test_labels: 10, but the training images' labels end at 9",
    ),
    "one class": (
        "digits",
        "probe",
        arrays("data.npz", **{f"{part}_labels": np.zeros(n, int) for part, n in PARTS.items()}),
        "all of one class",
    ),
    "pickled": (
        "digits",
        "pretrain",
        arrays("data.npz", levels=np.array([{}])),
        "contains pickled|Object arrays cannot be loaded",
    ),
    "a folder": ("digits", "pretrain", "params", "--data: .*params does not exist"),
}


@pytest.mark.parametrize("name", DATA)
def test_wrong_data_is_refused(made, tmp_path, capfd, name):
    experiment, stage, data, says = DATA[name]
    refused(capfd, made, tmp_path, experiment, stage, says, data=data)


PRETRAINED, JOINT, DCGAN = "seed-0/pretrain.pt", "seed-0/joint/joint.pt", "seed-0/dcgan/dcgan.pt"
SAMPLES = "seed-0/mle/samples.npz"
MODELS = {  # name: experiment, stage, its wrong inputs, what the message says
    "empty": ("digits", "sample", {"model": holding(b"")},
              "--model: .*wrong.pt is no whole checkpoint .*run pretrain or joint or dcgan again"),
    "text": ("digits", "log_z", {"model": holding(b"weights")}, "no whole checkpoint .*delete it and run joint again"),
    "truncated": ("digits", "bits_per_dim", {"model": cut(PRETRAINED)}, "no whole .*run pretrain or joint again"),
    "truncated flow": ("ring", "joint", {"flow": cut(PRETRAINED)}, "--flow: .*no whole checkpoint .*run pretrain"),
    "other content": ("digits", "sample", {"model": checkpoint({"x": 1})},
                      "wrong.pt is no checkpoint; sample takes those of pretrain, joint, dcgan"),
    "a kind that is none": ("digits", "log_z", {"model": checkpoint({"kind": "glow", "shape": [1]})}, "no checkpoint;"),
    "a kind that is a list": ("digits", "sample", {"model": checkpoint({"kind": [1], "shape": [1]})}, "no checkpoint;"),
    "a kind and no more": ("digits", "sample", {"model": checkpoint({"kind": "joint"})}, "is no checkpoint;"),
    "a bare number": ("digits", "log_z", {"model": checkpoint(torch.ones(2))}, "is no checkpoint"),
    "Glow where an EBM is needed": ("digits", "log_z", {"model": PRETRAINED},
                                    "is a checkpoint of the stage pretrain; log_z takes those of joint$"),
    "DCGAN where a density is needed": ("digits", "bits_per_dim", {"model": DCGAN}, "checkpoint of the stage dcgan;"),
    "an EBM for the flow": ("digits", "joint", {"flow": JOINT},
                            "is a checkpoint of the stage joint; joint takes those of pretrain"),
    "a GAN for the flow": ("digits", "log_z_control", {"flow": DCGAN}, "--flow: .*is a checkpoint of the stage dcgan;"),
    "two experiments": ("digits", "log_z", {"model": f"../larger/{JOINT}"}, r"\(1, 16, 16\).*\(1, 8, 8\)"),
    "two shapes of flows": ("digits", "log_z_control", {"planted": f"../larger/{PRETRAINED}"},
                            "give those of one experiment"),
    "points for images": ("digits", "sample", {"model": f"../ring/{PRETRAINED}"}, r"for x of shape \(2,\)"),
    "a flow of images for points": ("ring", "joint", {"flow": f"../digits/{PRETRAINED}"}, "give those of one"),
    "another classifier": ("larger", "fid", {"samples": SAMPLES, "features": "../digits/classifier.pt"},
                           r"--features: .*\(1, 8, 8\).*\(1, 16, 16\)"),
    "no classifier": ("digits", "fid", {"samples": SAMPLES, "features": PRETRAINED},
                      "is a checkpoint of the stage pretrain; fid takes those of classifier"),
    "samples of others": ("digits", "fid", {"samples": f"../larger/{SAMPLES}"},
                          r"--samples: .*\(16, 16, 1\).*\(8, 8, 1\)"),
    "samples with other levels": ("digits", "fid", {"samples": arrays(SAMPLES, levels=256)}, "other grey levels"),
    "truncated samples": ("digits", "fid", {"samples": cut(SAMPLES)}, "samples.npz is not a readable npz"),
    "no samples": ("digits", "fid", {"samples": "data.npz"}, "no array 'images'"),
    "a picture": ("digits", "fid", {"samples": holding(b"\x89PNG\r\n")}, "not a readable npz"),
}


@pytest.mark.parametrize("name", MODELS)
def test_wrong_models_and_samples_are_refused(made, tmp_path, capfd, name):
    experiment, stage, inputs, says = MODELS[name]
    refused(capfd, made, tmp_path, experiment, stage, says, **inputs)


def changed(made: Path, to: Path, stage: str, section: str, **values) -> Path:
    """The digits' slice of a stage with other values."""
    content = json.loads((made / f"build/quick/digits/params/{stage}.json").read_text())
    content[section] |= values
    return write(to / "slice.json", json.dumps(content).encode())


def test_a_flow_of_other_parameters_is_refused(made, tmp_path, capfd):
    own = changed(made, tmp_path, "joint/joint", "flow", width=9)
    says = r"seed-0/pretrain\.pt was made with other parameters \(flow:\); run pretrain again"
    refused(capfd, made, tmp_path, "digits", "joint", says, params=own)


@pytest.mark.parametrize("stage", ["pretrain", "joint", "dcgan"])
def test_a_batch_larger_than_the_set_is_refused(made, tmp_path, capfd, stage):
    own = changed(made, tmp_path, "joint/joint" if stage == "joint" else stage, stage, batch=1258)
    says = f"{stage}.batch: 1258, but there are only 1257 training images; lower it"
    refused(capfd, made, tmp_path, "digits", stage, says, params=own)


def test_a_grid_that_misses_a_mode_is_refused(made, tmp_path, capfd):
    content = json.loads((made / "build/quick/ring/params/density.json").read_text())
    content["density"]["points"] = [2, 2]
    own, out = write(tmp_path / "slice.json", json.dumps(content).encode()), tmp_path / "density.json"
    capfd.readouterr()
    assert run(made, "ring", "density", params=own, out=out) == 2
    says = r"2x2 cells on \[-5, 5\]\^2 miss mode \d of the data; give larger density\.boxes or more density\.points"
    assert re.search(f"^error: density: {says}$", capfd.readouterr().err.strip())
    assert not out.exists()


MOONS = b'{"data": {"source": "moons", "std": NaN, "scale": 1, "components": 2, "test": 1, "validation": 1}}'
FLAG_MISTAKES = {  # name: stage, what is wrong, what the message says
    "no flow": ("joint", {"flow": None}, "--flow is missing, and these parameters need it"),
    "parameters of another stage": ("pretrain", {"params": "params/data.json"},
                                    "slice of pretrain: unknown key|'flow' is missing"),
    "no JSON": ("pretrain", {"params": holding(b"{")}, "is not JSON"),
    "no text": ("pretrain", {"params": holding(b"\xff\xfe")}, "is not JSON"),
    "a list": ("pretrain", {"params": holding(b"[1]")}, "must be a mapping"),
    "a folder of parameters": ("pretrain", {"params": "params"}, "--params: .* does not exist"),
    "NaN": ("data", {"params": holding(MOONS)}, r"data\.std: .*finite"),
    "a seed twice": ("pretrain", {"seeds": (1, 1)}, "would be written by several runs"),
}


@pytest.mark.parametrize("name", FLAG_MISTAKES)
def test_wrong_flags_are_refused(made, tmp_path, capfd, name):
    stage, wrong, says = FLAG_MISTAKES[name]
    refused(capfd, made, tmp_path, "digits", stage, says, **wrong)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--seed", "-1"], "seed: '-1' is no whole number from 0 to 4294967295"),
        (["--seed", "one"], "'one' is no whole number"),
        (["--seed", "4294967296"], "is no whole number"),
        (["--seed", "1.5"], "is no whole number"),
        (["--threads", "-2"], "threads: '-2' is no whole number"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--sed", "1"], "unrecognized arguments"),
    ],
)
def test_flags_that_cannot_be_read_end_in_usage_and_code_2(made, capfd, more, says):
    with pytest.raises(SystemExit) as end:
        run(made, "digits", "pretrain", *more)
    assert end.value.code == 2 and says in capfd.readouterr().err


def test_a_folder_for_the_output_is_refused(made, capfd):
    assert run(made, "digits", "pretrain", out="seed-0") == 2
    assert re.search("^error: --out: .*seed-0 is a folder", capfd.readouterr().err)


def report(folder: Path, to: Path) -> int:
    return build.main(["--profile", "quick", "--build", str(folder), "--out", str(to)])


REPORT_MISTAKES = {  # name: file below build/quick, its content, what the message says
    "no score": ("digits/seed-0/mle/bits_per_dim.json", b"{", r"bits_per_dim\.json is not a score file"),
    "an empty score": ("digits/seed-0/mle/bits_per_dim.json", b"", "is not a score file"),
    "no text": ("digits/seed-0/mle/bits_per_dim.json", b"\xff", "is not a score file"),
    "a list of scores": ("digits/seed-0/mle/bits_per_dim.json", b"[]", "is not a score file"),
    "a value in words": (
        "digits/seed-0/mle/bits_per_dim.json",
        b'{"measure": "bits_per_dim", "profile": "quick", "experiment": "digits", "seed": 0, "arm": "mle",'
        b'"scores": [{"name": "bits_per_dim", "model": "flow", "value": "low", "unit": "", "n": 1, "protocol": ""}],'
        b'"provenance": {}}',
        r"is not a score file \(scores\.0\.value\.Input should be a valid number",
    ),
    "a score that no list knows": (
        "digits/seed-0/mle/bits_per_dim.json",
        b'{"measure": "bits_per_dim", "profile": "quick", "experiment": "digits", "seed": 0, "arm": "mle",'
        b'"scores": [{"name": "<script>", "model": "flow", "value": 1, "n": 1, "protocol": ""}], "provenance": {}}',
        r"the score '<script>' is in no list; add it to \[scores\] in pipeline/catalogue\.toml",
    ),
    "a run without a number": ("digits/seed-zero/mle/a.txt", b"", "'seed-' and a number"),
    "a curve of text": ("digits/seed-0/pretrain.csv", b"hello\n", r"pretrain\.csv is no curve \(it has no step\)"),
    "an empty curve": ("digits/seed-0/joint/joint.csv", b"", r"joint\.csv is no curve"),
    "broken samples": (
        [f"digits/seed-0/{arm}/samples.npz" for arm in ("mle", "joint")],
        b"PK",
        r"samples\.npz is not a readable npz",
    ),
    "broken densities": (
        [f"ring/seed-0/{arm}/density.npz" for arm in ("mle", "joint-from-random")],
        b"PK",
        r"density\.npz is not a readable npz",
    ),
}


@pytest.mark.parametrize("name", REPORT_MISTAKES)
def test_a_report_of_wrong_files_names_them(made, tmp_path, capfd, name):
    place, content, says = REPORT_MISTAKES[name]
    shutil.copytree(made / "build/quick", tmp_path / "build/quick")
    for path in [place] if isinstance(place, str) else place:
        path = tmp_path / "build/quick" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert report(tmp_path / "build", tmp_path / "page/index.html") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(f"^error: .*{says}", lines[0]), lines
    assert not (tmp_path / "page/index.html").exists()


def test_a_report_of_no_folder_or_into_a_folder_is_refused(tmp_path, capfd):
    assert report(tmp_path / "biuld", tmp_path / "page.html") == 2
    assert "error: --build: " in capfd.readouterr().err
    assert report(tmp_path, tmp_path) == 2
    assert "is a folder, but the page is a file" in capfd.readouterr().err
