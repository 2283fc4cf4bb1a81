"""What a measure returns: typed scores that describe themselves, one JSON file per measure and model."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from pipeline import catalogue
from pipeline.files import Arrays, read_arrays, write_arrays, write_json

if TYPE_CHECKING:  # the report reads scores without torch, which takes seconds to import
    from torch import Tensor

    from pipeline.job import Job

Model = Literal["flow", "generator", "ebm", "data", "features", "network"]


class Score(BaseModel):
    """One number, with what is needed to read it.

    Attributes:
        name: of [scores] in pipeline/catalogue.toml, e.g. `bits_per_dim`, `kl`, `frechet_distance`, `accuracy`.
        model: what was measured.
        value: in `unit`, which that list gives.
        standard_error: of the value, over independent images, samples or points; None where it has none.
        shared: whether these are images or points that every seed is measured on. Samples are not: each seed draws its
            own, so that the spread over seeds has their error already.
        n: how many points, images or draws the value is a mean of.
        quadrature_error: of an integral, its largest difference on another grid; None where it is no integral.
        labels: the number of labelled examples, for a probe.
        draws: the value at each draw of labelled examples, for a probe; every arm and seed has the same draws.
        protocol: in words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)

    name: str
    model: Model
    value: float
    n: int
    protocol: str
    standard_error: float | None = None
    shared: bool = True
    quadrature_error: float | None = None
    labels: int | None = None
    draws: list[float] | None = None
    unit: str = ""
    _per_image: np.ndarray | None = PrivateAttr(None)  # [images]; of an accuracy, [draws, images]

    @property
    def key(self) -> str:
        """`<model>/<name>[/<labels>]`: in the record, and of the values per image."""
        return "/".join(filter(None, (self.model, self.name, str(self.labels or ""))))

    @model_validator(mode="before")
    @classmethod
    def listed(cls, content: Any) -> Any:
        """Refuse what no list knows: it would silently be shown nowhere."""
        known = isinstance(content, dict) and "name" in content
        return {**content, "unit": catalogue.score(str(content["name"])).unit} if known else content


class ScoreFile(BaseModel):
    """All scores of one measure on one model: `build/<profile>/<experiment>/seed-<n>/<arm>/<measure>.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str
    profile: str
    experiment: str
    seed: int
    arm: str
    scores: list[Score]
    provenance: dict[str, Any]


def standard_error(*samples: "Tensor") -> float | None:
    """Of the mean of the samples' means: each sample [n] of independent values has sd / sqrt(n).

    One value has none, nor have values that are not all finite.
    """
    if min(map(len, samples)) < 2 or not all(x.isfinite().all() for x in samples):
        return None
    return math.hypot(*(wilson(x) if (x == 0).all() or (x == 1).all() else x.double().std().item() / math.sqrt(len(x))
                        for x in samples)) / len(samples)


def wilson(answers: "Tensor") -> float:
    """The error of answers that are all wrong, or all right, whose spread is 0: a 1.96th of Wilson's interval."""
    from scipy.stats import binomtest  # takes a second to import, and few need it

    interval = binomtest(int(answers.sum()), len(answers)).proportion_ci(method="wilson")
    return (interval.high - interval.low) / 1.96


def mean_score(name: str, model: Model, values: "Tensor", protocol: str, **others: Any) -> Score:
    """The mean of independent values [n], with its standard error; one value has none.

    Values of images that all seeds share are kept, for paired differences (`write_scores`).
    """
    score = Score(name=name, model=model, value=values.mean().item(), n=len(values), protocol=protocol,
                  standard_error=standard_error(values), **others)
    score._per_image = values.float().cpu().numpy() if score.shared else None
    return score


def accuracy_score(name: str, model: Model, right: "Tensor", protocol: str, labels: int) -> Score:
    """The accuracy at a label count, from whether each test image is right for each draw of labels [draws, n]."""
    share = right.double()
    score = mean_score(name, model, share.mean(0), f"{protocol}; mean over {len(right)} draws of labels",
                       labels=labels, draws=share.mean(1).tolist())
    score._per_image = right.byte().cpu().numpy()
    return score


def write_scores(job: "Job", scores: list[Score], beside: Arrays | None = None) -> None:
    """Write the stage's scores to its output and its record.

    Where its row of the catalogue says npz, the scores' values per image go to that file, each under its `key`; or, if
    they are given, the arrays `beside`.
    """
    for score in scores:
        job.record.log(0, **{score.key: score.value})
    if "npz" in catalogue.STAGES[job.stage].beside:
        kept = {score.key: score._per_image for score in scores if score._per_image is not None}
        write_arrays(job.out.with_suffix(".npz"), kept if beside is None else beside, compressed=True)
    profile, experiment, arm = (job.tags.get(name, "none") for name in ("profile", "experiment", "arm"))
    content = ScoreFile(measure=job.stage, profile=profile, experiment=experiment, seed=job.seed, arm=arm,
                        scores=scores, provenance=job.provenance())
    write_json(job.out, content.model_dump(mode="json"))


def read_scores(path: Path) -> ScoreFile:
    return ScoreFile.model_validate_json(path.read_text())


def read_per_image(path: Path, key: str) -> np.ndarray | None:
    """A score's values [images], of an accuracy their means over draws; None where none were kept.

    Raises:
        UserError: the file is damaged.
    """
    found = read_arrays(path, (), (key,)).get(key)
    return found.mean(0) if found is not None and found.ndim == 2 else found
