"""What every stage shares: its command line, seeds, threads, record, and how it ends.

A stage is a module with `run(job)`; `main` makes it a command. Exit codes: 0 done, 1 stopped (an alarm, a
fault), 2 the user's mistake, 128 + n stopped by signal n; then the log's last line reads `error: what, where, how to
mend`.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fce.params import ParamsError, check_slice
from fce.progress import log, open_door
from fce.sources import fingerprint

if TYPE_CHECKING:  # torch takes seconds to import
    from fce.resume import Keeper
    from fce.track import Run

ROOT = Path(__file__).resolve().parent.parent
PATH_LAW = re.compile(
    r"(?:^|/)build/(?P<profile>[^/]+)/(?P<experiment>[^/]+)/"
    r"(?:seed-(?P<seed>\d+)/)?(?:(?P<arm>[^/]+)/)?[^/]+$"
)


class UserError(Exception):
    """A mistake of the user's, or something that is missing: what, where, how to mend."""


class Stopped(Exception):
    """A run that must not go on: what happened, what was kept, what to change."""


class Interrupted(Exception):
    """A run that was asked to stop by a signal, and kept its state."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


@dataclass
class Job:
    """One run of one stage: its parameters, inputs, output, seed and record."""

    stage: str
    params: dict[str, Any]
    out: Path
    inputs: dict[str, Path]
    seed: int
    device: str
    tags: dict[str, str]
    command: str
    code: str = ""  # the file of its module
    record: "Run | Any" = None
    resume: Path | None = None  # where its state is kept, for a stage that resumes
    save_every: float = 0.0
    compiled: bool = False  # whether what trains is compiled
    started: float = field(default_factory=time.time)

    def need(self, name: str) -> Path:
        """The input `name`, which these parameters need."""
        if name not in self.inputs:
            raise UserError(f"--{name} is missing, and these parameters need it")
        return self.inputs[name]

    def seed_for(self, purpose: str) -> int:
        """A seed of its own for each use of chance, from the run's seed and the purpose's name."""
        from fce.numerics import seed_of

        return seed_of(self.stage, purpose, self.tags.get("arm", ""), self.seed)

    def keeper(self, loop: str, **parts: Any) -> "Keeper":
        """Keeps the state of one of the stage's loops; parts as in fce.resume.Keeper."""
        from fce.resume import Keeper

        return Keeper(self.resume / loop if self.resume else None, self.save_every, **parts)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each input."""
        from fce.state import sha256

        return {name: sha256(path) for name, path in self.inputs.items()}

    @cached_property
    def key(self) -> str:
        """A hash of all that the result depends on."""
        import torch

        code = fingerprint(self.code) if self.code else ""
        run = [self.stage, self.params, self.seed, self.tags, self.hashes]
        return digest([*run, code, torch.__version__, self.device])

    def provenance(self) -> dict[str, Any]:
        """Where an output of this job comes from."""
        from fce.track import environment

        inputs = {name: whole[:16] for name, whole in self.hashes.items()}
        return {
            **environment(),
            **self.tags,
            "command": self.command,
            "params": digest(self.params),
            "inputs": inputs,
            "seconds": round(time.time() - self.started, 2),
        }


def digest(content: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def main(
    doc: str | None,
    run: Callable[[Any], None],
    inputs: Sequence[str] = (),
    optional: Sequence[str] = (),
    sliced: bool = True,
    seeded: bool = True,
    several: bool = False,
    resumes: bool = False,
    trains: bool = False,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run the stage, and turn every end into a message and an exit code.

    Args:
        doc: the module's docstring; its first line names the stage.
        run: the stage; takes a Job, or a list of them where it takes several.
        inputs: the input files the stage takes, each a flag.
        optional: input files that only some parameters need.
        sliced: whether the stage takes parameters.
        seeded: whether the stage takes a seed.
        several: whether the stage takes several seeds and arms; `{seed}` and `{arm}` in a path stand for each.
        resumes: whether the stage keeps its state and goes on from it (fce/resume.py).
        trains: whether the stage trains what can be compiled, and shared by several processes (fce/parallel.py).
    """
    file = Path(sys.modules[run.__module__].__file__ or "")
    code = file.resolve().relative_to(ROOT).as_posix()
    stage, module = file.stem, code.removesuffix(".py").replace("/", ".")
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if sliced:
        parser.add_argument("--params", required=True, help="its parameters, a JSON slice of params.yaml")
    for name in (*inputs, *optional):
        parser.add_argument(f"--{name}", required=name in inputs, help=f"input: {name}")
    if seeded:
        seeds = "the runs' seeds; {seed} in a path stands for each" if several else "the run's seed"
        parser.add_argument("--seed", type=natural, required=True, help=seeds, nargs="+" if several else 1)
    if several:
        parser.add_argument("--arm", nargs="+", default=[""], help="{arm} in a path stands for each")
    parser.add_argument("--out", required=True, help="the output; what belongs to it is written beside it")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one"
    )
    parser.add_argument("--threads", type=natural, default=0, help="CPU threads (default: torch's choice)")
    if resumes:
        parser.add_argument("--save-every", type=float, default=os.environ.get("FCE_SAVE_EVERY", "300"),
                            help="seconds between two saved states, from which the same command goes on (default: "
                            "FCE_SAVE_EVERY, or 300); a signal to stop saves one too")
    if trains:
        parser.add_argument("--compile", default=os.environ.get("FCE_COMPILE", "auto"), choices=("auto", "yes", "no"),
                            help="compile what trains, as CUDA graphs on a GPU (default: FCE_COMPILE, or auto: of "
                            "images on a GPU)")
    arguments = parser.parse_args(argv)
    command = shlex.join(["python", "-m", module, *(argv or sys.argv[1:])])
    open_door()
    try:
        given = {name: path for name in (*inputs, *optional) if (path := getattr(arguments, name))}
        device = choose_device(arguments.device)
        jobs: list[Job] = []
        for arm, seed in itertools.product(getattr(arguments, "arm", [""]), getattr(arguments, "seed", [0])):
            paths = {name: place(path, arm, seed) for name, path in given.items()}
            needed = paths | ({"params": place(arguments.params, arm, seed)} if sliced else {})
            for name, path in needed.items():
                if not path.is_file():
                    raise UserError(f"--{name}: {path} does not exist; the stage before this one makes it")
            params, out = read_params(needed["params"], stage) if sliced else {}, place(arguments.out, arm, seed)
            if out.is_dir():
                raise UserError(f"--out: {out} is a folder, but the output is a file")
            if any(out == job.out for job in jobs):
                raise UserError(f"--out: {out} would be written by several runs; name it with {{seed}} and {{arm}}")
            jobs.append(Job(stage, params, out, paths, seed, device, tags_of(out, stage), command, code))
        if trains:
            for job in jobs:
                on_gpu = device == "cuda" and job.params["flow"]["layers"] == "conv"
                job.compiled = arguments.compile == "yes" or (arguments.compile == "auto" and on_gpu)
        start = run if several else lambda jobs: run(jobs[0])
        execute(jobs, start, arguments.threads, arguments.save_every if resumes else None, trains)
    except UserError as error:
        return fail(error, 2)
    except Stopped as error:
        return fail(error, 1)
    except Interrupted as error:
        return fail(error, 128 + error.signal)
    except OSError as error:
        return fail(f"{error}; when that is mended, run the same command again", 1)
    except KeyboardInterrupt:
        return fail("stopped by SIGINT", 130)
    except Exception as error:  # the trace for whoever mends it, one line for the log's reader
        traceback.print_exc()
        return fail(fault(error), 1)
    return 0


def natural(text: str) -> int:
    """A seed, or a number of threads."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return int(text)


def fault(error: Exception) -> str:
    """One line on a fault of the machine's or ours."""
    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:
        return f"out of memory ({said or 'the process'}); lower the batch in params.yaml, or run fewer jobs at once"
    return f"{type(error).__name__}: {said}; the trace stands above"


def place(path: str, arm: str, seed: int) -> Path:
    """The path of one run."""
    return Path(path.replace("{arm}", arm).replace("{seed}", str(seed)))


def execute(
    jobs: list[Job],
    run: Callable[[list[Job]], None],
    threads: int,
    save_every: float | None = None,
    shares: bool = False,
) -> None:
    """Run the jobs with their records; where `save_every` is given, with their state kept.

    Where they are shared by several processes, those but the first leave no files.
    """
    from fce import parallel
    from fce.inputs import check
    from fce.numerics import settle
    from fce.track import Run

    for job in jobs:
        check(job)
    with ExitStack() as around:
        around.enter_context(parallel.together(jobs[0].device, shares))
        for job in jobs:
            parallel.check(job.params)
        settle(jobs[0].seed_for("torch"), threads)
        if save_every is not None:
            from fce.resume import listening

            keep_state(jobs, save_every)
            around.enter_context(listening())
        if first := parallel.rank() == 0:
            for job in jobs:
                tags = job.tags
                name = "/".join(filter(None, (tags.get("experiment"), tags.get("arm"), job.stage, f"seed-{job.seed}")))
                record = Run(job.out.with_suffix(".run.jsonl"), name, tags, job.params, job.provenance(), job.key)
                job.record = around.enter_context(record)
        else:
            nowhere = Path(around.enter_context(tempfile.TemporaryDirectory()))
            for i, job in enumerate(jobs):
                job.out = nowhere.joinpath(str(i), *job.out.parts[-2:])
                job.record = SimpleNamespace(log=lambda *_, **__: None)
            log.disabled = True
        parallel.wait()  # until the first process has the lock
        run(jobs)
    if jobs[0].resume and first:
        shutil.rmtree(jobs[0].resume, ignore_errors=True)
        with suppress(OSError):  # the state of another stage, or of other parameters, is there too
            jobs[0].resume.parent.rmdir()
    for job in jobs:
        log.info("%s: wrote %s in %.1f s", job.stage, job.out, time.time() - job.started)


def keep_state(jobs: list[Job], save_every: float) -> None:
    """Give the jobs, which run as one, the folder of their state; say where one is that was made otherwise."""
    folder = jobs[0].out.parent / ".resume" / f"{jobs[0].stage}-{digest([job.key for job in jobs])}"
    for other in sorted(set(folder.parent.glob(f"{jobs[0].stage}-*")) - {folder}):
        log.warning("%s is the state of a run with other parameters, seeds, data or code: not used", other)
    for job in jobs:
        job.resume, job.save_every = folder, save_every


def fail(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


def read_params(path: Path, stage: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"--params: {path} is not JSON ({error}); Snakemake writes it anew") from None
    try:
        check_slice(content, stage)
    except ParamsError as error:
        raise UserError(f"--params: {path}: {error}") from None
    return content


def choose_device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; use --device cpu, or mend the driver")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def tags_of(out: Path, stage: str) -> dict[str, str]:
    """Profile, experiment, seed and arm, as the path law has them."""
    found = PATH_LAW.search(out.as_posix())
    law = {key: value for key, value in found.groupdict().items() if value} if found else {}
    return {"stage": stage, **law}
