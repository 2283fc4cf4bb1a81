"""One run of one stage: what it is given, what it leaves, and where its chance comes from."""

import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipeline import fetch
from pipeline.catalogue import STAGES
from pipeline.checkpoint import save
from pipeline.errors import Stopped, UserError
from pipeline.files import digest
from pipeline.numerics import seed_of
from pipeline.progress import log
from pipeline.provenance import environment
from pipeline.resume import Keeper
from pipeline.schema.experiment import Sections
from pipeline.sources import fingerprint

PATH_LAW = re.compile(
    r"(?:^|/)build/(?P<profile>[^/]+)/(?P<experiment>[^/]+)/"
    r"(?:seed-(?P<seed>\d+)/)?(?:(?P<arm>[^/]+)/)?[^/]+$"
)


@dataclass
class Job:
    """One run of one stage.

    Attributes:
        params: its sections of params.yaml.
        inputs: {flag: path}.
        tags: stage, profile, experiment, seed and arm, as its output's path has them.
        command: with which it was started.
        data: the images or points of its input `data`, opened.
        record: where its numbers go; it has `log(step, **values)`.
        resume: the folder of its state, for a stage that resumes.
        save_every: seconds between two saved states.
        compiled: whether what trains is compiled.
    """

    stage: str
    params: Sections
    out: Path
    inputs: dict[str, Path]
    seed: int = 0
    device: str = "cpu"
    tags: dict[str, str] = field(default_factory=dict)
    command: str = ""
    data: Any = None
    record: Any = None
    resume: Path | None = None
    save_every: float = 0.0
    compiled: bool = False
    started: float = field(default_factory=time.time)

    def need(self, name: str) -> Path:
        """The input `name`, which these parameters need."""
        if name not in self.inputs:
            raise UserError(f"--{name} is missing, and these parameters need it")
        return self.inputs[name]

    def seed_for(self, purpose: str) -> int:
        """A seed of its own for each use of chance, from the run's seed and the purpose's name."""
        return seed_of(self.stage, purpose, self.tags.get("arm", ""), self.seed)

    def shared_seed_for(self, purpose: str) -> int:
        """A seed that every stage and arm of the run's seed shares: what they draw from it is the same, and paired."""
        return seed_of("shared", purpose, self.seed)

    def keeper(self, loop: str, **parts: Any) -> Keeper:
        """Keeps the state of one of the stage's loops; parts as in pipeline/resume.py."""
        return Keeper(self.resume / loop if self.resume else None, self.save_every, **parts)

    @property
    def name(self) -> str:
        """`<experiment>/<arm>/<stage>/seed-<n>`."""
        place = (self.tags.get("experiment"), self.tags.get("arm"), self.stage, f"seed-{self.seed}")
        return "/".join(part for part in place if part)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each input."""
        return {name: fetch.fingerprint(path) for name, path in self.inputs.items()}

    @cached_property
    def key(self) -> str:
        """A hash of all that the result depends on."""
        run = [self.stage, self.params.model_dump(), self.seed, self.tags, self.hashes]
        return digest([*run, fingerprint(STAGES[self.stage].file), torch.__version__, self.device])

    def provenance(self) -> dict[str, Any]:
        """Where an output of this job comes from."""
        return {**environment(self.device), **self.tags, "command": self.command,
                "params": digest(self.params.model_dump()),
                "inputs": {name: whole[:16] for name, whole in self.hashes.items()},
                "seconds": round(time.time() - self.started, 2)}


def tags_of(out: Path, stage: str) -> dict[str, str]:
    """Profile, experiment, seed and arm, as the path law has them."""
    found = PATH_LAW.search(out.as_posix())
    law = {key: value for key, value in found.groupdict().items() if value} if found else {}
    return {"stage": stage, **law}


def keep_state(jobs: Sequence[Job], save_every: float) -> None:
    """Give the jobs, which run as one, the folder of their state; say where one is that was made otherwise."""
    first = jobs[0]
    folder = first.out.parent / ".resume" / f"{first.stage}-{digest([job.key for job in jobs])}"
    for other in sorted(set(folder.parent.glob(f"{first.stage}-*")) - {folder}):
        log.warning("%s is the state of a run with other parameters, seeds, data or code: not used", other)
    for job in jobs:
        job.resume, job.save_every = folder, save_every


def drop_state(job: Job) -> None:
    """Remove the state of a job that has ended well."""
    if job.resume:
        shutil.rmtree(job.resume, ignore_errors=True)
        with suppress(OSError):  # the state of another stage, or of other parameters, is there too
            job.resume.parent.rmdir()


def keep_aside(jobs: Sequence[Job], states: Sequence[dict[str, Any]], why: str) -> NoReturn:
    """Save the last good states beside the outputs, and stop."""
    asides = [job.out.with_suffix(".stopped.pt") for job in jobs]
    for aside, state in zip(asides, states, strict=True):
        save(aside, state)
    raise Stopped(f"{why}. The last good state is kept in {', '.join(map(str, asides))}")
