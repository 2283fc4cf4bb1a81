"""Two processes that share a run end where one alone does, in every parameter, and leave the same files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import ROOT, environment, write_slices

from fce.state import load

TWENTY = {  # updates of either stage, in both turn rules; every minibatch has 16 images, 8 for each process
    "digits": {
        "pretrain": {"steps": 20, "validate_every": 10, "batch": 16},
        "joint": {"ebm_updates": 20, "warm_start": 20, "log_every": 5, "batch": 16, "flow_lr": 1e-3, "flow_warmup": 0},
        "arms": {
            "joint": {"rule": "accuracy", "ebm_per_round": 2, "flow_per_round": 2},
            "residual": {"rule": "ratio", "ebm_per_round": 3, "flow_per_round": 2, "noise_ratio": 2},
        },
    }
}
STAGE = """
import runpy, sys, torch
torch.set_default_dtype(torch.float64)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def start(folder: Path, processes: int, module: str, *flags: str) -> subprocess.Popen[str]:
    """A stage in double precision."""
    shared = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python",
              sys.executable]
    command = [sys.executable, *(shared if processes > 1 else []), "-c", STAGE, module, "--device", "cpu", "--threads",
               "1", *flags]
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env=environment(PYTHONPATH=path, OMP_NUM_THREADS="1"))


def run(folder: Path, processes: int, module: str, *flags: str, fails: bool = False) -> str:
    """Run a stage to its end; returns what it says."""
    process = start(folder, processes, module, *flags)
    said = process.communicate(timeout=300)[1]
    assert (process.returncode != 0) == fails, said
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """build/quick/digits with its data."""
    folder = tmp_path_factory.mktemp("parallel")
    home = write_slices(folder, TWENTY) / "digits"
    run(folder, 1, "fce.data.data", "--params", f"{home}/params/data.json", "--out", f"{home}/data.npz")
    return home


def both(home: Path, out: str, processes: int, start: Path | None = None) -> Path:
    """Pretrain, and both arms, from that flow or from `start`'s."""
    place, data = home / out / "build/quick/digits/seed-0", ["--data", f"{home}/data.npz", "--seed", "0"]
    if start is None:
        run(home, processes, "fce.pretrain", "--params", f"{home}/params/pretrain.json", *data,
            "--out", f"{place}/pretrain.pt")
    run(home, processes, "fce.joint", "--params", f"{home}/params/joint/{{arm}}.json", *data, "--arm", "joint",
        "residual", "--flow", f"{start or place}/pretrain.pt", "--out", f"{place}/{{arm}}/joint.pt")
    return place


def same(first: Path, second: Path, players: tuple[str, ...]) -> float:
    """The largest difference of two checkpoints' parameters."""
    one, other = load(first), load(second)
    pairs = [(one[player][name], other[player][name]) for player in players for name in one[player]]
    assert len(pairs) > 20 and all(a.dtype in (torch.float64, torch.bool) for a, _ in pairs)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def test_two_processes_end_where_one_does(home):
    alone, shared = both(home, "alone", 1), both(home, "shared", 2)
    assert same(alone / "pretrain.pt", shared / "pretrain.pt", ("flow",)) < 1e-8
    for arm in ("joint", "residual"):
        one, other = alone / arm / "joint.pt", shared / arm / "joint.pt"
        assert load(one)["updates"] == load(other)["updates"] and load(one)["updates"]["flow"] >= 8
        assert same(one, other, ("energy_raw", "flow_raw", "energy", "flow")) < 1e-8
        assert same(one, alone / "pretrain.pt", ("flow",)) > 1e-4  # it has learned something
    names = {file.relative_to(alone) for file in alone.rglob("*")}
    assert names == {file.relative_to(shared) for file in shared.rglob("*")}  # and nobody's leftovers
    again = both(home, "exchanged", 1, start=shared)  # checkpoints are interchangeable
    assert same(again / "joint/joint.pt", alone / "joint/joint.pt", ("energy_raw", "flow_raw")) < 1e-7


@pytest.mark.parametrize("stage", ["pretrain", "joint"])
def test_a_shared_run_that_is_asked_to_stop_goes_on(home, stage):
    """Pre-training ends where an undisturbed run does; a game draws other minibatches for those it was about to use."""
    place, alone = (home / name / "build/quick/digits/seed-0" for name in ("stopped", "alone"))
    if not alone.exists():
        both(home, "alone", 1)
    flags = ["--data", f"{home}/data.npz", "--seed", "0", "--save-every", "0", "--out", f"{place}/{stage}.pt"]
    if stage == "pretrain":
        flags += ["--params", f"{home}/params/pretrain.json"]
    else:
        flags += ["--params", f"{home}/params/joint/residual.json", "--flow", f"{alone}/pretrain.pt"]
    process = start(home, 2, f"fce.{stage}", *flags)
    while process.poll() is None and not list(place.glob(".resume/*/*/*.pt")):
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=100)
    assert not (place / f"{stage}.pt").exists()
    assert "going on from the state" in run(home, 2, f"fce.{stage}", *flags)
    assert not (place / ".resume").exists()
    if stage == "pretrain":
        assert same(alone / "pretrain.pt", place / "pretrain.pt", ("flow",)) < 1e-8
    else:
        assert load(place / "joint.pt")["updates"] == load(alone / "residual/joint.pt")["updates"]


@pytest.mark.parametrize(("module", "flags", "said"), [
    ("fce.pretrain", ["--params", "odd.json"], "pretrain.batch: 15 can't be shared equally by 2 processes"),
    ("fce.dcgan", ["--params", "params/dcgan.json"], "not shared by several processes"),
])
def test_what_can_not_be_shared_is_refused(home, module, flags, said):
    (home / "odd.json").write_text((home / "params/pretrain.json").read_text().replace('"batch": 16', '"batch": 15'))
    found = run(home, 2, module, *flags, "--data", "data.npz", "--seed", "0", "--out", "refused.pt", fails=True)
    assert said in found and not (home / "refused.pt").exists()
