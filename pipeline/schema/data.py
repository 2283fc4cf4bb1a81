"""The `data:` section of an experiment, by its source."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from pipeline.schema.kinds import Amount, Few, Length, Seed, Spread, Strict


class Points(Strict):
    """What every 2D density has: held-out points; training draws fresh ones."""

    source: str
    validation: Amount
    test: Amount

    def shape(self) -> dict[str, Any]:
        """What describes the density itself."""
        return self.model_dump(exclude={"source", "validation", "test"})


class Ring(Points):
    source: Literal["ring"]
    modes: Few
    radius: Length
    std: Length


class Pinwheel(Points):
    source: Literal["pinwheel"]
    arms: Few
    radial_std: Spread
    tangential_std: Spread
    rate: Length
    scale: Length


class Spiral(Points):
    source: Literal["spiral"]
    turns: Length
    radius: Length
    std: Length
    components: Few


class Checkerboard(Points):
    source: Literal["checkerboard"]
    squares: Annotated[int, Field(ge=2, le=64)]
    side: Length


class Moons(Points):
    source: Literal["moons"]
    std: Length
    scale: Length
    components: Few


class Rings(Points):
    source: Literal["rings"]
    count: Few
    radius: Length
    std: Length
    components: Few


class Digits(Strict):
    source: Literal["digits"]
    validation: Amount
    test: Annotated[int, Field(ge=10)]  # one of each class
    split_seed: Seed

    @model_validator(mode="after")
    def fits(self) -> "Digits":
        if self.validation + self.test > 1700:
            raise ValueError("validation and test: of 1797 digits they may take 1700")
        return self


class Official(Strict):
    source: Literal["svhn", "cifar10"]
    validation: Annotated[int, Field(gt=0, le=40_000)]
    split_seed: Seed


class Npz(Strict):
    """A user's own images: train_images, train_labels, test_images, test_labels."""

    source: Literal["npz"]
    file: Annotated[str, Field(min_length=1)]
    levels: Annotated[int, Field(ge=2, le=256)]
    validation: Amount
    split_seed: Seed


Toy = Ring | Pinwheel | Spiral | Checkerboard | Moons | Rings
Data = Annotated[Toy | Digits | Official | Npz, Field(discriminator="source")]
TOY_SOURCES = tuple(get_args(model.model_fields["source"].annotation)[0] for model in get_args(Toy))
SOURCES = (*TOY_SOURCES, "digits", "svhn", "cifar10", "npz")
