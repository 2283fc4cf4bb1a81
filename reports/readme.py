"""README's results, from the published scores: `python -m reports.readme` writes them between their markers.

A marker is a line `<!-- table: NAME -->` or `<!-- count: NAME -->`, of one of the BLOCKS; its block ends at
`<!-- end -->`. Nobody edits what stands between.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.catalogue import ROOT
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.schema.data import DENSITIES
from reports.blocks import markdown_table
from reports.scores import by_seed
from reports.verdicts import estimate, number

README = ROOT / "README.md"
PUBLISHED = Path(__file__).with_name("published") / "full" / "scores.csv"
BLOCK = re.compile(r"(<!-- (?:table|count): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
DIGITS = [Column("bits/dim of Glow", "bits_per_dim", "flow"), Column("FD of its samples", "frechet_distance"),
          Column("EBM's bits/dim by the learned c", "bits_per_dim_learned"),
          Column("at least, by the certificate", "bits_per_dim_certificate"), Column("by AIS", "bits_per_dim_ais")]
DIGITS_ROWS = {
    "Glow by maximum likelihood": ("digits", "mle"),
    "the same, trained on for the joint run's updates": ("digits", "mle-continued"),
    "FCE, plain EBM, 1:1 updates (not the paper's rule)": ("digits", "joint"),
    "FCE, residual EBM (ours)": ("digits", "residual"), "DCGAN": ("digits", "dcgan")}


def table(scores: pd.DataFrame, heading: str, rows: dict[str, tuple[str, str]], columns: list[Column]) -> str:
    """A Markdown table: a row for each arm of an experiment, a dash where it has no such score."""
    frame = []
    for words, (experiment, arm) in rows.items():
        cells = {heading: words}
        for column in columns:
            keys = {"experiment": experiment, "arm": arm, "name": column.name, "model": column.model}
            values = by_seed(scores, **{key: value for key, value in keys.items() if value})
            cells[column.words] = (number(column.worst(values.means)) if column.worst and len(values) else
                                   estimate(values))
        frame.append(cells)
    return markdown_table(pd.DataFrame(frame))


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


BLOCKS: dict[str, Callable[[pd.DataFrame], str]] = {
    "ring": lambda scores: table(scores, "ring", RING_ROWS, RING), "fits": fits,
    "digits": lambda scores: table(scores, "digits", DIGITS_ROWS, DIGITS)}


def filled(text: str, scores: pd.DataFrame) -> str:
    """The README with every block made of these scores.

    Raises:
        UserError: a block is missing, comes twice, or no function makes it.
    """
    found = [name for _, name, _ in BLOCK.findall(text)]
    if sorted(found) != sorted(BLOCKS):
        raise UserError(f"README.md has blocks {found}, but reports/readme.py makes {list(BLOCKS)}: each once, between "
                        "<!-- table: NAME --> and <!-- end -->")
    return BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]](scores)}\n\n{block[3]}", text)


def published() -> pd.DataFrame:
    """The scores of the published page, as reports/page.py writes them beside it."""
    return pd.read_csv(PUBLISHED, comment="#")


def main() -> int:
    try:
        write_bytes(README, filled(README.read_text("utf-8"), published()).encode())
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
