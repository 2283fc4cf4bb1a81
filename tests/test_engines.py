"""Snakemake and DVC drive one DAG: switching between them retrains nothing and leaves nothing stale.

One checkout is led through the scenarios in turn, with points, with images and with somebody's own images.
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from tiny import ROOT, TINY, edit, environment, make_project, read_yaml

SNAKEMAKE, DVC = "snakemake --cores 2 quick", "dvc repro quick"
ARMS = {"ring": ("joint", "joint-from-random", "frozen-flow", "gaussian-noise"), "digits": ("joint", "tilted")}
DENSITIES = {f"ring/seed-{seed}/{arm}/density" for seed in (0, 1) for arm in ("mle", *ARMS["ring"])}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a quick profile of seconds, which also has own images, as the README says.

    Quick has a process for all arms of a seed; `small` has one for each run, here on the same images without labels.
    """
    folder = make_project(tmp_path_factory.mktemp("project"))
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 120), ("test", 60)):
        images = rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
        arrays |= {f"{part}_images": images, f"{part}_labels": np.arange(n) % 10}
    np.savez(folder / "data/mine.npz", **arrays)
    block = re.search(r"```yaml\n(experiments:\n  mine:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    entry: dict[str, Any] = YAML(typ="safe", pure=True).load(block[1])["experiments"]["mine"]
    entry["data"]["validation"] = 20

    def add(params: dict[str, Any]) -> None:
        params["experiments"]["mine"] = entry
        params["quick"]["experiments"].append("mine")
        params["quick"]["overrides"]["mine"] = TINY["overrides"]["digits"]
        params["experiments"]["plain"] = entry | {"data": entry["data"] | {"labels": False}}
        params["experiments"]["plain"] |= TINY["overrides"]["digits"]
        params["small"] = {"seeds": TINY["seeds"], "experiments": ["plain"], "overrides": {}}

    edit(folder, add)
    return commit(folder)


def commit(folder: Path) -> Path:
    for command in ("git add -A", "git -c user.name=a -c user.email=a@b commit -qm now"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder


def call(folder: Path, command: str) -> str:
    """Run a command in a checkout; returns what it says."""
    done = subprocess.run(command.split(), cwd=folder, env=environment(FCE_DATA="data"), capture_output=True,
                          text=True, timeout=900)
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


def test_a_look_writes_nothing(project: Path) -> None:
    before = set(project.rglob("*"))
    for command in ("snakemake -n quick", "snakemake -n", "snakemake --summary quick"):
        call(project, command)
    new = {path.relative_to(project).parts[0] for path in set(project.rglob("*")) - before}
    assert new <= {".snakemake", "pipeline", "fce", "eval", "reports"}  # Snakemake's own notes, Python's caches
    assert not call(project, "git status --porcelain")


def test_switching_engines_reruns_only_what_changed(project: Path) -> None:
    # 1: a clean run by Snakemake makes everything; 2, 3: DVC then has nothing to do, nor has Snakemake
    first = run(project, SNAKEMAKE)
    measured = ("dcgan/fid", "supervised/supervised")
    baselines = {f"{name}/seed-0/{place}" for name in ("digits", "mine") for place in measured}
    assert {"ring/data", "digits/seed-0/tilted/joint", "mine/seed-0/joint/log_z", *DENSITIES, *baselines} <= first
    assert (project / "build/report/quick/index.html").stat().st_size > 10_000
    assert run(project, DVC) == set()
    assert run(project, SNAKEMAKE) == set()

    # 4: a code file edited, run by DVC: only what computes with it; Snakemake then has nothing to do
    append(project / "eval/density.py", "\n# edited\n")
    assert run(project, DVC) == DENSITIES
    assert run(project, SNAKEMAKE) == set()

    # 5: one parameter changed, run by Snakemake: only its stage; DVC then has nothing to do;
    edit(project, lambda params: params["quick"]["overrides"]["ring"]["density"].update(plot_points=24))
    assert run(project, SNAKEMAKE) == DENSITIES

    # 10: nor do a comment in the Snakefile and a reworded log line change anything
    for name in ("Snakefile", "pipeline/track.py"):
        append(project / name, "\n# a comment\n")
    assert run(project, DVC) == set()
    assert run(project, SNAKEMAKE) == set()


def test_a_clone_gets_outputs_from_a_remote_and_goes_on(project: Path, tmp_path: Path) -> None:
    # 6: fresh clone and pull from a folder; both engines have nothing to do
    call(project, f"dvc remote add --default store {tmp_path / 'remote'}")
    call(project, "dvc push quick quick-run")
    commit(project)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
    shutil.copy(project / "data/mine.npz", clone / "data")
    call(clone, "make -o install pull")
    assert run(clone, SNAKEMAKE) == set()
    assert run(clone, DVC) == set()
    scores = "build/quick/digits/seed-0/mle/fid.json"
    assert (clone / scores).read_bytes() == (project / scores).read_bytes()

    # 7: one rate changed in the clone, run by DVC: its stage and the processes that follow
    edit(clone, lambda params: params["quick"]["overrides"]["digits"]["dcgan"].update(beta1=0.4))
    follow = {f"{arm}/{output}" for arm in ("mle", "joint", "tilted", "dcgan") for output in ("samples", "fid")}
    follow |= {f"{arm}/probe" for arm in ("random-init", "joint", "tilted", "dcgan")}
    assert run(clone, DVC) == {f"digits/seed-0/{place}" for place in {"dcgan/dcgan"} | follow}
    assert run(clone, SNAKEMAKE) == set()

    # 8: the code of pre-training edited there, run by DVC: it and all that comes from its flows
    append(clone / "fce/stages/pretrain.py", "\n# edited\n")
    of_ring = {f"ring/seed-{seed}/{place}" for seed in (0, 1)
               for place in ("pretrain", *(f"{arm}/joint" for arm in ARMS["ring"]))}
    assert run(clone, "dvc repro quick-run@ring") == of_ring | DENSITIES
    assert run(clone, "snakemake --cores 2 build/quick/ring/scores.txt") == set()


def test_a_changed_file_of_the_users_is_seen_by_both_engines(project: Path) -> None:
    # 11: whatever its date says
    file = project / "data/mine.npz"
    arrays = dict(np.load(file))
    for year, (engine, after) in enumerate(((SNAKEMAKE, DVC), ("dvc repro quick-run@mine", SNAKEMAKE))):
        arrays["test_images"] = np.roll(arrays["test_images"], 1, axis=0)
        np.savez(file, **arrays)
        os.utime(file, (year * 3e7, year * 3e7))
        made = run(project, engine)
        assert {"mine/data", "mine/seed-0/mle/bits_per_dim"} <= made
        assert all(name.startswith("mine/") for name in made)
        assert run(project, after) == set()


def test_without_a_remote_pull_says_what_is_missing(tmp_path: Path) -> None:
    folder = make_project(tmp_path)
    command = ["make", "-o", "install", "pull"]
    done = subprocess.run(command, cwd=folder, env=environment(FCE_DATA="data"), capture_output=True, text=True)
    assert done.returncode != 0 and "no DVC remote is set" in done.stdout and "dvc remote add" in done.stdout


def test_seeds_and_arms_come_and_go(project: Path) -> None:
    # 9: a seed added: only its runs, and the control, which plants its flow in place of the jointly trained one
    home = "build/small/plain"
    first = run(project, f"snakemake --cores 2 {home}/scores.txt")
    assert {"plain/data", "plain/seed-0/tilted/log_z", "plain/seed-0/planted/log_z_control"} <= first
    edit(project, lambda params: params["small"].update(seeds={"toy": [0], "images": [0, 1]}))
    added = run(project, f"snakemake --cores 2 {home}/scores.txt")
    assert added - {"plain/seed-0/planted/log_z_control"} == {place for place in added if "/seed-1/" in place}
    assert {"plain/seed-1/pretrain", "plain/seed-1/tilted/joint", "plain/seed-1/joint/samples"} <= added
    assert run(project, "dvc repro small-run@plain") == set()

    # an arm removed: nothing is trained; what is left of it is named, and in no table
    arms = read_yaml(project / "params.yaml")["defaults"]["images"]["arms"]
    assert set(arms) == {"joint", "tilted"}
    edit(project, lambda params: params["defaults"]["images"]["arms"].pop("tilted"))
    edit(project, lambda params: params["experiments"]["plain"]["arms"].pop("tilted"))
    assert "tilted" in (project / home / "scores.txt").read_text()
    assert run(project, f"snakemake --cores 2 {home}/scores.txt") == set()
    assert "tilted" not in (project / home / "scores.txt").read_text()
    assert run(project, "dvc repro small-run@plain") == set()
    call(project, "python -m fce report --profile small --build build --out page/index.html")
    assert "left over, not shown: plain/seed-0/tilted" in (project / "page/index.html").read_text()
    assert "tilted" not in (project / "page/plain-images.csv").read_text()


MEASURE = '''"""How bright the samples are: a measure that a test adds."""

from eval.score import Score, write_scores
from pipeline.files import read_arrays
from pipeline.job import Job


def run(job: Job) -> None:
    images = read_arrays(job.inputs["samples"], ("images",))["images"]
    write_scores(job, [Score(name="brightness", model="flow", value=float(images.mean()), n=len(images),
                             protocol="mean grey level of the samples")])
'''


def test_a_measure_and_an_arm_are_two_files_each(project: Path) -> None:
    """A module and its table; a row of the arms and an entry in params.yaml; then the page has them."""
    commit(project)
    catalogue = project / "pipeline/catalogue.toml"
    (project / "eval/brightness.py").write_text(MEASURE)
    append(catalogue, '''
[stages.brightness]
file = "eval/brightness.py"
out = "build/{profile}/{experiment}/seed-{seed}/{arm}/brightness.json"
needs = {data = "data", samples = "sample"}
sections = ["sample"]
of = ["flows"]

[scores.brightness]
heading = "brightness"
unit = "grey levels"
''')
    assert len(call(project, "git status --porcelain").splitlines()) == 2
    flows = {f"plain/seed-{seed}/{arm}" for seed in (0, 1) for arm in ("mle", "joint")}
    assert run(project, "snakemake --cores 2 small") == {f"{flow}/brightness" for flow in flows}
    table = (project / "build/report/small/plain-images.csv").read_text()
    assert "brightness" in table and "Glow (ours)" in table

    commit(project)
    append(catalogue, '[arms.slow]\nwords = "ours, slowly"\nkinds = ["images"]\ncolour = 2\ndash = [9, 9]\n')
    edit(project, lambda params: params["experiments"]["plain"]["arms"].update(slow={"flow_lr": 1e-6}))
    assert len(call(project, "git status --porcelain").splitlines()) == 2
    made = run(project, "dvc repro small")
    assert {place.split("/")[2] for place in made} == {"slow"} and "plain/seed-1/slow/brightness" in made
    assert "Glow (ours, slowly)" in (project / "build/report/small/index.html").read_text()
