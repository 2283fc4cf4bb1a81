"""What decides: our numbers over seeds, their intervals, and the verdicts on them.

Pure functions.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

BUDGET = "undetermined: budget"  # not the paper's recipe decides, but how long we let it run
VERDICTS = ["reproduced", "near", "undetermined", BUDGET, "not reproduced", "refuted", "not refuted", "not run",
            "unverified", "same", "differs"]
ALONE = "(one seed)"  # marks an interval that does not contain the variation between seeds
PerImage = Callable[[], np.ndarray | None]  # reads the values [images] that a score is the mean of, where they are kept


@dataclass(frozen=True)
class Values:
    """One number at several seeds.

    Attributes:
        at: [seeds, draws]; an accuracy has a column for each draw of labelled images, everything else has one.
        errors: standard errors over the images or samples of a seed [seeds]; NaN where unknown.
        shared: the same, of images that every seed shares [seeds]; 0 for what each seed draws by itself, or unknown.
        per_image: {seed: what reads the values per image of each row}.
    """

    at: pd.DataFrame
    errors: pd.Series
    shared: pd.Series
    per_image: dict[Any, list[PerImage | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "Values":
        """From rows of scores (seed, value, standard_error, draws); of several label counts, their mean.

        Without a column `shared`, every seed shares its images; without a column `images`, none were kept.
        """
        lists = [draws if isinstance(draws, list) else [value]
                 for draws, value in zip(rows["draws"], rows["value"], strict=True)]
        most = max(map(len, lists), default=0)  # all labelled images are drawn once: that goes with each draw of fewer
        table = np.full((len(lists), most + 2), np.nan)  # the draws; the error; the error of shared images
        for row, each in zip(table, lists, strict=True):
            row[:most if len(each) == 1 else len(each)] = each
        # label counts share the test images: at worst they err alike, and the mean's error is the mean of the errors
        table[:, -2] = error = rows["standard_error"].to_numpy(dtype=float)
        anew = np.array([each is not None and not each for each in rows.get("shared", [True] * len(rows))], bool)
        table[:, -1] = np.where(anew | np.isnan(error), 0.0, error)
        found = pd.DataFrame(table, index=(seeds := rows["seed"].to_numpy()))
        found = found.sort_index() if found.index.is_unique else found.groupby(level=0).mean(skipna=False)
        kept: dict[Any, list[PerImage | None]] = {}
        for seed, images in zip(seeds, rows.get("images", ()), strict=False):
            kept.setdefault(seed, []).append(images)
        return cls(found.iloc[:, :most], found[most], found[most + 1], kept)

    def __len__(self) -> int:
        return len(self.at)

    def __sub__(self, other: "Values") -> "Values":
        """Paired: at the seeds, and the draws, that both have; and image by image.

        Where the values per image of one side are not kept, the errors are as if the two were independent.
        """
        seeds = self.at.index.intersection(other.at.index)
        errors = (self.errors[seeds]**2 + other.errors[seeds]**2)**0.5
        shared = (self.shared[seeds]**2 + other.shared[seeds]**2)**0.5
        for seed in seeds:
            first, second = self.images_of(seed), other.images_of(seed)
            if first is not None and second is not None and first.shape == second.shape:
                with np.errstate(invalid="ignore"):  # what diverged to infinity leaves no error
                    errors[seed] = shared[seed] = (first - second).std(ddof=1) / math.sqrt(len(first))
        return Values(self.at.loc[seeds] - other.at.loc[seeds], errors, shared)

    def images_of(self, seed: int) -> np.ndarray | None:
        """The values per image [images] of a seed, means over its rows; None where those of a row were not kept."""
        arrays = [read() if callable(read) else None for read in self.per_image.get(seed, ())]
        found = [array for array in arrays if array is not None]
        return np.mean(found, 0, dtype=float) if found and len(found) == len(arrays) else None

    @property
    def means(self) -> pd.Series:
        """The value at each seed."""
        return self.at.mean(axis=1, skipna=False)

    def interval(self) -> tuple[float, float]:
        """Mean and half-width of its 95 % interval; NaN where there is none.

        It says what other seeds, draws of labels and test images of the same kind would give. Over seeds it is
        Student's; of a seed alone it is 1.96 standard errors over its images. Every seed has the same test images and
        the same draws, so these are crossed, var(mean) = seeds / S + draws / D + images / N + interactions, and the
        half-widths add in quadrature: Student's over seeds, of means over draws; Student's over draws, of means over
        seeds; 1.96 standard errors over shared images, their mean over seeds. The interactions are in more than one of
        them, so together they are rather too wide than too narrow.
        """
        x = self.at.to_numpy()
        if not x.size:
            return math.nan, math.nan
        over_seeds = half_width(x.mean(1)) if len(x) > 1 else 1.96 * float(self.errors.iloc[0])
        over_draws = half_width(x.mean(0)) if x.shape[1] > 1 else 0.0
        over_images = 1.96 * float(self.shared.mean()) if len(x) > 1 else 0.0
        return float(x.mean()), math.hypot(over_seeds, over_draws, over_images)


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


def bound_verdict(differences: Values, high: float = 0.0) -> str:
    """The verdict on "the EBM's bits/dim are below Glow's", from a lower bound on the EBM's bits/dim minus Glow's.

    `refuted` where the whole interval is above `high`, else `not refuted`: nothing here bounds the EBM's bits/dim from
    above; `undetermined` where it is no number. A seed alone without an error counts by its bound, which is certain
    enough by itself.
    """
    mean, half = differences.interval()
    if not len(differences):
        return "not run"
    if mean == math.inf:  # and so is its half-width not known
        return "refuted"
    least = mean if len(differences) == 1 and math.isnan(half) else mean - half
    return "undetermined" if math.isnan(least) else "refuted" if least > high else "not refuted"


def refuse_quick(profiles: Iterable[str], *judged: str) -> None:
    """Raise ValueError at a number that was not made with the paper's sizes, nor by one of the profiles `judged`."""
    others = sorted(set(profiles) - {"full", *judged})
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
