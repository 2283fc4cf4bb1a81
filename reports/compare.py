"""Two arms of an experiment side by side: every score that both have, and its paired difference over seeds.

Means, differences (the second arm's minus the first's) and their 95 % intervals are those of the page. The last column
is the name under which MLflow, and of a headline DVC too, has the number.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.catalogue import ARMS, ROOT, STAGES, metric, score
from pipeline.errors import UserError, errors_in_one_line
from pipeline.mistakes import suggestion
from pipeline.params import PROFILES, Params, load
from reports.scores import CAUTION, GAME, Results, column, saturated
from reports.verdicts import ALONE, Values, estimate
from reports.words import MODELS

OF_GROUP = ("samples", "features")  # whose scores are of what the model made, not of its density
ALONE_NOTE = f"one seed: no interval over seeds; {ALONE} marks one over its test images or samples alone"


@errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(prog="fce compare", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("arms", nargs=2, metavar="ARM", help="e.g. mle joint")
    flags.add_argument("--on", required=True, metavar="EXPERIMENT", help="e.g. ring")
    flags.add_argument("--profile", default="full", choices=PROFILES, help="which results (default: full)")
    flags.add_argument("--build", type=Path, default=Path("build"), help="the folder of results (default: build)")
    given = flags.parse_args(argv)
    settings = load(ROOT / "params.yaml")
    check(settings, given.profile, given.on, given.arms)
    print(compared(Results(settings, given.profile, given.build), given.on, *given.arms))
    return 0


def check(settings: Params, profile: str, experiment: str, arms: Sequence[str]) -> None:
    """Refuse an experiment that the profile has not, arms that the experiment has not, and an arm against itself."""
    known = settings.experiments[profile]
    if experiment not in known:
        raise UserError(f"--on: the profile {profile} has no experiment '{experiment}'{suggestion(experiment, known)}")
    measured = {arm for models in settings.measured(profile, experiment).values() for arm in models}
    for arm in arms:
        if arm not in measured:
            raise UserError(f"{experiment} of the profile {profile} has no arm '{arm}'{suggestion(arm, measured)}")
    if arms[0] == arms[1]:
        raise UserError(f"'{arms[0]}' is named twice; name two arms: {', '.join(sorted(measured))}")


def compared(results: Results, experiment: str, first: str, second: str) -> str:
    """The table, as text, with its heading."""
    scores = results.scores
    groups = {arm: grouped(scores[(scores["experiment"] == experiment) & (scores["arm"] == arm)].to_dict("records"))
              for arm in (first, second)}
    for arm, found in groups.items():
        if not found:
            raise UserError(f"{results.folder / experiment} has no scores of '{arm}'; `snakemake` makes them, "
                            "`make pull` fetches them where a DVC remote has them")
    names = [name for name in groups[first] if name in groups[second]]
    if not names:
        raise UserError(f"'{first}' and '{second}' have no score in common; `fce compare` needs arms of the same kind")
    rows, alone = [], False
    for name in names:
        pair, row = [values(groups[arm][name]) for arm in (first, second)], groups[first][name][0]
        difference, known = pair[1] - pair[0], score(row["name"])
        alone = alone or len(difference) == 1
        rows.append([words(row), *map(counted, pair, [len(difference)] * 2), estimate(difference),
                     verdict(difference, score(known.column or row["name"]).better, first, second), row["known as"]])
    lines = aligned([["score", first, second, "difference", "better", "MLflow and DVC"], *rows])
    heading = f"{experiment}, profile {results.profile}: {ARMS[first].words} against {ARMS[second].words}"
    caution, marked = score("longest_saturated").caution, saturated(scores)
    notes = [f"{arm} {CAUTION}: {caution.words}" for arm in (first, second) if caution and (experiment, arm) in marked]
    return "\n".join([heading, "", *lines, "", *([ALONE_NOTE] if alone else []), *notes]).rstrip()


def grouped(rows: list[dict[Any, Any]]) -> dict[str, list[dict[Any, Any]]]:
    """{what MLflow would call it: rows of every seed}, of an arm's scores, but for those of the truth."""
    found: dict[str, list[dict[Any, Any]]] = {}
    for row in rows:
        if row["model"] != "data":
            labels = "" if math.isnan(row["labels"]) else f"/{row['labels']:.0f}"
            of_curve = row["measure"] == "joint"  # its record has the numbers of each player together
            name = metric(row["measure"], row["name"] if of_curve else f"{row['model']}/{row['name']}{labels}")
            sent = not of_curve or row["name"] in GAME  # others follow of the curve, and no record has them
            found.setdefault(name, []).append(row | {"known as": name if sent else "–"})
    return found


def values(rows: list[dict[Any, Any]]) -> Values:
    return Values.of(pd.DataFrame(rows))


def words(row: dict[Any, Any]) -> str:
    """What was measured, and which score it is."""
    known, group = score(row["name"]), STAGES[row["measure"]].group
    heading = column(known.column or row["name"])["Measure"] + (known.row if known.row.startswith(", ") else "")
    labels = "" if math.isnan(row["labels"]) else f", {row['labels']:.0f} labels"
    of = "game" if row["measure"] == "joint" else group if group in OF_GROUP else MODELS.get(row["model"], row["model"])
    unverified = row["measure"] == "bits_per_dim" and row["model"] == "ebm"  # which the page says of it too
    return f"{of}: {heading}{labels}" + ", learned c, unverified" * unverified


def counted(found: Values, paired: int) -> str:
    """A mean with its interval and, where it has more seeds than the difference, their number."""
    return estimate(found) + (f" (n = {len(found)})" if len(found) > paired else "")


def verdict(difference: Values, better: str, first: str, second: str) -> str:
    """The better arm, where the interval of the difference tells; else why there is none."""
    mean, half = difference.interval()
    if not better:
        return "–"
    if len(difference) < 2:
        return "one seed" if len(difference) else "no seed in common"
    if not abs(mean) > half:  # so written that a missing half-width, too, is undetermined
        return "equal" if mean == half == 0 else "undetermined"
    return second if (mean > 0) == (better == "higher") else first


def aligned(rows: list[list[str]]) -> Iterator[str]:
    """Rows as lines, their cells below each other."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
