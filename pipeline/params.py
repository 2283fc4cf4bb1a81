"""Reads and checks params.yaml, cuts it into a slice for each stage, and knows which runs there are.

This module needs neither torch nor data, so that `snakemake -n` is quick.
"""

import itertools
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from pipeline.catalogue import ARMS, FEATURES, HOME, MODEL, NEXT_FLOW, PLACES, SEED, STAGES
from pipeline.mistakes import ParamsError, check, require_keys, suggestion
from pipeline.schema.data import SOURCES, TOY_SOURCES
from pipeline.schema.experiment import (
    KINDS,
    SECTIONS,
    Experiment,
    ImageExperiment,
    Profile,
    Sections,
    Seeds,
    ToyExperiment,
)
from pipeline.schema.kinds import Strict

PROFILES = ("full", "small", "quick")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of an experiment: it stands in paths and in shell commands
Run = tuple[int | None, str]  # seed and arm; None and "" where an output has none


class Params(Strict):
    """All of params.yaml, resolved: `experiments[profile][name]`."""

    profiles: dict[str, Profile]
    experiments: dict[str, dict[str, Experiment]]

    def names(self, profile: str, kind: str) -> list[str]:
        """A profile's experiments of one kind, `toy` or `images`."""
        return [name for name, each in self.experiments[profile].items() if isinstance(each, KINDS[kind])]

    def seeds(self, profile: str, experiment: str) -> list[int]:
        seeds = self.profiles[profile].seeds
        return seeds.toy if isinstance(self.experiments[profile][experiment], ToyExperiment) else seeds.images

    def has(self, stage: str, profile: str, experiment: str) -> bool:
        """Whether an experiment has a stage: all of its sections and, where it needs them, labels."""
        known, row = self.experiments[profile][experiment], STAGES[stage]
        if isinstance(known, ImageExperiment) and not known.labelled:
            by_classifier = FEATURES in row.needs.values() and known.fid.features == "classifier"
            if row.labelled or by_classifier:
                return False
        return bool(row.sections) and {*type(known).model_fields, "joint"}.issuperset(row.sections)

    def models(self, stage: str, profile: str, experiment: str) -> tuple[str, ...]:
        """The arms, and the models beside them, that a stage is run on."""
        arms = self.experiments[profile][experiment].arms
        groups = {
            "arms": tuple(arms),
            "flows": ("mle", *(arm for arm in arms if arms[arm].noise == "flow")),
            "ebms": tuple(arm for arm in arms if arms[arm].value_weight > 0),  # else the EBM only looks on
        }
        return tuple(itertools.chain.from_iterable(groups.get(each, (each,)) for each in STAGES[stage].of))

    def measured(self, profile: str, experiment: str) -> dict[str, tuple[str, ...]]:
        """The models that each measure of an experiment is taken of."""
        return {name: self.models(name, profile, experiment) for name, stage in STAGES.items()
                if stage.measures and self.has(name, profile, experiment)}

    def runs(self, stage: str, profile: str, experiment: str) -> list[Run]:
        """Every seed and arm of a stage; none of one that needs another flow where there is none."""
        seeds = self.seeds(profile, experiment) if STAGES[stage].seeded else [None]
        if NEXT_FLOW in STAGES[stage].needs.values() and len(seeds) == 1 and not self.joint_flow(profile, experiment):
            return []
        return list(itertools.product(seeds, self.models(stage, profile, experiment) or [""]))

    def joint_flow(self, profile: str, experiment: str) -> bool:
        """Whether there is an arm `joint` that trains its flow."""
        arm = self.experiments[profile][experiment].arms.get("joint")
        return arm is not None and arm.noise == "flow"

    def processes(self, stage: str, profile: str, experiment: str) -> list[list[Run]]:
        """The runs of a stage that one process makes: of points all, of images a seed's where the profile says so."""
        row, toy = STAGES[stage], isinstance(self.experiments[profile][experiment], ToyExperiment)
        shares = row.together if toy else row.seeded and self.profiles[profile].together
        if not shares or not self.has(stage, profile, experiment):
            return []
        runs = self.runs(stage, profile, experiment)
        return [runs] if toy else [list(each) for _, each in itertools.groupby(runs, key=lambda run: run[0])]

    def place(self, pattern: str, profile: str, experiment: str, seed: int | None = None, arm: str = "") -> str:
        """A path of the catalogue, of one run; "" where its model has none."""
        if pattern == MODEL:
            pattern = ARMS[arm].model
        elif pattern == FEATURES:
            fid = getattr(self.experiments[profile][experiment], "fid", None)
            pattern = PLACES["inception" if fid and fid.features == "inception" else "classifier"]
        elif pattern == NEXT_FLOW:  # after the last seed comes the first; a seed alone has its jointly trained flow
            seeds = self.seeds(profile, experiment)
            after = seeds.index(seeds[0] if seed is None else seed) + 1
            pattern, seed, arm = PLACES["joint" if len(seeds) == 1 else "pretrain"], seeds[after % len(seeds)], "joint"
        return pattern.format(profile=profile, experiment=experiment, seed=seed, arm=arm)

    def inputs(
        self, stage: str, profile: str = "", experiment: str = "", seed: int | None = None, arm: str = ""
    ) -> dict[str, str]:
        """{flag: path} of what one run of a stage reads; a stage of no experiment reads nothing."""
        paths = {flag: self.place(pattern, profile, experiment, seed, arm)
                 for flag, pattern in STAGES[stage].needs.items()}
        if stage == "joint" and not self.experiments[profile][experiment].arms[arm].needs_flow:
            del paths["flow"]
        return {flag: path for flag, path in paths.items() if path}

    def outputs(self, stage: str, profile: str, experiment: str, seed: int | None = None, arm: str = "") -> list[str]:
        """What one run of a stage writes, the output first."""
        return [self.place(path, profile, experiment, seed, arm) for path in STAGES[stage].outputs]

    def flags(
        self, stage: str, profile: str = "", experiment: str = "", seed: int | None = None, arm: str = ""
    ) -> str:
        """The command line of one run, but for its output."""
        run, row = (profile, experiment, seed, arm), STAGES[stage]
        made = {"params": self.place(row.slice, *run)} if row.sections else {}
        return command_line(stage, made | self.inputs(stage, *run), [seed] if row.seeded else [])

    def flags_of_all(self, stage: str, profile: str, experiment: str, runs: list[Run]) -> str:
        """The command line of a process that makes all of these runs; it puts in {seed} and {arm} itself."""
        row, home = STAGES[stage], HOME.format(profile=profile, experiment=experiment)
        law = {"params": row.slice if row.sections else "", **row.needs, "out": row.out}
        paths = {flag: path.replace(MODEL, SEED + MODEL) if MODEL in path or "{seed}" in path or "{arm}" in path
                 else self.place(path, profile, experiment, runs[0][0]) for flag, path in law.items() if path}
        seeds, arms = (list(dict.fromkeys(each)) for each in zip(*runs, strict=True))
        return command_line(stage, {flag: path.replace(HOME, home) for flag, path in paths.items()}, seeds,
                            [arm for arm in arms if arm])

    def scores(self, profile: str, experiment: str) -> list[str]:
        """Every score file of an experiment, and its samples, which figures show."""
        stages = [*self.measured(profile, experiment), *(["sample"] if self.has("sample", profile, experiment) else [])]
        return [self.outputs(stage, profile, experiment, *run)[0] for stage in stages
                for run in self.runs(stage, profile, experiment)]

    def slices(self, profile: str, experiment: str) -> dict[str, str]:
        """{path: text} of the slice of every stage of an experiment, and of every arm."""
        found, settings = {}, self.experiments[profile][experiment]
        for name in [name for name in STAGES if self.has(name, profile, experiment)]:
            for arm in settings.arms if "joint" in STAGES[name].sections else [""]:
                sections = {each: settings.arms[arm] if each == "joint" else getattr(settings, each)
                            for each in STAGES[name].sections}
                content = {each: section.model_dump() for each, section in sections.items()}
                path = self.place(STAGES[name].slice, profile, experiment, arm=arm)
                found[path] = json.dumps(content, indent=1, sort_keys=True) + "\n"
        return found


def command_line(stage: str, paths: dict[str, str], seeds: Sequence[int | None], arms: Sequence[str] = ()) -> str:
    """The words after `fce`, from {flag: path}."""
    lists = {"seed": seeds, "arm": arms}
    return " ".join([stage, *(f"--{flag} '{path}'" for flag, path in paths.items()),
                     *(f"--{flag} {' '.join(map(str, each))}" for flag, each in lists.items() if each)])


def read_slice(text: str | bytes, stage: str) -> Sections:
    """A stage's parameters, checked.

    Raises:
        ParamsError: as `load`.
        ValueError: it is no JSON.
    """
    content = json.loads(text)
    require_keys(content, STAGES[stage].sections, f"the slice of {stage}")
    return Sections.model_construct(**{name: check(SECTIONS[name], given, name) for name, given in content.items()})


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


def parse(text: Any) -> Any:
    """YAML 1.2, as plain content; a text or an open file."""
    return YAML(typ="safe", pure=True).load(text)


def parse_if_whole(text: str) -> Any:
    """As `parse`; nothing of a text that is no YAML."""
    with suppress(YAMLError, ValueError):
        return parse(text)
    return None


def read(path: Path) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return parse(file)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run from the repository's root") from None
    except OSError as error:
        raise ParamsError(f"{path} can't be read: {error.strerror}") from None
    except DuplicateKeyError as error:
        key = re.search(r'found duplicate key "(.*?)" with', str(error), re.DOTALL)
        raise ParamsError(f"{path}, line {error.problem_mark.line + 1}: key '{key[1] if key else ''}' is given twice"
                          ) from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date as 2020-13-45
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def resolved(raw: Any, where: str) -> Params:
    """All of params.yaml from its plain content.

    Raises:
        ParamsError: as `load`.
    """
    require_keys(raw, (*PROFILES, "defaults", "experiments"), where)
    require_keys(raw["defaults"], tuple(KINDS), "defaults")
    for kind, model in KINDS.items():
        keys = tuple(key for key in (*model.model_fields, "joint") if key != "data")
        require_keys(raw["defaults"][kind], keys, f"defaults.{kind}", every=False)
    if not isinstance(raw["experiments"], dict):
        raise ParamsError("experiments must be a mapping of names to experiments")
    profiles = {name: check(TypeAdapter(Profile), raw[name], name) for name in PROFILES}
    experiments: dict[str, dict[str, Experiment]] = {}
    for profile, chosen in profiles.items():
        for name in [*chosen.experiments, *chosen.overrides]:
            if name not in raw["experiments"]:
                raise ParamsError(f"{profile} names the experiment '{name}', which experiments: does not have"
                                  + suggestion(name, raw["experiments"]))
        experiments[profile] = {name: resolve(raw, profile, name) for name in chosen.experiments}
    for name in raw["experiments"]:  # what no profile lists, and what every profile overrides, is checked too
        resolve(raw | {"full": {"overrides": {}}}, "full", name)
    check_defaults(raw, experiments)
    return Params(profiles=profiles, experiments=experiments)


def check_defaults(raw: dict[str, Any], experiments: dict[str, dict[str, Experiment]]) -> None:
    """Check each section of the defaults by itself, even if every experiment has its own."""
    for each in itertools.chain.from_iterable(group.values() for group in experiments.values()):
        kind = "toy" if isinstance(each, ToyExperiment) else "images"
        own = each.model_dump()
        for section, content in raw["defaults"][kind].items():
            if section != "arms":
                known = next(iter(own["arms"].values())) if section == "joint" else own[section]
                check(SECTIONS[section], merge(known, content), f"defaults.{kind}.{section}")


def alone(raw: dict[str, Any], profile: str, experiment: str, seed: int, overrides: dict[str, Any]) -> Params:
    """A profile of its own with one experiment and one seed, e.g. of a benchmark, from params.yaml's plain content."""
    own = Profile(seeds=Seeds(toy=[seed], images=[seed]), experiments=[experiment], overrides={experiment: overrides})
    resolved_one = resolve(raw | {profile: {"overrides": {experiment: overrides}}}, profile, experiment)
    return Params(profiles={profile: own}, experiments={profile: {experiment: resolved_one}})


def kind_of(own: Any) -> str:
    """Whether an experiment's entry is of 2D densities (toy) or of images, which it is where it does not tell."""
    section = own.get("data") if isinstance(own, dict) else None
    return "toy" if isinstance(section, dict) and section.get("source") in TOY_SOURCES else "images"


def resolve(raw: dict[str, Any], profile: str, name: str) -> Experiment:
    own, override = raw["experiments"][name], raw[profile]["overrides"].get(name, {})
    where, kind = f"experiments.{name}", kind_of(own)
    if not isinstance(own, dict) or not isinstance(name, str) or not NAME.fullmatch(name):
        raise ParamsError(f"{ascii(where)[1:-1]}: an experiment is a mapping, and its name text, no number: at most "
                          "64 letters (a to z), digits, - and _")
    whole = merge(raw["defaults"][kind], own, override)
    shared, arms = whole.pop("joint", {}), whole.get("arms", {})
    if not isinstance(shared, dict) or not isinstance(arms, dict):
        raise ParamsError(f"{where}: joint and arms must be mappings")
    if isinstance(source := whole.get("data"), dict) and source.get("source") not in SOURCES:
        check(SECTIONS["data"], source, f"{where}.data")  # before the arms, whose kind follows from it
    known = [arm for arm in ARMS if kind in ARMS[arm].kinds]
    require_keys(arms, known, f"{where}.arms", every=False)
    for arm, settings in arms.items():
        if not isinstance(settings, dict | None):
            raise ParamsError(f"{where}.arms.{arm} must be a mapping (got {settings!r})")
    whole["arms"] = {arm: merge(shared, arms[arm] or {}) for arm in known if arm in arms}
    experiment: Experiment = check(TypeAdapter(KINDS[kind]), whole, where)
    return experiment
