"""An experiment and a profile, and what a stage reads of an experiment."""

from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, model_validator

from pipeline.schema.data import Data, Digits, Npz, Official, Toy
from pipeline.schema.kinds import Distinct, Seed, Strict
from pipeline.schema.measures import BitsPerDim, Classifier, Density, Fid, LogZ, Probe, Sample, Supervised
from pipeline.schema.training import Dcgan, Energy, Flow, Joint, Pretrain


class ToyExperiment(Strict):
    data: Annotated[Toy, Field(discriminator="source")]
    flow: Flow
    energy: Energy
    pretrain: Pretrain
    arms: Annotated[dict[str, Joint], Field(min_length=1)]
    density: Density

    @model_validator(mode="after")
    def fits(self) -> "ToyExperiment":
        if {self.flow.layers, self.energy.layers} != {"fc"}:
            raise ValueError("flow.layers and energy.layers: a 2D density needs fc in both")
        return self


class ImageExperiment(Strict):
    data: Annotated[Digits | Official | Npz, Field(discriminator="source")]
    flow: Flow
    energy: Energy
    pretrain: Pretrain
    arms: Annotated[dict[str, Joint], Field(min_length=1)]
    dcgan: Dcgan
    classifier: Classifier
    sample: Sample
    bits_per_dim: BitsPerDim
    log_z: LogZ
    fid: Fid
    probe: Probe
    supervised: Supervised

    @model_validator(mode="after")
    def fits(self) -> "ImageExperiment":
        if {self.flow.layers, self.energy.layers} != {"conv"}:
            raise ValueError("flow.layers and energy.layers: images need conv in both")
        levels = 17 if isinstance(self.data, Digits) else self.data.levels if isinstance(self.data, Npz) else 256
        if self.fid.features == "inception" and levels != 256:
            raise ValueError(f"fid.features: inception needs 256 grey levels, this data has {levels}; use classifier")
        return self


Experiment = ToyExperiment | ImageExperiment
KINDS: dict[str, type[Strict]] = {"toy": ToyExperiment, "images": ImageExperiment}


class Seeds(Strict):
    toy: Annotated[list[Seed], Field(min_length=1), Distinct]
    images: Annotated[list[Seed], Field(min_length=1), Distinct]


class Profile(Strict):
    seeds: Seeds
    experiments: Annotated[list[str], Distinct]
    overrides: dict[str, dict[str, Any]]


class Sections:
    """What one stage reads of params.yaml: the sections that the table of stages gives it, and no others; frozen."""

    data: Data
    flow: Flow
    energy: Energy
    pretrain: Pretrain
    joint: Joint
    dcgan: Dcgan
    density: Density
    classifier: Classifier
    sample: Sample
    bits_per_dim: BitsPerDim
    log_z: LogZ
    fid: Fid
    probe: Probe
    supervised: Supervised

    def __init__(self, **sections: Any):
        vars(self).update(sections)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: parameters are frozen")

    def __contains__(self, section: str) -> bool:
        return section in vars(self)

    def dump(self) -> dict[str, Any]:
        """Plain content, as the stage's slice has it."""
        return {name: section.model_dump() for name, section in vars(self).items()}


SECTIONS = {name: TypeAdapter(kind) for name, kind in get_type_hints(Sections, include_extras=True).items()}
