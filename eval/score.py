"""What a measure returns: typed scores that describe themselves, one JSON file per measure and model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from pipeline import catalogue
from pipeline.files import write_json

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
    quadrature_error: float | None = None
    labels: int | None = None
    draws: list[float] | None = None
    unit: str = ""

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
    """Of the mean of the samples' means, by the bootstrap, which draws each sample [n] again by itself.

    One value has none. The resampling has a fixed seed: the same values have the same error.
    """
    from scipy.stats import bootstrap  # takes a second to import

    if min(map(len, samples)) < 2:
        return None

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([x.mean(axis) for x in drawn], 0)

    found = bootstrap([x.double().cpu().numpy() for x in samples], statistic, n_resamples=1000, batch=50,
                      method="percentile", rng=np.random.default_rng(0))
    return float(found.standard_error)


def mean_score(name: str, model: Model, values: "Tensor", protocol: str, **others: Any) -> Score:
    """The mean of independent values [n], with its standard error; one value has none."""
    return Score(name=name, model=model, value=values.mean().item(), n=len(values), protocol=protocol,
                 standard_error=standard_error(values), **others)


def accuracy_score(name: str, model: Model, right: "Tensor", protocol: str, labels: int) -> Score:
    """The accuracy at a label count, from whether each test image is right for each draw of labels [draws, n]."""
    right = right.double()
    return mean_score(name, model, right.mean(0), f"{protocol}; mean over {len(right)} draws of labels",
                      labels=labels, draws=right.mean(1).tolist())


def write_scores(job: "Job", scores: list[Score]) -> None:
    """Write the stage's scores to its output and its record."""
    for score in scores:
        name = "/".join(filter(None, (score.model, score.name, str(score.labels or ""))))
        job.record.log(0, **{name: score.value})
    profile, experiment, arm = (job.tags.get(name, "none") for name in ("profile", "experiment", "arm"))
    content = ScoreFile(measure=job.stage, profile=profile, experiment=experiment, seed=job.seed, arm=arm,
                        scores=scores, provenance=job.provenance())
    write_json(job.out, content.model_dump(mode="json"))


def read_scores(path: Path) -> ScoreFile:
    return ScoreFile.model_validate_json(path.read_text())
