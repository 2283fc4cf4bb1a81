"""The report of a profile: one HTML page with nothing outside it, its Markdown twin, tables and figures.

Renders whatever lies below build/<profile>/; what is missing is named, with the reason.
"""

import argparse
import base64
import sys
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fce import params
from fce.stage import UserError
from reports import tables, verdicts
from reports.origins import NOT_YET, failures, provenance, why_missing
from reports.tables import DATA, Reason, write
from reports.verdicts import ALONE, number

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = "text"  # or: missing, code


@dataclass(frozen=True)
class Table:
    """A frame of text, written beside the page as <name>.csv."""

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    folded: bool = False


Section = tuple[str, list[Any]]  # a heading, and blocks: Text, Table or figures.Figure


def content(profile: str, build: Path, out: Path) -> list[Section]:
    """What the report says, in order; draws the figures into `out`."""
    from reports import figures  # seaborn takes seconds to import

    folder, paper = build / profile, read_paper()
    settings, notes = params.load(HERE.parent / "params.yaml"), paper["notes"]
    chosen, all_of = settings.profiles[profile], settings.experiments[profile]
    names = {"toy": chosen.toy, "images": chosen.images}
    failed, files = failures(folder), tables.score_files(folder)
    why = partial(why_missing, failed)
    scores, origins = tables.score_table(files), provenance(folder, files)
    write(out / "scores.csv", scores.to_csv(index=False).encode())

    # Figure 1 has a row for each density, and its variants have none: the first experiment of each source
    shapes = {all_of[name].data.source: name for name in reversed(chosen.toy)}
    fits = [figures.densities(folder, [name for name in chosen.toy if name in shapes.values()], scores, out, why),
            figures.errors(folder, chosen.toy, out, why)] if chosen.toy else []
    samples = [figures.samples(folder, experiment, out, why) for experiment in chosen.images]
    probe = [figures.probe(folder, chosen.images, scores, out, why)] if chosen.images else []
    training = [figures.training(folder, experiment, out, why) for experiment in [*chosen.toy, *chosen.images]]
    expected = {experiment: settings.measured(profile, experiment) for experiment in all_of}
    measured = [block for kind in names for experiment in names[kind]
                for block in experiment_blocks(scores, experiment, kind, expected[experiment], notes, why)]
    ran = scope(origins, [*chosen.toy, *chosen.images])
    if profile == "full":
        runs = [tables.convergence(figures.curves(folder, e, "joint"), profile, e) for e in chosen.toy]
        claims, printed, built = judged(pd.concat([scores, *runs]), folder, paper, why)
        given = [verdict for table in (claims, *printed) for verdict in table.frame["Verdict"]]
        counts = ", ".join(f"{n} {verdict}" for verdict in verdicts.VERDICTS if (n := given.count(verdict)))
        criteria = Table("criteria", "How each verdict is decided", tables.criteria_table(paper), folded=True)
        sections: list[Section] = [
            ("What holds", [Text(f"Of {len(given)} claims and printed numbers: {counts}."), claims, criteria]),
            ("Scope", [Text(notes["scope"]), ran]),
            ("Methodology", [Text(notes["methodology"])]),
            ("Results", [*fits, *samples, *printed, *probe, *built, *training]),
            ("Every measure", measured),
            ("What was easy", [Text(notes["easy"])]),
            ("What was difficult", [Text(notes["difficult"])])]
    else:
        sections = [(f"Results of the {profile} profile: not the paper's sizes", measured),
                    ("Figures", [*fits, *samples, *probe, *training]), ("Scope", [ran])]
    if failed:
        frame = pd.DataFrame(failed).rename(columns=str.capitalize)
        sections.append(("Failures", [Table("failures", "Stages that failed", frame)]))
    again = "snakemake --cores 8" if profile == "full" else "snakemake --cores 2 quick"
    page = f"python -m reports.build --profile {profile} --build {build} --out {out / 'index.html'}"
    return [*sections, ("Provenance", provenance_blocks(origins)),
            ("How to rerun", [Text(f"{again}    # everything\n{page}    # this page", "code")])]


def read_paper() -> dict[str, Any]:
    paper: dict[str, Any] = yaml.safe_load((HERE / "paper.yaml").read_text())
    return paper


def judged(scores: pd.DataFrame, folder: Path, paper: dict[str, Any],
           why: Reason) -> tuple[Table, list[Table], list[Table]]:
    """The claims, Tables 1 and 2, and Tables 3 and 4."""
    def brief(*place: str) -> str:
        return shorten(why(*place).removeprefix("not run: "), 130, placeholder=" …")  # whole under Failures

    def table(entry: dict[str, Any], frame: pd.DataFrame, note: str = "") -> Table:
        return Table(entry["where"].lower().replace(" ", ""), f"{entry['where']}. {entry['title']}", frame,
                     note + alone(frame, paper["notes"]))

    interval = "Mean ± half-width of the 95 % t-interval over seeds; each seed leads to its provenance."
    judgements = tables.claims_table(scores, paper["claims"], brief)
    claims = Table("claims", "The paper's claims", judgements,
                   "Differences are paired, seed by seed; accuracies draw by draw of labels too, which their intervals "
                   f"contain. {interval}{alone(judgements, paper['notes'])}")
    printed = [table(entry, tables.printed_table(scores, entry, brief),
                     f"{interval} Tolerance ±\u00a0{entry['tolerance']}.") for entry in paper["values"]]
    return claims, printed, [table(entry, tables.architecture_table(folder, entry)) for entry in paper["architectures"]]


def alone(frame: pd.DataFrame, notes: dict[str, str]) -> str:
    """What to say below a table that has the interval of a seed alone."""
    return f" {notes['alone']}" if any(ALONE in plain(cell) for cell in frame.to_numpy().flat) else ""


def experiment_blocks(scores: pd.DataFrame, experiment: str, kind: str, expected: dict[str, tuple[str, ...]],
                      notes: dict[str, str], why: Reason) -> list[Any]:
    """What is missing of an experiment, then its tables, each with every seed folded below it."""
    label, have = DATA.get(experiment, experiment), scores[scores["experiment"] == experiment]
    missing: dict[str, list[str]] = {}
    for measure, arm in [(measure, arm) for measure, arms in expected.items() for arm in arms]:
        if not ((have["arm"] == arm) & (have["measure"] == measure)).any():
            missing.setdefault(why(experiment, arm, measure), []).append(f"{measure} of {arm}")
    blocks: list[Any] = [Text(f"{label}: {reason} ({', '.join(what)})", "missing") for reason, what in missing.items()]
    makers = [(kind, f"Results, {label}", tables.results, "Model"),
              ("modes", f"Mass of each mode, against the truth's, {label}", tables.modes_table, "Model"),
              ("trade", f"What joint training changes in Glow, {label}", tables.trade_table, "Arm"),
              ("bounds", f"Bits/dim of the EBM by bounds on log Z, {label}", tables.bounds_table, "Model"),
              ("trust", f"log Z of the EBM, {label}", tables.trust_table, "Model"),
              ("control", f"The bounds on log Z, where it is known, {label}", tables.control_table, "Model"),
              ("probe", f"Accuracy by labelled images, {label}", tables.probe_table, "Labels"),
              ("rank", f"Effective rank of the features, {label}", tables.rank_table, "Model")]
    for name, title, make, row in makers:
        frame = make(have, experiment, [row])
        if len(frame):
            seeds = make(have, experiment, [row, "Seed"])
            note = notes[name] + alone(frame, notes)
            blocks += [Table(f"{experiment}-{name}", title, frame, note, folded=name == "modes"),
                       Table(f"{experiment}-{name}-seeds", f"{title}: each seed", seeds, folded=name != "trade")]
    return blocks


def scope(origins: pd.DataFrame, experiments: list[str]) -> Table | Text:
    """What ran, by experiment."""
    if origins.empty:
        return Text(NOT_YET, "missing")

    def listed(values: pd.Series) -> str:
        return ", ".join(dict.fromkeys(value for value in values if value))

    groups = {name: origins[origins["Experiment"] == name] for name in experiments}
    return Table("scope", "What was run", pd.DataFrame([
        {"Data": DATA.get(name, name), "Seeds": listed(group["Seed"]), "Arms": listed(group["Arm"]),
         "Hours, all stages": number(pd.to_numeric(group["Seconds"]).sum() / 3600), "Device": listed(group["Device"])}
        for name, group in groups.items()]))


def provenance_blocks(origins: pd.DataFrame) -> list[Any]:
    if origins.empty:
        return [Text(NOT_YET, "missing")]
    commits = ", ".join(sorted({commit for commit in origins["Commit"] if commit})) or "none yet"
    return [Text(f"Commits behind the numbers: {commits}. Parameters, inputs and lock are the first 16 digits of "
                 "SHA-256 hashes."),
            Table("provenance", f"Where every number comes from ({len(origins)} stages)", origins, folded=True)]


def plain(cell: Any) -> str:
    """A cell as text, a list of links without its links."""
    return ", ".join(text for text, _ in cell) if isinstance(cell, list) else str(cell)


def inline(text: str) -> str:
    """Text as Markdown shows it on one line: no HTML, no new column, no new row."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())


def markdown_table(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(inline(plain(cell)) for cell in row) + " |" for row in rows)


def markdown(sections: list[Section]) -> str:
    """The report's Markdown twin; provenance stays in its CSV."""
    parts = []
    for heading, blocks in sections:
        parts.append(f"## {heading}")
        for block in blocks:
            if isinstance(block, Table):
                body = f"See {block.name}.csv." if block.name == "provenance" else markdown_table(block.frame)
                parts += [f"**{block.title}**", body, block.note]
            elif isinstance(block, Text):
                text = block.text if block.kind == "code" else escape(block.text, quote=False)
                parts.append({"text": "{}", "missing": "> {}", "code": "```sh\n{}\n```"}[block.kind].format(text))
            elif block.why:
                parts.append(f"> {block.title}: {inline(block.why)}")
            else:
                parts += [f"![{block.title}]({block.name}.png)", f"*{block.title}.* {block.caption}"]
    return "\n\n".join(filter(None, parts)) + "\n"


def render(profile: str, build: Path, page: Path) -> None:
    """Write the page and everything beside it."""
    out, paper = page.parent, read_paper()
    sections = content(profile, build, out)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.globals["picture"] = lambda name: "data:image/svg+xml;base64," + base64.b64encode(
        (out / f"{name}.svg").read_bytes()).decode()
    title = f"Reproduction of “{paper['title']}”"
    html = environment.get_template("template.html.j2").make_module(
        {"title": title, "url": paper["url"], "profile": profile, "sections": sections, "verdicts": verdicts.VERDICTS})
    fragment = html.__dict__["table"]  # the template's macro
    for table in [block for _, blocks in sections for block in blocks if isinstance(block, Table)]:
        write(out / f"{table.name}.csv", table.frame.map(plain).to_csv(index=False).encode())
        if table.name.startswith("table"):  # the paper's, as fragments for other pages
            write(out / f"{table.name}.md", markdown_table(table.frame).encode())
            write(out / f"{table.name}.html", str(fragment(table)).encode())
    banner = "" if profile == "full" else f"**{profile} profile: not the paper's sizes.**\n\n"
    write(out / "report.md", f"# {title}\n\n{banner}{markdown(sections)}".encode())
    write(page, str(html).encode())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, choices=("full", "quick"), help="which results")
    parser.add_argument("--build", type=Path, default=Path("build"), help="the folder of results (default: build)")
    parser.add_argument("--out", type=Path, required=True, help="the page; what belongs to it is written beside it")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.build.is_dir():
            raise UserError(f"--build: {arguments.build} is no folder; name the one of results, which snakemake makes")
        if arguments.out.is_dir():
            raise UserError(f"--out: {arguments.out} is a folder, but the page is a file; add index.html")
        render(arguments.profile, arguments.build, arguments.out)
    except (UserError, params.ParamsError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
