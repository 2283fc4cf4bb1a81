"""What the report says, in order; what is missing is named, with the reason."""

import re
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import shorten

import pandas as pd

from pipeline.catalogue import ROOT, SCORES, score
from pipeline.files import Npz, write_bytes, write_json
from pipeline.params import load
from pipeline.schema.experiment import Experiment, ImageExperiment
from reports import tables, verdicts
from reports.blocks import Block, Figure, Section, Table, Text, plain
from reports.origins import NOT_YET, costs, failures, left_over, provenance, why_missing
from reports.scores import CAUTION, COLUMNS, Reason, Results, headlines, shown
from reports.words import NOTES, PAPER, called, claims_of

SEEDS = (f"{NOTES['interval']} Each seed leads to its provenance, and each verdict opens to its protocol and its "
         "numbers, seed by seed.")
INSIDE = ("Where", "Protocol", "By seed", "Minus", "Difference by seed")  # what a verdict opens to


def content(profile: str, build: Path, out: Path, command: str) -> list[Section]:
    """All sections, the last with the command that makes the page; draws the figures into `out`."""
    results = Results(load(ROOT / "params.yaml"), profile, build)
    write_bytes(out / "scores.csv", results.scores.to_csv(columns=COLUMNS, index=False).encode())
    write_json(out / "metrics.json", headlines(results.scores))
    failed, origins = failures(results), provenance(results)
    why = partial(why_missing, results, failed)
    pictures, measured = drawn(results, out, why), every_measure(results, why)
    ran = scope(results, origins)
    if profile == "full":
        again, sections = "8", of_the_paper(results, why, pictures, measured, ran)
    elif profile == "small":
        no_claim: list[Block] = [Text("None of the paper's claims is on the data of this profile.")]
        holds = judged_claims(results, why)[1] if claims_of(profile) else no_claim
        again, sections = "2 small", [
            ("What this is", [Text(NOTES["small"])]), ("What holds", holds),
            ("Results", [*chain(*(pictures[each] for each in ("samples", "trajectories", "probe", "training")))]),
            ("Every measure", measured), ("Scope", ran),
            ("Methodology", [Text(NOTES["methodology"]), *differs(results)])]
    else:
        again, sections = "2 quick", [
            (f"Results of the {profile} profile: not the paper's sizes", measured),
            ("Figures", [*chain(*pictures.values())]), ("Scope", ran)]
    if failed:
        frame = pd.DataFrame(failed).rename(columns=str.capitalize)
        sections.append(("Failures", [Table("failures", "Stages that failed", frame)]))
    rerun = f"snakemake --cores {again}    # everything\n{command}    # this page"
    sections = [(heading, without_empty(blocks)) for heading, blocks in sections]
    return [*sections, ("Provenance", sources(origins)), ("How to rerun", [Text(rerun, "code")])]


def differs(results: Results) -> list[Block]:
    """In what the images of the small profile are treated unlike those of the full one."""
    images = (results.settings.experiments[results.profile][name] for _, name in experiments(results))
    return [Text(NOTES["as_small"].format(each)) for each in images]


def without_empty(blocks: list[Block]) -> list[Block]:
    """Blocks with their figures that could not be drawn, where there are several, in one table below."""
    empty = [block for block in blocks if isinstance(block, Figure) and block.why]
    if len(empty) < 2:
        return blocks
    frame = pd.DataFrame({"Figure": [figure.title for figure in empty], "Why": [figure.why for figure in empty]})
    title = f"{len(empty)} figures not drawn, and why"
    return [*(block for block in blocks if block not in empty), Table("figures", title, frame, folded=True)]


def drawn(results: Results, out: Path, why: Reason) -> dict[str, list[Block]]:
    """The figures, by what they show."""
    from reports import figures, trajectories  # seaborn takes seconds to import

    toy, images = (results.settings.names(results.profile, kind) for kind in ("toy", "images"))
    # Figure 1 has a row for each density, and its variants have none: the first experiment of each source
    settings = results.settings.experiments[results.profile]
    sources = {settings[name].data.source: name for name in reversed(toy)}
    rows = [name for name in toy if name in sources.values()]
    return {"fits": [figures.densities(results, rows, out, why), figures.errors(results, toy, out, why)] if toy else [],
            "samples": [figures.samples(results, experiment, out, why) for experiment in images],
            "trajectories": [draw(results, experiment, out, why) for experiment in images
                             for draw in (trajectories.trajectory, trajectories.moments, trajectories.distortions)
                             if draw is not trajectories.distortions or by_classifier(settings[experiment])],
            "probe": [figures.probe(results, images, out, why)] if images else [],
            "training": [figures.training(results, experiment, out, why) for experiment in [*toy, *images]]}


def by_classifier(experiment: Experiment) -> bool:
    """Whether its Fréchet distances look through the data set's own classifier, which else is not trained."""
    return isinstance(experiment, ImageExperiment) and experiment.fid.features == "classifier"


def printed_tables(results: Results, why: Reason) -> list[Table]:
    """Tables 1 and 2 of the paper, beside ours."""
    return [paper_table(entry, tables.printed_table(results.scores, entry, partial(brief, why)),
                        f"{SEEDS} Tolerance ±\u00a0{entry['tolerance']}.") for entry in PAPER["values"]]


def verdict_counts(results: Results) -> str:
    """How many claims, and in the full profile printed numbers, have which verdict, in a sentence."""
    why = partial(why_missing, results, failures(results))
    printed = printed_tables(results, why) if results.profile == "full" else []
    return in_short([judged_claims(results, why)[0], *printed])[0].text


def of_the_paper(results: Results, why: Reason, pictures: dict[str, list[Block]], measured: list[Block],
                 ran: list[Block]) -> list[Section]:
    """The sections of the full profile, which is judged."""
    claims, holds = judged_claims(results, why)
    printed = printed_tables(results, why)
    built = [paper_table(entry, tables.architecture_table(results.folder, entry)) for entry in PAPER["architectures"]]
    holds = [*in_short([claims, *printed]), *holds]
    shown = [*pictures["fits"], *pictures["samples"], *pictures["trajectories"], *printed, *pictures["probe"], *built,
             *pictures["training"]]
    return [("What holds", holds), ("Scope", [Text(NOTES["scope"]), *ran]),
            ("Methodology", [Text(NOTES["methodology"]), Text(NOTES["as_openai"])]), ("Results", shown),
            ("Every measure", measured),
            ("What was easy", [Text(NOTES["easy"])]), ("What was difficult", [Text(NOTES["difficult"])])]


def judged_claims(results: Results, why: Reason) -> tuple[Table, list[Block]]:
    """The claims that the profile judges; and these by the paper's figures and tables, with how each is decided."""
    entries = claims_of(results.profile)
    frame = tables.claims_table(results.scores, entries, partial(brief, why))
    note = ("Differences are paired, seed by seed, and image by image where both numbers are of the same test images; "
            f"accuracies draw by draw of labels too, which their intervals contain. {SEEDS}")
    decided = [*entries, *(PAPER["values"] if results.profile == "full" else [])]
    criteria = Table("criteria", "How each verdict is decided", tables.criteria_table(decided), folded=True)
    parts = [part for where, rows in frame.groupby(frame["Where"].map(place)) for part in claims_on(str(where), rows)]
    parts.append(Text(note + alone(frame) + marked(frame), "note"))
    claims = Table("claims", "The paper's claims", frame, parts=tuple(parts))
    return claims, [*([] if results.profile == "full" else in_short([claims])), claims, criteria]


def place(where: str) -> str:
    """The figure or table of the paper's that makes a claim; those of ours stand apart, none seems the paper's."""
    found = re.search(r"(?:Figure|Table) \d", where)
    return "Tests of ours" if where.startswith("ours") else found[0] if found else "Text of the paper"


def named(where: str, verdict: str = "") -> str:
    """The id of the claims on a figure or table that have a verdict, or of those that were not run."""
    return f"claims-{where.lower().replace(' ', '-')}" + "-not-run" * (verdict == "not run")


def claims_on(where: str, frame: pd.DataFrame) -> list[Block]:
    """The claims on a figure or table: those that have a verdict; and folded, with the reason, those not run."""
    absent = frame["Verdict"] == "not run"
    blocks: list[Block] = [Text(f"Claims: {where}", "heading")]
    if len(judged := frame[~absent]):
        blocks.append(Table(named(where), f"{where}: {len(judged)} with a verdict", judged, inside=INSIDE))
    if len(rest := frame.loc[absent, ["Claim", "Data", "Note"]]):
        title = f"{where}: {len(rest)} not run, and why"
        blocks.append(Table(named(where, "not run"), title, rest, folded=True))
    return blocks


def in_short(judged: list[Table]) -> tuple[Text, Table]:
    """How many of each verdict there are in tables of which the first has the claims, and where."""
    claims, *printed = judged
    given = [(verdict.partition(":")[0], where, named(where, verdict)) for verdict, where
             in zip(claims.frame["Verdict"], claims.frame["Where"].map(place), strict=True)]
    given += [(verdict, f"printed in {table.title.partition('.')[0]}", table.name)
              for table in printed for verdict in table.frame["Verdict"]]
    counts = {verdict: Counter(sorted(each for each in given if each[0] == verdict))
              for verdict in verdicts.VERDICTS}
    frame = pd.DataFrame([{"Verdict": verdict, "Number": str(found.total()),
                           "Where": [(f"{where} ({n})", anchor) for (_, where, anchor), n in found.items()]}
                          for verdict, found in counts.items() if found])
    said = ", ".join(f"{found.total()} {verdict}" for verdict, found in counts.items() if found)
    return (Text(f"Of {len(given)} claims{' and printed numbers' * bool(printed)}: {said}."),
            Table("summary", "What was reproduced, what was not, and what could not be run", frame,
                  by_chance(claims)))


def brief(why: Reason, *place: str) -> str:
    return shorten(why(*place).removeprefix("not run: "), 130, placeholder=" …")  # whole under Failures


def by_chance(claims: Table) -> str:
    """How many "reproduced" to expect of the claims that an interval decides, if none of them held."""
    n = int(claims.frame["Verdict"].isin(["reproduced", "undetermined", "not reproduced"]).sum())
    return (f"Verdicts on claims by 95 % intervals, without correction for their number: {n}. Were none of these "
            f"claims true, up to {n} × 2.5 % = {0.025 * n:.2g} “reproduced” would still be expected.") if n else ""


def paper_table(entry: dict[str, str], frame: pd.DataFrame, note: str = "") -> Table:
    """A table of the paper's, under its number."""
    name, title = entry["where"].lower().replace(" ", ""), f"{entry['where']}. {entry['title']}"
    inside = tuple(name for name in INSIDE if name in frame)
    return Table(name, title, frame, note + alone(frame) + marked(frame), inside=inside)


def alone(frame: pd.DataFrame) -> str:
    """What to say below a table that has the interval of a seed alone."""
    marked = any(verdicts.ALONE in plain(cell) for cell in frame.to_numpy().flat)
    return f" {NOTES['alone']}" if marked else ""


def marked(frame: pd.DataFrame) -> str:
    """What to say below a table of judged numbers where an arm's log-ratios were saturated."""
    known = score("longest_saturated").caution
    found = known and any(CAUTION in plain(cell) for cell in frame.to_numpy().flat)
    return f" {CAUTION} An arm is of this kind: {known.words}." if known and found else ""


def better(frame: pd.DataFrame) -> str:
    """Which columns are better lower, and which higher, where that is plain."""
    ways = {score.heading: score.better for score in SCORES.values() if score.better}
    columns = {way: [name for name in map(str, frame) if ways.get(name) == way] for way in ("lower", "higher")}
    return "".join(f" {way.capitalize()} is better: {'; '.join(names)}." for way, names in columns.items() if names)


def cautions(frame: pd.DataFrame) -> str:
    """What the catalogue says of the numbers that are marked in a table."""
    return "".join(f" {CAUTION} Caution, {measure}: {words}." for measure, words in frame.attrs["cautions"].items())


def every_measure(results: Results, why: Reason) -> list[Block]:
    """Of each experiment what is missing, then its tables, each with every seed folded below it."""
    blocks: list[Block] = []
    for kind, experiment in experiments(results):
        blocks += missing(results, experiment, why)
        every = shown(results.scores, experiment)
        for name, (title, row) in tables.TABLES.items():
            frame, seeds = (tables.table(every, name, rows) for rows in ([row], [row, "Seed"]))
            if len(frame):
                key = kind if name == "results" else name
                title = f"{title}, {called(experiment, results.profile)}"
                note = f"{NOTES[key]} {NOTES['interval']}" + better(frame) + cautions(frame) + alone(frame)
                each, warned = f"{title}: each seed", cautions(seeds).lstrip()
                blocks += [Table(f"{experiment}-{key}", title, frame, note, name == "modes"),
                           Table(f"{experiment}-{key}-seeds", each, seeds, warned, name != "trade")]
    return blocks


def experiments(results: Results) -> list[tuple[str, str]]:
    """(kind, name) of the profile's experiments, in the order of the page."""
    return [(kind, name) for kind in ("toy", "images") for name in results.settings.names(results.profile, kind)]


def missing(results: Results, experiment: str, why: Reason) -> list[Block]:
    """The measures that an experiment has no scores of, or not of every seed, by reason."""
    have = set(results.scores.set_index(["experiment", "arm", "measure", "seed"]).index)
    reasons: dict[str, list[str]] = {}
    seeds = results.settings.seeds(results.profile, experiment)
    for measure, arms in results.settings.measured(results.profile, experiment).items():
        for arm in arms:
            lacking = [str(seed) for seed in seeds if (experiment, arm, measure, seed) not in have]
            which = f", seed {' and '.join(lacking)}" * (len(lacking) < len(seeds))
            if lacking:
                reasons.setdefault(why(experiment, arm, measure), []).append(f"{measure} of {arm}{which}")
    name = called(experiment, results.profile)
    return [Text(f"{name}: {reason} ({', '.join(what)})", "missing") for reason, what in reasons.items()]


def scope(results: Results, origins: pd.DataFrame) -> list[Block]:
    """What ran, by experiment, and what it cost; and what did, but is no longer named."""
    def listed(values: pd.Series) -> str:
        return ", ".join(dict.fromkeys(filter(None, values)))

    rows = []
    for _, name in experiments(results):
        group = origins[origins["Experiment"] == name]
        rows.append({"Data": called(name, results.profile), "Images": sizes(results, name),
                     "Seeds": listed(group["Seed"]), "Arms": listed(group["Arm"]), **costs(results, [name]),
                     "Device": listed(group["Device"])})
    note = "Hours are of processes, of which several run side by side; of one that went on after a fault, since then."
    ran = (Text(NOT_YET, "missing") if origins.empty else
           Table("scope", "What was run, and what it cost", pd.DataFrame(rows).fillna("–"), note))
    over = left_over(results)
    return [ran, Text(f"left over, not shown: {over}", "missing")] if over else [ran]


def sizes(results: Results, experiment: str) -> str:
    """How many images each part of an experiment's data holds; nothing of 2D points."""
    files = [Npz(path, ()) for path in results.found("data", experiment, ".npz").values()]
    parts = {name.removesuffix("_images"): file for file in files for name in file if name.endswith("_images")}
    # an archive has all labels, or a count, but few images
    counted = {part: next(f"{part}_{what}" for what in ("labels", "count", "images") if f"{part}_{what}" in file)
               for part, file in parts.items()}
    found = ", ".join(f"{file.header(counted[part])[0][0]:,} {part}" for part, file in parts.items())
    unlabelled = found and not any(name.endswith("_labels") for name in counted.values())
    return found + "; no labels, so no linear classification, and no distance by a classifier" * bool(unlabelled)


def sources(origins: pd.DataFrame) -> list[Block]:
    """Where every number comes from."""
    if origins.empty:
        return [Text(NOT_YET, "missing")]
    commits = ", ".join(sorted(set(filter(None, origins["Commit"])))) or "none yet"
    title = f"Where every number comes from ({len(origins)} stages)"
    hashes = "Parameters, inputs and lock are the first 16 digits of SHA-256 hashes."
    return [Text(f"Commits behind the numbers: {commits}. {hashes}"), Table("provenance", title, origins, "", True)]
