"""The shape of params.yaml: typed, frozen, unknown keys refused; no field has a default, all stands in the file."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Ring(Strict):
    source: Literal["ring"]
    modes: Positive
    radius: Rate
    std: Rate
    validation: Positive
    test: Positive


class Pinwheel(Strict):
    source: Literal["pinwheel"]
    arms: Positive
    radial_std: Rate
    tangential_std: Rate
    rate: Rate
    scale: Rate
    validation: Positive
    test: Positive


class Spiral(Strict):
    source: Literal["spiral"]
    turns: Rate
    radius: Rate
    std: Rate
    components: Positive
    validation: Positive
    test: Positive


class Checkerboard(Strict):
    source: Literal["checkerboard"]
    squares: Annotated[int, Field(ge=2)]
    side: Rate
    validation: Positive
    test: Positive


class Moons(Strict):
    source: Literal["moons"]
    std: Rate
    scale: Rate
    components: Positive
    validation: Positive
    test: Positive


class Rings(Strict):
    source: Literal["rings"]
    count: Positive
    radius: Rate
    std: Rate
    components: Positive
    validation: Positive
    test: Positive


class Digits(Strict):
    source: Literal["digits"]
    validation: Positive
    test: Positive
    split_seed: Seed


class Official(Strict):
    source: Literal["svhn", "cifar10"]
    validation: Positive
    split_seed: Seed


class Npz(Strict):
    """A user's own images: train_images, train_labels, test_images, test_labels."""

    source: Literal["npz"]
    file: Annotated[str, Field(min_length=1)]
    levels: Annotated[int, Field(ge=2, le=256)]
    validation: Positive
    split_seed: Seed


Toy = Ring | Pinwheel | Spiral | Checkerboard | Moons | Rings
Data = Annotated[Toy | Digits | Official | Npz, Field(discriminator="source")]
TOY_SOURCES = tuple(get_args(model.model_fields["source"].annotation)[0] for model in get_args(Toy))


class Flow(Strict):
    levels: Positive
    steps: Positive
    width: Positive
    layers: Literal["fc", "conv"]
    coupling: Literal["additive", "affine"]
    scale_floor: Share
    input: Literal["identity", "centered", "logit"]

    @model_validator(mode="after")
    def fits(self) -> "Flow":
        if self.layers == "fc" and (self.levels != 1 or self.input != "identity"):
            raise ValueError("layers: fc goes with levels: 1 and input: identity")
        return self


class Energy(Strict):
    layers: Literal["fc", "conv"]
    widths: Annotated[list[Positive], Field(min_length=1)]
    slope: Share


class Pretrain(Strict):
    steps: Positive
    batch: Positive
    optimizer: Literal["adam", "adamax"]
    lr: Rate
    warmup: Count
    decay: Literal["constant", "cosine"]
    clip: Rate
    ema: Share
    validate_every: Positive
    select: Literal["last", "validation"]


class Alarms(Strict):
    ratio_growth: Rate
    ratio_floor: Rate
    round_trip: Rate
    log_scale: Rate


class Joint(Strict):
    start: Literal["pretrained", "random"]
    noise: Literal["flow", "frozen-flow", "gaussian"]
    energy: Literal["plain", "residual"]
    batch: Positive
    noise_ratio: Positive
    ebm_updates: Positive
    warm_start: Count
    head_start: Count
    rule: Literal["accuracy", "ratio"]
    ebm_per_round: Positive
    flow_per_round: Positive
    accuracy_decay: Share
    ebm_lr: Rate
    c_lr: Rate
    flow_lr: Rate
    flow_warmup: Count
    value_weight: Annotated[float, Field(ge=0)]
    mle_weight: Annotated[float, Field(ge=0)]
    decay: Literal["constant", "cosine"]
    ebm_clip: Rate
    flow_clip: Rate
    ema: Share
    log_every: Positive
    alarms: Alarms

    @model_validator(mode="after")
    def fits(self) -> "Joint":
        if self.start == "random" and (self.noise != "flow" or self.energy == "residual"):
            raise ValueError("start: random goes with noise: flow and energy: plain")
        if self.energy == "residual" and self.noise == "gaussian":
            raise ValueError("energy: residual needs a flow as its base, not noise: gaussian")
        return self


class Rates(Strict):
    discriminator_lr: Rate
    generator_lr: Rate
    updates: Positive


class Dcgan(Strict):
    latent: Positive
    widths: Annotated[list[Positive], Field(min_length=2)]
    batch: Annotated[int, Field(ge=2)]
    beta1: Share
    rates: Literal["orig", "ttur"]
    orig: Rates
    ttur: Rates
    log_every: Positive


class Density(Strict):
    boxes: Annotated[list[Rate], Field(min_length=2, max_length=2)]
    points: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    plot_points: Positive


class Classifier(Strict):
    epochs: Positive
    lr: Rate
    batch: Positive
    width: Positive
    features: Positive


class Sample(Strict):
    count: Positive
    batch: Positive
    temperature: Rate


class BitsPerDim(Strict):
    draws: Positive
    batch: Positive


class LogZ(Strict):
    samples: Annotated[int, Field(ge=256)]
    batch: Positive
    level: Annotated[float, Field(gt=0, lt=1)]
    chains: Annotated[int, Field(ge=2)]
    temperatures: Positive
    leapfrog: Positive


class Infinity(Strict):
    points: Annotated[int, Field(ge=3)]
    smallest: Annotated[float, Field(gt=0, lt=1)]


class Kernel(Strict):
    subsets: Annotated[int, Field(ge=2)]
    size: Annotated[int, Field(ge=2)]


class Neighbours(Strict):
    images: Positive
    k: Positive

    @model_validator(mode="after")
    def fits(self) -> "Neighbours":
        if self.k >= self.images:
            raise ValueError("neighbours: k must be below images")
        return self


class Fid(Strict):
    features: Literal["inception", "classifier"]
    batch: Positive
    draws: Annotated[int, Field(ge=2)]
    infinity: Infinity
    kid: Kernel
    neighbours: Neighbours


class Probe(Strict):
    labels: Annotated[list[Positive], Field(min_length=1)]
    draws: Positive
    inverse_l2: Annotated[list[Rate], Field(min_length=1)]


class Supervised(Strict):
    batch: Positive
    updates: Positive
    epochs: Positive
    validations: Positive
    lr: Annotated[list[Rate], Field(min_length=1)]
    weight_decay: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]


class ToyExperiment(Strict):
    data: Annotated[Toy, Field(discriminator="source")]
    flow: Flow
    energy: Energy
    pretrain: Pretrain
    arms: Annotated[dict[str, Joint], Field(min_length=1)]
    density: Density


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


Experiment = ToyExperiment | ImageExperiment


class Seeds(Strict):
    toy: Annotated[list[Seed], Field(min_length=1)]
    images: Annotated[list[Seed], Field(min_length=1)]


class Profile(Strict):
    seeds: Seeds
    toy: list[str]
    images: list[str]
    overrides: dict[str, dict[str, Any]]


SECTIONS = {  # what a stage's slice may hold
    "data": Data,
    "flow": Flow,
    "energy": Energy,
    "pretrain": Pretrain,
    "joint": Joint,
    "dcgan": Dcgan,
    "density": Density,
    "classifier": Classifier,
    "sample": Sample,
    "bits_per_dim": BitsPerDim,
    "log_z": LogZ,
    "fid": Fid,
    "probe": Probe,
    "supervised": Supervised,
}
