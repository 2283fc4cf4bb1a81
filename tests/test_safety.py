"""No file runs code, nothing is fetched unchecked, names mean nothing to a shell, pages show HTML of others as text."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import put, without_own_script
from tiny import ROOT, flags, run_stage, sent
from torchvision.datasets.utils import extract_archive

from eval import inception
from fce.stages import images, inputs
from fce.stages.images import OFFICIAL
from pipeline import checkpoint, fetch
from pipeline.errors import UserError
from pipeline.files import Npz, read_arrays
from pipeline.job import Job
from pipeline.params import ParamsError, load, read_slice
from pipeline.schema.data import Npz as OwnNpz
from pipeline.schema.experiment import Sections
from reports import build

ROOMS = ("pipeline", "fce", "eval", "reports", "benchmarks")
CODE = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
FILES = [*CODE, *(ROOT / name for name in ("Snakefile", "Makefile", "dvc.yaml"))]


class Evil:
    """What an attacker puts into a pickle: loading it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def evil(tmp_path):
    """Files of every format that hold code, and the mark that it leaves."""
    mark, content = tmp_path / "mark", Evil(tmp_path / "mark")
    torch.save({"kind": "pretrain", "flow": content, "shape": [2]}, tmp_path / "pretrain.pt")
    torch.save({"x": content}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(content))
    images_too = (f"{part}_{what}" for part in ("train", "validation", "test") for what in ("images", "labels"))
    points_too = (f"{part}{what}" for part in ("validation", "test") for what in ("", "_log_prob"))
    names = ("images", "levels", *images_too, *points_too)
    np.savez(tmp_path / "data.npz", **{name: np.array([content], dtype=object) for name in names})
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(content))
    return tmp_path, mark


def test_the_pickles_of_these_tests_are_dangerous(evil):
    folder, mark = evil
    pickle.loads((folder / "bare.pt").read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", ["pretrain.pt", "old.pt", "bare.pt"])
def test_checkpoints_run_no_code(evil, capfd, name, lazy):
    folder, mark = evil
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        checkpoint.load(folder / name, lazy)
    (folder / "slice.json").write_text(json.dumps({"log_z": LOG_Z}))
    paths = {"flow": name, "planted": name, "params": "slice.json", "out": "out.json"}
    assert run_stage("log_z_control", *flags("log_z_control", folder, **paths)) == 2
    assert "no whole checkpoint" in capfd.readouterr().err
    assert not mark.exists()


LOG_Z = {"samples": 256, "batch": 8, "level": 0.9, "chains": 2, "temperatures": 1, "leapfrog": 1}
MOONS = {"source": "moons", "std": 0.1, "scale": 1.0, "components": 2, "validation": 1, "test": 1}


@pytest.mark.parametrize("name", ["data.npz", "bare.npz"])
def test_arrays_run_no_code(evil, name):
    folder, mark = evil

    def opened(stage: str, params: Sections) -> None:
        inputs.check(Job(stage, params, folder / "out", {"data": folder / name}))

    for read in (
        lambda path: read_arrays(path, ("train_images",)),
        lambda path: read_arrays(path, (), ("images", "train_images")),
        lambda path: Npz(path, ())["train_images"],
        lambda path: Npz(path, ()).header("train_images"),
        lambda path: opened("classifier", Sections.model_construct()),
        lambda path: opened("density", read_slice(json.dumps({"data": MOONS}), "data")),
        lambda path: images.load(own_images(str(path))),
        lambda path: inputs.check_samples(path, None),
    ):
        with pytest.raises((UserError, ValueError), match=r"pickled|Object arrays"):
            read(folder / name)
    assert not mark.exists()


def own_images(file: str) -> OwnNpz:
    return OwnNpz(source="npz", file=file, levels=2, validation=1, split_seed=0)


@pytest.mark.parametrize("name", ["old.pt", "bare.pt"])
def test_inceptions_weights_run_no_code(evil, monkeypatch, name):
    """torch-fidelity itself would run it."""
    folder, mark = evil
    with pytest.raises(UserError, match="is no state of torch-fidelity's Inception"):
        inception.open_network(folder / name, "2048", "cpu", "the file")
    shutil.copy(folder / name, folder / inception.FILE)
    monkeypatch.setenv("FCE_DATA", str(folder))
    job = Job("inception", Sections.model_construct(), folder / "build/inception.pth", {})
    for anyway, says in (("", "wrong checksum"), ("1", "is no state of torch-fidelity's Inception")):
        monkeypatch.setenv("FCE_ANY_WEIGHTS", anyway)
        with pytest.raises(UserError, match=says):
            inception.run(job)
    assert not mark.exists() and list((folder / "build").iterdir()) == []


def calls(path: Path):
    """(function as written, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), ast.unparse(node)


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_call_can_run_what_it_reads(path):
    for function, call in calls(path):
        assert function != "torch.load" or "weights_only=True" in call, call
        assert function != "np.load" or "allow_pickle=False" in call, call
        assert function not in ("eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads")
        assert "shell=True" not in call, call
        assert function != "YAML" or "typ='safe'" in call, call
        assert not function.startswith("yaml."), call  # PyYAML's, and ruamel's old ways


class Response(BytesIO):
    def __init__(self, url: str):
        super().__init__(b"content")
        self.url, self.status, self.length = url, 200, 0


def test_downloads_are_https_to_their_end(tmp_path, monkeypatch):
    monkeypatch.delenv("FCE_DATA", raising=False)
    asked = []

    def answer(request, timeout):
        asked.append(request.full_url)
        return Response("http://elsewhere/file" if "led-astray" in request.full_url else request.full_url)

    monkeypatch.setattr(fetch, "urlopen", answer)
    fetch.obtain("file", "https://host/file", tmp_path / "file", "how")
    assert (tmp_path / "file").read_bytes() == b"content"
    for address, says in (
        ("http://host/file", "is not https"),
        ("https://host/led-astray", "elsewhere/file, which is not"),
    ):
        with pytest.raises(UserError, match=f"{says}.*; how"):
            fetch.obtain("file", address, tmp_path / "other", "how")
    assert "http://host/file" not in asked and not (tmp_path / "other").read_bytes()


def test_every_address_has_https_and_a_whole_sha256():
    listed = [entry for files in OFFICIAL.values() for entry in files.values()]
    for address, checksum in [*listed, (inception.ADDRESS, inception.SHA256)]:
        assert address.startswith("https://") and re.fullmatch("[0-9a-f]{64}", checksum)
    assert not any("http://" in path.read_text() for path in CODE)


def test_an_archive_writes_nothing_outside_its_folder(tmp_path):
    """By torchvision, which unpacks CIFAR-10, and of which a later version might not."""
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.OutsideDestinationError):
        extract_archive(str(tmp_path / "evil.tar.gz"), str(tmp_path / "inside"))
    assert not (tmp_path / "outside").exists()


NAMES = [
    "$(touch mark)",
    "a;touch mark",
    "a b",
    "a/b",
    "..",
    "../up",
    "-rf",
    "`id`",
    "a'b",
    'a"b',
    "a\nb",
    "é",
    "٣",
    "a|b",
    "{x}",
    "",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_experiment_name_means_anything_to_a_shell_or_a_path(tmp_path, name):
    entry = f"\nexperiments:\n  {json.dumps(name)}: {{}}\n"
    text = (ROOT / "params.yaml").read_text().replace("\nexperiments:\n", entry, 1)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match="its name text, no number: at most 64 letters") as caught:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_snakemake_stops_at_a_bad_name_with_its_message(tmp_path):
    for name in ("Snakefile", "pipeline", "fce", "eval", "reports", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    entry = '\nexperiments:\n  "$(touch mark)": {}\n'
    text = (ROOT / "params.yaml").read_text().replace("\nexperiments:\n", entry, 1)
    (tmp_path / "params.yaml").write_text(text)
    command = [str(Path(sys.executable).parent / "snakemake"), "-n", "quick"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode != 0 and not (tmp_path / "mark").exists() and not (tmp_path / "build").exists()
    assert "params.yaml: experiments.$(touch mark): an experiment is" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_file_names_are_paths_and_no_more(tmp_path, monkeypatch):
    folder = tmp_path / "$(touch mark); a b"
    folder.mkdir()
    monkeypatch.setenv("FCE_DATA", str(folder))
    for name in ("$(touch mark).npz", "a b;.npz"):
        (folder / name).write_bytes(b"no npz")
        with pytest.raises(UserError, match="is not a readable npz"):
            images.load(own_images(name))
    with pytest.raises(UserError, match="does not exist"):
        images.load(own_images("a\0b"))
    assert not list(tmp_path.rglob("mark"))


SCRIPT = "<script>alert(1)</script>"


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_pages_show_html_of_others_as_text(tmp_path, profile):
    experiment = {"quick": "digits", "full": "svhn"}[profile]
    folder = tmp_path / profile / experiment
    put(tmp_path, profile, experiment, "joint", "probe", {0: 0.5}, name="accuracy", model="features", labels=50)
    score = folder / "seed-0/joint/probe.json"
    content = json.loads(score.read_text())
    origin = ("commit", "device", "command", "params", "lock", "torch")
    content["provenance"] |= {**dict.fromkeys(origin, SCRIPT), "inputs": {SCRIPT: SCRIPT}}
    content["scores"][0] |= {"protocol": SCRIPT, "unit": SCRIPT}
    score.write_text(json.dumps(content))
    sent(score.with_suffix(".run.jsonl"), SCRIPT)
    begin, end = {"kind": "run", "time": 0, "provenance": content["provenance"]}, {"kind": "end", "time": 1}
    left = f"seed-0/{SCRIPT[:8]}/{SCRIPT[:8]}"  # of an arm that no list knows
    for path in (folder / "seed-0/pretrain.run.jsonl", folder / f"{left}.run.jsonl"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{json.dumps(begin)}\n{json.dumps(end)}\n")
    for path in (folder / "data.log", folder / "seed-0/pretrain.log", folder / f"{left}.log"):
        path.write_text(f"error: {SCRIPT}\n| a | row\n")
    slices = folder / "params/joint/joint.json"
    slices.parent.mkdir(parents=True)
    slices.write_text(json.dumps(slice_of(profile, experiment)))
    page = tmp_path / "report/index.html"
    assert build.main(["--profile", profile, "--build", str(tmp_path), "--out", str(page)]) == 0
    shown = {}
    for path in [page, *page.parent.glob("*.md"), *page.parent.glob("table*.html")]:
        text = without_own_script(path.read_text()) if path == page else path.read_text()
        assert "<script" not in text, path
        shown[path.name] = text.count("&lt;script&gt;")
    assert all(shown.values()) and shown["index.html"] >= 20, shown
    assert len(shown) == (2 if profile == "quick" else 10), shown  # the paper's four tables, each in two forms


def slice_of(profile: str, experiment: str) -> dict:
    slices = load(ROOT / "params.yaml").slices(profile, experiment)
    content = json.loads(slices[f"build/{profile}/{experiment}/params/joint/joint.json"])
    content["data"]["source"] = content["flow"]["coupling"] = content["energy"]["layers"] = SCRIPT
    return content


def make(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["make", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_another_python_is_refused_and_a_space_in_the_path_is_none_of_its_business(tmp_path):
    home = tmp_path / "my home"
    (home / "envs").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", home)
    for name in ("requirements.lock", "bootstrap.lock"):
        (home / "envs" / name).touch()
    old = home / "python3.10"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.10.1 || exit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "install", f"PYTHON={old}"], cwd=home, capture_output=True, text=True)
    assert done.returncode and f"{old} is Python 3.10.1" in done.stdout and "of Python 3.11" in done.stdout
    assert f'VIRTUAL_ENV="{home}/.venv" .venv/bin/uv pip sync' in make(home, "-n", "install")


def test_clean_removes_what_the_project_made_and_nothing_else(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine").touch()
    made = ["build/quick/ring/data.npz", ".snakemake/log", "mlflow.db", "mlartifacts/1/a", "dvc_plots/index.html"]
    kept = [
        "reports/published/quick/index.html",
        "params.yaml",
        "own.npz",
        ".venv/bin/python",
        "mlflow.db.mine",
        ".dvc/cache/a",
    ]
    for name in made + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "build/link").symlink_to(tmp_path / "elsewhere")
    make(tmp_path, "clean")
    assert not any((tmp_path / name.split("/")[0]).exists() for name in made)
    assert all((tmp_path / name).exists() for name in [*kept, "elsewhere/mine", "Makefile"])


def test_nothing_in_the_pipeline_writes_what_is_published():
    """Published reports are put there by hand, and git has the ones before."""
    for path in FILES:
        assert "reports/published" not in path.read_text(), path


def test_the_ui_listens_on_loopback_unless_told_otherwise():
    assert "--host 127.0.0.1 " in make(ROOT, "-n", "ui")
    told = make(ROOT, "-n", "ui", "HOST=0.0.0.0", "PORT=5001", "ALLOWED_HOSTS=gpubox.example.org")
    assert '--host 0.0.0.0 --port 5001 --allowed-hosts "gpubox.example.org" ' in told
