"""Snakemake and DVC drive one DAG: switching between them retrains nothing and leaves nothing stale."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import TINY

ROOT = Path(__file__).resolve().parent.parent
@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of its own, with a quick profile of seconds."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    edit(folder, lambda params: params.update(quick=TINY))
    for command in ("git init -q", "git add -A", "git -c user.name=a -c user.email=a@b commit -qm tiny"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder


def edit(folder: Path, change) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    change(params)
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def run(folder: Path, command: str) -> set[str]:
    """Run an engine; returns the stages that really ran, as paths of the records they wrote."""
    started = time.time()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # nobody listens there: a broken mirror costs nothing
    }
    done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    records = (folder / "build").rglob("*.run.jsonl")
    return {str(r.relative_to(folder / "build/quick")) for r in records if r.stat().st_mtime > started}


SNAKEMAKE, DVC = "snakemake --cores 2 quick", "dvc repro quick"
DENSITIES = {
    f"ring/seed-{seed}/{arm}/density.run.jsonl"
    for seed in (0, 1)
    for arm in ("mle", "joint", "joint-from-random", "frozen-flow", "gaussian-noise")
}


def test_switching_engines_reruns_only_what_changed(project: Path) -> None:
    # 1: a clean run by Snakemake makes everything; DVC then has nothing to do
    first = run(project, SNAKEMAKE)
    baselines = {f"digits/seed-0/{arm}.run.jsonl" for arm in ("dcgan/dcgan", "dcgan/fid", "supervised/supervised")}
    assert {"ring/data.run.jsonl", "digits/seed-0/residual/joint.run.jsonl", *DENSITIES, *baselines} <= first
    assert (project / "build/report/quick/index.html").stat().st_size > 10_000
    assert run(project, DVC) == set()
    assert run(project, SNAKEMAKE) == set()

    # 2: one parameter changed, run by Snakemake: only its stage; DVC then has nothing to do
    edit(project, lambda params: params["quick"]["overrides"]["ring"]["density"].update(plot_points=24))
    assert run(project, SNAKEMAKE) == DENSITIES
    assert run(project, DVC) == set()

    # 3: a code file edited, run by DVC: only what computes with it; Snakemake then has nothing to do
    with open(project / "eval/density.py", "a") as file:
        file.write("\n# edited\n")
    assert run(project, DVC) == DENSITIES
    assert run(project, SNAKEMAKE) == set()

    # a comment in the Snakefile and a reworded log line change nothing
    for name in ("Snakefile", "fce/track.py"):
        with open(project / name, "a") as file:
            file.write("\n# a comment\n")
    assert run(project, SNAKEMAKE) == set()


def test_both_engines_make_the_same_files(project: Path) -> None:
    """DVC's outputs are Snakemake's, but for parameters, logs and records, which only one of them needs."""
    script = (
        "from dvc.repo import Repo\n"
        "for stage in Repo('.').index.stages:\n"
        "    if stage.name.startswith('quick'):\n"
        "        print(*(str(out.fs_path) for out in stage.outs), sep='\\n')\n"
    )
    listed = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    by_dvc = {os.path.relpath(line, project) for line in listed.stdout.splitlines()}
    summary = subprocess.run(
        [str(Path(sys.executable).parent / "snakemake"), "--cores", "1", "--summary", "quick"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    by_snakemake = {line.split("\t")[0] for line in summary.stdout.splitlines()[1:] if line.startswith("build/")}
    assert by_dvc == by_snakemake
