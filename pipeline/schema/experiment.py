"""An experiment and a profile, and what a stage reads of an experiment."""

from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, model_validator

from pipeline.schema.data import Data, Digits, Folder, Npz, Official, Own, Toy
from pipeline.schema.kinds import Distinct, Seed, Strict
from pipeline.schema.measures import BitsPerDim, Classifier, Density, Fid, LogZ, Probe, Sample, Supervised
from pipeline.schema.training import Dcgan, Energy, Flow, Joint, Pretrain, Trajectory


class Training(Strict):
    """Sections of every experiment."""

    flow: Flow
    energy: Energy
    pretrain: Pretrain


class OfImages(Training):
    """Sections of every experiment on images."""

    dcgan: Dcgan
    classifier: Classifier
    sample: Sample
    bits_per_dim: BitsPerDim
    log_z: LogZ
    fid: Fid
    probe: Probe
    supervised: Supervised


def trajectories(experiment: "ToyExperiment | ImageExperiment") -> list[Trajectory]:
    """Of pre-training and of every arm."""
    return [experiment.pretrain.trajectory, *(arm.trajectory for arm in experiment.arms.values())]


class ToyExperiment(Training):
    data: Toy
    arms: Annotated[dict[str, Joint], Field(min_length=1)]
    density: Density

    @model_validator(mode="after")
    def fits(self) -> "ToyExperiment":
        if {self.flow.layers, self.energy.layers} != {"fc"}:
            raise ValueError("flow.layers and energy.layers: a 2D density needs fc in both")
        if any(each.moments for each in trajectories(self)):
            raise ValueError("pretrain.trajectory and joint.trajectory: moments are of images; set both to 0")
        if any(arm.energy == "tilted" for arm in self.arms.values()):
            raise ValueError("joint.energy: tilted is of images; 2D densities have plain")
        if self.pretrain.augment or any(arm.augment for arm in self.arms.values()):
            raise ValueError("pretrain.augment and joint.augment: images are moved, points are not; set both to 0.0")
        return self


class ImageExperiment(OfImages):
    data: Annotated[Digits | Official | Npz | Folder, Field(discriminator="source")]
    arms: Annotated[dict[str, Joint], Field(min_length=1)]

    @property
    def labelled(self) -> bool:
        """Whether its images have labels."""
        return not isinstance(self.data, Own) or self.data.labels

    @model_validator(mode="after")
    def fits(self) -> "ImageExperiment":
        if {self.flow.layers, self.energy.layers} != {"conv"}:
            raise ValueError("flow.layers and energy.layers: images need conv in both")
        levels = 17 if isinstance(self.data, Digits) else self.data.levels if isinstance(self.data, Npz) else 256
        if self.fid.features == "inception" and levels != 256:
            raise ValueError(f"fid.features: inception needs 256 grey levels, this data has {levels}; use classifier")
        if not all(each.moments for each in trajectories(self)):
            raise ValueError("pretrain.trajectory and joint.trajectory: moments must be 1 or more")
        if not self.data.validation and self.pretrain.select == "validation":
            raise ValueError("pretrain.select: validation needs a validation part; raise data.validation, or use last")
        if self.labelled and bool(self.data.validation) == bool(self.probe.validation):
            raise ValueError("data.validation and probe.validation: probe and supervised choose by the labels of one; "
                             "set the other to 0")
        return self


Experiment = ToyExperiment | ImageExperiment
KINDS: dict[str, type[Strict]] = {"toy": ToyExperiment, "images": ImageExperiment}


class Seeds(Strict):
    toy: Annotated[list[Seed], Field(min_length=1), Distinct]
    images: Annotated[list[Seed], Field(min_length=1), Distinct]


class Profile(Strict):
    """`together`: whether one process makes all arms of a seed of images, one after another."""

    seeds: Seeds
    together: bool = False
    experiments: Annotated[list[str], Distinct]
    overrides: dict[str, dict[str, Any]]


class Sections(OfImages):
    """What one stage reads of params.yaml: the sections that its row of the catalogue names; the others are not there.

    Made by `model_construct`, of sections that are checked one by one.
    """

    data: Data
    joint: Joint
    density: Density

    def __contains__(self, section: str) -> bool:
        return section in vars(self)


SECTIONS = {name: TypeAdapter(kind) for name, kind in get_type_hints(Sections, include_extras=True).items()
            if name in Sections.model_fields}
