"""The sections of the measures."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema.kinds import Amount, Count, Distinct, Few, Length, Positive, Rate, Shift, Strict, Width


class Density(Strict):
    boxes: Annotated[list[Length], Field(min_length=2, max_length=2)]
    points: Annotated[list[Annotated[int, Field(gt=0, le=4096)]], Field(min_length=2, max_length=2)]
    plot_points: Annotated[int, Field(ge=2, le=4096)]


class Classifier(Strict):
    epochs: Positive
    lr: Rate
    batch: Amount
    shift: Shift
    flip: bool
    width: Width
    features: Annotated[int, Field(ge=2, le=2**14)]  # a covariance of one is no matrix


class Sample(Strict):
    count: Amount
    batch: Amount
    temperature: Rate


class BitsPerDim(Strict):
    draws: Few
    batch: Amount


class LogZ(Strict):
    samples: Annotated[int, Field(ge=256, le=10**7)]
    batch: Amount
    level: Annotated[float, Field(gt=0, lt=1)]
    chains: Annotated[int, Field(ge=2, le=10**7)]
    temperatures: Positive
    leapfrog: Positive


class Infinity(Strict):
    points: Annotated[int, Field(ge=3, le=2**10)]
    smallest: Annotated[float, Field(gt=0, le=0.8)]


class Kernel(Strict):
    subsets: Annotated[int, Field(ge=2, le=10**7)]
    size: Annotated[int, Field(ge=2, le=10**7)]


class Neighbours(Strict):
    images: Amount
    k: Amount

    @model_validator(mode="after")
    def fits(self) -> "Neighbours":
        if self.k >= self.images:
            raise ValueError("neighbours: k must be below images")
        return self


class Fid(Strict):
    features: Literal["inception", "classifier"]
    batch: Amount
    draws: Annotated[int, Field(ge=2, le=2**10)]
    infinity: Infinity
    kid: Kernel
    neighbours: Neighbours


class Probe(Strict):
    labels: Annotated[list[Annotated[int, Field(ge=2, le=10**7)]], Field(min_length=1), Distinct]  # 2: one of a class
    draws: Few
    validation: Count
    inverse_l2: Annotated[list[Rate], Field(min_length=1)]


class Supervised(Strict):
    batch: Amount
    updates: Positive
    epochs: Positive
    validations: Positive
    lr: Annotated[list[Rate], Field(min_length=1)]
    weight_decay: Annotated[list[Annotated[float, Field(ge=0, le=1e9)]], Field(min_length=1)]
