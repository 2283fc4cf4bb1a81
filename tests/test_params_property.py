"""Whatever is done to params.yaml, it is refused with the key's name, or its stages run; nothing else happens."""

import json
import string
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tiny import ROOT, read_yaml, run_stage

from pipeline import catalogue
from pipeline.files import digest
from pipeline.mistakes import check
from pipeline.params import ParamsError, load, resolved
from pipeline.schema.experiment import ImageExperiment, ToyExperiment

TEXT = (ROOT / "params.yaml").read_text()
# without anchors: one place, one change
SHIPPED: dict[str, Any] = json.loads(json.dumps(read_yaml(ROOT / "params.yaml")))
REPEATABLE = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
ODD = [
    *(None, True, False, "", "1e-4", "text", "../x", "$(touch x)", [], {}, [None], [[]], [1, 1], {"a": 1}),
    *(
        -1,
        0,
        1,
        2,
        3,
        7,
        17,
        100,
        5000,
        10**6,
        10**12,
        10**40,
        -0.5,
        0.0,
        1e-300,
        1e-3,
        0.3,
        0.999,
        1.0,
        1e3,
        1e9,
        1e300,
    ),
    *(float("inf"), float("nan")),
]
Place = tuple[Any, ...]


def paths(content: Any, above: Place = ()) -> list[Place]:
    """The place of every value."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in inside for place in ((*above, key), *paths(value, (*above, key)))]


UNCHANGED = resolved(SHIPPED, "params.yaml")
PATHS = paths(SHIPPED)
KEYS = [path for path in PATHS if isinstance(path[-1], str)]


def at(content: Any, path: Place) -> Any:
    for key in path:
        content = content[key]
    return content


@st.composite
def mutations(draw: st.DrawFn) -> tuple[dict[str, Any], set[str]]:
    """The shipped content with one thing changed, and the words of which a refusal must name one."""
    content = json.loads(json.dumps(SHIPPED))
    kind = draw(st.sampled_from(["drop", "misspell", "set", "set", "scale", "scale", "scale", "nest", "swap"]))
    path = draw(st.sampled_from(KEYS if kind in ("drop", "misspell") else PATHS))
    parent, key = at(content, path[:-1]), path[-1]
    words = {str(part) for part in path}
    if kind == "drop":
        del parent[key]
    elif kind == "misspell":
        i, letter = draw(st.integers(0, len(key) - 1)), draw(st.sampled_from(string.ascii_lowercase + "_ .$é"))
        new = key[:i] + letter + key[i + 1 :]
        parent[new] = parent.pop(key)
        words.add(ascii(new)[1:-1])
    elif kind == "set":
        parent[key] = draw(st.sampled_from(ODD))
    elif kind == "scale" and isinstance(parent[key], int | float):
        parent[key] = type(parent[key])(parent[key] * draw(st.sampled_from([-1, 0, 1e-3, 0.1, 0.5, 2, 10, 1e3, 1e6])))
    elif kind == "nest":
        parent[key] = {str(key): parent[key]}
    else:
        other = draw(st.sampled_from([p for p in PATHS if p[: len(path)] != path and path[: len(p)] != p]))
        words |= {str(part) for part in other}
        far = at(content, other[:-1])
        parent[key], far[other[-1]] = far[other[-1]], parent[key]
    return content, words


SMALL = {  # sizes that only cost time, at most; all the rest stays as it was drawn
    "flow": {"steps": 1, "width": 4},
    "pretrain": {"moments": 1, "images": 10, "steps": 2, "batch": 8, "validate_every": 2},
    "joint": {"moments": 1, "images": 10,
              "batch": 8, "noise_ratio": 2, "ebm_updates": 2, "warm_start": 2, "head_start": 2, "ebm_per_round": 2,
              "flow_per_round": 2, "log_every": 1},
    "density": {"plot_points": 4, "points": 40},
    "dcgan": {"latent": 4, "batch": 8, "widths": 4, "updates": 2},
    "energy": {"widths": 4},
    "classifier": {"epochs": 1, "width": 4, "features": 6, "batch": 2000},
    "sample": {"count": 150, "batch": 150},
    "bits_per_dim": {"draws": 2},
    "log_z": {"samples": 256, "chains": 4, "temperatures": 2, "leapfrog": 2},
    "fid": {"points": 5, "subsets": 4, "images": 150, "draws": 10},
    "probe": {"draws": 1},
    "supervised": {"updates": 2, "epochs": 1, "validations": 2, "batch": 16},
    "data": {"components": 8, "modes": 8, "squares": 8, "count": 8, "arms": 8},
}  # fmt: skip


def shrunk(content: Any, limits: dict[str, int]) -> Any:
    def small(key: str, value: Any) -> Any:
        if isinstance(value, list) and key in limits:
            return [min(each, limits[key]) for each in value]
        if isinstance(value, dict):
            return shrunk(value, limits)
        return min(value, limits[key]) if key in limits else value[:2] if isinstance(value, list) else value

    return {key: small(key, value) for key, value in content.items()}


def small(experiment: ToyExperiment | ImageExperiment) -> ToyExperiment | ImageExperiment:
    whole = experiment.model_dump()
    toy = isinstance(experiment, ToyExperiment)
    if not toy:  # neither archives nor Inception's weights are at hand
        whole["data"] = (
            whole["data"] if whole["data"]["source"] == "digits" else SHIPPED["experiments"]["digits"]["data"]
        )
        whole["fid"]["features"] = "classifier"
        whole["probe"]["validation"] = 0 if whole["data"]["validation"] else 50
    else:
        whole["data"] |= {part: min(whole["data"][part], 50) for part in ("validation", "test")}
    arm = next(arm for arm in catalogue.ARMS if arm in whole["arms"])
    arms = {arm: shrunk(whole["arms"][arm], SMALL["joint"])}
    rest = {name: shrunk(whole[name], SMALL[name]) for name in whole if name != "arms"}
    return check(TypeAdapter(type(experiment)), {**rest, "arms": arms}, "the small one")


MAKERS = {  # of a stage's inputs
    "data": "data", "flow": "pretrain", "samples": "sample", "features": "classifier", "planted": "pretrain",
}
MODELS = {"trajectory": "pretrain",
          "density": "joint", "sample": "pretrain", "bits_per_dim": "pretrain", "log_z": "joint", "probe": "joint"}
STAGES = {name: stage for name, stage in catalogue.STAGES.items() if stage.sections and name != "log_z_control"}


@dataclass
class Dry:
    """The stages of small experiments, each run once for what goes into it."""

    root: Path

    def run(self, experiment: ToyExperiment | ImageExperiment) -> None:
        whole = experiment.model_dump()
        whole["joint"] = next(iter(whole["arms"].values()))
        for stage in STAGES:
            if set(STAGES[stage].sections) <= set(whole):
                self.output(stage, whole)

    def output(self, stage: str, whole: dict[str, Any]) -> Path | None:
        """The stage's output; None where it, or one before it, ended with a message."""
        row = STAGES[stage]
        inputs = {flag: self.output(MODELS[stage] if flag == "model" else MAKERS[flag], whole) for flag in row.needs}
        if None in inputs.values():
            return None
        content = {section: whole[section] for section in row.sections}
        folder = self.root / digest([stage, content, {flag: str(path) for flag, path in inputs.items()}])
        out = folder / Path(row.out).name
        if not (folder / "ended").exists():
            folder.mkdir(exist_ok=True)
            (folder / "slice.json").write_text(json.dumps(content))
            flags = [word for flag, path in inputs.items() for word in (f"--{flag}", path)]
            flags += ["--seed", "0"] if row.seeded else []
            with redirect_stderr(StringIO()) as said:
                code = run_stage(stage, "--params", folder / "slice.json", *flags, "--out", out, "--device", "cpu",
                                 "--threads", "1")
            assert code == 0 or not out.exists()
            assert "Traceback" not in said.getvalue(), said.getvalue()
            (folder / "ended").touch()
        return out if out.exists() else None


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    return Dry(tmp_path_factory.mktemp("dry"))


@settings(max_examples=400, **REPEATABLE)
@given(mutations())
def test_a_changed_file_is_refused_by_name_or_its_stages_run(dry, mutation):
    content, words = mutation
    try:
        params = resolved(content, "params.yaml")
    except ParamsError as error:
        assert any(word in str(error) for word in words), (error, words)
        return
    for profile, experiments in params.experiments.items():
        for name, experiment in experiments.items():
            assert params.slices(profile, name) and params.measured(profile, name)
            if experiment != UNCHANGED.experiments[profile].get(name):
                dry.run(small(experiment))
                return  # one tells enough: a default changes all of a kind


@settings(max_examples=150, **REPEATABLE)
@given(st.data())
def test_a_slip_of_the_keyboard_is_refused_or_harmless(tmp_path_factory, data):
    at, length = data.draw(st.integers(0, len(TEXT))), data.draw(st.integers(0, 3))
    typed = data.draw(
        st.sampled_from(["", " ", "\n", "\t", ":", "-", "{", "]", "'", '"', "&a ", "*a", "!!x ", "#", "%", "\x00", "é"])
    )
    path = tmp_path_factory.getbasetemp() / "slip.yaml"
    path.write_text(TEXT[:at] + typed + TEXT[at + length :], encoding="utf-8")
    with suppress(ParamsError):
        load(path)
