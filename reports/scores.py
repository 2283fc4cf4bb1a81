"""What the stages wrote, as frames: scores with one row for each number, and training curves.

Of files below build/<profile>/ only those count that params.yaml names now; the others are left over.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from eval.score import read_per_image, read_scores
from pipeline.catalogue import ARMS, HEADLINES, SCORES, STAGES, metric, score
from pipeline.errors import UserError
from pipeline.params import Params, Run
from reports.pictures import SHOWN
from reports.verdicts import ALONE, Values, estimate, number
from reports.words import MODELS

COLUMNS = ["profile", "experiment", "seed", "arm", "measure", "name", "model", "labels", "value",
           "standard_error", "draws", "shared"]
CURVES = {"pretrain": ("step", "validation"), "joint": ("ebm_updates", "value", "accuracy_data", "accuracy_gen")}
GAME = ("mean_value", "mean_below_chance", "mean_accuracy_data", "mean_accuracy_gen", "mean_saturated",
        "longest_saturated", "ebm_updates", "flow_updates")  # of a curve's last row
CONVERGED = 0.2  # mean squared error of log p at which a 2D run counts as converged; paper.yaml says why
CAUTION = "†"  # marks a number that its score's row in the catalogue warns of

Reason = Callable[[str, str, str], str]  # (experiment, arm, stage) -> why its output is missing


@dataclass(frozen=True)
class Results:
    """The outputs below a build folder that params.yaml names for a profile."""

    settings: Params
    profile: str
    build: Path

    @property
    def folder(self) -> Path:
        return self.build / self.profile

    def outputs(self, stage: str, experiment: str) -> dict[Run, Path]:
        """{(seed, arm): output} of every run of a stage, there or not; none of an experiment that has no such stage."""
        settings, place = self.settings, (stage, self.profile, experiment)
        known = experiment in settings.experiments[self.profile] and settings.has(*place)
        return {run: self.build.joinpath(*Path(settings.outputs(*place, *run)[0]).parts[1:])
                for run in (settings.runs(*place) if known else ())}

    def found(self, stage: str, experiment: str, ending: str) -> dict[Run, Path]:
        """{(seed, arm): file} of the runs of a stage that have written a file with this ending."""
        return {run: path.with_suffix(ending) for run, path in self.outputs(stage, experiment).items()
                if path.with_suffix(ending).exists()}

    def pictured(self, stage: str, experiment: str) -> tuple[int | None, dict[str, Path]]:
        """The seed whose arrays the figures show, and {arm: file of arrays}: that with most arms of SHOWN.

        Of seeds with as many it is the first; without such a file it is None.
        """
        found = self.found(stage, experiment, ".npz")
        seeds = {seed: {arm: found[seed, arm] for arm in SHOWN if (seed, arm) in found}
                 for seed in sorted(seed for seed, arm in found if seed is not None and arm in SHOWN)}
        return max(seeds.items(), key=lambda seed: len(seed[1]), default=(None, {}))

    @cached_property
    def named(self) -> set[Path]:
        """Every output, there or not, without its ending."""
        return {path.with_suffix("") for experiment in self.settings.experiments[self.profile] for stage in STAGES
                for path in self.outputs(stage, experiment).values()}

    @cached_property
    def files(self) -> dict[Path, dict[str, Any]]:
        """Every score file, left over or not."""
        return score_files(self.folder)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Of the score files, and of the curves of joint training; an EBM that only looks on has no numbers."""
        table, games = score_table(self.files[path] for path in self.files if path in self.named), []
        for name, experiment in self.settings.experiments[self.profile].items():
            alone = [arm for arm, game in experiment.arms.items() if not game.value_weight]
            looks_on = (table["experiment"] == name) & table["arm"].isin(alone) & (table["model"] == "ebm")
            table = table[~looks_on]
            games.append(of_game(curves(self, name, "joint"), self.profile, name, alone))
        return pd.concat([table, *games], ignore_index=True)


def score_files(folder: Path) -> dict[Path, dict[str, Any]]:
    """The content of every score file of build/<profile>, left over or not, by its path without ending.

    A score's `images` reads its values per image, where a file of them lies beside.

    Raises:
        UserError: a file is no score file, has what no list knows, or its content belongs to another place.
    """
    for path in folder.glob("*/seed-*"):
        if not path.name.removeprefix("seed-").isdecimal():
            raise UserError(f"{path}: 'seed-' and a number is the name of a run's folder; rename or delete it")
    found = {}
    for path in sorted(folder.glob("*/seed-*/*/*.json")):
        try:
            file = read_scores(path)
            content = file.model_dump()
            if content["arm"] not in ARMS:
                raise ValueError(f"the arm '{content['arm']}' is in no list; add it to [arms] in "
                                 "pipeline/catalogue.toml")
        except ValueError as error:
            first: Any = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            what = ".".join(map(str, (*first["loc"], first["msg"].removeprefix("Value error, "))))
            raise UserError(f"{path} is not a score file ({what}); delete it and run snakemake") from None
        own = "{profile}/{experiment}/seed-{seed}/{arm}/{measure}.json".format(**content)
        if path != folder.parent / own:
            raise UserError(f"{path} holds the scores of {own}: it was moved; delete it and run snakemake")
        if (beside := path.with_suffix(".npz")).exists():
            for score, dumped in zip(file.scores, content["scores"], strict=True):
                dumped["images"] = partial(read_per_image, beside, score.key)
        found[path.with_suffix("")] = content
    return found


def score_table(files: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per score, with COLUMNS and `images`."""
    rows = [{**file, **score} for file in files for score in file["scores"]]
    return pd.DataFrame(rows, columns=[*COLUMNS, "images"]).astype(
        {"value": float, "seed": int, "labels": float, "standard_error": float})


def curves(results: Results, experiment: str, stage: str) -> pd.DataFrame:
    """The curves of all runs of a stage, one below the other; columns seed and arm (empty before the arms)."""
    frames = [pd.DataFrame()]
    for (seed, arm), path in results.found(stage, experiment, ".csv").items():
        try:
            frame = pd.read_csv(path)
            if lacking := [column for column in CURVES[stage] if column not in frame]:
                raise ValueError(f"it has no {lacking[0]}")
        except ValueError as error:
            raise UserError(f"{path} is no curve ({error}); delete it and run snakemake") from None
        frames.append(frame.assign(seed=seed, arm=arm))
    return pd.concat(frames, ignore_index=True)


def of_game(joint: pd.DataFrame, profile: str, experiment: str, alone: Collection[str]) -> pd.DataFrame:
    """Scores of how each game went, from the curves of joint training, one below the other.

    Of arms in which the flow is `alone`, hearing nothing of V, the updates are counted.
    """
    files = []
    for (seed, arm), run in joint.groupby(["seed", "arm"]) if len(joint) else []:
        found = [{"name": name, "model": "ebm", "value": value} for name, value in of_curve(run).items()
                 if arm not in alone or name in ("ebm_updates", "flow_updates")]
        files.append({"profile": profile, "experiment": experiment, "seed": seed, "arm": arm, "measure": "joint",
                      "scores": found})
    return score_table(files)


def of_curve(run: pd.DataFrame) -> dict[str, float]:
    """{score: value} of the curve of one run of joint training.

    Its last row has the means over all updates of the EBM. `capped_turns`: the share of turns that a cap ended.
    `updates_to_converge` (Figure 2): EBM updates until mse_ema < CONVERGED, or the whole budget where it never is.
    """
    run = run.dropna(axis=1, how="all")  # what only other runs have
    last = run.iloc[-1]
    found = {name: float(last[name]) for name in GAME if name in run}
    if "capped" in run and last["turns"]:
        found["capped_turns"] = float(last["capped"] / last["turns"])
    if "mse_ema" in run:
        below = run.loc[run["mse_ema"] < CONVERGED, "ebm_updates"]
        found["updates_to_converge"] = float(below.min() if len(below) else run["ebm_updates"].max())
    return found


def headlines(scores: pd.DataFrame) -> dict[str, Any]:
    """{experiment: {arm: {name: mean over seeds}}} of the numbers in the paper's tables and figures, for DVC."""
    found: dict[Any, Any] = {}
    for (experiment, arm), rows in scores.groupby(["experiment", "arm"]):
        labels = rows["labels"].map(lambda count: "" if math.isnan(count) else f"/{count:.0f}")
        names = [metric(stage, key) if stage in STAGES else ""
                 for stage, key in zip(rows["measure"], rows["model"] + "/" + rows["name"] + labels, strict=True)]
        means = rows["value"].groupby(np.array(names)).mean()
        if chosen := {name: float(means[name]) for name in HEADLINES if name in means}:
            found.setdefault(str(experiment), {})[arm] = chosen
    return found


def by_seed(scores: pd.DataFrame, **keys: str) -> Values:
    """The scores with these columns."""
    return Values.of(scores[np.logical_and.reduce([scores[key] == value for key, value in keys.items()])])


def links(seeds: Iterable[int], experiment: str, arm: str, stage: str) -> list[tuple[str, str]]:
    """Seeds, linked to their rows of the provenance table."""
    return [(str(seed), anchor(experiment, arm, stage, seed)) for seed in seeds]


def anchor(*place: Any) -> str:
    """The id of a row of the provenance table: experiment, arm (if any), stage, seed."""
    return "-".join(str(part) for part in place if part != "")


def column(name: str) -> dict[str, Any]:
    """Where a score stands: its table, its Measure, which is the column's heading, and `order`, its place in SCORES."""
    known = score(name)
    heading = known.heading if name in SCORES else f"{known.heading} {name.rpartition('_')[2]}"  # one of many
    return {"table": known.table, "Measure": heading, "order": list(SCORES.values()).index(known)}


def saturated(scores: pd.DataFrame) -> set[tuple[str, str]]:
    """(experiment, arm) of those with a run whose log-ratios were saturated for long."""
    caution, found = score("longest_saturated").caution, scores[scores["name"] == "longest_saturated"]
    runs = zip(found["experiment"], found["arm"], found["value"], strict=True)
    return {(experiment, arm) for experiment, arm, value in runs if caution and caution.meets(value)}


def shown(scores: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """An experiment's scores in the words of a reader: Measure, Model, Labels, Seed; in the order of ARMS."""
    words, arms, rows = ["table", "Measure", "Model", "Labels", "Seed"], list(ARMS), []
    marked = saturated(scores)
    for row in scores[scores["experiment"] == experiment].to_dict("records"):
        arm, model, known = row["arm"], row["model"], score(row["name"])
        label = known.row if known.row and model == "data" else f"{MODELS.get(model, model)} ({ARMS[arm].words})"
        if known.row.startswith(", "):
            label += known.row
        if row["measure"] == "bits_per_dim" and model == "ebm":
            label += ", learned c, unverified"
        label += f" {CAUTION}" * ((experiment, arm) in marked and model != "data")
        own = {"Model": label, "Labels": row["labels"], "Seed": row["seed"]}
        rows.append(row | column(known.column or row["name"]) | own)
    rows.sort(key=lambda row: (arms.index(row["arm"]), row["model"] != "data", row["model"] != "flow", row["seed"]))
    # the truth's scores stand in the files of several arms
    return pd.DataFrame(rows, columns=[*COLUMNS, "images", *words, "order"]).drop_duplicates(words)


def spread(chosen: pd.DataFrame, rows: list[str], across: str = "Measure") -> pd.DataFrame:
    """A row for each combination of `rows`, a column for each value of `across`: means ± half-widths, or each seed's.

    The column Seeds counts a row's seeds; a cell that is a mean over fewer says so. A number that the catalogue warns
    of has CAUTION; attrs["cautions"] are the words, by Measure.
    """
    if chosen.empty:
        return pd.DataFrame()
    columns, table, cautions = chosen.sort_values("order", kind="stable")[across].unique(), [], {}
    groups: dict[tuple[Any, ...], dict[str, list[int]]] = {}  # by place: pandas' groups of one row each take seconds
    for at, (heading, *place) in enumerate(zip(*(chosen[each] for each in (across, *rows)), strict=True)):
        groups.setdefault(tuple(place), {}).setdefault(heading, []).append(at)
    known = {name: list(chosen[name]) for name in ("Seed", "Measure", "name") if name in chosen}
    numbers = chosen[[name for name in ("seed", "value", "standard_error", "draws", "shared", "images")
                      if name in chosen]]
    for row, group in groups.items():
        n = len({known["Seed"][at] for places in group.values() for at in places})
        cells = {**dict(zip(rows, map(str, row), strict=True)), "Seeds": str(n)}
        for heading, places in sorted(group.items()):
            values = Values.of(numbers.iloc[places])
            text = number(values.interval()[0]) if "Seed" in rows else estimate(values)
            cells[heading] = text + (f" (n = {len(values)})" if len(values) < n and ALONE not in text else "")
            caution = score(known["name"][places[0]]).caution if "name" in known else None  # a difference has no name
            if caution and caution.meets(values.interval()[0]):
                cells[heading] += f" {CAUTION}"
                cautions[known["Measure"][places[0]]] = caution.words
        table.append(cells)
    frame = pd.DataFrame(table, columns=[*rows, *columns, "Seeds"]).fillna("–")
    frame = frame.drop(columns="Seeds") if "Seed" in rows else frame
    if any(CAUTION in label for label in [*(row[each] for row in table for each in rows), *map(str, columns)]):
        saturation = score("longest_saturated")
        cautions[saturation.heading] = saturation.caution.words if saturation.caution else ""
    frame.attrs["cautions"] = cautions
    return frame
