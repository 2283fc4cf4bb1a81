"""A run that is killed goes on where it stopped, and ends as if nothing had happened, bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch._inductor.cudagraph_trees  # what trains imports it, which takes seconds: before the forks, not in each
from tiny import flags, run_stage, write_slices

from fce.game import Game
from pipeline.catalogue import HOME, STAGES
from pipeline.checkpoint import load

FORK = multiprocessing.get_context("fork")  # a fork need not import torch again
CHANGES = {  # a run of each stage takes about a second
    "ring": {
        "pretrain": {"steps": 60, "validate_every": 20},
        "joint": {"ebm_updates": 40, "warm_start": 4, "log_every": 20},
    },
    "digits": {
        "pretrain": {"steps": 60, "validate_every": 20},
        "joint": {"ebm_updates": 40, "warm_start": 4, "log_every": 10},
        "dcgan": {"orig": {"updates": 60}, "log_every": 20},
        "classifier": {"epochs": 4},
        "log_z": {"samples": 256, "chains": 4, "temperatures": 30, "leapfrog": 2},
        "probe": {"labels": [50, 100], "draws": 10},
        "supervised": {"updates": 8, "epochs": 1},
    },
}
RESUMING = [name for name, stage in STAGES.items() if stage.resumes]
RUNS = [f"{home}/{name}" for home, names in (("ring", ("pretrain", "joint")), ("digits", RESUMING)) for name in names]
ARMS = {  # of a run, where it is not of the arm `joint`
    "ring/joint": ["joint", "joint-from-random"],  # both starts play side by side
    "digits/joint": ["tilted", "joint"],
    "digits/log_z_control": ["planted"],
    "digits/supervised": ["supervised"],
}
for name in RESUMING:  # before the forks too
    import_module(STAGES[name].module)


class Run:
    """One of RUNS below a folder; `start` runs it in a process of its own."""

    def __init__(self, profile: Path, name: str):
        experiment, self.stage = name.split("/")
        self.home, row = profile / experiment, STAGES[self.stage]
        seeds, arms = (0, 1) if row.together else (0,), ARMS.get(name, ["joint"])
        self.argv = flags(self.stage, self.home, seeds, arms)
        outs = (row.out.removeprefix(HOME).format(seed=seed, arm=arm) for seed in seeds for arm in arms)
        self.outs = [self.home / out for out in outs]

    def start(self, *more: str) -> Any:
        process = FORK.Process(target=self.work, args=more)
        process.start()
        return process

    def work(self, *more: str) -> None:
        sys.stderr = open(self.home / "log", "a", buffering=1)  # noqa: SIM115 - for the life of the process
        os._exit(run_stage(self.stage, *self.argv, *more))

    def finish(self, *more: str) -> int:
        process = self.start(*more)
        process.join()
        return process.exitcode

    def log(self) -> str:
        return (self.home / "log").read_text()

    def states(self) -> list[Path]:
        return sorted(path for folder in self.home.rglob(".resume") for path in folder.rglob("*.pt"))


def undisturbed(profile: Path, names: Iterable[str]) -> Path:
    """The profile, after runs that nothing disturbed."""
    for experiment in sorted({name.split("/")[0] for name in names}):
        assert run_stage("data", *flags("data", profile / experiment)) == 0
    for name in names:
        run = Run(profile, name)
        assert run.finish() == 0, run.log()
        assert not run.states()  # nothing is left of a run that ended well
    return profile


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick profile of CHANGES after undisturbed runs."""
    return undisturbed(write_slices(tmp_path_factory.mktemp("undisturbed"), CHANGES), RUNS)


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """Another profile, with the same inputs."""
    return with_inputs(write_slices(tmp_path, CHANGES), done)


def with_inputs(profile: Path, done: Path) -> Path:
    for path in [*done.rglob("data.npz"), *done.rglob("pretrain.pt"), *done.rglob("seed-0/joint/joint.pt")]:
        target = profile / path.relative_to(done)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return profile


def outcome(run: Run) -> list[Any]:
    """Everything a run has made, but for times and paths."""
    found: list[Any] = []
    for out in run.outs:
        content = json.loads(out.read_text()) if out.suffix == ".json" else load(out)
        found.append({key: value for key, value in content.items() if key != "provenance"})
        if (curve := out.with_suffix(".csv")).exists():
            found.append(pd.read_csv(curve).drop(columns="seconds", errors="ignore").to_numpy().tolist())
        record = map(json.loads, out.with_suffix(".run.jsonl").read_text().splitlines())
        metrics = [(line["step"], line["values"]) for line in record if line["kind"] == "metrics"]
        known = [(step, {k: v for k, v in values.items() if k != "seconds" and not k.startswith("system/")})
                 for step, values in metrics]  # what the machine says is told once a minute
        found.append([each for each in known if each[1]])
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def kill_often(run: Run, kills: int, chance: random.Random, every: float = 0.0, longest: float = 0.05) -> int:
    """Start the run anew after each kill until it ends; returns how often it was killed."""
    for killed in range(kills):
        process, known = run.start("--save-every", str(every)), run.states()
        while process.is_alive() and run.states() == known:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, longest))  # where each step is saved, half of the kills fall into the writing
        process.kill()
        process.join()
        if process.exitcode == 0:
            return killed
    assert run.finish() == 0, run.log()
    return kills


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(done: Path, again: Path, name: str) -> None:
    run = Run(again, name)
    kills = 20 if name == "digits/joint" else 5
    assert kill_often(run, kills, random.Random(0)) == kills
    assert run.log().count("going on from the state") >= kills - 1
    assert same(outcome(run), outcome(Run(done, name)))
    assert not run.states() and not list(again.rglob("*.partial*"))


@pytest.mark.long
def test_a_run_of_full_length_killed_20_times_ends_as_if_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> None:
    names = ["digits/pretrain", "digits/joint", "digits/dcgan"]
    done = undisturbed(write_slices(tmp_path_factory.mktemp("undisturbed"), None), names)
    again = with_inputs(write_slices(tmp_path_factory.mktemp("again"), None), done)
    for name in names:
        run = Run(again, name)
        assert kill_often(run, 20, random.Random(0), every=0.3, longest=0.5) == 20
        assert same(outcome(run), outcome(Run(done, name)))


def test_a_run_that_is_asked_to_stop_keeps_its_state(done: Path, again: Path) -> None:
    run = Run(again, "digits/joint")
    process = run.start()
    while "start: c" not in (run.log() if (run.home / "log").exists() else ""):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert run.log().splitlines()[-1].startswith("error: stopped by SIGTERM; its state is kept")
    assert run.finish() == 0
    assert "going on from the state" in run.log()
    assert same(outcome(run), outcome(Run(done, "digits/joint")))


def test_a_warm_start_that_is_asked_to_stop_goes_on(done: Path, again: Path, monkeypatch) -> None:
    run, updates, step = Run(again, "digits/joint"), [], Game.step_ebm

    def interrupted(game: Game) -> None:
        step(game)
        if game.warm_updates < game.settings.warm_start:
            updates.append(game.warm_updates)
            if len(updates) == 2:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Game, "step_ebm", interrupted)
    assert run_stage(run.stage, *run.argv) == 128 + signal.SIGTERM and len(updates) == 2
    assert run_stage(run.stage, *run.argv) == 0
    assert updates == [0, 1, 2, 3, *range(4)]  # the second seed's too
    assert same(outcome(run), outcome(Run(done, "digits/joint")))


def stop_half_way(run: Run) -> list[Path]:
    """The states of a run that was killed."""
    process = run.start("--save-every", "0")
    while process.is_alive() and not any(int(path.name.split("-")[0]) >= 5 for path in run.states()):
        time.sleep(0.001)
    process.kill()
    process.join()
    return run.states()


def test_a_broken_state_falls_back_to_the_one_before(done: Path, again: Path) -> None:
    run = Run(again, "digits/dcgan")
    _, newest = stop_half_way(run)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert run.finish() == 0
    assert f"{newest} is broken" in run.log() and "going on from the state" in run.log()
    assert same(outcome(run), outcome(Run(done, "digits/dcgan")))


def test_a_state_made_otherwise_is_not_used(again: Path) -> None:
    run = Run(again, "digits/dcgan")
    stop_half_way(run)
    path = run.home / "params/dcgan.json"
    path.write_text(path.read_text().replace('"updates": 60', '"updates": 50'))
    assert run.finish() == 0
    assert "other parameters, seeds, data or code: not used" in run.log()
    assert "going on" not in run.log()


def test_a_second_run_on_the_same_outputs_refuses(done: Path, again: Path) -> None:
    run = Run(again, "digits/joint")
    first = run.start()
    while not run.outs[0].with_suffix(".run.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    assert run.finish() == 2
    assert f"process {first.pid} on " in run.log() and "is making this output" in run.log()
    first.join()
    assert first.exitcode == 0
    assert same(outcome(run), outcome(Run(done, "digits/joint")))
