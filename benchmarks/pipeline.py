"""Benchmark: what `make quick` and `make test` cost, in CPU-minutes (user and system) of all their processes.

Each is run in a clean clone, and set beside a reference computation of the same sitting, whose CPU time is measured
before, between and after: a slower machine takes longer for both. The benchmark fails where either costs GROWTH times
as much as in an earlier result (`--against`; the published one), by that ratio. Of the quick profile it also shows how
much is computing (from the moment a stage's record begins, when Python and its libraries are loaded, to the record's
end), and of both the peak of the memory. `python -m benchmarks.pipeline --cores 2 --out
benchmarks/results/pipeline.json`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.timing import write_results
from pipeline.catalogue import ROOT
from pipeline.files import digest
from pipeline.track import read_record

GROWTH = 1.25
PUBLISHED = ROOT / "reports" / "published" / "benchmarks" / "pipeline.json"
COMMANDS = {"quick": ["snakemake", "--cores", "{cores}", "quick"], "test": [sys.executable, "-m", "pytest"]}
REFERENCE = """
import torch
from torch import nn
torch.manual_seed(0), torch.set_num_threads(1)
x = torch.rand(64, 1, 8, 8) - 0.5
net = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
                    nn.Linear(4096, 1))
optimizer = torch.optim.Adam(net.parameters())
for _ in range(300):
    loss = (net(x) - x.mean((1, 2, 3))[:, None]).square().mean()
    optimizer.zero_grad(), loss.backward(), optimizer.step()
"""  # none of our code, which gets faster


def cpu_seconds(command: Sequence[str], folder: Path) -> float:
    """User and system seconds of a command and of all that it started.

    Raises:
        CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(folder)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def reference(folder: Path) -> float:
    """CPU seconds of starting torch and of 300 steps of a small network, on one thread."""
    return cpu_seconds([sys.executable, "-c", REFERENCE], folder)


class Memory(threading.Thread):
    """The most MiB that this process's children held together, looked at every two seconds.

    Four times as often took a sixth of a core from what is measured.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(2):
            held = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    held += child.memory_full_info().pss  # what several share counts once
                except psutil.Error:  # it has ended
                    continue
            self.peak = max(self.peak, held / 2**20)

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def computing(records: Iterable[list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds of each process, by its first record's name; runs side by side in one process count once."""
    spans: dict[int, tuple[str, int, int]] = {}
    for lines in records:
        pid, start, end = lines[0]["pid"], lines[0]["time"], lines[-1]["time"]
        name, first, last = spans.get(pid, (lines[0]["name"], start, end))
        spans[pid] = name, min(first, start), max(last, end)
    return {f"{name} ({pid})": (end - start) / 1000 for pid, (name, start, end) in spans.items()}


def grown(found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """A line for each command that costs GROWTH times as much as before, in units of its own sitting's reference."""
    lines = []
    for name, cost in found.items():
        now, then = cost["references"], before.get(name, {}).get("references", float("inf"))
        if now > GROWTH * then:
            lines.append(f"{name}: {now:.3g} times the reference computation, {now / then:.2f} times what it was "
                         f"({then:.3g}); allowed are {GROWTH:g}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--commands", nargs="+", choices=tuple(COMMANDS), default=tuple(COMMANDS), help="which to run")
    parser.add_argument("--against", type=Path, default=PUBLISHED, help="an earlier result (default: published)")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    earlier = json.loads(given.against.read_text())
    before = earlier["commands"] if earlier.get("reference") == digest(REFERENCE) else {}  # in the same unit
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["git", "clone", "-q", str(ROOT), name], check=True)
        references, costs, extra = [reference(folder)], dict[str, dict[str, float]](), dict[str, Any]()
        for each in given.commands:
            started = time.perf_counter()
            with Memory() as memory:
                used = cpu_seconds([word.format(cores=given.cores) for word in COMMANDS[each]], folder)
            costs[each] = {"seconds": time.perf_counter() - started, "cpu_minutes": used / 60, "peak_mib": memory.peak}
            references.append(reference(folder))
            if each == "quick":
                stages = computing(read_record(path) for path in (folder / "build").rglob("*.run.jsonl"))
                extra = {"computing_minutes": sum(stages.values()) / 60, "processes": len(stages),
                         "stages": dict(sorted(stages.items(), key=lambda stage: -stage[1]))}
    for cost in costs.values():
        cost["references"] = 60 * cost["cpu_minutes"] / statistics.median(references)
    write_results(given.out, {"cores": given.cores, "commands": costs, "reference": digest(REFERENCE),
                              "reference_seconds": references, **extra})
    for each, cost in costs.items():
        print(f"{each}: {cost['cpu_minutes']:.1f} CPU-minutes in {cost['seconds']:.0f} s on {given.cores} cores, "
              f"{cost['references']:.0f} times the reference computation, {cost['peak_mib']:.0f} MiB at most")
    for line in (worse := grown(costs, before)):
        sys.stderr.write(f"error: {line}\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
