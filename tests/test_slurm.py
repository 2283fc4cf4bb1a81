"""The profile for SLURM, with a SLURM of this machine alone (tests/slurm.sh): a requeued job, the quick profile."""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tiny import ROOT, edit, environment, make_project

PLAIN = shlex.split("--slurm-status-command squeue --slurm-no-account --slurm-init-seconds-before-status-checks 2 "
                    "--seconds-between-status-checks 3 --latency-wait 5 --jobs 4 "
                    "--default-resources slurm_partition=main mem_mb=500 runtime=5")  # no job accounting, and quickly
pytestmark = [pytest.mark.long, pytest.mark.skipif(
    not (shutil.which("slurmctld") and shutil.which("munged") and os.getuid() == 0),
    reason="needs root, and Debian's slurmctld, slurmd, slurm-client and munge")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subprocess.run(["bash", str(ROOT / "tests/slurm.sh")], check=True, timeout=120)
    folder = make_project(tmp_path_factory.mktemp("project"))
    edit(folder, lambda params: params["quick"]["overrides"]["ring"]["pretrain"].update(steps=400, validate_every=100))
    return folder


def submit(project: Path, target: str) -> subprocess.Popen[str]:
    """Start Snakemake with the profile, on this cluster's CPUs."""
    return subprocess.Popen(
        ["snakemake", "--profile", "profiles/slurm", *PLAIN, "--", target], cwd=project, text=True,
        env=environment(FCE_GPUS="0", FCE_DATA="data", FCE_SAVE_EVERY="0.5", PYTHONPATH=str(project)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_requeued_job_goes_on_from_its_state(project: Path) -> None:
    """As one that is pre-empted: it gets SIGTERM, keeps its state, waits, and is started again by SLURM."""
    home = project / "build/quick/ring"
    with submit(project, "build/quick/ring/seed-0/pretrain.pt") as engine:
        while engine.poll() is None and not list(home.glob("seed-0/.resume/*/training*/*.pt")):
            time.sleep(0.05)
        running = subprocess.run(["squeue", "-h", "-o", "%i %k"], capture_output=True, text=True, check=True).stdout
        (job,) = [line.split()[0] for line in running.splitlines() if "quick_ring_pretrain" in line]
        subprocess.run(["scontrol", "requeue", job], check=True)
        said = engine.communicate(timeout=400)[0]
    assert engine.returncode == 0, said
    assert "going on from the state" in (home / "pretrain.log").read_text()


def test_the_quick_profile_goes_through_slurm(project: Path) -> None:
    with submit(project, "quick") as engine:
        said = engine.communicate(timeout=900)[0]
    assert engine.returncode == 0, said
    assert (project / "build/report/quick/index.html").stat().st_size > 10_000
