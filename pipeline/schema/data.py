"""The `data:` section of an experiment, by its source."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, create_model, model_validator

from pipeline.schema.kinds import Amount, Count, Few, Length, Seed, Spread, Strict


class Points(Strict):
    """What every 2D density has: held-out points; training draws fresh ones."""

    source: str
    validation: Amount
    test: Amount

    def shape(self) -> dict[str, Any]:
        """What describes the density itself."""
        return self.model_dump(exclude={"source", "validation", "test"})


DENSITIES: dict[str, dict[str, Any]] = {  # source: its parameters, as its maker in fce/data/toy.py takes them
    "ring": {"modes": Few, "radius": Length, "std": Length},
    "pinwheel": {"arms": Few, "radial_std": Spread, "tangential_std": Spread, "rate": Length, "scale": Length},
    "spiral": {"turns": Length, "radius": Length, "std": Length, "components": Few},
    "checkerboard": {"squares": Annotated[int, Field(ge=2, le=64)], "side": Length},
    "moons": {"std": Length, "scale": Length, "components": Few},
    "rings": {"count": Few, "radius": Length, "std": Length, "components": Few},
}


def model_of(source: str) -> type[Points]:
    """Of a density's `data:` section."""
    kinds = {"source": Literal[source], **DENSITIES[source]}
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items()}
    return create_model(source.capitalize(), __base__=Points, **fields)


class Digits(Strict):
    source: Literal["digits"]
    validation: Count  # of the training images; 0: models train on all of them
    test: Annotated[int, Field(ge=10)]  # one of each class
    split_seed: Seed

    @model_validator(mode="after")
    def fits(self) -> "Digits":
        if self.validation + self.test > 1700:
            raise ValueError("validation and test: of 1797 digits they may take 1700")
        return self


class Official(Strict):
    source: Literal["svhn", "cifar10"]
    validation: Annotated[int, Field(ge=0, le=40_000)]
    split_seed: Seed


class Own(Strict):
    """A user's own images; without labels they have no linear classification, and no distance by a classifier."""

    file: Annotated[str, Field(min_length=1)]
    labels: bool = True
    validation: Count
    split_seed: Seed


class Npz(Own):
    """train_images, train_labels, test_images, test_labels."""

    source: Literal["npz"]
    levels: Annotated[int, Field(ge=2, le=256)]


class Folder(Own):
    """train/ and test/, each with a folder for each class or, without labels, with images anywhere below."""

    source: Literal["folder"]
    side: Annotated[int, Field(ge=8, le=1024)]  # to which images are cut to a square and scaled
    channels: Literal[1, 3]


TOY_SOURCES = tuple(DENSITIES)
SOURCES = (*TOY_SOURCES, "digits", "svhn", "cifar10", "npz", "folder")
if TYPE_CHECKING:
    Toy = Points
    Data = Points | Digits | Official | Npz | Folder
else:
    Toy = Annotated[Union[tuple(map(model_of, DENSITIES))], Field(discriminator="source")]  # noqa: UP007 - of a list
    Data = Annotated[Toy | Digits | Official | Npz | Folder, Field(discriminator="source")]
