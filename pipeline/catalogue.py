"""What there is, each in one list: the stages, the arms and the scores, which stand in catalogue.toml.

The Snakefile makes its rules from these lists, params.yaml is checked against them, the command line, the checks of
inputs, the report and the tests read them.
"""

import ast
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
CHECKS = "fce.stages.inputs"  # its `check(job)` looks at what a stage is given, before it starts
# Beside the stages; modules with `main(argv)`
COMMANDS = {"report": "reports/build.py", "compare": "reports/compare.py", "verify": "eval/verify.py",
            "send": "pipeline/mirror.py", "params": "pipeline/explain.py", "doctor": "pipeline/doctor.py"}

PICTURES = "reports.pictures"  # its `of(stage, out)` draws what a stage made, for MLflow

# The path law: where everything lies, below the checkout
HOME = "build/{profile}/{experiment}/"
SEED = HOME + "seed-{seed}/"
PLACES = {name: row["out"] for name, row in TABLES["stages"].items()}
MODEL, FEATURES, NEXT_FLOW = "{model}", "{features}", "{next_flow}"  # places that a run's arm, data and seed decide
SPECIAL = {"model": MODEL, "features": FEATURES, "next pretrain": NEXT_FLOW, "": ""}


@dataclass(frozen=True)
class Stage:
    """One stage: a module with `run`, which makes one output from some inputs and its sections of params.yaml.

    Attributes:
        file: its module; the first line of its docstring is what `fce --help` says.
        out: its output.
        needs: {flag: input}; one of a model that an arm does not have is left out.
        sections: of params.yaml, which make its slice; an experiment without one of them does not have the stage.
        of: the models it is run on: `flows`, `ebms` and `arms` are those of an experiment, other names are arms.
        takes: {flag: the stages whose checkpoints it takes there}.
        optional: flags that some runs are without.
        beside: endings of what it writes beside its output.
        first: whether it goes before measures, which fill the gaps.
        together: whether `run` takes all seeds and arms at once; else it is called for each.
        labelled: whether it needs the images' labels.
        resumes: whether it keeps its state, and goes on from it.
        shared: whether what it trains can be compiled, and shared by several processes.
        compiles: whether it is compiled on a GPU without being asked, where it trains on images.
        group: of its numbers in MLflow; by default its own name.
        memory: what it takes for each MB of its inputs, in MB, beside a GB.
    """

    file: str
    out: str
    needs: dict[str, str] = field(default_factory=dict)
    sections: Sequence[str] = ()
    of: Sequence[str] = ()
    takes: dict[str, Sequence[str]] = field(default_factory=dict)
    optional: Sequence[str] = ()
    beside: Sequence[str] = ()
    first: bool = False
    together: bool = False
    labelled: bool = False
    resumes: bool = False
    shared: bool = False
    compiles: bool = False
    group: str = ""
    memory: int = 6

    @property
    def measures(self) -> bool:
        """Whether its output is a file of scores."""
        return self.out.endswith(".json")

    @property
    def seeded(self) -> bool:
        return "{seed}" in self.out

    @property
    def outputs(self) -> list[str]:
        """All that it writes, the output first."""
        return [self.out, *(str(Path(self.out).with_suffix(f".{ending}")) for ending in self.beside)]

    @property
    def slice(self) -> str:
        """Where its parameters lie; arms differ in those of `joint`."""
        return HOME + f"params/{'joint/{arm}' if 'joint' in self.sections else Path(self.file).stem}.json"

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".")


class Arm(NamedTuple):
    """How a model was trained.

    Attributes:
        words: in tables.
        model: its checkpoint, by default that of `joint`; "" where it has none.
        kinds: of experiments that can have it in their `arms:`; none for a model beside them.
        colour: in figures, of seaborn's colour-blind palette.
        dash: in figures, for grey prints; () is a solid line.
        legend: in figures, where it says more than in tables.
    """

    words: str
    model: str
    kinds: Sequence[str] = ()
    colour: int = 7
    dash: Sequence[float] = ()
    legend: str = ""


class Caution(NamedTuple):
    """What to say of a number above or below a limit."""

    words: str
    above: float = math.inf
    below: float = -math.inf

    def meets(self, value: float) -> bool:
        return value > self.above or value < self.below


class Score(NamedTuple):
    """One kind of number.

    Attributes:
        heading: its column's.
        unit: of its values.
        better: `lower` or `higher`; "" where neither is.
        table: where the report shows it; "" for nowhere but in the score files.
        column: the score in whose column it stands, with `row` for its row: baselines; else itself.
        caution: what a reader is warned of where the number in the table is past a limit.
    """

    heading: str
    unit: str
    better: str = ""
    table: str = "results"
    column: str = ""
    row: str = ""
    caution: Caution | None = None


def stage_of(row: dict[str, Any]) -> Stage:
    return Stage(**row | {"needs": {flag: place(name) for flag, name in row.get("needs", {}).items()}})


def place(name: str) -> str:
    """Of a stage's output, by the stage's name, or of what a run decides."""
    return SPECIAL[name] if name in SPECIAL else PLACES[name]


def score_of(row: dict[str, Any]) -> Score:
    """A row has the heading, unit and table of the score in whose column it stands."""
    base = TABLES["scores"].get(row.get("column", ""), {})
    caution = Caution(**row["caution"]) if "caution" in row else None
    return Score(**{key: base[key] for key in ("heading", "unit", "table") if key in base} | row | {"caution": caution})


PLAIN = ("flow", "generator", "features", "network")  # a run of MLflow's is such a model
SHORT = {"frechet_inception_distance": "fid", "kernel_inception_distance": "kid", "frechet_distance": "fd",
         "kernel_distance": "kd"}
# What Figure 1, Tables 1 and 2 and Figure 4 are about, as MLflow and DVC name it
HEADLINES = ("density/kl", "density/ebm_kl", "density/smallest_mode_mass", "samples/fid", "samples/fd",
             "test/bits_per_dim", "test/ebm_bits_per_dim", "log_z/ebm_bits_per_dim_certificate",
             "features/accuracy_100", "features/accuracy_1000")

STAGES = {name: stage_of(row) for name, row in TABLES["stages"].items()}
ARMS = {name: Arm(**row | {"model": place(row.get("model", "joint"))}) for name, row in TABLES["arms"].items()}
SCORES = {name: score_of(row) for name, row in TABLES["scores"].items()}


def score(name: str) -> Score:
    """What a score of this name is; raises ValueError, with the cure, where no list knows it."""
    found = SCORES.get(name) or SCORES.get(re.sub(r"\d+$", "*", name))
    if found is None:
        raise ValueError(f"the score '{name}' is in no list; add it to [scores] in pipeline/catalogue.toml")
    return found


def metric(stage: str, key: str) -> str:
    """What MLflow and DVC call a number of a stage's record, `<group>/<name>`.

    A score of Glow's, or of the samples or features, stands there by its name, others with what was measured before it;
    a number of a curve by its own, with the stage as its group.
    """
    model, *rest = key.split("/")
    if model == "system":
        return key
    name, group = "_".join(rest), STAGES[stage].group or stage
    if not rest:
        return f"{group}/{key}"
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return f"{group}/{name if model in PLAIN else f'{model}_{name}'}"


@cache
def first_line(file: str) -> str:
    """The first sentence of a module's docstring, which need not be imported for it."""
    text = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
