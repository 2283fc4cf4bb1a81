"""Compute the scores of a file anew, from the same inputs by the same command, and compare them.

The command stands in the file; its inputs lie below this folder, where the path law says. The exit code is 0 where
every score is equal (but for rounding) or within its standard error, 1 where one is different.
"""

import argparse
import math
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError

from eval.score import Score, ScoreFile, read_scores
from pipeline.catalogue import ARMS, CHECKS, MODEL, STAGES
from pipeline.errors import UserError, errors_in_one_line
from pipeline.files import digest
from pipeline.job import Job
from pipeline.numerics import settle
from pipeline.progress import open_door
from pipeline.stage import jobs_of, parser, place

ROUNDING = 1e-6  # of a score's size, or of 1: what another processor's order of summation makes of float32
WAYS = ("equal", "within its standard error", "different")
FETCH = "`make pull` fetches it where a DVC remote has it, snakemake makes it anew"
NO_MODEL = {name for name, arm in ARMS.items() if not arm.model}
SHOWN = 10  # of the scores that are not equal


@errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(prog="fce verify", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("file", type=Path, metavar="SCORE_FILE",
                       help="e.g. build/full/ring/seed-0/joint/density.json")
    path = flags.parse_args(argv).file
    open_door()
    published = read(path)
    with tempfile.TemporaryDirectory() as folder:
        found = compute(published, given_to(published, path), Path(folder))
    way, text = compared(published, found)
    sys.stdout.write(text)
    return int(way == WAYS[-1])


def read(path: Path) -> ScoreFile:
    """A score file; UserError where it is none."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; {FETCH}")
    try:
        return read_scores(path)
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path} is no score file ({str(error).splitlines()[0]}); {FETCH}") from None


def given_to(published: ScoreFile, path: Path) -> argparse.Namespace:
    """The flags of the command that made a file, of its own seed and arm alone.

    Raises:
        UserError: there is no such command, or what it reads is not there.
    """
    command, stage = str(published.provenance.get("command", "")), published.measure
    words = shlex.split(command)
    if stage not in STAGES or words[1:4] != ["-m", "fce", stage]:
        raise UserError(f"{path}: its provenance names no command of the stage '{stage}' ('{command}'); "
                        "only a file that a stage wrote can be verified")
    given = parser(stage, None).parse_args(words[4:])
    given.seed, given.arm = [published.seed], [published.arm]
    for flag in ("params", *STAGES[stage].needs):
        pattern = getattr(given, flag, None)
        if pattern is None or (MODEL in pattern and published.arm in NO_MODEL):
            continue  # as the stage itself leaves it out
        if not (needed := place(pattern, published.arm, published.seed)).is_file():
            raise UserError(f"--{flag}: {needed}, which {path} was made from, does not exist; {FETCH}")
    return given


def compute(published: ScoreFile, given: argparse.Namespace, folder: Path) -> ScoreFile:
    """Run the stage into a folder, where its output lies as the path law has it: chance depends on that."""
    stage, module = STAGES[published.measure], import_module(STAGES[published.measure].module)
    law = {name: getattr(published, name) for name in ("profile", "experiment", "seed", "arm")}
    given.out = str(folder / stage.out.format(**law))
    (job,) = jobs_of(published.measure, given, str(published.provenance["command"]))
    import_module(CHECKS).check(job)
    same_inputs(published, job)
    job.out.parent.mkdir(parents=True)
    job.record = SimpleNamespace(log=lambda *_, **__: None)  # this run is nobody's result: MLflow has none of it
    settle(job.seed_for("torch"), given.threads)
    module.run([job] if stage.together else job)
    return read_scores(job.out)


def same_inputs(published: ScoreFile, job: Job) -> None:
    """Refuse parameters or inputs that are not those that the file was made from."""
    told: dict[str, Any] = published.provenance
    if told.get("params") != digest(job.params.model_dump()):
        raise UserError("--params: the slice is not the one that the scores were made with: params.yaml, or what is "
                        f"read of it, has changed since; {FETCH}")
    for flag, whole in job.hashes.items():
        if told.get("inputs", {}).get(flag) != whole[:16]:
            raise UserError(f"--{flag}: {job.inputs[flag]} is not the file that the scores were made from (its SHA-256 "
                            f"begins with {whole[:16]}); {FETCH}")


def compared(published: ScoreFile, found: ScoreFile) -> tuple[str, str]:
    """How the worst score compares, one of WAYS, and what to say of all."""
    new = {score.key: score.value for score in found.scores}
    old = {score.key: score for score in published.scores}
    if new.keys() != old.keys():
        names = ", ".join(sorted(new.keys() ^ old.keys()))
        return WAYS[-1], f"different: the code of today computes other scores ({names})\n"
    differences = {key: difference(score.value, new[key]) for key, score in old.items()}
    ways = {key: way(score, differences[key]) for key, score in old.items()}
    worst = max(WAYS.index(each) for each in ways.values())
    largest = max(differences, key=lambda key: differences[key])
    lines = [f"{published.experiment}, {published.arm}, seed {published.seed}, {published.measure}: {len(old)} scores",
             f"largest difference: {differences[largest]:.3g}" + (
                 f" ({largest}: {old[largest].value:.6g}, now {new[largest]:.6g})" if differences[largest] else "")]
    others = [key for key in sorted(old, key=lambda key: -WAYS.index(ways[key])) if ways[key] != WAYS[0]]
    lines += [f"  {key}: {old[key].value:.6g}, now {new[key]:.6g}: {ways[key]}" for key in others[:SHOWN]]
    lines += [f"  and {len(others) - SHOWN} more"] * (len(others) > SHOWN)
    return WAYS[worst], "\n".join([*lines, *circumstances(published, found), WAYS[worst]]) + "\n"


def circumstances(published: ScoreFile, found: ScoreFile) -> list[str]:
    """What is not as it was when the file was made, and may explain a difference."""
    then, now = published.provenance, found.provenance
    names = ("commit", "lock", "device", "torch")
    return [f"{name}: {str(then.get(name))[:16]}, now {now[name][:16]}" for name in names
            if then.get(name) != now[name]]


def difference(old: float, new: float) -> float:
    """|new - old|; 0 where both are the same infinity, or no number, and infinity where one alone is no number."""
    if old == new or (math.isnan(old) and math.isnan(new)):
        return 0.0
    return math.inf if math.isnan(new - old) else abs(new - old)


def way(score: Score, off: float) -> str:
    """Which of WAYS a score's difference is."""
    if off <= ROUNDING * max(1.0, abs(score.value)):
        return WAYS[0]
    return WAYS[1] if off <= (score.standard_error or 0.0) else WAYS[2]
