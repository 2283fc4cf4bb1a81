"""What decides: our numbers over seeds, their intervals, and the verdicts on them.

Pure functions.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

VERDICTS = ["reproduced", "near", "undetermined", "not reproduced", "refuted", "contradicted", "not refuted", "not run",
            "unverified", "same", "differs"]
ALONE = "(one seed)"  # marks an interval that does not contain the variation between seeds


@dataclass(frozen=True)
class Values:
    """One number at several seeds.

    Attributes:
        at: [seeds, draws]; an accuracy has a column for each draw of labelled images, everything else has one.
        errors: standard errors over a seed's own images or samples [seeds]; NaN where unknown.
    """

    at: pd.DataFrame
    errors: pd.Series

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "Values":
        """From rows of scores (seed, value, standard_error, draws); of several label counts, their mean."""
        lists = [draws if isinstance(draws, list) else [value]
                 for draws, value in zip(rows["draws"], rows["value"], strict=True)]
        most = max(map(len, lists), default=0)  # all labelled images are drawn once: that goes with each draw of fewer
        table = [each * (most if len(each) == 1 else 1) for each in lists]
        at = pd.DataFrame(table, index=rows["seed"].to_numpy(), dtype=float)
        # label counts share the test images: at worst they err alike, and the mean's error is the mean of the errors
        errors = rows.groupby("seed")["standard_error"].mean(skipna=False)
        return cls(at.groupby(level=0).mean(skipna=False), errors)

    def __len__(self) -> int:
        return len(self.at)

    def __sub__(self, other: "Values") -> "Values":
        """Paired: at the seeds, and the draws, that both have; the errors as if they were independent."""
        seeds = self.at.index.intersection(other.at.index)
        return Values(self.at.loc[seeds] - other.at.loc[seeds],
                      (self.errors[seeds]**2 + other.errors[seeds]**2)**0.5)

    @property
    def means(self) -> pd.Series:
        """The value at each seed."""
        return self.at.mean(axis=1, skipna=False)

    def interval(self) -> tuple[float, float]:
        """Mean and half-width of its 95 % interval; NaN where there is none.

        Over seeds it is Student's; of a seed alone it is 1.96 standard errors over its images. Every seed has the same
        draws, so the two are crossed, var(mean) = seeds / S + draws / D + interaction / (S D), and Student's intervals
        over seeds, of means over draws, and over draws, of means over seeds, add in quadrature. Both contain the
        interaction, so together they are rather too wide than too narrow.
        """
        x = self.at.to_numpy()
        if not x.size:
            return math.nan, math.nan
        over_seeds = half_width(x.mean(1)) if len(x) > 1 else 1.96 * float(self.errors.iloc[0])
        over_draws = half_width(x.mean(0)) if x.shape[1] > 1 else 0.0
        return float(x.mean()), math.sqrt(over_seeds**2 + over_draws**2)


def half_width(x: np.ndarray) -> float:
    """Of the 95 % t-interval of a mean, from two values [n] or more."""
    from scipy.stats import t  # takes a second to import

    with np.errstate(invalid="ignore"):  # what diverged to infinity leaves no half-width
        return float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))


def value_verdict(values: Values, paper: float, tolerance: float) -> str:
    """The verdict on a printed number."""
    mean, half = values.interval()
    if not len(values):
        return "not run"
    if not half <= tolerance:  # so written that a missing half-width, too, is undetermined
        return "undetermined"
    off = abs(mean - paper)
    return "reproduced" if off <= tolerance else "near" if off <= 2 * tolerance else "not reproduced"


def ordering_verdict(differences: Values, low: float, high: float) -> str:
    """The verdict on the claim that a paired difference lies within (low, high)."""
    mean, half = differences.interval()
    if not len(differences):
        return "not run"
    if low < mean - half and mean + half < high:
        return "reproduced"
    return "not reproduced" if mean + half <= low or mean - half >= high else "undetermined"


def bound_verdict(by_certificate: Values, by_ais: Values) -> str:
    """The verdict on "the EBM's bits/dim are below Glow's", from lower bounds on the EBM's bits/dim minus Glow's.

    `refuted` where the certificate is above Glow, `contradicted` where only AIS is, else `not refuted`: nothing here
    bounds the EBM's bits/dim from above. Over seeds the whole t-interval must be above; a seed alone counts by itself.
    """
    def above(differences: Values) -> bool:
        mean, half = differences.interval()
        return mean - (half if len(differences) > 1 else 0.0) > 0

    if not len(by_certificate):
        return "not run"
    return "refuted" if above(by_certificate) else "contradicted" if above(by_ais) else "not refuted"


def refuse_quick(profiles: Iterable[str]) -> None:
    """Raise ValueError at a number that was not made with the paper's sizes."""
    others = sorted(set(profiles) - {"full"})
    if others:
        raise ValueError(f"numbers of the profile '{others[0]}' are not of the paper's sizes: they get no "
                         "verdict against the paper and stay out of its tables")


def number(x: float, half: float = math.nan) -> str:
    """x ± half with two significant digits of half; without a half-width, x with four. Huge ones by a power of ten."""
    size = max(abs(x), half if math.isfinite(half) else 0.0)
    if math.isfinite(x) and size >= 1e5 and x % 1:  # counts are whole numbers, and shown in full
        power = math.floor(math.log10(size))
        text = number(x / 10**power, half / 10**power)
        return f"({text})×10^{power}" if math.isfinite(half) else f"{text}×10^{power}"
    if math.isfinite(half) and half > 1e-9 * abs(x):  # less is the rounding of equal numbers
        decimals = max(0, 1 - math.floor(math.log10(half)))
        text = f"{x:.{decimals}f} ± {half:.{decimals}f}"
    else:
        text = (f"{x:.0f}" if abs(x) >= 1000 else f"{x:#.4g}") + (" ± 0" if math.isfinite(half) else "")
    return text.replace("-", "−") if math.isfinite(x) else text


def estimate(values: Values) -> str:
    """Mean ± half-width, marked where the half-width is that of a seed alone."""
    if not len(values):
        return "–"
    mean, half = values.interval()
    return number(mean, half) + (f" {ALONE}" if len(values) == 1 and math.isfinite(half) else "")
