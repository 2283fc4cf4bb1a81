"""Check params.yaml; --explain KEY: where a value comes from, and which of the places that name it is in force.

A value is the last of what defaults, the experiment's entry, the profile's overrides and, in a training's section, the
arm say. What is set in an earlier place changes nothing: such a change since the last commit is warned of.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import errors_in_one_line
from pipeline.mistakes import ParamsError, suggestion
from pipeline.params import PROFILES, kind_of, parse_if_whole, read, resolved
from pipeline.provenance import git

Keys = tuple[str, ...]
MISSING = object()


def at(content: Any, keys: Keys) -> Any:
    """The value at these keys; MISSING where there is none."""
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            return MISSING
        content = content[key]
    return content


def places(raw: dict[str, Any], profile: str, name: str, keys: Keys) -> list[Keys]:
    """Where an experiment's value is set, for a profile; the last one is in force."""
    kind = kind_of(raw["experiments"][name])
    found = [("defaults", kind, *keys), ("experiments", name, *keys), (profile, "overrides", name, *keys)]
    return [place for place in found if at(raw, place) is not MISSING]


def own_of_arms(raw: dict[str, Any], profile: str, name: str, keys: Keys) -> dict[str, list[Keys]]:
    """{arm: where it sets for itself what its experiment's `joint` section has at these keys}."""
    if keys[:1] != ("joint",):
        return {}
    layers = (("defaults", kind_of(raw["experiments"][name])), ("experiments", name), (profile, "overrides", name))
    given = [at(raw, (*layer, "arms")) for layer in layers]
    arms = dict.fromkeys(arm for each in given if isinstance(each, dict) for arm in each)
    return {arm: places(raw, profile, name, ("arms", arm, *keys[1:])) for arm in arms}


def asked(raw: dict[str, Any], words: Keys) -> list[tuple[str, str, Keys]]:
    """(profile, experiment, keys) of every value that a place in params.yaml speaks of.

    Raises:
        ParamsError: it names no experiment.
    """
    profiles: tuple[str, ...] = PROFILES
    names = tuple(raw["experiments"])
    if words[0] == "defaults" and len(words) > 2:
        names, words = tuple(name for name in names if kind_of(raw["experiments"][name]) == words[1]), words[2:]
    else:
        if words[0] in PROFILES and words[1:2] == ("overrides",):
            profiles, words = (words[0],), words[2:]
        elif words[0] == "experiments":
            words = words[1:]
        given, *rest = words or ("",)
        if given not in names:
            raise ParamsError(f"'{given}' is no experiment{suggestion(given, names)}")
        names, words = (given,), tuple(rest)
    return [(profile, name, words) for profile in profiles for name in names if name in raw[profile]["experiments"]]


def one_by_one(raw: dict[str, Any], words: Keys) -> Iterator[tuple[str, str, Keys]]:
    """As `asked`, but of a section each of its values."""
    for profile, name, keys in asked(raw, words):
        set_at = places(raw, profile, name, keys)
        for below in dict.fromkeys(below for place in set_at for below, _ in leaves(at(raw, place))) or [()]:
            yield profile, name, (*keys, *below)


def explain(raw: dict[str, Any], key: str) -> str:
    """Every place that sets a value, or each value of a section, for each profile and experiment that has it."""
    lines = []
    for profile, name, keys in one_by_one(raw, tuple(key.split("."))):
        found, own = places(raw, profile, name, keys), own_of_arms(raw, profile, name, keys)
        if keys[:1] == ("arms",):  # an arm begins as the section `joint`
            found = places(raw, profile, name, ("joint", *keys[2:])) + found
        own = {arm: where for arm, where in own.items() if where}
        if found or own:
            lines.append(f"{profile}, {name}.{'.'.join(keys)}:")
        for place in found:
            force = "in force" + (f", but for {', '.join(own)}" if own else "") if place == found[-1] else "hidden"
            lines.append(f"  {'.'.join(place):<60} {at(raw, place)}   ({force})")
        lines += [f"  {'.'.join(where[-1]):<60} {at(raw, where[-1])}   (of {arm})" for arm, where in own.items()]
    if not lines:
        raise ParamsError(f"{key}: no profile has it; name a value as params.yaml has it, "
                          "e.g. experiments.digits.joint.ebm_updates")
    return "\n".join(lines) + "\n"


def covers(raw: dict[str, Any], keys: Keys) -> list[str]:
    """What hides the value at these keys everywhere; nothing where it is in force, or no profile asks for it."""
    over: list[Keys] = []
    for profile, name, rest in asked(raw, keys):
        found, arms = places(raw, profile, name, rest), own_of_arms(raw, profile, name, rest)
        own = [where[-1] for where in arms.values() if where]
        if found[-1] == keys and (not own or len(own) < len(arms)):
            return []
        over.append(found[-1] if found[-1] != keys else own[0])
    return list(dict.fromkeys(".".join(place) for place in over))


def leaves(content: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, (*keys, str(key)))
    else:
        yield keys, content


def hidden(raw: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """A sentence for each value that was changed, and changes nothing since other places hide it."""
    said = []
    for keys, value in leaves(raw):
        sets = keys[0] in ("defaults", "experiments") or keys[1:2] == ("overrides",)
        if sets and value != at(before, keys) and (over := covers(raw, keys)):
            key = ".".join(keys)
            said.append(f"params.yaml: {key} is now {value}, and changes nothing: {', '.join(over)} "
                        f"{'hides' if len(over) == 1 else 'hide'} it (fce params --explain {key})")
    return said


def changed_in_vain(path: Path) -> list[str]:
    """As `hidden`, of the changes since the last commit; nothing where there is none."""
    old = git("show", f"HEAD:./{path.name}")
    if not old or old == path.read_text(encoding="utf-8").strip():
        return []
    before = parse_if_whole(old)
    return hidden(read(path), before) if isinstance(before, dict) else []


@errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(prog="fce params", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--explain", metavar="KEY", help="e.g. experiments.digits.joint.ebm_updates")
    key, path = flags.parse_args(argv).explain, Path("params.yaml")
    raw = read(path)
    known = resolved(raw, str(path))
    if key:
        sys.stdout.write(explain(raw, key))
        return 0
    for profile, experiments in known.experiments.items():
        sys.stdout.write(f"{profile}: {', '.join(experiments)}\n")
    sys.stdout.writelines(f"warning: {line}\n" for line in changed_in_vain(path))
    return 0
