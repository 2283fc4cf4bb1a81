"""What there is, each in one list: the stages, the arms and the scores.

The Snakefile makes its rules from these lists, params.yaml is checked against them, the command line, the checks of
inputs, the report and the tests read them. A new measure is a row of STAGES and its scores in SCORES; a new arm is a
row of ARMS.
"""

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CHECKS = "fce.stages.inputs"  # its `check(job)` looks at what a stage is given, before it starts

# The path law: where everything lies, below the checkout
HOME = "build/{profile}/{experiment}/"
SEED = HOME + "seed-{seed}/"
ARM = SEED + "{arm}/"
DATA, FLOW, DCGAN, CLASSIFIER = HOME + "data.npz", SEED + "pretrain.pt", SEED + "dcgan/dcgan.pt", HOME + "classifier.pt"
JOINT, SAMPLES, INCEPTION = ARM + "joint.pt", ARM + "samples.npz", "build/downloads/inception.pth"
MODEL = "{model}"  # the checkpoint of an arm: ARMS says which
FEATURES = "{features}"  # what a Fréchet distance looks through: INCEPTION or CLASSIFIER, by `fid.features`
NEXT_FLOW = "{next_flow}"  # the flow of the profile's next seed


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
    """

    file: str
    out: str
    needs: dict[str, str] = field(default_factory=dict)
    sections: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    takes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    first: bool = False
    together: bool = False
    labelled: bool = False
    resumes: bool = False
    shared: bool = False

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


IMAGES, ANY_MODEL = {"data": DATA}, {"data": DATA, "model": MODEL}
STAGES = {
    "data": Stage("fce/stages/data.py", DATA, sections=("data",), first=True),
    "pretrain": Stage("fce/stages/pretrain.py", FLOW, IMAGES, ("flow", "pretrain", "data"), beside=("csv",), first=True,
                      together=True, resumes=True, shared=True),
    "joint": Stage("fce/stages/joint.py", JOINT, {"data": DATA, "flow": FLOW}, ("flow", "energy", "joint", "data"),
                   of=("arms",), takes={"flow": ("pretrain",)}, optional=("flow",), beside=("csv",), first=True,
                   together=True, resumes=True, shared=True),
    "dcgan": Stage("fce/stages/dcgan.py", DCGAN, IMAGES, ("dcgan",), resumes=True),
    "classifier": Stage("eval/classifier.py", CLASSIFIER, IMAGES, ("classifier",), labelled=True),
    "inception": Stage("eval/inception.py", INCEPTION),
    "sample": Stage("eval/sample.py", SAMPLES, ANY_MODEL, ("sample",), of=("flows", "dcgan"),
                    takes={"model": ("pretrain", "joint", "dcgan")}),
    "density": Stage("eval/density.py", ARM + "density.json", ANY_MODEL, ("density", "data"), of=("mle", "arms"),
                     takes={"model": ("pretrain", "joint")}, beside=("npz",), together=True),
    "fid": Stage("eval/fid.py", ARM + "fid.json", {"data": DATA, "samples": SAMPLES, "features": FEATURES}, ("fid",),
                 of=("flows", "dcgan"), takes={"features": ("classifier",)}),
    "bits_per_dim": Stage("eval/bits_per_dim.py", ARM + "bits_per_dim.json", ANY_MODEL, ("bits_per_dim",),
                          of=("flows",), takes={"model": ("pretrain", "joint")}),
    "log_z": Stage("eval/log_z.py", ARM + "log_z.json", ANY_MODEL, ("log_z", "bits_per_dim"), of=("ebms",),
                   takes={"model": ("joint",)}, resumes=True),
    "log_z_control": Stage("eval/log_z_control.py", ARM + "log_z_control.json", {"flow": FLOW, "planted": NEXT_FLOW},
                           ("log_z",), of=("planted",), takes={"flow": ("pretrain",), "planted": ("pretrain",)},
                           resumes=True),
    "probe": Stage("eval/probe.py", ARM + "probe.json", ANY_MODEL, ("probe", "energy"),
                   of=("random-init", "ebms", "dcgan"), takes={"model": ("joint", "dcgan")}, optional=("model",),
                   labelled=True),
    "supervised": Stage("eval/supervised.py", ARM + "supervised.json", IMAGES, ("supervised", "probe", "energy"),
                        of=("supervised",), labelled=True, resumes=True),
}
COMMANDS = {  # what else the command line does; modules with `main(argv)`
    "report": "reports/build.py",
    "send": "pipeline/track.py",
}


class Arm(NamedTuple):
    """How a model was trained.

    Attributes:
        words: in tables.
        kinds: of experiments that can have it in their `arms:`; none for a model beside them.
        model: its checkpoint; "" where it has none.
        colour: in figures, of seaborn's colour-blind palette.
        dash: in figures, for grey prints; () is a solid line.
        legend: in figures, where it says more than in tables.
    """

    words: str
    kinds: tuple[str, ...] = ()
    model: str = JOINT
    colour: int = 7
    dash: tuple[float, ...] = ()
    legend: str = ""


BOTH, ONLY_IMAGES = ("toy", "images"), ("images",)
ARMS = {
    "mle": Arm("MLE", model=FLOW, colour=7),
    "joint": Arm("ours", BOTH, colour=3, legend="ours, pre-trained start"),
    "joint-from-random": Arm("ours, random start", ("toy",), colour=0, dash=(4, 1.5)),
    "joint-long": Arm("ours, longer", ONLY_IMAGES, colour=6, dash=(7, 1, 2, 1)),
    "residual": Arm("ours, residual EBM", ONLY_IMAGES, colour=2, dash=(5, 1, 1, 1)),
    "frozen-flow": Arm("NCE, frozen Glow", BOTH, colour=4, dash=(1, 1)),
    "gaussian-noise": Arm("NCE, Gaussian noise", BOTH, colour=1, dash=(6, 2)),
    "mle-continued": Arm("MLE continued", ONLY_IMAGES, colour=8, dash=(3, 3)),
    "random-init": Arm("random weights", model="", colour=7, dash=(2, 2)),
    "dcgan": Arm("DCGAN", model=DCGAN, colour=5, dash=(3, 1, 1, 1, 1, 1)),
    "supervised": Arm("supervised", model="", colour=9, dash=(8, 2)),
    "planted": Arm("planted", model=FLOW),
}


class Score(NamedTuple):
    """One kind of number.

    Attributes:
        heading: its column's.
        unit: of its values.
        better: `lower` or `higher`; "" where neither is.
        table: where the report shows it; "" for nowhere but in the score files.
        column: the score in whose column it stands, with `row` for its row: baselines; else itself.
    """

    heading: str
    unit: str
    better: str = ""
    table: str = "results"
    column: str = ""
    row: str = ""


def kinds_of_log_z() -> dict[str, Score]:
    """Every estimate of log Z, the bits/dim that follow of it, and its error where log Z is known."""
    words = {"learned": ("learned c", "by the learned c"), "jensen": ("Jensen", "by Jensen"),
             "importance": ("importance sampling", "by importance sampling"), "ais": ("AIS", "by AIS"),
             "certificate": ("certificate", "by the certificate")}
    found: dict[str, Score] = {}
    for kind, (name, by) in words.items():
        found |= {f"log_z_{kind}": Score(f"log Z, {name}", "nats", table="trust"),
                  f"bits_per_dim_{kind}": Score(by, "bits/dim", "lower", "" if kind == "jensen" else "bounds"),
                  f"log_z_error_{kind}": Score(f"{name} − truth", "nats", table="control")}
    return found


def distances() -> dict[str, Score]:
    """Fréchet and kernel distances, through Inception and through other features, and what real images score."""
    found: dict[str, Score] = {}
    for name, unit in (("frechet_inception_distance", "FID"), ("frechet_distance", "FD")):
        found |= {name: Score(unit, unit, "lower"), f"{name}_infinity": Score(f"{unit}∞", unit, "lower"),
                  f"{name}_test": Score(f"{unit} to test", unit, "lower"),
                  f"{name}_halves": Score(unit, unit, column=name, row="two halves of the training images")}
    for name, unit in (("kernel_inception_distance", "KID"), ("kernel_distance", "KD")):
        found[name] = Score(unit, unit, "lower")
    found |= {"precision": Score("precision", "share", "higher"), "recall": Score("recall", "share", "higher")}
    floors = [name for name, score in found.items() if not score.column and not name.endswith(("_infinity", "_test"))]
    return found | {f"{name}_floor": Score(found[name].heading, found[name].unit, column=name,
                                           row="real test images (the floor)") for name in floors}


SCORES = {
    # 2D densities
    "kl": Score("KL", "nats", "lower"),
    "jsd": Score("JSD", "nats", "lower"),
    "total_variation": Score("TV", "probability", "lower"),
    "smallest_mode_mass": Score("smallest mode", "ratio", "higher"),
    "mass_outside": Score("mass outside", "probability", "lower"),
    "mse_log_density": Score("MSE, learned c", "nats^2", "lower"),
    "mse_log_density_normalised": Score("MSE, exact Z", "nats^2", "lower"),
    "log_z_error": Score("log Z error", "nats"),
    "log_likelihood": Score("log-likelihood", "nats", "higher", column="log_likelihood", row="the true density"),
    "quadrature_error": Score("quadrature error", "nats", "lower"),
    "parameters": Score("parameters", "parameters"),
    "mode_mass_*": Score("mode", "ratio", table="modes"),
    # images
    "bits_per_dim": Score("bits/dim", "bits/dim", "lower"),
    "bits_per_dim_validation": Score("validation bits/dim", "bits/dim", "lower"),
    "bits_per_dim_uniform": Score("bits/dim", "bits/dim", column="bits_per_dim", row="equally likely levels"),
    "bits_per_dim_histogram": Score("bits/dim", "bits/dim", column="bits_per_dim", row="independent pixels"),
    **distances(),
    # log Z of the EBM: what follows of an estimate, and how far it can be trusted
    **kinds_of_log_z(),
    "excess_mass": Score("certificate above c, nats", "nats", "lower", "bounds"),
    "told_apart": Score("accuracy, p against q", "share", table="bounds"),
    "told_apart_data": Score("data with p > q", "share", table="bounds"),
    "told_apart_gen": Score("samples with p < q", "share", table="bounds"),
    "effective_sample_size": Score("effective samples", "samples", "higher", "trust"),
    "pareto_k": Score("Pareto k", "shape", "lower", "trust"),
    "effective_chains": Score("effective chains", "chains", "higher", "trust"),
    "acceptance": Score("HMC acceptance", "share", table="trust"),
    "outside_box": Score("samples outside the box", "share", "lower", "trust"),
    # the same where log Z is known
    "log_z_error_ais_reverse": Score("reverse AIS − truth", "nats", table="control"),
    "ais_gap": Score("gap of AIS, nats", "nats", "lower", "control"),
    "ais_gap_bits": Score("gap of AIS, bits/dim", "bits/dim", "lower", "control"),
    "dimensions": Score("dimensions", "dimensions", table="control"),
    # features
    "accuracy": Score("accuracy", "share", "higher", "probe"),
    "accuracy_all_layers": Score("accuracy", "share", "higher", "probe", "accuracy", ", all layers"),
    "effective_rank": Score("effective rank", "dimensions", "higher", "rank"),
    "effective_rank_all_layers": Score("effective rank", "dimensions", "higher", "rank", "effective_rank",
                                       ", all layers"),
    # Figure 2, from training curves
    "updates_to_converge": Score("updates to converge", "updates", "lower", ""),
}


def score(name: str) -> Score:
    """What a score of this name is; raises ValueError, with the cure, where no list knows it."""
    found = SCORES.get(name) or SCORES.get(re.sub(r"\d+$", "*", name))
    if found is None:
        raise ValueError(f"the score '{name}' is in no list; add it to SCORES in pipeline/catalogue.py")
    return found


@cache
def first_line(file: str) -> str:
    """The first sentence of a module's docstring, which need not be imported for it."""
    text = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
