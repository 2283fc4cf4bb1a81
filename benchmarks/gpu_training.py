"""Training for `make gpu`: the suite's own stages on CIFAR-10 for the minutes that are given, then their measures.

The numbers of updates are chosen once, by the time of a step and the time that is left, and kept in plan.json; the same
command goes on with that plan. A stage whose time is over is asked to stop, and keeps its state.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fce.stages.images import OWN
from pipeline.catalogue import ROOT, STAGES
from pipeline.errors import UserError
from pipeline.fetch import own_data
from pipeline.files import Npz, write_json
from pipeline.params import Params, alone, merge, read

PROFILE, NAME = "gpu", "cifar10"
HOME = Path("build", PROFILE, NAME)
OVERRIDES: dict[str, Any] = {  # of params.yaml's cifar10: what fits into minutes, and needs no download
    # nothing overfits in minutes; after training on shifted images the test's were 0.55 bits/dim above the minibatches
    "pretrain": {"augment": 0.0, "trajectory": {"moments": 4, "images": 1000}},
    "joint": {"augment": 0.0, "trajectory": {"moments": 4, "images": 1000}},
    "fid": {"features": "classifier", "kid": {"subsets": 20}},
    "sample": {"count": 10_000},
    "log_z": {"samples": 10_000, "temperatures": 100, "leapfrog": 3},
}
GRACE = 45.0  # seconds that a stage has to stop in, once asked
STARTS = 15.0  # seconds that a stage takes before its first step, and after its last one
SPARE = 60.0  # seconds for the flow's own measures, where joint training is not done in time
MARGIN = 0.9  # of the time that is left is planned for
PLAYED = ("tilted", "joint")  # the arms that are trained, half of the time each
MEASURES = [  # those of a line need the lines above only, and run side by side
    [*((measure, arm) for arm in ("mle", *PLAYED) for measure in ("bits_per_dim", "sample")), ("classifier", "")],
    [*((measure, arm) for arm in ("mle", *PLAYED) for measure in ("fid", "trajectory")),
     *(("log_z", arm) for arm in PLAYED)],
]
Plan = dict[str, Any]
Measured = Callable[[str, int, int, float], dict[str, Any]]  # of what, K, batch and seconds: gpu.py, `Times.best`


def images() -> str:
    """What the data stage will find: the official archive, or FCE_DATA's own copy where only that is there."""
    if (path := own_data(NAME)) is None:
        return "CIFAR-10"
    arrays = Npz(path, OWN)
    count = sum(arrays.header(f"{part}_images")[0][0] for part in ("train", "test"))
    return f"CIFAR-10, {count / 60_000:.1%} of the images"


def make_params(changes: dict[str, Any]) -> Params:
    """The profile `gpu`: params.yaml's cifar10 with these changes, one seed, and the arms PLAYED."""
    raw = read(ROOT / "params.yaml")
    raw["experiments"][NAME] = own = merge(raw["experiments"][NAME], changes)
    kept = raw["defaults"]["images"]["arms"]
    own["arms"] = {arm: own.get("arms", {}).get(arm) or {} for arm in PLAYED}
    raw["defaults"]["images"]["arms"] = {arm: kept[arm] for arm in PLAYED}
    return alone(raw, PROFILE, NAME, 0, {})


def make_plan(seconds: float, given: dict[str, Any], measured: Measured) -> Plan:
    """How many updates fit into these seconds, and how they are compiled; at most as many as params.yaml has."""
    changes = merge(OVERRIDES, given)
    settings = make_params(changes).experiments[PROFILE][NAME]
    joint, most = settings.arms["joint"], settings.pretrain.steps
    training = MARGIN * (seconds - min(100.0, seconds / 3)) - 2 * STARTS  # the rest is for the measures
    step = measured("train", settings.flow.steps, settings.pretrain.batch, 2 / 3 * training)
    turn = measured("joint", settings.flow.steps, joint.batch, 1 / 3 * training)
    steps = max(20, min(most, step["fit"]))
    affordable = max(20, turn["fit"] // len(PLAYED))
    warm = min(joint.warm_start, affordable // 4)
    updates = min(joint.ebm_updates, affordable - warm)
    # a warm-up, and an average of weights, are as large a part of the short run as of the whole one
    short = {"pretrain": {"steps": steps, "warmup": settings.pretrain.warmup * steps // most,
                          "ema": shorter(settings.pretrain.ema, steps / most),
                          "validate_every": max(1, min(settings.pretrain.validate_every, steps // 10))},
             "joint": {"ebm_updates": updates, "warm_start": warm,
                       "ema": shorter(joint.ema, updates / joint.ebm_updates),
                       "log_every": max(1, min(joint.log_every, updates // 20))},
             "arms": {"tilted": {"head_start": min(settings.arms["tilted"].head_start, updates // 10)}}}
    return {"data": images(), "given": given, "changes": merge(changes, short, given),
            "compile": {"pretrain": step["compile"], "joint": turn["compile"]}}


def shorter(ema: float, share: float) -> float:
    """The decay of an average over this share of as many updates."""
    return max(0.0, 1.0 - (1.0 - ema) / share)


def command(params: Params, stage: str, arm: str = "", compiled: str = "") -> list[str]:
    """A stage's command line, as the Snakefile has it."""
    row = STAGES[stage]
    words = ["--params", params.place(row.slice, PROFILE, NAME, arm=arm)]
    for flag, path in params.inputs(stage, PROFILE, NAME, 0, arm).items():
        words += [f"--{flag}", path]
    words += ["--seed", "0"] if row.seeded else []
    words += ["--arm", arm] if arm else []
    words += ["--compile", compiled] if compiled else []
    words += ["--save-every", "60"] if row.resumes else []
    return [sys.executable, "-m", "fce", stage, *words, "--out", params.outputs(stage, PROFILE, NAME, 0, arm)[0]]


class Stages:
    """Runs stages until a time (monotonic); `done` says how each ended."""

    def __init__(self, params: Params, until: float):
        self.params, self.until = params, until
        self.done: list[dict[str, Any]] = []

    def start(self, stage: str, arm: str, compiled: str) -> subprocess.Popen[bytes]:
        out = Path(self.params.outputs(stage, PROFILE, NAME, 0, arm)[0])
        out.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with open(out.with_suffix(".log"), "ab") as log:
            return subprocess.Popen(command(self.params, stage, arm, compiled), stderr=log, stdout=log,
                                    env=os.environ | {"PYTHONPATH": path})

    def run(self, *pairs: tuple[str, str], compiled: str = "", spare: float = 0.0) -> bool:
        """Run the stages of these arms side by side, but for those that are done; whether all outputs are there.

        They leave `spare` seconds to others.
        """
        until = self.until - spare
        outs = {pair: Path(self.params.outputs(pair[0], PROFILE, NAME, 0, pair[1])[0]) for pair in pairs}
        todo = [pair for pair in pairs if not outs[pair].exists()]
        if todo and until - time.monotonic() < 5:
            self.done += [{"stage": stage, "arm": arm, "ended": "no time was left"} for stage, arm in todo]
            return False
        started, running = time.monotonic(), {pair: self.start(*pair, compiled) for pair in todo}
        try:
            for pair, process in running.items():
                code = finish(process, until)
                row = {"stage": pair[0], "arm": pair[1], "seconds": round(time.monotonic() - started, 1), "code": code,
                       "ended": "well" if code == 0 else last_line(outs[pair].with_suffix(".log"))}
                self.done.append(row)
                print(f"{' of '.join(filter(None, pair))}: {row['ended']}, {row['seconds']} s", flush=True)
        finally:
            for process in running.values():
                finish(process, 0.0)
        if compiled == "yes" and [process.returncode for process in running.values()] == [1]:
            return self.run(*pairs, compiled="no", spare=spare)  # what the compiler can't do is done without it
        return all(out.exists() for out in outs.values())


def finish(process: "subprocess.Popen[bytes]", until: float) -> int:
    """The exit code of a process; what runs beyond `until` is asked to stop, and at last killed."""
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def last_line(log: Path) -> str:
    """Of a stage's log: its error, where it names one."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line for line in ["stopped: it said nothing", *lines] if line.startswith(("error: ", "stopped: "))][-1]


def train(folder: Path, until: float, given: dict[str, Any], measured: Measured) -> list[dict[str, Any]]:
    """Go on with the plan of `folder`, or make one; how each stage ended.

    Raises:
        UserError: the plan there was made with other settings, or the settings are wrong.
    """
    path = folder / "plan.json"
    if path.exists():
        plan = json.loads(path.read_text())
        if plan["given"] != given:
            raise UserError(f"--set: {path} was made with {plan['given'] or 'none'}, and {HOME} holds its run; "
                            "give the same, or delete both")
    else:
        plan = make_plan(until - time.monotonic(), given, measured)
    params = make_params(plan["changes"])
    for place, text in params.slices(PROFILE, NAME).items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text(text)
    write_json(path, plan)
    stages = Stages(params, until)
    compiled = plan["compile"]
    if (stages.run(("data", "")) and stages.run(("pretrain", ""), compiled=compiled["pretrain"])
            and all([stages.run(("joint", arm), compiled=compiled["joint"], spare=SPARE) for arm in PLAYED])):
        for group in MEASURES:
            stages.run(*group)
    elif (HOME / "seed-0/pretrain.pt").exists():  # with what time is left, the flow alone
        stages.run(("bits_per_dim", "mle"), ("sample", "mle"), ("classifier", ""))
    return stages.done
