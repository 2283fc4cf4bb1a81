"""Two processes that share a run end where one alone does, in every parameter, and leave the same files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import ROOT, environment, flags, write_slices

from pipeline.checkpoint import load

TWENTY = {  # updates of either stage, in both turn rules; every minibatch has 16 images, 8 for each process
    "digits": {
        "pretrain": {"steps": 20, "validate_every": 10, "batch": 16},
        "joint": {"ebm_updates": 20, "warm_start": 20, "log_every": 5, "batch": 16, "flow_lr": 1e-3, "flow_warmup": 0},
        "arms": {
            "joint": {"rule": "accuracy", "ebm_per_round": 2, "flow_per_round": 2},
            "tilted": {"rule": "ratio", "ebm_per_round": 3, "flow_per_round": 2, "noise_ratio": 2},
        },
    }
}
STAGE = """
import runpy, sys, torch
torch.set_default_dtype(torch.float64)
runpy.run_module("fce", run_name="__main__", alter_sys=True)
"""


def start(folder: Path, processes: int, stage: str, *argv: str) -> subprocess.Popen[str]:
    """A stage in double precision."""
    shared = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python",
              sys.executable]
    command = [sys.executable, *(shared if processes > 1 else []), "-c", STAGE, stage, *argv]
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env=environment(PYTHONPATH=path))


def run(folder: Path, processes: int, stage: str, *argv: str, fails: bool = False) -> str:
    """Run a stage to its end; returns what it says."""
    process = start(folder, processes, stage, *argv)
    said = process.communicate(timeout=300)[1]
    assert (process.returncode != 0) == fails, said
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """build/quick/digits with its data."""
    folder = tmp_path_factory.mktemp("parallel")
    home = write_slices(folder, TWENTY) / "digits"
    run(folder, 1, "data", *flags("data", home))
    return home


def both(home: Path, out: str, processes: int, start: Path | None = None) -> Path:
    """Pretrain, and both arms, from that flow or from `start`'s."""
    place = home / out / "build/quick/digits/seed-0"
    if start is None:
        run(home, processes, "pretrain", *flags("pretrain", home, out=place / "pretrain.pt"))
    paths = {"flow": (start or place) / "pretrain.pt", "out": place / "{arm}/joint.pt"}
    run(home, processes, "joint", *flags("joint", home, arms=("joint", "tilted"), **paths))
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
    for arm in ("joint", "tilted"):
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
    paths = {"out": place / f"{stage}.pt"} | ({"flow": alone / "pretrain.pt"} if stage == "joint" else {})
    argv = [*flags(stage, home, arms=("tilted",), **paths), "--save-every", "0"]
    process = start(home, 2, stage, *argv)
    while process.poll() is None and not list(place.glob(".resume/*/*/*.pt")):
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=100)
    assert not (place / f"{stage}.pt").exists()
    assert "going on from the state" in run(home, 2, stage, *argv)
    assert not (place / ".resume").exists()
    if stage == "pretrain":
        assert same(alone / "pretrain.pt", place / "pretrain.pt", ("flow",)) < 1e-8
    else:
        assert load(place / "joint.pt")["updates"] == load(alone / "tilted/joint.pt")["updates"]


@pytest.mark.parametrize(("stage", "params", "said"), [
    ("pretrain", "odd.json", "pretrain.batch: 15 can't be shared equally by 2 processes"),
    ("dcgan", "params/dcgan.json", "this stage is not shared by several processes: start it alone"),
])
def test_what_can_not_be_shared_is_refused(home, stage, params, said):
    (home / "odd.json").write_text((home / "params/pretrain.json").read_text().replace('"batch": 16', '"batch": 15'))
    found = run(home, 2, stage, *flags(stage, home, params=params, out="refused.pt"), fails=True)
    assert said in found and not (home / "refused.pt").exists()
