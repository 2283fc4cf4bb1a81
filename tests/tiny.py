"""A quick profile of seconds: its build folder, and a checkout of its own for the engines."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline import mirror, stage
from pipeline.catalogue import FEATURES, HOME, MODEL, NEXT_FLOW, SEED, STAGES
from pipeline.files import write_json
from pipeline.params import load, merge

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "seeds": {"toy": [0, 1], "images": [0]},
    "together": True,
    "experiments": ["ring", "digits"],
    "overrides": {
        "ring": {
            "pretrain": {"steps": 20, "validate_every": 20},
            "joint": {"ebm_updates": 20, "warm_start": 0, "log_every": 10},
            "arms": {"joint": {"warm_start": 10}, "joint-from-random": {"head_start": 4},
                     "frozen-flow": {"warm_start": 10}},
            "density": {"points": [40, 20], "plot_points": 20},
        },
        "digits": {
            "flow": {"steps": 1, "width": 8},
            "energy": {"widths": [4, 8, 8]},
            "pretrain": {"steps": 40, "validate_every": 20, "trajectory": {"moments": 2, "images": 40}},
            "joint": {"ebm_updates": 12, "warm_start": 10, "log_every": 6, "trajectory": {"moments": 2, "images": 40}},
            "arms": {"tilted": {"head_start": 4, "warm_start": 0}},
            "dcgan": {"widths": [4, 8], "orig": {"updates": 20}},
            "classifier": {"epochs": 1, "width": 4, "features": 8},
            "sample": {"count": 200},
            "log_z": {"samples": 300, "chains": 4, "temperatures": 4, "leapfrog": 2},
            "probe": {"labels": [50], "draws": 2, "inverse_l2": [0.01]},
            "supervised": {"updates": 4, "epochs": 1, "validations": 2, "lr": [0.001], "weight_decay": [0.01]},
        },
    },
}


def read_yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe", pure=True).load(path.read_text())
    return content


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(content, file)


def write_slices(folder: Path, changes: dict[str, Any] | None) -> Path:
    """Write the slices of TINY with these overrides below folder/build; returns the path of the quick profile.

    Without `changes`, not even none, the quick profile is that of params.yaml.
    """
    params = read_yaml(ROOT / "params.yaml")
    if changes is not None:
        params["quick"] = merge(TINY, {"overrides": changes})
    write_yaml(folder / "params.yaml", params)
    write_all(folder)
    return folder / "build/quick"


def write_all(folder: Path) -> None:
    """Write every slice of folder/params.yaml below folder/build."""
    params = load(folder / "params.yaml")
    for profile, experiments in params.experiments.items():
        for experiment in experiments:
            for path, text in params.slices(profile, experiment).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text)


def run_stage(name: str, *argv: str | Path) -> int:
    """A stage as a user runs it, in this process; returns its exit code."""
    return stage.main(name, [str(word) for word in argv])


def flags(name: str, home: Path, seeds: Sequence[int] = (0,), arms: Sequence[str] = ("joint",),
          **paths: str | Path | None) -> list[str]:
    """The command line of a stage of the experiment in `home`, with paths as the law has them.

    Others can be given, below home; None leaves one out.
    """
    row, argv = STAGES[name], ["--device", "cpu", "--threads", "1"]
    law = {"params": row.slice if row.sections else None, **row.needs, "out": row.out, **paths}
    classifier, next_flow = STAGES["classifier"].out, HOME + "seed-1/pretrain.pt"
    words: dict[Any, str] = {MODEL: SEED + MODEL, FEATURES: classifier, NEXT_FLOW: next_flow}
    for flag, path in law.items():
        argv += [f"--{flag}", str(home / str(words.get(path, path)).removeprefix(HOME))] if path is not None else []
    argv += ["--seed", *map(str, seeds)] if row.seeded else []
    return argv + (["--arm", *arms] if any("{arm}" in word or MODEL in word for word in argv) else [])


def make_project(folder: Path) -> Path:
    """A checkout of its own, with TINY as its quick profile."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines()
    if listed.returncode:  # no git: a zip of the repository
        made = {".venv", ".git", ".snakemake", "build"}
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        names = [str(path) for path in paths if made.isdisjoint(path.parts)]
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    edit(folder, lambda params: params.update(quick=TINY))
    for command in ("git init -q", "git add -A", "git -c user.name=a -c user.email=a@b commit -qm tiny"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder


def own_images(folder: Path) -> dict[str, Any]:
    """Put images of one's own into a project's data/mine.npz; returns their entry, as the README has it."""
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 120), ("test", 60)):
        images = rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
        arrays |= {f"{part}_images": images, f"{part}_labels": np.arange(n) % 10}
    np.savez(folder / "data/mine.npz", **arrays)
    block = re.search(r"```yaml\n(experiments:\n  mine:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    entry: dict[str, Any] = YAML(typ="safe", pure=True).load(block[1])["experiments"]["mine"]
    entry["data"]["validation"] = 20
    return entry


def sent(record: Path, run: str) -> None:
    """Note that MLflow has this record, in this run."""
    server = mirror.Server(mirror.tracking_uri())
    server.sent[mirror.relative(record)] = {"run": run}
    write_json(mirror.SENT, server.all)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the params.yaml of a project."""
    params = read_yaml(folder / "params.yaml")
    change(params)
    write_yaml(folder / "params.yaml", params)


def environment(**more: str) -> dict[str, str]:
    """What the engines run in: this Python, and no MLflow server, since a broken mirror costs nothing."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"} | more


def commit(folder: Path) -> Path:
    for command in ("git add -A", "git -c user.name=a -c user.email=a@b commit -qm now"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder


def call(folder: Path, command: str, *words: str) -> str:
    """Run a command in a checkout, as one text or as words; returns what it says."""
    done = subprocess.run([command, *words] if words else command.split(), cwd=folder, capture_output=True, text=True,
                          env=environment(FCE_DATA="data"), timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def run(folder: Path, command: str) -> set[str]:
    """Run an engine; returns the runs that there really were, as paths of the records they wrote."""
    started = time.time()
    call(folder, command)
    records = (folder / "build").rglob("*.run.jsonl")
    return {"/".join(record.relative_to(folder / "build").parts[1:]).removesuffix(".run.jsonl") for record in records
            if record.stat().st_mtime > started}


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)
