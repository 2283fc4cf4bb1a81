"""`make gpu`: what a GPU makes of the suite, in minutes; the same command goes on where it stopped.

The GPU tests; step times, their share of the matrix rate, memory and power (benchmarks/gpu_steps.py), and the hours of
the full run that follow; then training on CIFAR-10 by the suite's own stages (benchmarks/gpu_training.py). Small files
go to one folder, and a page that shows them. Neither Snakemake, MLflow nor DVC is needed.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks import gpu_crew, gpu_page, gpu_steps, gpu_training
from benchmarks.gpu_steps import Case, Row
from benchmarks.timing import processor
from pipeline.catalogue import ROOT
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.params import load
from pipeline.progress import open_door
from pipeline.provenance import environment
from pipeline.schema.training import Joint

PARTS = ("tests", "steps", "train")
RUNS_AS = {"eager": "no", "graphs": "yes"}  # how a stage can train: the mode, and what --compile says


class Results:
    """results.json of the folder, written whenever something is added."""

    def __init__(self, folder: Path):
        self.path = folder / "results.json"
        self.content: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.add(environment=environment() | {"processor": processor()})

    def add(self, **more: Any) -> None:
        self.content |= more
        write_json(self.path, self.content)


class Times:
    """The rows of step times that there are, and those that are measured because they are asked for."""

    def __init__(self, results: Results, until: float, device: str):
        self.results, self.until, self.device = results, until, device
        self.rows: dict[str, Row] = {row["name"]: row for row in results.content.get("steps", [])}

    def measure(self, waves: Sequence[list[Case]], until: float, before: Callable[[], None] = lambda: None) -> None:
        """Add the rows of those cases that have no times yet."""
        todo = [[case for case in wave if "error" in self.rows.get(case.name, {"error": ""})] for wave in waves]
        for rows in gpu_crew.measure([wave for wave in todo if wave], until, self.device, before):
            self.rows |= {row["name"]: row for row in rows}
            self.results.add(steps=list(self.rows.values()), hours=self.hours())

    def found(self, what: str, steps: int, batch: int) -> dict[str, Row]:
        """The rows that have times, by mode; of the modes that a stage can train in."""
        rows = [row for row in self.rows.values() if "seconds" in row]
        return {row["case"]["mode"]: row for row in rows if row["case"]["mode"] in RUNS_AS
                and (row["case"]["what"], row["case"]["steps"], row["case"]["batch"]) == (what, steps, batch)}

    def best(self, what: str, steps: int, batch: int, share: float) -> Row:
        """The row of the mode in which most updates, `fit`, go into so many seconds, the warm-up among them."""
        if not self.found(what, steps, batch):
            cases = [[Case(what, steps, batch, mode)] for mode in RUNS_AS]  # the one without a compiler first
            self.measure(cases, time.monotonic() + max(share / 2, 30.0))
        rows = [row | {"fit": int((share - row["warm_up_seconds"]) / row["seconds"]), "compile": RUNS_AS[mode]}
                for mode, row in self.found(what, steps, batch).items()]
        if not rows:
            errors = [str(row.get("error")) for row in self.rows.values() if "error" in row]
            raise UserError(f"no {what} step of K={steps}, batch {batch} could be timed: {'; '.join(errors[-2:])}")
        return max(rows, key=lambda row: row["fit"])

    def hours(self) -> dict[str, Any]:
        """Of the full profile's trainings on images, by params.yaml's numbers of updates; by the accuracy rule, whose
        numbers nobody knows before, one flow update for each of the EBM's; without DCGAN and the measures."""
        params, found = load(ROOT / "params.yaml"), dict[str, Any]()
        for name in ("svhn", "cifar10"):
            settings, seeds = params.experiments["full"][name], len(params.seeds("full", name))
            quickest = {}
            for what, batch in (("train", settings.pretrain.batch), ("joint", settings.arms["joint"].batch)):
                rows = self.found(what, settings.flow.steps, batch).values()
                quickest[what] = min(rows, key=lambda row: row["seconds"], default=None)
            step, turn = quickest["train"], quickest["joint"]
            if step and turn:
                flow_seconds = turn["seconds"] - turn["ebm_seconds"]
                arms = {arm: ((each.ebm_updates + each.warm_start) * turn["ebm_seconds"]
                              + each.ebm_updates * flow_share(each) * flow_seconds) / 3600
                        for arm, each in settings.arms.items()}
                pretrain = settings.pretrain.steps * step["seconds"] / 3600
                found[name] = {"pretrain": pretrain, **arms, "seeds": seeds,
                               "all": seeds * (pretrain + sum(arms.values()))}
        return found


def flow_share(joint: Joint) -> float:
    """Updates of the flow for each of the EBM's."""
    if joint.noise != "flow":
        return 0.0
    return joint.flow_per_round / joint.ebm_per_round if joint.rule == "ratio" else 1.0


class Tests:
    """The GPU tests, running beside what needs no quiet."""

    def __init__(self, folder: Path):
        self.report, self.started = folder / ".tests.xml", time.monotonic()
        words = ["-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-p", "no:cacheprovider",
                 f"--junitxml={self.report.resolve()}"]
        self.process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)

    def result(self, limit: float) -> dict[str, Any]:
        try:
            said = self.process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            said = f"stopped after {time.monotonic() - self.started:.0f} s: no time was left"
        cases = ElementTree.parse(self.report).iter("testcase") if self.report.exists() else []
        found = [{"test": case.get("name"), "seconds": float(case.get("time", 0)),
                  "outcome": next((part.tag for part in case if part.tag in ("failure", "error", "skipped")), "passed"),
                  "message": next((part.get("message", "")[:500] for part in case), "")} for case in cases]
        self.report.unlink(missing_ok=True)
        return {"code": self.process.returncode, "seconds": round(time.monotonic() - self.started, 1), "tests": found,
                "said": said[-3000:]}


def setting(text: str) -> dict[str, Any]:
    """`section.key=value` as {section: {key: value}}; the value is JSON, or else text."""
    place, equals, value = text.partition("=")
    if not equals or "." not in place:
        raise argparse.ArgumentTypeError(f"{text!r} is no section.key=value")
    try:
        found: Any = json.loads(value)
    except ValueError:
        found = value
    for key in reversed(place.split(".")):
        found = {key: found}
    return dict(found)


def run(given: argparse.Namespace, results: Results, until: float) -> None:
    changes = gpu_training.merge(*given.set)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    times = Times(results, until, device)
    tests = Tests(given.out) if "tests" in given.parts and "tests" not in results.content else None

    def finish_tests() -> None:
        nonlocal tests
        if tests:
            results.add(tests=tests.result(max(20.0, quiet - time.monotonic())))
            tests = None
            print("tests: " + ", ".join(f"{row['test']} {row['outcome']}" for row in results.content["tests"]["tests"]),
                  flush=True)

    share = quiet = until
    if "steps" in given.parts:
        share = until if "train" not in given.parts else time.monotonic() + (until - time.monotonic()) / 3
        waves = gpu_steps.waves()
        quiet = share - gpu_crew.TURN * len(waves[0] if waves else [])  # when the first is to be timed
        times.measure(waves, share, finish_tests)
    finish_tests()
    if "train" in given.parts:
        done = gpu_training.train(given.out, until, changes, times.best)
        results.add(training=[*results.content.get("training", []), *done])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long all of it may take")
    parser.add_argument("--out", type=Path, default=Path("build/gpu/results"), help="the folder of results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which parts; default: all")
    parser.add_argument("--set", nargs="+", type=setting, default=[], metavar="SECTION.KEY=VALUE",
                        help="of params.yaml's cifar10, for the training")
    given = parser.parse_args(arguments)
    until = time.monotonic() + 60 * given.minutes
    open_door()
    given.out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    code = 0
    try:
        results = Results(given.out)
        run(given, results, until)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.code
    finally:
        signal.signal(signal.SIGTERM, before)
        gpu_page.render(given.out)
    print(given.out / "index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
