"""Send records to MLflow: the one door to it.

A stage writes its record (parameters, curves, scores) as lines of JSON beside its output; MLflow is a
mirror of these files. A run longer than a minute is mirrored while it lasts; what is left is sent by
`fce send`, which Snakemake calls at its end. A broken server warns and costs nothing: sending again doubles
nothing. The record is locked while its run lasts, so that two runs never write the same outputs.
"""

import argparse
import fcntl
import json
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline.catalogue import ROOT
from pipeline.errors import Interrupted, UserError
from pipeline.progress import log, open_door

LIVE = 60.0  # seconds after which a running stage begins to be mirrored, and between two mirrorings
PATIENCE = 15.0  # seconds that a run's end waits for MLflow


class Run:
    """The record of one stage's run, and its mirror in MLflow.

    The record of a run that did not end well is carried on by the next with the same key: what stands in it already is
    not written twice. Any other is replaced.

    Args:
        path: the record, a file of JSON lines.
        name: `<experiment>/<stage>/seed-<n>`, flat.
        tags: profile, experiment, stage, seed, arm.
        params: the stage's parameters.
        provenance: commit, lock, device, hashes of the inputs.
        key: a hash of all that the result depends on.

    Raises:
        UserError: another process is writing this record.
    """

    def __init__(self, path: Path, name: str, tags: dict[str, str], params: dict[str, Any], provenance: dict[str, Any],
                 key: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.file = open(path, "a+", buffering=1)  # noqa: SIM115 - closed in __exit__
        old = read_record(path)
        self.lock(old)
        if not old or old[0].get("key") != key or old[-1].get("status") == "FINISHED":
            old = []
        self.file.truncate(sum(len(json.dumps(line)) + 1 for line in old))  # a kill may have cut off the last line
        self.seen = {(line["step"], *line["values"]) for line in old if line["kind"] == "metrics"}
        self.started = time.time()
        process = {"time": now(), "pid": os.getpid(), "host": platform.node()}
        if old:
            self.write(kind="again", **process)
        else:
            self.write(kind="run", id=uuid.uuid4().hex, key=key, name=name, tags=tags, params=flat(params),
                       provenance=provenance, **process)
        self.over = threading.Event()
        self.mirror = threading.Thread(target=self.keep_sending, daemon=True)
        self.mirror.start()

    def lock(self, old: list[dict[str, Any]]) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            named = [f"process {line['pid']} on {line['host']}" for line in old if "pid" in line]
            holder = (named or ["another process"])[-1]
            raise UserError(f"{self.path.parent}: {holder} is making this output; wait for it, or stop it") from None
        except OSError as error:
            log.warning("%s can't be locked (%s): start no second run on the same outputs", self.path, error)

    def write(self, **line: Any) -> None:
        self.file.write(json.dumps(line) + "\n")

    def log(self, step: int, **values: float) -> None:
        """Record one step's metrics."""
        if (step, *values) not in self.seen:
            self.write(kind="metrics", step=step, time=now(), values=values)

    def keep_sending(self) -> None:
        while not self.over.wait(LIVE):
            send(self.path)
        if time.time() - self.started > LIVE:
            send(self.path)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "KILLED" if kind is Interrupted else "FAILED"
        self.write(kind="end", status=status, time=now())
        self.file.close()
        self.over.set()
        self.mirror.join(PATIENCE)


def read_record(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a record; a kill may have cut off the last."""
    lines = []
    for text in path.read_text().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


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


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def send(path: Path) -> bool:
    """Mirror one record in MLflow from where the last sending stopped; False, with a warning, if that fails."""
    marker = path.with_suffix(".sent")  # "<record's id> <lines sent>"
    try:
        with open(lock_path(), "w") as lock:
            with suppress(OSError):  # of a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)  # one sender at a time: the first creates the database
            lines = read_record(path)
            sent = lines_sent(path, lines)
            if sent < len(lines):
                mirror(lines, sent)
                marker.write_text(f"{lines[0]['id']} {len(lines)}")
        return True
    except Exception as error:  # any failure of the mirror, of whatever kind, must not cost the run
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        log.warning("MLflow (%s) did not take %s: %s. Send it later: python -m fce send", tracking_uri(), path, said)
        return False


def lines_sent(path: Path, lines: list[dict[str, Any]]) -> int:
    """How many lines of this record MLflow has; the marker of an older record at this place counts for nothing."""
    with suppress(OSError, ValueError):
        own, sent = path.with_suffix(".sent").read_text().split()
        return int(sent) if own == lines[0]["id"] else 0
    return 0


def lock_path() -> Path:
    (ROOT / "build").mkdir(exist_ok=True)
    return ROOT / "build" / ".mlflow.lock"


def mirror(lines: list[dict[str, Any]], start: int) -> None:
    """Send lines[start:] to the record's run in MLflow; what an interrupted sending has brought there stays single."""
    require_server()
    for limit, value in (("MAX_RETRIES", "1"), ("TIMEOUT", "10")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{limit}", value)
    from mlflow import MlflowClient, entities  # takes seconds to import

    client, head = MlflowClient(tracking_uri=tracking_uri()), lines[0]
    profile = head["tags"].get("profile", "none")
    experiment = client.get_experiment_by_name(f"fce-{profile}")
    place = experiment.experiment_id if experiment else client.create_experiment(f"fce-{profile}")
    if experiment and experiment.lifecycle_stage == entities.LifecycleStage.DELETED:  # by a user: its name stays taken
        client.restore_experiment(place)
    found = client.search_runs([place], f"tags.record = '{head['id']}'")  # none where a user has deleted the run
    run = found[0] if found else client.create_run(
        place, start_time=head["time"], run_name=head["name"], tags={**head["tags"], "record": head["id"]})
    run_id, start = run.info.run_id, start if found else 0
    if start == 0:
        params = [entities.Param(key, value) for key, value in head["params"].items()]
        tags = [entities.RunTag(f"provenance.{key}", value) for key, value in flat(head["provenance"]).items()]
        client.log_batch(run_id, params=params[:100], tags=tags)
    metrics = [entities.Metric(name, float(value), line["time"], line["step"]) for line in lines[start:]
               if line["kind"] == "metrics" for name, value in line["values"].items()]
    for first in range(0, len(metrics), 1000):  # the same value at the same time and step is stored once
        client.log_batch(run_id, metrics=metrics[first : first + 1000])
    if lines[-1]["kind"] == "end":
        client.set_terminated(run_id, lines[-1]["status"], lines[-1]["time"])


def require_server() -> None:
    """Raise OSError where a server is named and nobody listens, before MLflow is imported to find that out.

    Behind a proxy only MLflow's own request can tell.
    """
    uri = urlsplit(tracking_uri())
    if uri.scheme in ("http", "https") and uri.hostname and uri.scheme not in getproxies():
        socket.create_connection((uri.hostname, uri.port or {"http": 80, "https": 443}[uri.scheme]), 10).close()


def main(argv: Sequence[str] | None = None) -> int:
    """Send every record below build/ that MLflow does not have yet."""
    argparse.ArgumentParser(prog="fce send", description=main.__doc__).parse_args(argv)
    open_door()
    waiting = [path for path in sorted((ROOT / "build").rglob("*.run.jsonl")) if unsent(path)]
    sent, failed = 0, 0
    for path in waiting:
        taken = send(path)
        sent, failed = sent + taken, failed + (not taken)
        if failed == 2:  # the server is down: its other records wait too
            break
    if waiting:
        log.info("%d runs sent to MLflow, %d wait", sent, len(waiting) - sent)
    return 1 if failed else 0


def unsent(path: Path) -> bool:
    lines = read_record(path)
    return lines_sent(path, lines) < len(lines)
