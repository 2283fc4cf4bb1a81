"""Typed parameters: reads and checks params.yaml, and cuts it into one slice per stage.

Nothing has a default here: every number stands in params.yaml, beside its reason. This module needs
neither torch nor data, so that `snakemake -n` is quick.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]


class ParamsError(ValueError):
    """A mistake in params.yaml: what, where, how to mend."""


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


Toy = Ring | Pinwheel | Spiral
Data = Annotated[Ring | Pinwheel | Spiral | Digits | Official | Npz, Field(discriminator="source")]
TOY_SOURCES = ("ring", "pinwheel", "spiral")


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


class Density(Strict):
    boxes: Annotated[list[Rate], Field(min_length=2, max_length=2)]
    points: Positive
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


class Fid(Strict):
    features: Literal["inception", "classifier"]
    batch: Positive


class Probe(Strict):
    labels: Annotated[list[Positive], Field(min_length=1)]
    draws: Positive
    inverse_l2: Annotated[list[Rate], Field(min_length=1)]


class ToyExperiment(Strict):
    data: Annotated[Toy, Field(discriminator="source")]
    flow: Flow
    energy: Energy
    pretrain: Pretrain
    arms: dict[str, Joint]
    density: Density


class ImageExperiment(Strict):
    data: Annotated[Digits | Official | Npz, Field(discriminator="source")]
    flow: Flow
    energy: Energy
    pretrain: Pretrain
    arms: dict[str, Joint]
    classifier: Classifier
    sample: Sample
    bits_per_dim: BitsPerDim
    fid: Fid
    probe: Probe


Experiment = ToyExperiment | ImageExperiment
ARMS = {
    "toy": ("joint", "joint-from-random", "frozen-flow", "gaussian-noise"),
    "images": ("joint", "residual"),
}
SLICES = {  # what each stage may read
    "data": ("data",),
    "pretrain": ("flow", "pretrain", "data"),
    "density": ("density", "data"),
    "classifier": ("classifier",),
    "sample": ("sample",),
    "bits_per_dim": ("bits_per_dim",),
    "fid": ("fid",),
    "probe": ("probe", "energy"),
}


class Profile(Strict):
    seeds: Annotated[list[Seed], Field(min_length=1)]
    toy: list[str]
    images: list[str]
    overrides: dict[str, dict[str, Any]]


class Params(Strict):
    """All of params.yaml, resolved: `experiments[profile][name]`."""

    profiles: dict[str, Profile]
    experiments: dict[str, dict[str, Experiment]]

    def slices(self, profile: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path below build/<profile>/, content) of every stage's parameters."""
        for name, experiment in self.experiments[profile].items():
            whole = experiment.model_dump()
            for stage, sections in SLICES.items():
                if stage in ("data", "pretrain") or stage in whole:
                    yield f"{name}/params/{stage}.json", {section: whole[section] for section in sections}
            for arm, joint in whole["arms"].items():
                content = {"flow": whole["flow"], "energy": whole["energy"], "joint": joint, "data": whole["data"]}
                yield f"{name}/params/joint/{arm}.json", content

    def write_slices(self, build: Path) -> None:
        """Write each stage's parameters as a file, only where they changed: the file is the dependency."""
        for profile in self.profiles:
            for path, content in self.slices(profile):
                target = build / profile / path
                text = json.dumps(content, indent=1, sort_keys=True) + "\n"
                if not target.exists() or target.read_text() != text:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(text)


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice (plain YAML silently keeps the last)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ParamsError(f"{self.name}, line {key_node.start_mark.line + 1}: key '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """The layers laid over each other, later ones winning, mappings merged key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merge(result[key], value) if both else value
    return result


def load(path: str | Path = "params.yaml") -> Params:
    """Read, resolve and check params.yaml.

    Raises:
        ParamsError: one message that names the key, where it stands and the nearest valid one.
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(), UniqueKeyLoader)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run from the repository's root") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must be a mapping with keys full, quick, defaults, experiments")
    require_keys(raw, ("full", "quick", "defaults", "experiments"), str(path))
    require_keys(raw["defaults"], ("toy", "images"), "defaults")
    profiles = {name: check(Profile, raw[name], name) for name in ("full", "quick")}
    resolved: dict[str, dict[str, Experiment]] = {}
    for profile, chosen in profiles.items():
        for name in [*chosen.toy, *chosen.images, *chosen.overrides]:
            if name not in raw["experiments"]:
                raise ParamsError(f"{profile} names the experiment '{name}', which experiments: does not have"
                                  + suggestion(name, raw["experiments"]))
        resolved[profile] = {
            name: resolve(raw, profile, name, kind)
            for kind, names in (("toy", chosen.toy), ("images", chosen.images)) for name in names
        }
    for name, own in raw["experiments"].items():  # entries no profile lists are checked too
        if not any(name in group for group in resolved.values()):
            source = own.get("data", {}).get("source") if isinstance(own, dict) else None
            resolve(raw, "full", name, "toy" if source in TOY_SOURCES else "images")
    return Params(profiles=profiles, experiments=resolved)


def resolve(raw: dict[str, Any], profile: str, name: str, kind: str) -> Experiment:
    own, override = raw["experiments"][name], raw[profile]["overrides"].get(name, {})
    where = f"experiments.{name}"
    if not isinstance(own, dict) or not all(c.isalnum() or c in "-_" for c in str(name)):
        raise ParamsError(f"{where}: an experiment is a mapping, its name made of letters, digits, - and _")
    whole = merge(raw["defaults"][kind], own, override)
    shared, arms = whole.pop("joint", {}), whole.get("arms", {})
    if not isinstance(shared, dict) or not isinstance(arms, dict):
        raise ParamsError(f"{where}: joint and arms must be mappings")
    require_keys(arms, ARMS[kind], f"{where}.arms")
    whole["arms"] = {arm: merge(shared, settings or {}) for arm, settings in arms.items()}
    experiment: Experiment = check(ToyExperiment if kind == "toy" else ImageExperiment, whole, where)
    return experiment


def require_keys(mapping: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(mapping, dict):
        raise ParamsError(f"{where} must be a mapping with keys {', '.join(keys)}")
    for key in mapping:
        if key not in keys:
            raise ParamsError(f"{where}: unknown key '{key}'{suggestion(key, keys)}")
    for key in keys:
        if key not in mapping:
            raise ParamsError(f"{where}: key '{key}' is missing")


def check(model: type[Strict], content: Any, where: str) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # an unknown key says more than the missing one it was meant to be
        worst = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ParamsError(explain(worst, model, where)) from None


def explain(error: Any, model: type[Strict], where: str) -> str:
    """One pydantic error as one sentence: where, what, how to mend."""
    keys = [str(part) for part in error["loc"] if part not in TOY_SOURCES and part not in ("digits", "svhn", "npz")]
    place, given = ".".join([where, *keys]), error.get("input")
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key '{keys[-1]}'{suggestion(keys[-1], field_names(model))}"
    if error["type"] == "missing":
        return f"{place}: the key is missing"
    hint = ""
    if isinstance(given, str) and error["type"] in ("float_type", "int_type"):
        hint = "; YAML reads it as text: write numbers without quotes, and 1.0e-4 rather than 1e-4"
    return f"{place}: {error['msg'].removeprefix('Value error, ')} (got {given!r}){hint}"


def field_names(model: type[BaseModel]) -> set[str]:
    """The names of all fields of a model and the models inside it."""
    inner = model.model_json_schema().get("$defs", {}).values()
    return set(model.model_fields).union(*(schema.get("properties", {}) for schema in inner))


def suggestion(key: Any, valid: Any) -> str:
    near = difflib.get_close_matches(str(key), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; valid keys: {', '.join(sorted(map(str, valid)))}"
