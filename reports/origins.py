"""Where numbers come from, and why some are missing: the records and logs below build/<profile>/."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from reports.tables import anchor

ROAD = {"data": 0, "pretrain": 1, "joint": 2, "dcgan": 2}  # the stages before scores
NO_FLOW = ("random-init", "dcgan", "supervised")  # arms without pre-training
FID_ROAD = {"weights": 3, "classifier": 3, "sample": 4}  # and those before a Fréchet distance only
NOT_YET = "not run yet"


def place_of(folder: Path, path: Path) -> dict[str, str]:
    """Experiment, arm and seed of a file below build/<profile>, as the path law has them."""
    experiment, *inside = path.relative_to(folder).parts[:-1]
    seed = next((part for part in inside if part.startswith("seed-")), "")
    return {"experiment": experiment, "arm": next((part for part in inside if part != seed), ""),
            "seed": seed.removeprefix("seed-")}


def failures(folder: Path) -> list[dict[str, str]]:
    """The stages whose log ends in an `error: ` line, furthest upstream first."""
    found, order = [], ROAD | FID_ROAD
    for path in [*folder.glob("*/**/*.log"), *folder.parent.glob("downloads/weights.log")]:
        errors = [line for line in path.read_text(errors="replace").splitlines() if line.startswith("error: ")]
        if errors:
            place = place_of(folder, path) if path.stem != "weights" else {"experiment": "", "arm": "", "seed": ""}
            found.append({**place, "stage": path.stem, "why": errors[-1].removeprefix("error: ")})
    return sorted(found, key=lambda failure: (order.get(failure["stage"], 5), *failure.values()))


def why_missing(failed: list[dict[str, str]], experiment: str, arm: str, measure: str) -> str:
    """Why an output is missing: the furthest-upstream failure on its road."""
    for failure in failed:
        stage = failure["stage"]
        on_road = stage in ROAD and not (stage == "pretrain" and arm in NO_FLOW)
        before = on_road or stage == measure or (measure == "fid" and stage in FID_ROAD)
        if before and failure["experiment"] in ("", experiment) and failure["arm"] in ("", arm):
            return f"not run: {stage} failed: {failure['why']}"
    return NOT_YET


def provenance(folder: Path, files: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for each stage that ran, with its scores; the index holds the ids that seeds link to."""
    scored = {file["file"].with_suffix(""): file for file in files}
    records = {path.with_name(path.name.removesuffix(".run.jsonl")) for path in folder.glob("*/**/*.run.jsonl")}
    rows, ids = [], []
    for path in sorted({*scored, *records}):
        place, file = place_of(folder, path), scored.get(path, {"scores": [], "provenance": {}})
        head, seconds = record(path)
        origin = {**head, "seconds": seconds, **file["provenance"]}
        numbers = [f"{score['model']} {score['name']} {score['labels'] or ''} {score['value']:.6g}"
                   for score in file["scores"]]
        sent = next(path.parent.glob(f"{path.name}.*sent"), None)
        ids.append(anchor(place["experiment"], place["arm"], path.name, place["seed"]))
        rows.append({
            "Experiment": place["experiment"], "Arm": place["arm"], "Seed": place["seed"], "Stage": path.name,
            "Commit": origin.get("commit", "")[:10] + (" + changes" if origin.get("dirty") else ""),
            **{key.capitalize(): origin.get(key, "") for key in ("params", "lock", "device", "torch", "seconds")},
            "Inputs": ", ".join(f"{name} {value}" for name, value in origin.get("inputs", {}).items()),
            "MLflow run": sent.read_text().split(" ")[0] if sent else "",
            "Command": origin.get("command", ""), "Scores": "; ".join(numbers)})
    return pd.DataFrame(rows, index=ids)


def record(path: Path) -> tuple[dict[str, Any], float | str]:
    """A stage's provenance and its wall time in seconds, from its record; empty for one that has not ended."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        lines = path.with_name(f"{path.name}.run.jsonl").read_text().splitlines()
        first, last = json.loads(lines[0]), json.loads(lines[-1])
        if last["kind"] == "end":
            return first["provenance"], round((last["time"] - first["time"]) / 1000, 1)
    return {}, ""
