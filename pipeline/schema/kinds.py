"""The kinds of values in params.yaml: numbers with bounds, and lists without repetition."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

T = TypeVar("T")


def distinct(values: list[T]) -> list[T]:
    again = [value for i, value in enumerate(values) if value in values[:i]]
    if again:
        raise ValueError(f"{again[0]!r} is given twice")
    return values


# The upper bounds are far from any use: a number beyond them is a slip, better found here than by the memory
Positive = Annotated[int, Field(gt=0, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Amount = Annotated[int, Field(gt=0, le=10**7)]  # of points, images or samples
Width = Annotated[int, Field(gt=0, le=2**14)]  # of a layer
Few = Annotated[int, Field(gt=0, le=2**10)]  # of what is built or drawn one by one
Rate = Annotated[float, Field(gt=0, le=1e9)]
Length = Annotated[float, Field(ge=1e-3, le=1e3)]  # of a 2D density
Spread = Annotated[float, Field(ge=1e-3, le=10)]  # of a pinwheel's arms, whose angle grows as its exponential
Share = Annotated[float, Field(ge=0, lt=1)]
Shift = Annotated[float, Field(ge=0, lt=0.5)]  # of an image, as a share of its side
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Distinct = AfterValidator(distinct)
Widths = Annotated[list[Width], Field(min_length=1, max_length=16)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
