"""A wrong file, flag or folder ends with one message and exit code 2, before anything is written.

Wrong parameters are in test_params.py, a user's own images in test_data.py, too few of them in test_fid.py.
"""

import io
import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import ROOT, TINY

from fce.params import load
from reports import build

FLAGS = {  # of each stage: module, required inputs, optional ones, keywords of its `main`
    "data": ("fce.data.data", [], [], {"seeded": False}),
    "pretrain": ("fce.pretrain", ["data"], [], {"several": True}),
    "joint": ("fce.joint", ["data"], ["flow"], {"several": True}),
    "dcgan": ("fce.dcgan", ["data"], [], {}),
    "density": ("eval.density", ["data", "model"], [], {"several": True}),
    "classifier": ("eval.classifier", ["data"], [], {"seeded": False}),
    "sample": ("eval.sample", ["data", "model"], [], {}),
    "fid": ("eval.fid", ["data", "samples", "features"], [], {}),
    "bits_per_dim": ("eval.bits_per_dim", ["data", "model"], [], {}),
    "log_z": ("eval.log_z", ["data", "model"], [], {}),
    "log_z_control": ("eval.log_z_control", ["flow", "planted"], [], {}),
    "probe": ("eval.probe", ["data"], ["model"], {}),
    "supervised": ("eval.supervised", ["data"], [], {}),
}


def run(root: Path, experiment: str, stage: str, out: str, *more: str, **changes: str | Path) -> int:
    """A stage as a user runs it, in this process; inputs are paths below build/quick/<experiment>/."""
    module, needed, optional, keywords = FLAGS[stage]
    folder = root / "build/quick" / experiment
    arm = "joint/" if stage == "joint" else ""
    given = (
        {"params": f"params/{arm}{stage if not arm else 'joint'}.json"}
        | ({} if stage == "data" else {"data": "data.npz"} if "data" in needed else {})
        | changes
    )
    argv = [part for name, path in given.items() for part in (f"--{name}", str(folder / path))]
    argv += [] if "seeded" in keywords or "--seed" in more else ["--seed", "0"]
    argv += ["--out", str(folder / out), "--device", "cpu", "--threads", "1", *more]
    code = import_module(module)
    main = import_module("fce.stage").main
    return main(code.__doc__, code.run, inputs=needed, optional=optional, argv=argv, **keywords)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the ring, of the digits and of some images of 16 x 16, of seconds."""
    root = tmp_path_factory.mktemp("made")
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"quick": json.loads(json.dumps(TINY))}
    params["quick"]["images"].append("larger")
    params["quick"]["overrides"]["larger"] = params["quick"]["overrides"]["digits"]
    own = {"source": "npz", "file": str(root / "own.npz"), "levels": 16, "validation": 8, "split_seed": 0}
    params["experiments"]["larger"] = params["experiments"]["digits"] | {"data": own}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    load(root / "params.yaml").write_slices(root / "build")
    rng = np.random.default_rng(0)
    parts = {
        f"{part}_images": rng.integers(0, 16, (n, 16, 16, 1)).astype(np.uint8)
        for part, n in (("train", 80), ("test", 20))
    }
    np.savez(root / "own.npz", **parts, train_labels=np.arange(80) % 10, test_labels=np.arange(20) % 10)
    for experiment in ("ring", "digits", "larger"):
        assert run(root, experiment, "data", "data.npz") == 0
        assert run(root, experiment, "pretrain", "seed-0/pretrain.pt") == 0
        assert run(root, experiment, "joint", "seed-0/joint/joint.pt", flow="seed-0/pretrain.pt") == 0
    assert run(root, "digits", "dcgan", "seed-0/dcgan/dcgan.pt") == 0
    assert run(root, "digits", "classifier", "classifier.pt") == 0
    for experiment in ("digits", "larger"):
        assert run(root, experiment, "sample", "seed-0/mle/samples.npz", model="seed-0/pretrain.pt") == 0
    return root


def test_right_inputs_pass(made):
    look = {"samples": "seed-0/mle/samples.npz", "features": "classifier.pt"}
    pretrained, joint = {"model": "seed-0/pretrain.pt"}, {"model": "seed-0/joint/joint.pt"}
    flows = {"flow": "seed-0/pretrain.pt", "planted": "seed-0/pretrain.pt"}
    dcgan = {"model": "seed-0/dcgan/dcgan.pt"}
    for stage, arm, inputs in (
        *(("fid", "mle", look), ("bits_per_dim", "mle", pretrained), ("bits_per_dim", "joint", joint)),
        *(("log_z", "joint", joint), ("log_z_control", "planted", flows), ("probe", "joint", joint)),
        *(("probe", "random-init", {}), ("probe", "dcgan", dcgan), ("supervised", "supervised", {})),
    ):
        assert run(made, "digits", stage, f"seed-0/{arm}/{stage}.json", **inputs) == 0
    assert run(made, "ring", "density", "seed-0/joint/density.json", **joint) == 0


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


def refused(capfd, made: Path, tmp_path: Path, experiment: str, stage: str, says: str, *more: str, **inputs) -> None:
    """The stage ends with code 2 and one message, and has written nothing."""
    folder = made / "build/quick" / experiment
    paths = {name: given(folder, tmp_path) if callable(given) else given for name, given in inputs.items()}
    capfd.readouterr()
    out = tmp_path / f"build/quick/{experiment}/seed-0/an-arm/{stage}.out"
    assert run(made, experiment, stage, str(out), *more, **paths) == 2
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
        "integers from 0 to 9",
    ),
    "one class": ("digits", "probe", arrays("data.npz", train_labels=np.zeros(1257, int)), "all of one class"),
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
    more = {"model": "seed-0/pretrain.pt"} if "model" in FLAGS[stage][1] else {}
    refused(capfd, made, tmp_path, experiment, stage, says, data=data, **more)


MODELS = {  # name: experiment, stage, its inputs, what the message says
    "empty": ("digits", "sample", {"model": holding(b"")}, "--model: .*no whole checkpoint .*run joint again"),
    "text": ("digits", "log_z", {"model": holding(b"weights")}, "no whole checkpoint"),
    "truncated": ("digits", "bits_per_dim", {"model": cut("seed-0/pretrain.pt")}, "no whole .*run pretrain again"),
    "truncated flow": ("ring", "joint", {"flow": cut("seed-0/pretrain.pt")}, "--flow: .*no whole checkpoint"),
    "other content": (
        "digits",
        "sample",
        {"model": checkpoint({"x": 1})},
        "is no checkpoint, but one of the stage joint is needed",
    ),
    "a bare number": ("digits", "log_z", {"model": checkpoint(torch.ones(2))}, "is no checkpoint"),
    "Glow where an EBM is needed": (
        "digits",
        "log_z",
        {"model": "seed-0/pretrain.pt"},
        "stage pretrain; log_z takes .*joint",
    ),
    "DCGAN where a density is needed": ("digits", "bits_per_dim", {"model": "seed-0/dcgan/dcgan.pt"}, "stage dcgan"),
    "an EBM for the flow": (
        "digits",
        "joint",
        {"flow": "seed-0/joint/joint.pt"},
        "of the stage joint, but .* pretrain is",
    ),
    "a GAN for the flow": (
        "digits",
        "log_z_control",
        {"flow": "seed-0/dcgan/dcgan.pt", "planted": "seed-0/pretrain.pt"},
        "--flow: .*of the stage dcgan, but",
    ),
    "two experiments": ("digits", "log_z", {"model": "../larger/seed-0/joint/joint.pt"}, r"\(1, 16, 16\).*\(1, 8, 8\)"),
    "two shapes of flows": (
        "digits",
        "log_z_control",
        {"flow": "seed-0/pretrain.pt", "planted": "../larger/seed-0/pretrain.pt"},
        "give those of one experiment",
    ),
    "points for images": ("digits", "sample", {"model": "../ring/seed-0/pretrain.pt"}, r"for x of shape \(2,\)"),
    "a flow of images for points": ("ring", "joint", {"flow": "../digits/seed-0/pretrain.pt"}, "give those of one"),
    "another classifier": (
        "larger",
        "fid",
        {"samples": "seed-0/mle/samples.npz", "features": "../digits/classifier.pt"},
        r"--features: .*\(1, 8, 8\).*\(1, 16, 16\)",
    ),
    "no classifier": (
        "digits",
        "fid",
        {"samples": "seed-0/mle/samples.npz", "features": "seed-0/pretrain.pt"},
        "of the stage pretrain, but one of the stage classifier",
    ),
    "samples of others": (
        "digits",
        "fid",
        {"samples": "../larger/seed-0/mle/samples.npz", "features": "classifier.pt"},
        r"--samples: .*\(16, 16, 1\).*\(8, 8, 1\)",
    ),
    "samples with other levels": (
        "digits",
        "fid",
        {"samples": arrays("seed-0/mle/samples.npz", levels=256), "features": "classifier.pt"},
        "other grey levels",
    ),
    "truncated samples": (
        "digits",
        "fid",
        {"samples": cut("seed-0/mle/samples.npz"), "features": "classifier.pt"},
        "samples.npz is not a readable npz",
    ),
    "no samples": ("digits", "fid", {"samples": "data.npz", "features": "classifier.pt"}, "no array 'images'"),
    "a picture": (
        "digits",
        "fid",
        {"samples": holding(b"\x89PNG\r\n"), "features": "classifier.pt"},
        "not a readable npz",
    ),
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
    refused(capfd, made, tmp_path, "digits", "joint", says, params=own, flow="seed-0/pretrain.pt")


@pytest.mark.parametrize("stage", ["pretrain", "joint", "dcgan"])
def test_a_batch_larger_than_the_set_is_refused(made, tmp_path, capfd, stage):
    own = changed(made, tmp_path, "joint/joint" if stage == "joint" else stage, stage, batch=1258)
    flow = {"flow": "seed-0/pretrain.pt"} if stage == "joint" else {}
    says = f"{stage}.batch: 1258, but there are only 1257 training images; lower it"
    refused(capfd, made, tmp_path, "digits", stage, says, params=own, **flow)


def test_a_grid_that_misses_a_mode_is_refused(made, tmp_path, capfd):
    content = json.loads((made / "build/quick/ring/params/density.json").read_text())
    content["density"]["points"] = [2, 2]
    own = write(tmp_path / "slice.json", json.dumps(content).encode())
    capfd.readouterr()
    out = str(tmp_path / "density.json")
    assert run(made, "ring", "density", out, params=own, model="seed-0/joint/joint.pt") == 2
    says = r"2x2 cells on \[-5, 5\]\^2 miss mode \d of the data; give larger density\.boxes or more density\.points"
    assert re.search(f"^error: density: {says}$", capfd.readouterr().err.strip())
    assert not Path(out).exists()


MOONS = b'{"data": {"source": "moons", "std": NaN, "scale": 1, "components": 2, "test": 1, "validation": 1}}'
FLAG_MISTAKES = {  # name: stage, inputs, further arguments, what the message says
    "no flow": ("joint", {}, [], "--flow is missing, and these parameters need it"),
    "parameters of another stage": (
        "pretrain",
        {"params": "params/data.json"},
        [],
        "slice of pretrain: unknown key|'flow' is missing",
    ),
    "no JSON": ("pretrain", {"params": holding(b"{")}, [], "is not JSON"),
    "no text": ("pretrain", {"params": holding(b"\xff\xfe")}, [], "is not JSON"),
    "a list": ("pretrain", {"params": holding(b"[1]")}, [], "must be a mapping"),
    "a folder of parameters": ("pretrain", {"params": "params"}, [], "--params: .* does not exist"),
    "NaN": ("data", {"params": holding(MOONS)}, [], r"data\.std: .*finite"),
    "a seed twice": ("pretrain", {}, ["--seed", "1", "1"], "would be written by several runs"),
}


@pytest.mark.parametrize("name", FLAG_MISTAKES)
def test_wrong_flags_are_refused(made, tmp_path, capfd, name):
    stage, inputs, more, says = FLAG_MISTAKES[name]
    refused(capfd, made, tmp_path, "digits", stage, says, *more, **inputs)


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
        run(made, "digits", "pretrain", "x.pt", *more)
    assert end.value.code == 2 and says in capfd.readouterr().err


def test_a_folder_for_the_output_is_refused(made, capfd):
    assert run(made, "digits", "pretrain", "seed-0") == 2
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
        b'"scores": [{"name": "n", "model": "flow", "value": "low", "unit": "", "n": 1, "protocol": ""}],'
        b'"provenance": {}}',
        r"is not a score file \(scores\.0\.value\.Input should be a valid number",
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
