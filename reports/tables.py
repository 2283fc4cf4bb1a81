"""Scores in, tables out: means with intervals, and verdicts against the paper.

Pure functions. Scores are a frame with one row per number; a table is a frame of text, in which a cell may
also be a list of (text, anchor): links to rows of the provenance table.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from eval.score import read_scores
from fce.stage import UserError
from reports.verdicts import (
    ALONE,
    Values,
    bound_verdict,
    estimate,
    number,
    ordering_verdict,
    refuse_quick,
    value_verdict,
)

COLUMNS = ["profile", "experiment", "seed", "arm", "measure", "name", "model", "labels", "value",
           "standard_error", "draws"]
CONVERGED = 0.2  # mean squared error of log p at which a 2D run counts as converged; paper.yaml says why
DATA = {"svhn": "SVHN", "cifar10": "CIFAR-10", "digits": "digits (8×8, not the paper's)",
        "ring-tight": "ring, tight modes", "ring-paper": "ring, the paper's literal recipe"}
ARMS = {"mle": "MLE", "joint": "ours", "joint-from-random": "ours, random start", "joint-long": "ours, longer",
        "residual": "ours, residual EBM", "frozen-flow": "NCE, frozen Glow",
        "gaussian-noise": "NCE, Gaussian noise", "mle-continued": "MLE continued", "random-init": "random weights",
        "dcgan": "DCGAN", "supervised": "supervised"}
MODELS = {"flow": "Glow", "generator": "generator", "ebm": "EBM", "features": "features", "network": "network",
          "data": "data"}
HEADINGS = {"kl": "KL", "jsd": "JSD", "total_variation": "TV", "smallest_mode_mass": "smallest mode",
            "mass_outside": "mass outside", "mse_log_density": "MSE, learned c",
            "mse_log_density_normalised": "MSE, exact Z", "log_z_error": "log Z error",
            "log_likelihood": "log-likelihood", "quadrature_error": "quadrature error", "parameters": "parameters",
            "bits_per_dim": "bits/dim",
            "bits_per_dim_learned": "by the learned c", "bits_per_dim_importance": "by importance sampling",
            "bits_per_dim_ais": "by AIS", "bits_per_dim_certificate": "by the certificate",
            "log_z_learned": "log Z, learned c", "log_z_jensen": "log Z, Jensen",
            "log_z_importance": "log Z, importance sampling", "log_z_ais": "log Z, AIS",
            "log_z_certificate": "log Z, certificate", "excess_mass": "certificate above c, nats",
            "effective_sample_size": "effective samples", "pareto_k": "Pareto k",
            "effective_chains": "effective chains", "acceptance": "HMC acceptance",
            "outside_box": "samples outside the box", "told_apart": "accuracy, p against q", "dimensions": "dimensions",
            "log_z_error_jensen": "Jensen − truth", "log_z_error_importance": "importance sampling − truth",
            "log_z_error_certificate": "certificate − truth", "log_z_error_ais": "AIS − truth",
            "log_z_error_ais_reverse": "reverse AIS − truth", "ais_gap": "gap of AIS, nats",
            "ais_gap_bits": "gap of AIS, bits/dim",
            "bits_per_dim_validation": "validation bits/dim", "frechet_inception_distance": "FID",
            "frechet_inception_distance_infinity": "FID∞", "frechet_inception_distance_test": "FID to test",
            "kernel_inception_distance": "KID",
            "frechet_distance": "FD", "frechet_distance_infinity": "FD∞", "frechet_distance_test": "FD to test",
            "kernel_distance": "KD",
            "precision": "precision", "recall": "recall", "accuracy": "accuracy", "effective_rank": "effective rank"}
FLOORS = ("frechet_inception_distance", "kernel_inception_distance", "frechet_distance", "kernel_distance", "precision",
          "recall")
BASELINES = {"bits_per_dim_uniform": ("bits_per_dim", "equally likely levels"),
             "bits_per_dim_histogram": ("bits_per_dim", "independent pixels"),
             **{f"{name}_floor": (name, "real test images (the floor)") for name in FLOORS},
             **{f"{name}_halves": (name, "two halves of the training images") for name in FLOORS if "frechet" in name},
             "log_likelihood": ("log_likelihood", "the true density")}
IMPLIED = ("bits_per_dim", "excess_mass", "told_apart")  # what follows of an estimate of log Z; the rest is about it

Reason = Callable[[str, str, str], str]  # (experiment, arm, stage or measure) -> why its output is missing


def write(path: Path, content: bytes) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def score_files(folder: Path) -> list[dict[str, Any]]:
    """Every score file of build/<profile>: its content and, as `file`, where it lies.

    Raises:
        UserError: a file is no score file, or its content belongs to another place.
    """
    for path in folder.glob("*/seed-*"):
        if not path.name.removeprefix("seed-").isdecimal():
            raise UserError(f"{path}: 'seed-' and a number is the name of a run's folder; rename or delete it")
    found = []
    for path in sorted(folder.glob("*/seed-*/*/*.json")):
        try:
            content = read_scores(path).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            what = ".".join(map(str, (*first["loc"], first["msg"])))
            raise UserError(f"{path} is not a score file ({what}); delete it and run snakemake") from None
        except ValueError as error:
            raise UserError(f"{path} is not a score file ({error}); delete it and run snakemake") from None
        place = [content[key] for key in ("profile", "experiment", "seed", "arm", "measure")]
        seed = int(path.parents[1].name.removeprefix("seed-"))
        if place != [folder.name, path.parents[2].name, seed, path.parent.name, path.stem]:
            raise UserError(f"{path} holds the scores of {place}: it was moved; delete it and run snakemake")
        found.append({**content, "file": path})
    return found


def score_table(files: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per score, with COLUMNS."""
    rows = [{**file, **score} for file in files for score in file["scores"]]
    return pd.DataFrame(rows, columns=COLUMNS).astype(
        {"value": float, "seed": int, "labels": float, "standard_error": float})


def convergence(joint: pd.DataFrame, profile: str, experiment: str) -> pd.DataFrame:
    """Scores `updates_to_converge` (Figure 2) from the joint.csv of all runs.

    The value is the number of EBM updates until mse_ema < CONVERGED, or the whole budget where it never is.
    """
    rows = []
    for (seed, arm), run in joint.groupby(["seed", "arm"]) if "mse_ema" in joint else []:
        below = run.loc[run["mse_ema"] < CONVERGED, "ebm_updates"]
        value = below.min() if len(below) else run["ebm_updates"].max()
        rows.append({"profile": profile, "experiment": experiment, "seed": seed, "arm": arm, "measure": "joint",
                     "name": "updates_to_converge", "model": "ebm", "value": value})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float, "seed": int, "standard_error": float})


def by_seed(scores: pd.DataFrame, **keys: str) -> Values:
    """The scores with these columns."""
    return Values.of(scores[np.logical_and.reduce([scores[key] == value for key, value in keys.items()])])


def links(seeds: Iterable[int], experiment: str, arm: str, stage: str) -> list[tuple[str, str]]:
    """Seeds, linked to their rows of the provenance table."""
    return [(str(seed), anchor(experiment, arm, stage, seed)) for seed in seeds]


def anchor(*place: Any) -> str:
    """The id of a row of the provenance table: experiment, arm (if any), stage, seed."""
    return "-".join(str(part) for part in place if part != "")


def printed_table(scores: pd.DataFrame, table: dict[str, Any], why: Reason) -> pd.DataFrame:
    """Table 1 or 2 of the paper: its number, ours, and the verdict."""
    refuse_quick(scores["profile"])
    rows = []
    for cell in table["cells"]:
        entry = {**table, **cell}
        experiment, arm, measure = entry["experiment"], entry["arm"], entry["measure"]
        values = by_seed(scores, **{k: entry[k] for k in ("experiment", "arm", "measure", "name", "model")})
        verdict = value_verdict(values, entry["paper"], entry["tolerance"])
        rows.append({"Data": entry["row"], "Model": entry["column"], "Paper": f"{entry['paper']:.2f}",
                     "Ours": estimate(values), "Seeds": links(values.at.index, experiment, arm, measure),
                     **conclusion(verdict, entry, why(experiment, arm, measure))})
    return pd.DataFrame(rows)


def claims_table(scores: pd.DataFrame, claims: list[dict[str, Any]], why: Reason) -> pd.DataFrame:
    """The paper's claims in words: our paired difference (without a `second`, our value), the verdict."""
    refuse_quick(scores["profile"])
    rows = []
    for claim, experiment in [(c, experiment) for c in claims for experiment in c["experiments"]]:
        keys = {"experiment": experiment, "measure": claim["measure"], "name": claim["name"]}
        sides = [keys | claim[side] for side in ("first", "second") if side in claim]
        judged = scores[~(scores["labels"] > claim.get("most_labels", math.inf))]
        first, *others = (by_seed(judged, **side) for side in sides)
        difference, arm = first - others[0] if others else first, claim["first"]["arm"]
        holds = int(((claim["low"] < difference.means) & (difference.means < claim["high"])).sum())
        lacking = sides[-1 if len(first) else 0]
        missing = why(experiment, lacking["arm"], lacking["measure"])
        if "bound" in claim:  # a second, tighter bound that is less certain
            tighter = by_seed(scores, **(sides[0] | {"name": claim["bound"]})) - others[0]
            ended = conclusion(bound_verdict(difference, tighter), claim, missing)
            if len(tighter):
                ended["Note"] = f"the certificate's difference; by AIS {estimate(tighter)}"
        else:
            ended = conclusion(ordering_verdict(difference, claim["low"], claim["high"]), claim, missing)
        rows.append({"Claim": claim["claim"], "Data": DATA.get(experiment, experiment),
                     "Difference": estimate(difference), "Holds in": f"{holds} of {len(difference)}",
                     "Seeds": links(difference.at.index, experiment, arm, claim["measure"]), **ended})
    rows.sort(key=lambda row: row["Verdict"] == "not run")  # what has a verdict comes first
    return pd.DataFrame(rows)


def conclusion(verdict: str, entry: dict[str, Any], missing: str) -> dict[str, str]:
    """The columns Verdict and Note of a judged entry."""
    if verdict == "not run":
        return {"Verdict": verdict, "Note": missing}
    if "unverified" in entry:
        return {"Verdict": "unverified", "Note": entry["unverified"]}
    return {"Verdict": verdict, "Note": ""}


def criteria_table(paper: dict[str, Any]) -> pd.DataFrame:
    """How each verdict is decided: protocol, tolerance and its reason."""
    rows = [{"Judged": entry.get("claim") or entry["title"], "Paper": entry["where"], "Protocol": entry["protocol"],
             "Reproduced if": f"within ± {entry['tolerance']}" if "cells" in entry else
             "never; refuted if above 0" if "bound" in entry else
             f"difference between {entry['low']} and {entry['high']}", "Reason": entry["reason"]}
            for entry in [*paper["claims"], *paper["values"]]]
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
        data = DATA.get(experiment, experiment)
        rows.append({"Data": data, "Paper": paper, "Ours": ours, "Verdict": verdict})
    return pd.DataFrame(rows)


def shown(scores: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """An experiment's scores in the words of a reader: Measure, Model, Labels, Seed; in the order of ARMS."""
    rows, order = [], list(ARMS)
    for row in scores[scores["experiment"] == experiment].to_dict("records"):
        arm, name, model = row["arm"], row["name"], row["model"]
        label = f"{MODELS[model]} ({ARMS.get(arm, arm)})"
        if model == "data" and name in BASELINES:
            name, label = BASELINES[name]
        if name.endswith("_all_layers"):
            name, label = name.removesuffix("_all_layers"), f"{label}, all layers"
        if row["measure"] == "bits_per_dim" and model == "ebm":
            label += ", learned c, unverified"
        place = (order.index(arm) if arm in order else len(order), model != "data", model != "flow", row["seed"])
        rows.append({**row, "Measure": HEADINGS.get(name, name), "Model": label, "Seed": row["seed"],
                     "Labels": row["labels"], "place": place})
    words = ["Measure", "Model", "Labels", "Seed"]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *words, "place"]).sort_values("place", kind="stable")
    return frame.drop_duplicates(words)  # the truth's scores stand in the files of several arms


def spread(scores: pd.DataFrame, rows: list[str], column: str) -> pd.DataFrame:
    """A row for each combination of `rows`, a column for each value of `column`: means ± half-widths, or each seed's.

    The column Seeds counts a row's seeds; a cell that is a mean over fewer says so.
    """
    columns = list(dict.fromkeys(scores[column]))
    if column == "Measure":
        columns = [heading for heading in HEADINGS.values() if heading in columns]
    table = []
    for row, group in scores.groupby(rows, sort=False):
        cells, n = dict(zip(rows, map(str, row), strict=True)), group["Seed"].nunique()
        for heading, cell in group.groupby(column):
            values = Values.of(cell)
            text = number(values.interval()[0]) if "Seed" in rows else estimate(values)
            cells[str(heading)] = text + (f" (n = {len(values)})" if len(values) < n and ALONE not in text else "")
        table.append(cells if "Seed" in rows else cells | {"Seeds": str(n)})
    return pd.DataFrame(table, columns=[*rows, *columns, *([] if "Seed" in rows else ["Seeds"])]).fillna("–")


def results(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """2D densities, or bits/dim and Fréchet distances of images, by Model or by Model and Seed."""
    chosen = shown(scores, experiment)
    chosen = chosen[chosen["measure"].isin(["density", "bits_per_dim", "fid"])]
    return spread(chosen[chosen["Measure"].isin(HEADINGS.values())], rows, "Measure")


def bounds_table(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """Bits/dim of the EBM by each estimate of log Z beside Glow's."""
    chosen = shown(scores, experiment)
    of_log_z = chosen["measure"] == "log_z"
    if not of_log_z.any():
        return pd.DataFrame()
    flow = (chosen["name"] == "bits_per_dim") & (chosen["model"] == "flow")
    return spread(chosen[flow | of_log_z & chosen["name"].str.startswith(IMPLIED)], rows, "Measure")


def trust_table(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """The estimates of log Z, and how far each can be trusted."""
    chosen = shown(scores, experiment)
    return spread(chosen[(chosen["measure"] == "log_z") & ~chosen["name"].str.startswith(IMPLIED)], rows, "Measure")


def control_table(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """Errors of the bounds on log Z where it is known."""
    chosen = shown(scores, experiment)
    return spread(chosen[chosen["measure"] == "log_z_control"], rows, "Measure")


def modes_table(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """Mass of each mode against the truth's, by Model or by Model and Seed."""
    chosen = shown(scores, experiment)
    chosen = chosen[chosen["name"].str.startswith("mode_mass_")]
    if chosen["name"].nunique() < 2:
        return pd.DataFrame()
    return spread(chosen.assign(Mode="mode " + chosen["name"].str.removeprefix("mode_mass_")), rows, "Mode")


def probe_table(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """Accuracy of each arm's classifier (Figure 4), by Labels or by Labels and Seed."""
    chosen = shown(scores, experiment).query("Measure == 'accuracy'")
    return spread(chosen.astype({"Labels": int}).sort_values(rows, kind="stable"), rows, "Model")


def rank_table(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """Effective rank of the features that are classified, by Model or by Model and Seed."""
    return spread(shown(scores, experiment).query("Measure == 'effective rank'"), rows, "Measure")


def trade_table(scores: pd.DataFrame, experiment: str, rows: list[str]) -> pd.DataFrame:
    """Glow after joint training minus before, by Arm or by Arm and Seed: Fréchet distance, and its cost in bits/dim."""
    flows, changes = scores[(scores["experiment"] == experiment) & (scores["model"] == "flow")], []
    for place, arm in enumerate(arm for arm in ARMS if arm != "mle"):
        for name in ("frechet_inception_distance", "frechet_distance", "bits_per_dim"):
            change = by_seed(flows, arm=arm, name=name) - by_seed(flows, arm="mle", name=name)
            changes += [[place, ARMS[arm], seed, seed, HEADINGS[name], value, error, None]
                        for seed, value, error in zip(change.at.index, change.means, change.errors, strict=True)]
    columns = ["place", "Arm", "Seed", "seed", "Measure", "value", "standard_error", "draws"]
    return spread(pd.DataFrame(changes, columns=columns).sort_values(["place", "Seed"], kind="stable"), rows, "Measure")
