"""Where numbers come from, and why some are missing: the records and logs below build/<profile>/."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import mirror
from pipeline.catalogue import STAGES
from pipeline.errors import ERROR_LINE
from pipeline.track import read_record, seconds, stretches, was_killed
from reports.scores import Results, anchor

KILLED = ("killed before it could say why, mostly by the kernel or a scheduler for want of memory or time; the same "
          "command goes on, with fewer jobs at once (--cores) or on a larger machine")
POWER = "system/gpu_power_usage_watts"  # as pipeline/devices.py names it
NOT_YET = "not run yet"
NOT_NAMED = "not run: params.yaml does not name it"


def place_of(folder: Path, path: Path) -> dict[str, str]:
    """Experiment, arm and seed of a file below build/<profile>, as the path law has them; empty for one elsewhere."""
    inside = path.relative_to(folder).parts[:-1] if path.is_relative_to(folder) else ()
    experiment, seed, arm = (*inside, "", "", "")[:3]
    return {"experiment": experiment, "arm": arm, "seed": seed.removeprefix("seed-")}


def failures(results: Results) -> list[dict[str, str]]:
    """The stages whose log ends in an `error: ` line, or that were killed; furthest upstream first.

    A stage whose outputs are there has not failed: its log is of another try.
    """
    found = []
    folders = {results.build / "downloads", *(path.parent for path in results.named)}
    for path in chain.from_iterable(folder.glob("*.log") for folder in folders):
        errors = ERROR_LINE.findall(path.read_text(errors="replace"))
        if errors and not all_there(results, path):
            found.append({**place_of(results.folder, path), "stage": path.stem, "why": errors[-1]})
    found += [{**place_of(results.folder, path), "stage": path.name, "why": KILLED} for path in sorted(results.named)
              if (kept := path.with_name(f"{path.name}.run.jsonl")).exists() and was_killed(kept)]
    order = {stage: place for place, stage in enumerate(STAGES)}
    return sorted(found, key=lambda failure: (order.get(failure["stage"], len(order)), *failure.values()))


def all_there(results: Results, log: Path) -> bool:
    """Whether every output of the runs that a log is of lies there."""
    place, stage = place_of(results.folder, log), log.stem
    runs = results.outputs(stage, place["experiment"]) if stage in STAGES else {}
    made = [path.exists() for (seed, arm), path in runs.items()
            if place["seed"] in ("", str(seed)) and place["arm"] in ("", arm)]
    return bool(made) and all(made)


def road(results: Results, experiment: str, arm: str, stage: str) -> set[str]:
    """A stage, and the stages before it that make what an arm needs."""
    place = partial(results.settings.place, profile=results.profile, experiment=experiment, arm=arm)
    needs = {place(pattern) for pattern in STAGES[stage].needs.values()}
    before = [name for name, each in STAGES.items() if place(each.out) in needs]
    return {stage}.union(*(road(results, experiment, arm, name) for name in before))


def why_missing(results: Results, failed: list[dict[str, str]], experiment: str, arm: str, stage: str) -> str:
    """Why an output is missing: the furthest-upstream failure on its road."""
    if arm not in {arm for _, arm in results.outputs(stage, experiment)}:
        return NOT_NAMED
    stages = road(results, experiment, arm, stage)
    here = (failure for failure in failed if failure["stage"] in stages
            and failure["experiment"] in ("", experiment) and failure["arm"] in ("", arm))
    return next((f"not run: {failure['stage']} failed: {failure['why']}" for failure in here), NOT_YET)


def what_ran(results: Results) -> set[Path]:
    """The outputs that have scores or a record, left over or not, without their endings."""
    records = results.folder.glob("*/**/*.run.jsonl")
    return {*results.files, *(path.with_suffix("").with_suffix("") for path in records)}


def left_over(results: Results) -> str:
    """What ran and params.yaml does not name now, by folder."""
    left: dict[Path, list[str]] = {}
    for path in sorted(what_ran(results) - results.named):
        left.setdefault(path.parent.relative_to(results.folder), []).append(path.name)
    return "; ".join(f"{folder} ({', '.join(names)})" for folder, names in left.items())


def provenance(results: Results) -> pd.DataFrame:
    """A row for each stage that ran, with its scores; the index holds the ids that seeds link to."""
    rows, ids, runs = [], [], mirror.runs()
    for path in sorted(what_ran(results) & results.named):
        place, file = place_of(results.folder, path), results.files.get(path, {"scores": [], "provenance": {}})
        origin = file["provenance"] | record(path)
        numbers = [f"{score['model']} {score['name']} {score['labels'] or ''} {score['value']:.6g}"
                   for score in file["scores"]]
        ids.append(anchor(place["experiment"], place["arm"], path.name, place["seed"]))
        rows.append({
            **{key.capitalize(): value for key, value in place.items()}, "Stage": path.name,
            "Commit": origin.get("commit", "")[:10] + (" + changes" if origin.get("dirty") else ""),
            **{key.capitalize(): origin.get(key, "") for key in ("params", "lock", "device", "torch", "seconds")},
            "Inputs": ", ".join(f"{name} {value}" for name, value in origin.get("inputs", {}).items()),
            "MLflow run": runs.get(mirror.relative(path.with_name(f"{path.name}.run.jsonl")), ""),
            "Command": origin.get("command", ""), "Scores": "; ".join(numbers)})
    return pd.DataFrame(rows, index=ids, columns=None if rows else ["Experiment", "Arm", "Seed", "Seconds", "Device"])


def record(path: Path) -> dict[str, Any]:
    """A stage's provenance and, as `seconds`, its wall time, from its record; empty for one that has not ended."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        lines = read_record(path.with_name(f"{path.name}.run.jsonl"))
        if lines[-1]["kind"] == "end":
            return lines[0]["provenance"] | {"seconds": round(seconds(lines), 1)}
    return {}


def costs(results: Results, experiments: Iterable[str]) -> dict[str, str]:
    """Hours and CPU-hours of these experiments' processes, by Snakemake's benchmarks; kWh of GPUs that told them."""
    homes = [results.folder / experiment for experiment in experiments]
    named = {path.parent for path in results.named}  # others are of arms and seeds that are gone
    tables = [pd.read_csv(path, sep="\t", na_values="-") for home in homes for path in home.glob("**/*.benchmark.tsv")
              if path.parent in {home, *named}]
    last = pd.DataFrame([table.iloc[-1] for table in tables], columns=["s", "cpu_time"])
    spent = {"Hours": last["s"].sum() / 3600, "CPU-hours": last["cpu_time"].sum() / 3600,
             "GPU, kWh": sum(energy(path) for home in homes for path in home.glob("**/*.run.jsonl")
                              if path.parent in named) / 3.6e6}
    return {name: f"{value:.2g}" if value < 1 else f"{value:.1f}" for name, value in spent.items() if value}


def energy(record: Path) -> float:
    """Joules that a run's GPU drew: its mean power, which it told each minute, for as long as its processes worked."""
    joules = 0.0
    for lines in stretches(read_record(record)):
        if watts := [line["values"][POWER] for line in lines if POWER in line.get("values", {})]:
            joules += sum(watts) / len(watts) * seconds(lines)
    return joules
