"""The tables: means with intervals, and verdicts against the paper.

Pure functions, from a frame of scores to a frame of text, in which a cell may also be a list of (text, anchor): links
to rows of the provenance table.
"""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.catalogue import ARMS
from reports.scores import CAUTION, Reason, anchor, by_seed, column, links, saturated, spread
from reports.verdicts import (
    BUDGET,
    Values,
    bound_verdict,
    estimate,
    number,
    ordering_verdict,
    refuse_quick,
    value_verdict,
)
from reports.words import called

TRADED = ("frechet_inception_distance", "frechet_distance", "bits_per_dim")  # Glow's, after joint training minus before
TABLES = {  # of an experiment, in order: the catalogue's name, the title, and what makes a row
    "results": ("Results", "Model"), "game": ("The game between the two players", "Model"),
    "modes": ("Mass of each mode, against the truth's", "Model"),
    "trade": ("What joint training changes in Glow", "Arm"),
    "bounds": ("Bits/dim of the EBM by bounds on log Z", "Model"), "trust": ("log Z of the EBM", "Model"),
    "control": ("The bounds on log Z, where it is known", "Model"),
    "probe": ("Accuracy by labelled images", "Labels"), "rank": ("Effective rank of the features", "Model")}


def printed_table(scores: pd.DataFrame, table: dict[str, Any], why: Reason) -> pd.DataFrame:
    """Table 1 or 2 of the paper: its number, ours, and the verdict."""
    refuse_quick(scores["profile"])
    rows, marked = [], saturated(scores)
    for entry in [{**table, **cell} for cell in table["cells"]]:
        values = by_seed(scores, **{key: entry[key] for key in ("experiment", "arm", "measure", "name", "model")})
        place = (entry["experiment"], entry["arm"], entry["measure"])
        verdict = value_verdict(values, entry["paper"], entry["tolerance"])
        mark = f" {CAUTION}" * ((entry["experiment"], entry["arm"]) in marked)
        rows.append({"Data": entry["row"], "Model": entry["column"] + mark, "Paper": f"{entry['paper']:.2f}",
                     "Ours": estimate(values), "Seeds": links(values.at.index, *place),
                     **conclusion(verdict, entry, entry["experiment"], why(*place)),
                     "Protocol": entry["protocol"], "By seed": each_seed(values, *place)})
    return pd.DataFrame(rows)


def claims_table(scores: pd.DataFrame, claims: list[dict[str, Any]], why: Reason) -> pd.DataFrame:
    """The paper's claims in words: our paired difference (without a `second`, our value), the verdict."""
    refuse_quick(scores["profile"], "small")
    rows, marked = [], saturated(scores)
    for claim, experiment in [(each, name) for each in claims for name in each["experiments"]]:
        shared = {"experiment": experiment, "measure": claim["measure"], "name": claim["name"]}
        sides = [shared | claim[side] for side in ("first", "second") if side in claim]
        judged = scores[~(scores["labels"] > claim.get("most_labels", math.inf))]
        first, *others = found = [by_seed(judged, **side) for side in sides]
        difference = first - others[0] if others else first
        places = [(experiment, side["arm"], side["measure"]) for side in sides]
        numbers = [each_seed(values, *place) for values, place in zip(found, places, strict=True)]
        lacking = sides[-1] if len(first) else sides[0]
        missing = why(experiment, lacking["arm"], lacking["measure"])
        bound, low, high = "bound" in claim, claim["low"], claim["high"]
        verdict = bound_verdict(difference, high) if bound else ordering_verdict(difference, low, high)
        ended = conclusion(verdict, claim, experiment, missing)
        if bound and others and len(by_ais := by_seed(scores, **(sides[0] | {"name": "bits_per_dim_ais"})) - others[0]):
            ended["Note"] = f"the certificate's difference; by AIS {estimate(by_ais)}"
        holds = int(((low < difference.means) & (difference.means < high)).sum())
        mark = f" {CAUTION}" * any((experiment, side["arm"]) in marked for side in sides)
        rows.append({"Claim": claim["claim"] + mark, "Data": called(experiment),
                     "Value or difference": estimate(difference),
                     "Holds in": "–" if bound else f"{holds} of {len(difference)}",
                     "Seeds": links(difference.at.index, *places[0]), **ended,
                     "Where": claim["where"], "Protocol": claim["protocol"], "By seed": numbers[0],
                     "Minus": numbers[1] if others else [],
                     "Difference by seed": ", ".join(text for text, _ in each_seed(difference)) if others else ""})
    rows.sort(key=lambda row: row["Verdict"] == "not run")  # what has a verdict comes first
    return pd.DataFrame(rows)


def each_seed(values: Values, *place: str) -> list[tuple[str, str]]:
    """The value at each seed, linked to its row of the provenance table."""
    return [(f"{seed}: {number(value)}", anchor(*place, seed)) for seed, value in values.means.items()]


def conclusion(verdict: str, entry: dict[str, Any], experiment: str, missing: str) -> dict[str, str]:
    """The columns Verdict and Note of a judged entry."""
    if "unverified" in entry and verdict != "not run":
        return {"Verdict": "unverified", "Note": entry["unverified"]}
    if experiment in entry.get("budget", {}) and verdict != "not run":
        return {"Verdict": BUDGET, "Note": entry["budget"][experiment]}
    return {"Verdict": verdict, "Note": missing if verdict == "not run" else ""}


def criteria_table(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """How each verdict is decided: protocol, tolerance and its reason."""
    rows = [{"Judged": entry.get("claim") or entry["title"], "Paper": entry["where"], "Protocol": entry["protocol"],
             "Reproduced if": f"within ± {entry['tolerance']}" if "cells" in entry else
             f"never; refuted if above {entry['high']}" if "bound" in entry else
             f"difference between {entry['low']} and {entry['high']}", "Reason": entry["reason"]}
            for entry in entries]
    return pd.DataFrame(rows).replace({r"between -inf and": "below", r"between (\S+) and inf": r"above \1"}, regex=True)


def architecture_table(folder: Path, table: dict[str, Any]) -> pd.DataFrame:
    """Table 3 or 4 of the paper beside params.yaml, read from the slices of the joint stage."""
    refuse_quick([folder.name])
    rows = []
    for row, experiment in [(r, experiment) for r in table["rows"] for experiment in r["experiments"]]:
        paper, ours, verdict = table["template"].format(**row["paper"]), "–", "not run"
        path = folder / experiment / "params" / "joint" / "joint.json"
        if path.exists():
            ours = table["template"].format(**json.loads(path.read_text())[table["section"]])
            verdict = "same" if ours == paper else "differs"
        rows.append({"Data": called(experiment), "Paper": paper, "Ours": ours, "Verdict": verdict})
    return pd.DataFrame(rows)


def table(every: pd.DataFrame, name: str, rows: list[str]) -> pd.DataFrame:
    """One of TABLES, by its rows or by these and Seed, of an experiment's scores as `shown`; empty where none are its.
    """
    if name == "trade":
        return trade_table(every, rows)
    chosen = every[every["table"] == name]
    if name == "probe":
        return spread(chosen.astype({"Labels": int}).sort_values(rows, kind="stable"), rows, "Model")
    if name == "bounds" and len(chosen):  # beside Glow's
        chosen = every[(every["table"] == name) | (every["name"] == "bits_per_dim") & (every["model"] == "flow")]
    return spread(chosen, rows) if name != "modes" or chosen["name"].nunique() > 1 else pd.DataFrame()


def trade_table(every: pd.DataFrame, rows: list[str]) -> pd.DataFrame:
    """Glow after joint training minus before, by Arm or by Arm and Seed: Fréchet distance, and its cost in bits/dim."""
    flows, changes = every[every["model"] == "flow"], []
    marked = {arm for _, arm in saturated(every)}
    trained = set(flows["arm"]) - {"mle"}
    for arm in [arm for arm in ARMS if arm in trained]:
        words = ARMS[arm].words + f" {CAUTION}" * (arm in marked)
        for name in TRADED:
            change = by_seed(flows, arm=arm, name=name) - by_seed(flows, arm="mle", name=name)
            each = zip(change.at.index, change.means, change.errors, change.shared > 0, strict=True)
            changes += [(words, seed, *column(name).values(), None, seed, *numbers)
                        for seed, *numbers in each]
    columns = ["Arm", "Seed", "table", "Measure", "order", "draws", "seed", "value", "standard_error", "shared"]
    return spread(pd.DataFrame(changes, columns=columns), rows)
