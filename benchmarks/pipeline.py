"""Benchmark: the quick profile from an empty build folder: how long it takes, and what share of it is computing.

A stage computes from the moment its record begins, when Python and its libraries are loaded, to the record's end. The
share is of the cores' time, so that starting, waiting for each other and Snakemake itself count against it.
`python -m benchmarks.pipeline --cores 2 --out benchmarks/results/pipeline.json`.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.timing import write_results
from pipeline.catalogue import ROOT
from pipeline.track import read_record


def computing(records: Iterable[list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds of each process, by its first record's name; runs side by side in one process count once."""
    spans: dict[int, tuple[str, int, int]] = {}
    for lines in records:
        pid, start, end = lines[0]["pid"], lines[0]["time"], lines[-1]["time"]
        name, first, last = spans.get(pid, (lines[0]["name"], start, end))
        spans[pid] = name, min(first, start), max(last, end)
    return {f"{name} ({pid})": (end - start) / 1000 for pid, (name, start, end) in spans.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--clone", help="an empty folder for the run, which then stays (default: a temporary one)")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() if given.clone is None else nullcontext(given.clone) as folder:
        subprocess.run(["git", "clone", "-q", str(ROOT), folder], check=True)
        started = time.perf_counter()
        subprocess.run(["snakemake", "--cores", str(given.cores), "quick"], cwd=folder, check=True)
        wall = time.perf_counter() - started
        stages = computing(read_record(path) for path in Path(folder, "build").rglob("*.run.jsonl"))
    share = sum(stages.values()) / (given.cores * wall)
    write_results(given.out, {"cores": given.cores, "seconds": wall, "computing": share,
                              "stages": dict(sorted(stages.items(), key=lambda each: -each[1]))})
    print(f"quick: {wall:.0f} s on {given.cores} cores, {share:.0%} of it computing, in {len(stages)} processes")


if __name__ == "__main__":
    main()
