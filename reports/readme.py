"""The results that README.md and docs/findings.md tell, from what is published: `python -m reports.readme` writes them.

A block stands between a line `<!-- table: NAME -->` or `<!-- count: NAME -->` and `<!-- end -->`, NAME one of BLOCKS.
A number in a sentence is a link to its table on the published page, whose title says what it is: `EXPERIMENT ARM
MODEL SCORE`, at a number of labels `SCORE/LABELS`; paired by seed, `… minus ARM MODEL` or `… minus ARM MODEL SCORE`.
Nobody edits these.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.catalogue import ROOT
from pipeline.errors import UserError, errors_in_one_line
from pipeline.files import write_bytes
from pipeline.params import load
from pipeline.schema.data import DENSITIES
from reports.archive import unpacked
from reports.blocks import markdown_table
from reports.origins import costs, provenance
from reports.page import verdict_counts
from reports.scores import Results, by_seed, column
from reports.tables import TRADED
from reports.verdicts import Values, estimate, number

TEXTS = (ROOT / "README.md", ROOT / "docs" / "findings.md")
PUBLISHED = Path(__file__).with_name("published")
BLOCK = re.compile(r"(<!-- (?:table|count): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
LINK = re.compile(r'\[[^\]]*\]\((\S*published/(\w+)/index\.html)\S* "([^"]+)"\)')


class Column(NamedTuple):
    """A score of a model (any, where empty): its mean and 95 % interval over seeds, or its worst seed by `worst`."""

    words: str
    name: str
    model: str = ""
    worst: Callable[[pd.Series], float] | None = None


RING = [Column("KL of Glow", "kl", "flow"), Column("its smallest mode", "smallest_mode_mass", "flow"),
        Column("the same, worst seed", "smallest_mode_mass", "flow", pd.Series.min),
        Column("KL of the EBM", "kl", "ebm"), Column("MSE of its log p", "mse_log_density", "ebm"),
        Column("its log Z error", "log_z_error", "ebm")]
RING_ROWS = {  # words: (experiment, arm)
    "Glow by maximum likelihood": ("ring", "mle"), "FCE from that Glow": ("ring", "joint"),
    "FCE from a random Glow": ("ring", "joint-from-random"), "NCE against the frozen Glow": ("ring", "frozen-flow"),
    "NCE against Gaussian noise": ("ring", "gaussian-noise"),
    "the paper's literal recipe from a random Glow, 30 EBM updates": ("ring-paper", "joint-from-random")}
IMAGES = [Column("bits/dim of Glow", "bits_per_dim", "flow"), Column("FD of its samples", "frechet_distance"),
          Column("EBM's bits/dim by the learned c", "bits_per_dim_learned"),
          Column("at least, by the certificate", "bits_per_dim_certificate"), Column("by AIS", "bits_per_dim_ais")]
IMAGES_ROWS = {  # words: arm
    "Glow by maximum likelihood": "mle", "the same, trained on without a game": "mle-continued", "FCE": "joint",
    "FCE by 1:1 updates (not the paper's rule)": "one-to-one", "FCE, tilted EBM (ours)": "tilted",
    "FCE, residual EBM (ours)": "residual", "NCE against the frozen Glow": "frozen-flow",
    "NCE against Gaussian noise": "gaussian-noise", "DCGAN": "dcgan"}


def table(scores: pd.DataFrame, heading: str, rows: dict[str, tuple[str, str]], columns: list[Column]) -> str:
    """A Markdown table: a row for each arm of an experiment that has run, a dash where it has no such score."""
    ran, frame = set(zip(scores["experiment"], scores["arm"], strict=True)), []
    for words, (experiment, arm) in rows.items():
        if (experiment, arm) not in ran:
            continue
        cells = {heading: words}
        for each in columns:
            keys = {"experiment": experiment, "arm": arm, "name": each.name, "model": each.model}
            values = by_seed(scores, **{key: value for key, value in keys.items() if value})
            cells[each.words] = (number(each.worst(values.means)) if each.worst and len(values) else
                                 estimate(values))
        frame.append(cells)
    return markdown_table(pd.DataFrame(frame)) if frame else "Not run with this version yet."


def images(results: Results, experiment: str) -> str:
    """The likelihoods and the distance of a data set of images, each with its interval over seeds."""
    return table(results.scores, experiment, {words: (experiment, arm) for words, arm in IMAGES_ROWS.items()}, IMAGES)


def fits(scores: pd.DataFrame) -> str:
    """In how many runs the EBM's KL is below that of Glow (MLE) and of the Glow that it was trained with."""
    counts = []
    for arm in ("joint-from-random", "joint"):
        found = []
        for experiment in DENSITIES:
            sides = [by_seed(scores, experiment=experiment, name="kl", arm=each, model=model).means
                     for each, model in ((arm, "ebm"), (arm, "flow"), ("mle", "flow"))]
            found += [ebm < min(glows) for ebm, *glows in pd.concat(sides, axis=1, join="inner").to_numpy()]
        counts.append(f"{sum(found)} of {len(found)} runs")
    return (f"The EBM's KL is below that of its own Glow and that of Glow by maximum likelihood in {counts[0]} from a "
            f"random start,\nand in {counts[1]} from the trained Glow (the {len(DENSITIES)} densities, all seeds).")


def runs(every: dict[str, Results]) -> str:
    """What each published part cost: all 2D densities of a profile together, and each data set of images."""
    rows = []
    for profile, results in every.items():
        settings, origins = results.settings, provenance(results)
        ran = set(origins["Experiment"])
        toy = [name for name in settings.names(profile, "toy") if name in ran]
        parts = {f"{len(toy)} 2D experiments" if len(toy) > 1 else "".join(toy): toy}
        parts |= {name: [name] for name in settings.names(profile, "images") if name in ran}
        for words, names in parts.items():
            if names:
                here = origins[origins["Experiment"].isin(names)]
                rows.append({"part": f"{profile}: {words}", "seeds": str(here["Seed"].replace("", pd.NA).nunique()),
                             "commit": ", ".join(sorted(set(here["Commit"]))), **costs(results, names),
                             "numbers": f"`{(PUBLISHED / profile).relative_to(ROOT)}`"})
    return markdown_table(pd.DataFrame(rows).rename(columns={"Hours": "hours of processes"}))


def speed(_: dict[str, Results]) -> str:
    """Our Glow's against its peers', of three widths."""
    rows = []
    for path in sorted((PUBLISHED / "benchmarks").glob("glow*.json"), reverse=True):
        found = json.loads(path.read_text())
        sizes, each = found["sizes"], {(row["use"], row["model"]): row for row in found["results"]}
        for use, words in {"train": "training step", "log_prob": "log q", "sample": "sampling"}.items():
            ours = each[use, "ours"]
            ratios = {f"ours ÷ {peer} {version}": (row := each[use, peer]) and "{:.2f} [{:.2f}, {:.2f}]".format(
                row["speedup_of_ours"], *row["speedup_interval"]) for peer, version in found["peers"].items()}
            rows.append({"Glow": f"width {sizes['width']}, K = {sizes['steps']}, batch {found['batch']}", "": words,
                         "images/s": f"{ours['images_per_second']:.4g} ({ours['utilisation']:.0%})".replace("%", " %"),
                         **ratios, "processor": found["environment"]["processor"]})
    return markdown_table(pd.DataFrame(rows))


def verdicts(every: dict[str, Results]) -> str:
    """How many of each verdict the judged profiles have."""
    return "\n".join(f"- `{name}`: {verdict_counts(results)}" for name, results in every.items() if name != "quick")


Block = Callable[[dict[str, Results]], str]
BLOCKS: dict[str, Block] = {
    "ring": lambda every: table(every["full"].scores, "ring", RING_ROWS, RING),
    "fits": lambda every: fits(every["full"].scores),
    "digits": lambda every: images(every["full"], "digits"),
    "cifar10": lambda every: images(every["small"], "cifar10"),
    "runs": runs, "verdicts": verdicts, "speed": speed}


def told(results: Results, what: str) -> str:
    """The number that a link's title names.

    Raises:
        UserError: the title cannot be read, or no score is published that it names.
    """
    found = re.fullmatch(r"(\S+) (\S+) (\S+) ([^\s/]+)(?:/(\d+))?(?: minus (\S+) (\S+)(?: (\S+))?)?", what)
    if not found:
        raise UserError(f"a link's title is '{what}', and not 'EXPERIMENT ARM MODEL SCORE [minus ARM MODEL [SCORE]]'")
    experiment, *first, labels, other_arm, other_model, other = found.groups()
    scores = results.scores[results.scores["labels"] == int(labels)] if labels else results.scores
    sides = [by_seed(scores, experiment=experiment, arm=arm, model=model, name=name)
             for arm, model, name in (first, (other_arm, other_model, other or first[-1])) if arm]
    values: Values = sides[0] - sides[1] if len(sides) > 1 else sides[0]
    if not len(values):
        raise UserError(f"a link's title is '{what}', of which the {results.profile} profile has published no score")
    return estimate(values)


def filled(texts: list[str], every: dict[str, Results]) -> list[str]:
    """The texts with every block and every number made of these results.

    Raises:
        UserError: a block is missing, comes twice, or no function makes it; or a number is of nothing published.
    """
    found = [name for text in texts for _, name, _ in BLOCK.findall(text)]
    if sorted(found) != sorted(BLOCKS):
        raise UserError(f"{' and '.join(path.name for path in TEXTS)} have blocks {found}, but reports/readme.py makes "
                        f"{list(BLOCKS)}: each once, between <!-- table: NAME --> and <!-- end -->")
    texts = [BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]](every)}\n\n{block[3]}", text) for text in texts]
    return [LINK.sub(lambda link: linked(link[1], link[3], every[link[2]]), text) for text in texts]


def linked(page: str, what: str, results: Results) -> str:
    """A number as a link to the table that has it, or has the two that it is the difference of; in Markdown."""
    experiment, _, _, name, *minus = re.split("[ /]", what)
    table = column(name)["table"]
    if minus[-3:] == ["minus", "mle", "flow"] and name in TRADED:
        table = "trade"
    elif table == "results":
        table = "toy" if experiment in results.settings.names(results.profile, "toy") else "images"
    return f'[{told(results, what)}]({page}{table and f"#{experiment}-{table}"} "{what}")'


@contextmanager
def published() -> Iterator[dict[str, Results]]:
    """What is published, by profile; of each its archive is unpacked as long as the context lasts."""
    settings = load(ROOT / "params.yaml")
    with ExitStack() as stack:
        places = {name: PUBLISHED / name / "results.tar.xz" for name in settings.profiles}
        yield {name: Results(settings, name, stack.enter_context(unpacked(place)))
               for name, place in places.items() if place.exists()}


@errors_in_one_line
def main() -> int:
    with published() as every:
        texts = filled([path.read_text("utf-8") for path in TEXTS], every)
    for path, text in zip(TEXTS, texts, strict=True):
        write_bytes(path, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
