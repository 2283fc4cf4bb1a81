"""Snakemake and DVC drive one DAG: switching between them retrains nothing and leaves nothing stale.

One checkout is led through the scenarios in turn, with points, with images and with somebody's own images.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc.utils.hydra import apply_overrides
from tiny import ROOT, append, call, commit, edit, environment, make_project, own_images, run

SNAKEMAKE, DVC = "snakemake --cores 2 quick", "dvc repro quick"
ARMS = ("joint", "joint-from-random", "frozen-flow", "gaussian-noise")  # of the ring
DENSITIES = {f"ring/seed-{seed}/{arm}/density" for seed in (0, 1) for arm in ("mle", *ARMS)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a quick profile of seconds: a density, and own images, as the README says."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    entry = own_images(folder)

    def add(params: dict[str, Any]) -> None:
        params["experiments"]["mine"] = entry
        params["quick"]["experiments"] = ["ring", "mine"]
        params["quick"]["overrides"]["mine"] = params["quick"]["overrides"].pop("digits")

    edit(folder, add)
    return commit(folder)


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
    images = {f"mine/seed-0/{place}" for place in ("tilted/joint", "joint/log_z", "dcgan/fid", "supervised/supervised")}
    assert {"ring/data", *DENSITIES, *images} <= first
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
    scores = "build/quick/mine/seed-0/mle/fid.json"
    assert (clone / scores).read_bytes() == (project / scores).read_bytes()

    # 7: one rate changed in the clone, run by DVC: its stage and the processes that follow
    edit(clone, lambda params: params["quick"]["overrides"]["mine"]["dcgan"].update(beta1=0.4))
    follow = {f"{arm}/{output}" for arm in ("mle", "joint", "tilted", "dcgan") for output in ("samples", "fid")}
    follow |= {f"{arm}/probe" for arm in ("random-init", "joint", "tilted", "dcgan")}
    assert run(clone, DVC) == {f"mine/seed-0/{place}" for place in {"dcgan/dcgan"} | follow}
    assert run(clone, SNAKEMAKE) == set()

    # 8: the code of pre-training edited there, run by DVC: it and all that comes from its flows
    append(clone / "fce/stages/pretrain.py", "\n# edited\n")
    of_ring = {f"ring/seed-{seed}/{place}" for seed in (0, 1)
               for place in ("pretrain", *(f"{arm}/joint" for arm in ARMS))}
    assert run(clone, "dvc repro quick-run@ring") == of_ring | DENSITIES
    assert run(clone, "snakemake --cores 2 build/quick/ring/scores.txt") == set()


def test_what_is_pulled_and_not_of_this_checkout_is_made_again(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
    shutil.copy(project / "data/mine.npz", clone / "data")
    edit(clone, lambda params: params["quick"]["overrides"]["ring"]["density"].update(plot_points=26))
    assert "build/quick/ring/scores.txt is not of this params.yaml and this code" in call(clone, "make -o install pull")
    assert "quick_ring_density" in call(clone, "snakemake -n build/quick/ring/scores.txt")


def test_a_changed_file_of_the_users_is_seen_by_both_engines(project: Path) -> None:
    # 11: whatever its date says
    file = project / "data/mine.npz"
    arrays = dict(np.load(file))
    for year in (0, 1):
        arrays["test_images"] = np.roll(arrays["test_images"], 1, axis=0)
        np.savez(file, **arrays)
        os.utime(file, (year * 3e7, year * 3e7))
        assert "build/quick/mine/data.npz" in call(project, "snakemake -n quick")
        assert "quick-run@mine" in call(project, "dvc status quick-run@mine")
    made = run(project, "dvc repro quick-run@mine")
    assert {"mine/data", "mine/seed-0/mle/bits_per_dim"} <= made
    assert all(name.startswith("mine/") for name in made)
    assert run(project, SNAKEMAKE) == set()


def test_every_command_of_the_page_on_dvc_runs(project: Path, tmp_path: Path) -> None:
    apply_overrides(project / "params.yaml", ["quick.together=true"])  # in the style of the file that is shipped
    commit(project)
    page = (ROOT / "docs/dvc.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    commands = [line.partition("  # ")[0].rstrip() for block in blocks for line in block.splitlines()]
    assert len(page.splitlines()) <= 100 and len(commands) >= 12
    published = project / "reports/published/quick/index.html"
    published.parent.mkdir(parents=True, exist_ok=True)
    for command in commands:
        if command.startswith("dvc status"):
            published.write_text("a page that was published")  # makes nothing stale
        said = call(project, *shlex.split(command.replace("/tmp/lab-of-the-test", str(tmp_path / "lab"))))
        if command.startswith("dvc status"):
            assert "up to date" in said
        if command.startswith("dvc exp run"):
            changed = call(project, "git", "diff", "--numstat", "params.yaml").split()
            assert changed[:2] == ["1", "1"], "the writer of DVC touches more than what is set"
        if command.startswith(("dvc params diff", "dvc exp show")):
            assert "plot_points" in said
        if command.startswith("dvc metrics show"):
            assert "mine.joint.test/bits_per_dim" in said
    assert list((tmp_path / "lab").rglob("*")) and (project / "dvc_plots/index.html").exists()
    call(project, "git", "checkout", "params.yaml")


def test_snakemakes_linter_finds_what_has_its_reason_and_nothing_else() -> None:
    said = subprocess.run(["snakemake", "--lint"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    found = set(re.findall(r"^ +\* (.*?):?$", said.stdout + said.stderr, re.MULTILINE))
    reasons = {
        "Specify a conda environment or container for each rule.": "one locked environment for all, envs/",
        "No log directive defined": "three rules that are one printf, or the report's own command",
        "Path composition with '+'": "the path law's constants, which end in a slash",
        "Absolute path": 'the text "/", which a name is cleared of',
    }
    assert found and all(any(each.startswith(known) for known in reasons) for each in found), found


def test_snakemakes_own_report_carries_the_page(project: Path) -> None:
    call(project, "snakemake --report build/snakemake.html quick")
    whole = (project / "build/snakemake.html").read_text()
    assert "build/report/quick/index.html" in whole and "where each number comes from" in whole


def test_without_a_remote_pull_says_what_is_missing(tmp_path: Path) -> None:
    folder = make_project(tmp_path)
    command = ["make", "-o", "install", "pull"]
    done = subprocess.run(command, cwd=folder, env=environment(FCE_DATA="data"), capture_output=True, text=True)
    assert done.returncode != 0 and "no DVC remote is set" in done.stdout and "dvc remote add" in done.stdout


@pytest.mark.parametrize(("gpus", "training", "measure"), [("0", 0, 0), ("1", 1, 1), ("4", 4, 1)])
def test_a_cluster_is_asked_for_gpus_that_nobody_looks_for(gpus: str, training: int, measure: int) -> None:
    command = shlex.split("snakemake --profile profiles/slurm -n -p --forceall full")
    done = subprocess.run(command, cwd=ROOT, env=environment(FCE_GPUS=gpus), capture_output=True, text=True)
    jobs = re.findall(r"rule (\w+):.*?resources: (.*?)\n", done.stdout + done.stderr, re.DOTALL)
    assert done.returncode == 0 and all("runtime=" in asked and "mem_mb=" in asked for _, asked in jobs)
    assert ("torchrun" in done.stdout + done.stderr) == (gpus == "4")  # by one process otherwise
    wanted = {"pretrain": training, "joint": training, "dcgan": measure, "fid": measure, "full_ring_joint": 0}
    for rule, count in wanted.items():
        found = [asked for name, asked in jobs if name == rule]
        assert found and all(f"gpu={count}" in asked for asked in found), rule
