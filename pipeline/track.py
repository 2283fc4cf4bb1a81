"""The record of a stage's run: its parameters, curves and scores, as lines of JSON beside its output.

MLflow is a mirror of these files (pipeline/mirror.py). The record is locked while its run lasts, so that two runs never
write the same outputs.
"""

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.devices import usage
from pipeline.errors import Interrupted, UserError
from pipeline.progress import log

LOOK = 60.0  # seconds between two looks at what a run takes of its machine
Lines = list[dict[str, Any]]


class Run:
    """The record of one stage's run, with what it takes of its machine, minute by minute.

    The record of a run that did not end well is carried on by the next with the same key: what stands in it already is
    not written twice. Any other is replaced.

    Args:
        path: the record, a file of JSON lines.
        name: `<experiment>/<stage>/seed-<n>`, flat.
        tags: profile, experiment, stage, seed, arm.
        params: the stage's parameters.
        provenance: commit, lock, device, hashes of the inputs.
        key: a hash of all that the result depends on.
        device: what it computes on.

    Raises:
        UserError: another process is writing this record.
    """

    def __init__(self, path: Path, name: str, tags: dict[str, str], params: dict[str, Any], provenance: dict[str, Any],
                 key: str, device: str = "cpu"):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.device, self.guard = path, device, threading.Lock()
        self.file = open(path, "a+", buffering=1)  # noqa: SIM115 - closed in __exit__
        old = read_record(path)
        self.lock(old)
        if not old or old[0].get("key") != key or old[-1].get("status") == "FINISHED":
            old = []
        self.file.truncate(sum(len(json.dumps(line)) + 1 for line in old))  # a kill may have cut off the last line
        self.seen = {(line["step"], *line["values"]) for line in old if line["kind"] == "metrics"}
        self.look = max((line["step"] for line in old if any(map(of_machine, line.get("values", ())))), default=0)
        process = {"time": now(), "pid": os.getpid(), "host": platform.node()}
        if old:
            self.write(kind="again", **process)
        else:
            self.write(kind="run", id=uuid.uuid4().hex, key=key, name=name, tags=tags, params=flat(params),
                       provenance=provenance, **process)
        self.over = threading.Event()
        threading.Thread(target=self.keep_looking, daemon=True).start()

    def lock(self, old: Lines) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            named = [f"process {line['pid']} on {line['host']}" for line in old if "pid" in line]
            holder = (named or ["another process"])[-1]
            raise UserError(f"{self.path.parent}: {holder} is making this output; wait for it, or stop it") from None
        except OSError as error:
            log.warning("%s can't be locked (%s): start no second run on the same outputs", self.path, error)

    def write(self, **line: Any) -> None:
        with self.guard:
            if not self.file.closed:  # a look may take seconds, and its run may have ended since
                self.file.write(json.dumps(line) + "\n")

    def log(self, step: int, **values: float) -> None:
        """Record one step's metrics."""
        if (step, *values) not in self.seen:
            self.write(kind="metrics", step=step, time=now(), values=values)

    def keep_looking(self) -> None:
        while not self.over.wait(LOOK):
            self.look += 1
            self.log(self.look, **usage(self.device))

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "KILLED" if kind is Interrupted else "FAILED"
        self.over.set()
        self.write(kind="end", status=status, time=now())
        with self.guard:
            self.file.close()


def read_record(path: Path) -> Lines:
    """The whole lines of a record; a kill may have cut off the last."""
    lines = []
    for text in path.read_text().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def of_machine(name: str) -> bool:
    """Whether a metric is what a run took of its machine (pipeline/devices.py)."""
    return name.startswith("system/")


def stretches(lines: Lines) -> list[Lines]:
    """A record's lines by the process that wrote them: one began the run, others went on with it."""
    found: list[Lines] = []
    for line in lines:
        if line["kind"] == "again" or not found:
            found.append([])
        found[-1].append(line)
    return found


def seconds(lines: Lines) -> float:
    """How long the processes of a record worked, the pauses between them apart."""
    times = [[line["time"] for line in part if "time" in line] for part in stretches(lines)]
    return sum(part[-1] - part[0] for part in times if part) / 1000


def was_killed(path: Path) -> bool:
    """Whether a record has no end, and nobody is writing it."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held by its run; or a file system without locks, where nobody can know
            return False
    return all(line["kind"] != "end" for line in read_record(path)[-1:])


def now() -> int:
    return int(time.time() * 1000)


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as `a.b: value`."""
    result: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = str(value)[:500]
    return result
