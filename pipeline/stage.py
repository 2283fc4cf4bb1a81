"""Runs one stage from its command line, and turns every end into a message and an exit code.

0 done, 1 stopped (an alarm, a fault), 2 the user's mistake, 128 + n stopped by signal n; then the log's last line reads
`error: what, where, how to mend`.
"""

import argparse
import itertools
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from pipeline import devices, processes
from pipeline.catalogue import ARMS, CHECKS, MODEL, STAGES
from pipeline.errors import Ended, UserError
from pipeline.job import Job, drop_state, keep_state, tags_of
from pipeline.mirror import mirrored
from pipeline.mistakes import ParamsError
from pipeline.numerics import settle
from pipeline.params import read_slice
from pipeline.progress import log, open_door
from pipeline.resume import listening
from pipeline.schema.experiment import SECTIONS, Sections
from pipeline.track import Run

COMPILE = ("auto", "yes", "no")


def main(name: str, argv: Sequence[str]) -> int:
    """Parse the command line of the stage `name`, and run it."""
    stage, module = STAGES[name], import_module(STAGES[name].module)
    given = parser(name, module.__doc__).parse_args(argv)
    open_door()
    try:
        jobs = jobs_of(name, given, shlex.join(["python", "-m", "fce", name, *argv]))
        files: dict[Path, Any] = {}  # that the jobs share
        for job in jobs:
            import_module(CHECKS).check(job, files)
        for group in [jobs] if stage.together else [[job] for job in jobs]:
            execute(group, module, given)
    except Ended as error:
        return fail(error, error.code)
    except OSError as error:
        return fail(f"{error}; when that is mended, run the same command again", 1)
    except KeyboardInterrupt:
        return fail("stopped by SIGINT", 130)
    except Exception as error:  # the trace for whoever mends it, one line for the log's reader
        traceback.print_exc()
        return fail(fault(error, name), 1)
    return 0


def parser(name: str, words: str | None) -> argparse.ArgumentParser:
    """The flags of a stage, from its row in the table of stages."""
    stage = STAGES[name]
    flags = argparse.ArgumentParser(prog=f"fce {name}", description=words,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    if stage.sections:
        flags.add_argument("--params", required=True, help="its parameters, a JSON slice of params.yaml")
    for flag, place in stage.needs.items():
        flags.add_argument(f"--{flag}", required=flag not in stage.optional, help=f"input: {place}")
    if stage.seeded:
        flags.add_argument("--seed", type=natural, required=True, nargs="+",
                           help="the runs' seeds; {seed} in a path stands for each")
        flags.add_argument("--arm", nargs="+", default=[""],
                           help="{arm} in a path stands for each, {model} for its checkpoint below the seed's folder")
    flags.add_argument("--out", required=True, help="the output; what belongs to it is written beside it")
    flags.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU, if any")
    flags.add_argument("--threads", type=natural, default=0, help="CPU threads (default: torch's choice)")
    if stage.resumes:
        flags.add_argument("--save-every", type=float, default=os.environ.get("FCE_SAVE_EVERY", "300"),
                           help="seconds between saved states (default: FCE_SAVE_EVERY, or 300); a signal saves one")
    if stage.shared:
        flags.add_argument("--compile", default=os.environ.get("FCE_COMPILE", "auto"), choices=COMPILE,
                           help="what trains; as CUDA graphs on a GPU (default: FCE_COMPILE, or auto: Glow alone, "
                                "of images, on a GPU)")
    return flags


def jobs_of(name: str, given: argparse.Namespace, command: str) -> list[Job]:
    """A job for each arm and seed."""
    stage, device, jobs = STAGES[name], devices.choose(given.device), list[Job]()
    if stage.shared and given.compile not in COMPILE:  # argparse does not look at a default
        raise UserError(f"FCE_COMPILE: {given.compile!r}, but it is one of {', '.join(COMPILE)}")
    paths = {flag: path for flag in stage.needs if (path := getattr(given, flag))}
    for arm, seed in itertools.product(getattr(given, "arm", [""]), getattr(given, "seed", [0])):
        inputs = {flag: place(path, arm, seed) for flag, path in paths.items()
                  if MODEL not in path or arm not in ARMS or ARMS[arm].model}  # else it has no checkpoint
        params = Sections.model_construct()
        for flag, path in inputs.items():
            require_file(flag, path)
        if stage.sections:
            params = read_params(place(given.params, arm, seed), name)
        out = place(given.out, arm, seed)
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder, but the output is a file")
        if any(out == job.out for job in jobs):
            raise UserError(f"--out: {out} would be written by several runs; name it with {{seed}} and {{arm}}")
        job = Job(name, params, out, inputs, seed, device, tags_of(out, name), command)
        auto = stage.compiles and device == "cuda" and params.flow.layers == "conv"
        job.compiled = stage.shared and (given.compile == "yes" or (given.compile == "auto" and auto))
        jobs.append(job)
    return jobs


def execute(jobs: list[Job], module: ModuleType, given: argparse.Namespace) -> None:
    """Run the jobs, as one, with their records and, of a stage that resumes, with their state kept.

    Where they are shared by several processes, those but the first leave no files.
    """
    first, stage = jobs[0], STAGES[jobs[0].stage]
    with ExitStack() as around:
        around.enter_context(processes.together(first.device, stage.shared))
        settle(first.seed_for("torch"), given.threads)
        if stage.resumes:
            keep_state(jobs, given.save_every)
            around.enter_context(listening())
        if processes.rank() == 0:
            records = [job.out.with_suffix(".run.jsonl") for job in jobs]
            around.enter_context(mirrored(records))
            for job, record in zip(jobs, records, strict=True):
                job.record = around.enter_context(Run(record, job.name, job.tags, job.params.model_dump(),
                                                      job.provenance(), job.key, job.device))
        else:
            nowhere = Path(around.enter_context(tempfile.TemporaryDirectory()))
            for i, job in enumerate(jobs):
                job.out = nowhere.joinpath(str(i), *job.out.parts[-2:])
                job.record = SimpleNamespace(log=lambda *_, **__: None)
            log.disabled = True
        processes.wait()  # until the first process has the lock
        module.run(jobs if stage.together else first)
        writes = processes.rank() == 0
    if writes:
        drop_state(first)
    for job in jobs:
        log.info("%s: wrote %s in %.1f s", job.stage, job.out, time.time() - job.started)


def natural(text: str) -> int:
    """A seed, or a number of threads."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return int(text)


def batches(stage: str) -> str:
    """The entries of params.yaml that say how much of a stage is in memory at once."""
    return ", ".join(f"{section}.batch" for section in STAGES[stage].sections
                     if "batch" in SECTIONS[section].json_schema().get("properties", {}))


def fault(error: Exception, stage: str) -> str:
    """One line on a fault of the machine's or ours, in a stage."""
    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:
        lower = f", or lower {found} in params.yaml" if (found := batches(stage)) else ""
        return (f"out of memory ({said or 'the process'}); run fewer jobs at once (--cores), or take the CPU "
                f"(--device cpu){lower}")
    if "inductor" in str(error) or "triton" in str(error).lower() or type(error).__name__ == "BackendCompilerFailed":
        return f"{type(error).__name__}: {said}; FCE_COMPILE=no does without a compiler; the trace stands above"
    if "CUDA" in said or "cuDNN" in said:
        return (f"{type(error).__name__}: {said}; --device cpu does without the GPU (CUDA_VISIBLE_DEVICES= before "
                "snakemake); the trace stands above")
    return f"{type(error).__name__}: {said}; the trace stands above"


def fail(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


def place(path: str, arm: str, seed: int) -> Path:
    """The path of one run."""
    if MODEL in path and arm in ARMS:
        path = path.replace(MODEL, ARMS[arm].model.rpartition("seed-{seed}/")[2])
    return Path(path.replace("{arm}", arm).replace("{seed}", str(seed)))


def require_file(flag: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--{flag}: {path} does not exist; the stage before this one makes it")


def read_params(path: Path, name: str) -> Sections:
    require_file("params", path)
    try:
        return read_slice(path.read_bytes(), name)
    except ParamsError as error:
        raise UserError(f"--params: {path}: {error}") from None
    except ValueError as error:
        raise UserError(f"--params: {path} is not JSON ({error}); Snakemake writes it anew") from None
