"""The shape of params.yaml: typed, frozen, unknown keys refused; no field has a default, all stands in the file."""

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

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
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Distinct = AfterValidator(distinct)
Widths = Annotated[list[Width], Field(min_length=1, max_length=16)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Ring(Strict):
    source: Literal["ring"]
    modes: Few
    radius: Length
    std: Length
    validation: Amount
    test: Amount


class Pinwheel(Strict):
    source: Literal["pinwheel"]
    arms: Few
    radial_std: Spread
    tangential_std: Spread
    rate: Length
    scale: Length
    validation: Amount
    test: Amount


class Spiral(Strict):
    source: Literal["spiral"]
    turns: Length
    radius: Length
    std: Length
    components: Few
    validation: Amount
    test: Amount


class Checkerboard(Strict):
    source: Literal["checkerboard"]
    squares: Annotated[int, Field(ge=2, le=64)]
    side: Length
    validation: Amount
    test: Amount


class Moons(Strict):
    source: Literal["moons"]
    std: Length
    scale: Length
    components: Few
    validation: Amount
    test: Amount


class Rings(Strict):
    source: Literal["rings"]
    count: Few
    radius: Length
    std: Length
    components: Few
    validation: Amount
    test: Amount


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


class Flow(Strict):
    levels: Few
    steps: Few
    width: Width
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
    widths: Widths
    slope: Share


Precision = Literal["fp32", "tf32", "bf16"]


class Pretrain(Strict):
    steps: Positive
    batch: Amount
    optimizer: Literal["adam", "adamax"]
    lr: Rate
    warmup: Count
    decay: Literal["constant", "cosine"]
    clip: Rate
    ema: Share
    precision: Precision
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
    batch: Amount
    noise_ratio: Few
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
    value_weight: Annotated[float, Field(ge=0, le=1e9)]
    mle_weight: Annotated[float, Field(ge=0, le=1e9)]
    decay: Literal["constant", "cosine"]
    ebm_clip: Rate
    flow_clip: Rate
    ema: Share
    precision: Precision
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
    latent: Width
    widths: Annotated[list[Width], Field(min_length=2, max_length=16)]
    batch: Annotated[int, Field(ge=2, le=10**7)]
    beta1: Share
    rates: Literal["orig", "ttur"]
    orig: Rates
    ttur: Rates
    log_every: Positive


class Density(Strict):
    boxes: Annotated[list[Length], Field(min_length=2, max_length=2)]
    points: Annotated[list[Annotated[int, Field(gt=0, le=4096)]], Field(min_length=2, max_length=2)]
    plot_points: Annotated[int, Field(ge=2, le=4096)]


class Classifier(Strict):
    epochs: Positive
    lr: Rate
    batch: Amount
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
    inverse_l2: Annotated[list[Rate], Field(min_length=1)]


class Supervised(Strict):
    batch: Amount
    updates: Positive
    epochs: Positive
    validations: Positive
    lr: Annotated[list[Rate], Field(min_length=1)]
    weight_decay: Annotated[list[Annotated[float, Field(ge=0, le=1e9)]], Field(min_length=1)]


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


class Seeds(Strict):
    toy: Annotated[list[Seed], Field(min_length=1), Distinct]
    images: Annotated[list[Seed], Field(min_length=1), Distinct]


class Profile(Strict):
    seeds: Seeds
    toy: Annotated[list[str], Distinct]
    images: Annotated[list[str], Distinct]
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
