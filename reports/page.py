"""What the report says, in order; what is missing is named, with the reason."""

from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

from pipeline.catalogue import ROOT, SCORES
from pipeline.files import write_bytes
from pipeline.params import load, read
from reports import tables, verdicts
from reports.blocks import Block, Section, Table, Text, plain
from reports.origins import NOT_YET, failures, left_over, provenance, why_missing
from reports.scores import Reason, Results, convergence, curves
from reports.words import called


def read_paper() -> dict[str, Any]:
    paper: dict[str, Any] = read(Path(__file__).parent / "paper.yaml")
    return paper


def content(profile: str, build: Path, out: Path) -> list[Section]:
    """All sections; draws the figures into `out`."""
    results, paper = Results(load(ROOT / "params.yaml"), profile, build), read_paper()
    write_bytes(out / "scores.csv", results.scores.to_csv(index=False).encode())
    failed, origins = failures(results), provenance(results)
    why = partial(why_missing, results, failed)
    pictures, measured = drawn(results, out, why), every_measure(results, paper["notes"], why)
    ran = scope(results, origins)
    if profile == "full":
        sections = of_the_paper(results, paper, why, pictures, measured, ran)
    else:
        sections = [(f"Results of the {profile} profile: not the paper's sizes", measured),
                    ("Figures", [figure for group in pictures.values() for figure in group]), ("Scope", ran)]
    if failed:
        frame = pd.DataFrame(failed).rename(columns=str.capitalize)
        sections.append(("Failures", [Table("failures", "Stages that failed", frame)]))
    again = "snakemake --cores 8" if profile == "full" else "snakemake --cores 2 quick"
    page = f"python -m fce report --profile {profile} --build {build} --out {out / 'index.html'}"
    return [*sections, ("Provenance", provenance_blocks(origins)),
            ("How to rerun", [Text(f"{again}    # everything\n{page}    # this page", "code")])]


def drawn(results: Results, out: Path, why: Reason) -> dict[str, list[Block]]:
    """The figures, by what they show."""
    from reports import figures  # seaborn takes seconds to import

    toy, images = (results.settings.names(results.profile, kind) for kind in ("toy", "images"))
    # Figure 1 has a row for each density, and its variants have none: the first experiment of each source
    sources = {results.settings.experiments[results.profile][name].data.source: name for name in reversed(toy)}
    rows = [name for name in toy if name in sources.values()]
    return {"fits": [figures.densities(results, rows, out, why), figures.errors(results, toy, out, why)] if toy else [],
            "samples": [figures.samples(results, experiment, out, why) for experiment in images],
            "probe": [figures.probe(results, images, out, why)] if images else [],
            "training": [figures.training(results, experiment, out, why) for experiment in [*toy, *images]]}


def of_the_paper(results: Results, paper: dict[str, Any], why: Reason, pictures: dict[str, list[Block]],
                 measured: list[Block], ran: list[Block]) -> list[Section]:
    """The sections of the full profile, which is judged."""
    toy, notes = results.settings.names("full", "toy"), paper["notes"]
    runs = [convergence(curves(results, experiment, "joint"), "full", experiment) for experiment in toy]
    claims, printed = judged(pd.concat([results.scores, *runs]), paper, why)
    built = [paper_table(entry, tables.architecture_table(results.folder, entry), notes)
             for entry in paper["architectures"]]
    given = [verdict for table in (claims, *printed) for verdict in table.frame["Verdict"]]
    counts = ", ".join(f"{n} {verdict}" for verdict in verdicts.VERDICTS if (n := given.count(verdict)))
    criteria = Table("criteria", "How each verdict is decided", tables.criteria_table(paper), folded=True)
    return [("What holds", [Text(f"Of {len(given)} claims and printed numbers: {counts}."), claims, criteria]),
            ("Scope", [Text(notes["scope"]), *ran]),
            ("Methodology", [Text(notes["methodology"])]),
            ("Results", [*pictures["fits"], *pictures["samples"], *printed, *pictures["probe"], *built,
                         *pictures["training"]]),
            ("Every measure", measured),
            ("What was easy", [Text(notes["easy"])]),
            ("What was difficult", [Text(notes["difficult"])])]


def judged(scores: pd.DataFrame, paper: dict[str, Any], why: Reason) -> tuple[Table, list[Table]]:
    """The claims, and Tables 1 and 2."""
    def brief(*place: str) -> str:
        return shorten(why(*place).removeprefix("not run: "), 130, placeholder=" …")  # whole under Failures

    interval = "Mean ± half-width of the 95 % t-interval over seeds; each seed leads to its provenance."
    judgements = tables.claims_table(scores, paper["claims"], brief)
    claims = Table("claims", "The paper's claims", judgements,
                   "Differences are paired, seed by seed; accuracies draw by draw of labels too, which their intervals "
                   f"contain. {interval}{alone(judgements, paper['notes'])}")
    return claims, [paper_table(entry, tables.printed_table(scores, entry, brief), paper["notes"],
                                f"{interval} Tolerance ±\u00a0{entry['tolerance']}.") for entry in paper["values"]]


def paper_table(entry: dict[str, Any], frame: pd.DataFrame, notes: dict[str, str], note: str = "") -> Table:
    """A table of the paper's, under its number."""
    return Table(entry["where"].lower().replace(" ", ""), f"{entry['where']}. {entry['title']}", frame,
                 note + alone(frame, notes))


def alone(frame: pd.DataFrame, notes: dict[str, str]) -> str:
    """What to say below a table that has the interval of a seed alone."""
    return f" {notes['alone']}" if any(verdicts.ALONE in plain(cell) for cell in frame.to_numpy().flat) else ""


def better(frame: pd.DataFrame) -> str:
    """Which columns are better lower, and which higher, where that is plain."""
    ways = {score.heading: score.better for score in SCORES.values()}
    columns = {way: [name for name in frame if ways.get(name) == way] for way in ("lower", "higher")}
    return "".join(f" {way.capitalize()} is better: {', '.join(names)}." for way, names in columns.items() if names)


def every_measure(results: Results, notes: dict[str, str], why: Reason) -> list[Block]:
    """Of each experiment what is missing, then its tables, each with every seed folded below it."""
    blocks: list[Block] = []
    for kind, experiment in experiments(results):
        blocks += missing(results, experiment, why)
        for name, (title, row) in tables.TABLES.items():
            frame, seeds = (tables.table(results.scores, experiment, name, rows) for rows in ([row], [row, "Seed"]))
            if len(frame):
                key, title = kind if name == "results" else name, f"{title}, {called(experiment)}"
                note = notes[key] + better(frame) + alone(frame, notes)
                blocks += [Table(f"{experiment}-{key}", title, frame, note,
                                 folded=name == "modes"),
                           Table(f"{experiment}-{key}-seeds", f"{title}: each seed", seeds, folded=name != "trade")]
    return blocks


def experiments(results: Results) -> list[tuple[str, str]]:
    """(kind, name) of the profile's experiments, in the order of the page."""
    return [(kind, name) for kind in ("toy", "images") for name in results.settings.names(results.profile, kind)]


def missing(results: Results, experiment: str, why: Reason) -> list[Block]:
    """The measures that an experiment has no scores of, by reason."""
    have = set(results.scores.set_index(["experiment", "arm", "measure"]).index)
    reasons: dict[str, list[str]] = {}
    expected = results.settings.measured(results.profile, experiment)
    for measure, arm in [(measure, arm) for measure, arms in expected.items() for arm in arms]:
        if (experiment, arm, measure) not in have:
            reasons.setdefault(why(experiment, arm, measure), []).append(f"{measure} of {arm}")
    return [Text(f"{called(experiment)}: {reason} ({', '.join(what)})", "missing") for reason, what in reasons.items()]


def scope(results: Results, origins: pd.DataFrame) -> list[Block]:
    """What ran, by experiment; and what did, but is no longer named."""
    def listed(values: pd.Series) -> str:
        return ", ".join(dict.fromkeys(value for value in values if value))

    over = [Text(f"left over, not shown: {left}", "missing")] if (left := left_over(results)) else []
    if origins.empty:
        return [Text(NOT_YET, "missing"), *over]
    groups = {name: origins[origins["Experiment"] == name] for _, name in experiments(results)}
    return [Table("scope", "What was run", pd.DataFrame([
        {"Data": called(name), "Seeds": listed(group["Seed"]), "Arms": listed(group["Arm"]),
         "Hours, all stages": verdicts.number(pd.to_numeric(group["Seconds"]).sum() / 3600),
         "Device": listed(group["Device"])} for name, group in groups.items()])), *over]


def provenance_blocks(origins: pd.DataFrame) -> list[Block]:
    if origins.empty:
        return [Text(NOT_YET, "missing")]
    commits = ", ".join(sorted({commit for commit in origins["Commit"] if commit})) or "none yet"
    return [Text(f"Commits behind the numbers: {commits}. Parameters, inputs and lock are the first 16 digits of "
                 "SHA-256 hashes."),
            Table("provenance", f"Where every number comes from ({len(origins)} stages)", origins, folded=True)]
