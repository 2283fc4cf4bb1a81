"""The sections of what trains: networks, maximum likelihood, the game, and DCGAN."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema.kinds import Amount, Count, Few, Positive, Rate, Share, Shift, Strict, Width, Widths


class Flow(Strict):
    levels: Few
    steps: Few
    width: Width
    layers: Literal["fc", "conv"]
    coupling: Literal["additive", "affine"]
    scale_floor: Share
    input: Literal["identity", "centered", "logit"]
    edge: bool

    @model_validator(mode="after")
    def fits(self) -> "Flow":
        if self.layers == "fc" and (self.levels != 1 or self.input != "identity"):
            raise ValueError("layers: fc goes with levels: 1 and input: identity")
        if self.layers == "fc" and self.edge:
            raise ValueError("edge: true is of convolutions; layers: fc goes with edge: false")
        return self


class Energy(Strict):
    layers: Literal["fc", "conv"]
    widths: Widths
    slope: Share


Precision = Literal["fp32", "tf32", "bf16"]


class Trajectory(Strict):
    """At how many moments of training, beside its start, a flow of images is looked at, and by how many images."""

    moments: Count
    images: Annotated[int, Field(ge=2, le=10**7)]  # a distance needs a covariance


class Pretrain(Strict):
    steps: Positive
    batch: Amount
    augment: Shift
    optimizer: Literal["adam", "adamax"]
    lr: Rate
    warmup: Count
    decay: Literal["constant", "cosine"]
    clip: Rate
    ema: Share
    precision: Precision
    validate_every: Positive
    select: Literal["last", "validation"]
    trajectory: Trajectory


class Alarms(Strict):
    ratio_growth: Rate
    ratio_floor: Rate
    saturated: Positive
    when_saturated: Literal["warn", "stop"]
    round_trip: Rate
    log_scale: Rate


class Joint(Strict):
    start: Literal["pretrained", "random"]
    noise: Literal["flow", "frozen-flow", "gaussian"]
    energy: Literal["plain", "residual", "tilted"]
    batch: Amount
    augment: Shift
    noise_ratio: Few
    ebm_updates: Positive
    warm_start: Count
    warm_lr: Rate
    head_start: Count
    rule: Literal["accuracy", "ratio"]
    ebm_per_round: Positive
    flow_per_round: Positive
    accuracy_decay: Share
    ebm_lr: Rate
    ebm_weight_decay: Share
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
    trajectory: Trajectory
    alarms: Alarms

    @property
    def needs_flow(self) -> bool:
        """Whether it starts from a pre-trained flow."""
        return self.start != "random" and self.noise != "gaussian"

    @model_validator(mode="after")
    def fits(self) -> "Joint":
        if self.start == "random" and (self.noise != "flow" or self.energy != "plain"):
            raise ValueError("start: random goes with noise: flow and energy: plain")
        if self.energy == "tilted" and self.warm_start:
            raise ValueError("warm_start: a tilted EBM starts as its flow; set it to 0")
        if self.energy != "plain" and self.noise == "gaussian":
            raise ValueError(f"energy: {self.energy} needs a flow as its base, not noise: gaussian")
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
