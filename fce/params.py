"""Reads and checks params.yaml, and cuts it into one slice per stage.

This module needs neither torch nor data, so that `snakemake -n` is quick.
"""

import difflib
import json
import os
import re
import reprlib
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fce.schema import SECTIONS, SOURCES, TOY_SOURCES, Experiment, ImageExperiment, Profile, Strict, ToyExperiment

ARMS = {  # how an EBM can be trained; an experiment names those it runs
    "toy": ("joint", "joint-from-random", "frozen-flow", "gaussian-noise"),
    "images": ("joint", "joint-long", "residual", "frozen-flow", "gaussian-noise", "mle-continued"),
}
SLICES = {  # what each stage may read
    "data": ("data",),
    "pretrain": ("flow", "pretrain", "data"),
    "dcgan": ("dcgan",),
    "density": ("density", "data"),
    "classifier": ("classifier",),
    "sample": ("sample",),
    "bits_per_dim": ("bits_per_dim",),
    "log_z": ("log_z", "bits_per_dim"),
    "log_z_control": ("log_z",),
    "fid": ("fid",),
    "probe": ("probe", "energy"),
    "supervised": ("supervised", "probe", "energy"),
    "joint": ("flow", "energy", "joint", "data"),  # one for each arm
}


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of an experiment: it stands in paths and in shell commands


class ParamsError(ValueError):
    """A mistake in params.yaml: what, where, how to mend."""


class Params(Strict):
    """All of params.yaml, resolved: `experiments[profile][name]`."""

    profiles: dict[str, Profile]
    experiments: dict[str, dict[str, Experiment]]

    def slices(self, profile: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path below build/<profile>/, content) of every stage's parameters."""
        for name, experiment in self.experiments[profile].items():
            whole = experiment.model_dump()
            for stage, sections in SLICES.items():
                if set(sections) <= set(whole):
                    yield f"{name}/params/{stage}.json", {section: whole[section] for section in sections}
            for arm, joint in whole["arms"].items():
                content = {"flow": whole["flow"], "energy": whole["energy"], "joint": joint, "data": whole["data"]}
                yield f"{name}/params/joint/{arm}.json", content

    def arms(self, profile: str, experiment: str) -> tuple[str, ...]:
        """The arms that an experiment runs, in the order of ARMS."""
        return tuple(self.experiments[profile][experiment].arms)

    def measured(self, profile: str, experiment: str) -> dict[str, tuple[str, ...]]:
        """The arms, and the models beside them, that each measure of an experiment is taken of."""
        arms, settings = self.arms(profile, experiment), self.experiments[profile][experiment]
        if isinstance(settings, ToyExperiment):
            return {"density": ("mle", *arms)}
        flows = ("mle", *(arm for arm in arms if settings.arms[arm].noise == "flow"))
        ebms = tuple(arm for arm in arms if settings.arms[arm].value_weight > 0)  # else the EBM only looks on
        return {
            "bits_per_dim": flows,
            "fid": (*flows, "dcgan"),
            "log_z": ebms,
            "log_z_control": ("planted",),
            "probe": ("random-init", *ebms, "dcgan"),
            "supervised": ("supervised",),
        }

    def write_slices(self, build: Path) -> None:
        """Write each stage's parameters as a file, only where they changed: the file is the dependency."""
        for profile in self.profiles:
            for path, content in self.slices(profile):
                target = build / profile / path
                text = json.dumps(content, indent=1, sort_keys=True) + "\n"
                if not target.exists() or target.read_text() != text:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    partial = target.with_suffix(f".{os.getpid()}.partial")
                    partial.write_text(text)
                    os.replace(partial, target)


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice (plain YAML silently keeps the last)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set = set()
        for key_node in (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # of any other YAML itself complains
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
    return resolved(read(Path(path)), str(path))


def resolved(raw: Any, where: str) -> Params:
    """All of params.yaml from its plain content.

    Raises:
        ParamsError: as `load`.
    """
    require_keys(raw, ("full", "quick", "defaults", "experiments"), where)
    require_keys(raw["defaults"], ("toy", "images"), "defaults")
    for kind, model in (("toy", ToyExperiment), ("images", ImageExperiment)):
        keys = tuple(key for key in (*model.model_fields, "joint") if key != "data")
        require_keys(raw["defaults"][kind], keys, f"defaults.{kind}", every=False)
    if not isinstance(raw["experiments"], dict):
        raise ParamsError("experiments must be a mapping of names to experiments")
    profiles = {name: check(Profile, raw[name], name) for name in ("full", "quick")}
    experiments: dict[str, dict[str, Experiment]] = {}
    for profile, chosen in profiles.items():
        for name in [*chosen.toy, *chosen.images, *chosen.overrides]:
            if name not in raw["experiments"]:
                raise ParamsError(
                    f"{profile} names the experiment '{name}', which experiments: does not have"
                    + suggestion(name, raw["experiments"])
                )
        for kind, names in (("toy", chosen.toy), ("images", chosen.images)):
            for name in names:
                if (found := kind_of(raw["experiments"][name])) not in (None, kind):
                    raise ParamsError(f"{profile}.{kind}: '{name}' belongs to {profile}.{found}, by its data.source")
        experiments[profile] = {
            name: resolve(raw, profile, name, kind)
            for kind, names in (("toy", chosen.toy), ("images", chosen.images))
            for name in names
        }
    for name, own in raw["experiments"].items():  # entries no profile lists are checked too
        if not any(name in group for group in experiments.values()):
            resolve(raw, "full", name, kind_of(own) or "images")
    return Params(profiles=profiles, experiments=experiments)


def kind_of(own: Any) -> str | None:
    """Whether an experiment's entry is of 2D densities (toy) or of images; None where it does not tell."""
    section = own.get("data") if isinstance(own, dict) else None
    source = section.get("source") if isinstance(section, dict) else None
    return "toy" if source in TOY_SOURCES else "images" if source in SOURCES else None


def read(path: Path) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, UniqueKeyLoader)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run from the repository's root") from None
    except OSError as error:
        raise ParamsError(f"{path} can't be read: {error.strerror}") from None
    except ParamsError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date as 2020-13-45
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def resolve(raw: dict[str, Any], profile: str, name: str, kind: str) -> Experiment:
    own, override = raw["experiments"][name], raw[profile]["overrides"].get(name, {})
    where = f"experiments.{name}"
    if not isinstance(own, dict) or not isinstance(name, str) or not NAME.fullmatch(name):
        raise ParamsError(
            f"{ascii(where)[1:-1]}: an experiment is a mapping, and its name text, no number: at most 64 letters "
            "(a to z), digits, - and _"
        )
    whole = merge(raw["defaults"][kind], own, override)
    shared, arms = whole.pop("joint", {}), whole.get("arms", {})
    if not isinstance(shared, dict) or not isinstance(arms, dict):
        raise ParamsError(f"{where}: joint and arms must be mappings")
    require_keys(arms, ARMS[kind], f"{where}.arms", every=False)
    for arm, settings in arms.items():
        if not isinstance(settings, dict | None):
            raise ParamsError(f"{where}.arms.{arm} must be a mapping (got {settings!r})")
    whole["arms"] = {arm: merge(shared, arms[arm] or {}) for arm in ARMS[kind] if arm in arms}
    experiment: Experiment = check(ToyExperiment if kind == "toy" else ImageExperiment, whole, where)
    return experiment


def check_slice(content: Any, stage: str) -> None:
    """Check a stage's parameters, as read from its slice.

    Raises:
        ParamsError: as `load`.
    """
    require_keys(content, SLICES[stage], f"the slice of {stage}")
    for section, settings in content.items():
        check(SECTIONS[section], settings, section)


def require_keys(mapping: Any, keys: tuple[str, ...], where: str, every: bool = True) -> None:
    """Raise ParamsError at an unknown key; where `every` key must be given, at a missing one too."""
    if not isinstance(mapping, dict):
        raise ParamsError(f"{where} must be a mapping with keys {', '.join(keys)}")
    for key in mapping:
        if key not in keys:
            raise ParamsError(f"{where}: unknown key '{key}'{suggestion(key, keys)}")
    for key in keys if every else ():
        if key not in mapping:
            raise ParamsError(f"{where}: key '{key}' is missing")


def check(model: Any, content: Any, where: str) -> Any:
    """The content as `model` (a class or a union of classes); or one ParamsError."""
    try:
        return TypeAdapter(model).validate_python(content)
    except ValidationError as error:
        # an unknown key says more than the missing one it was meant to be
        worst = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ParamsError(explain(worst, model, where)) from None


def explain(error: Any, model: Any, where: str) -> str:
    """One pydantic error as one sentence: where, what, how to mend."""
    loc = [str(part) for part in error["loc"]]
    # pydantic puts the source after `data`, as if it were a key
    keys = [part for before, part in zip([where, *loc], loc, strict=False) if before != "data" or part not in SOURCES]
    place, given = ".".join([where, *keys]), error.get("input")
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key '{keys[-1]}'{suggestion(keys[-1], field_names(model))}"
    if error["type"] == "missing":
        return f"{place}: the key is missing"
    message = re.sub("valid dictionary.*", "mapping", error["msg"].removeprefix("Value error, "))
    hint = "" if isinstance(given, dict) else f" (got {reprlib.repr(given)})"
    if isinstance(given, str) and error["type"] in ("float_type", "int_type"):
        hint += "; YAML reads it as text: write numbers without quotes, and 1.0e-4 rather than 1e-4"
    return f"{place}: {message}{hint}"


def field_names(model: Any) -> set[str]:
    """The names of all fields of a model and the models inside it."""
    whole = TypeAdapter(model).json_schema()
    return set().union(*(schema.get("properties", {}) for schema in (whole, *whole.get("$defs", {}).values())))


def suggestion(key: Any, valid: Any) -> str:
    near = difflib.get_close_matches(str(key), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; valid keys: {', '.join(sorted(map(str, valid)))}"
