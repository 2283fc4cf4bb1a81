"""Send records to MLflow, where one run is one model; `--to URI`: all of them, to another server.

A run is an experiment's arm and seed, found by its tags; every stage that measures the model adds to it. Records
stay the source of truth: what MLflow has of each stands in `build/.mlflow.json`, so that a broken server warns and
costs nothing, and sending again doubles nothing. A record that replaces one which MLflow has begins the model's run
anew: the old run keeps what it has, is tagged `current: no`, and what else is known of the model follows.
"""

import argparse
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline import comparisons
from pipeline.catalogue import ARMS, PICTURES, ROOT, STAGES, metric
from pipeline.files import digest, write_json
from pipeline.progress import log, open_door
from pipeline.track import Lines, read_record

LIVE = 60.0  # seconds after which a running stage begins to be mirrored, and between two mirrorings
PATIENCE = 15.0  # seconds that a run's end waits for MLflow
SHORTEST = {"MAX_RETRIES": "1", "TIMEOUT": "10"}  # of MLflow's requests: a stage's end waits for them
LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # of one request
SENT = ROOT / "build" / ".mlflow.json"


class Model(NamedTuple):
    """What one run of MLflow is: an arm of an experiment, with a seed (none where all seeds share it)."""

    profile: str
    experiment: str
    arm: str
    seed: str

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.arm, self.seed and f"seed-{self.seed}")))

    @property
    def key(self) -> str:
        return f"{self.profile}/{self.experiment}/{self.name}"


def model_of(tags: dict[str, str]) -> Model:
    """Whose record it is: that of the arm its output is the checkpoint of; of what has none, the stage's own."""
    own = next((arm for arm, row in ARMS.items() if row.model == STAGES[tags["stage"]].out), tags["stage"])
    profile, experiment = tags.get("profile", "none"), tags.get("experiment", "none")
    return Model(profile, experiment, tags.get("arm", own), tags.get("seed", ""))


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


@cache
def connect(uri: str) -> Any:
    """MLflow's client; OSError where nobody listens, before MLflow is imported to find that out.

    Behind a proxy only MLflow's own request can tell.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname and parts.scheme not in getproxies():
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), 10).close()
    for limit, value in SHORTEST.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{limit}", value)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient  # takes seconds to import

    return MlflowClient(tracking_uri=uri)


class Server:
    """One MLflow server, or database, and what it has of the records.

    Attributes:
        sent: {record's path: its id, how many of its lines and in which run they are, whether with its files}.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self.all: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # none yet, or damaged: what is sent again is not doubled
            self.all = json.loads(SENT.read_text())
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            self.all.pop(digest(uri), None)  # a database that was deleted has nothing
        self.sent: dict[str, dict[str, Any]] = self.all.setdefault(digest(uri), {})

    @property
    def client(self) -> Any:
        return connect(self.uri)

    def waits(self, path: Path, lines: Lines) -> bool:
        """Whether something of the record is not there yet, or stands in a run that another one has replaced."""
        tags, silent = lines[0]["tags"], all(line["kind"] != "metrics" for line in lines)
        if tags["stage"] not in STAGES or (silent and model_of(tags).arm not in ARMS):
            return False  # of an older version; or of the data, or a download: no model's, and without a number
        have = self.sent.get(relative(path), {})
        whole = have.get("id") == lines[0]["id"] and have["lines"] >= len(lines)
        files = have.get("files") or lines[-1]["kind"] != "end"
        return not (whole and files) or have["run"] != self.sent.get(model_of(tags).key, have)["run"]

    def experiment(self, name: str) -> str:
        """The id of MLflow's experiment, made where it is not there, restored where a user has deleted it."""
        from mlflow import entities  # as above

        found = self.client.get_experiment_by_name(name)
        if found is None:
            local = self.uri.startswith("sqlite:")  # else the server decides where files lie
            place = self.client.create_experiment(name, (ROOT / "mlartifacts" / name).as_uri() if local else None)
            for name, value in comparisons.TAGS.items():
                self.client.set_experiment_tag(place, name, value)
            return str(place)
        if found.lifecycle_stage == entities.LifecycleStage.DELETED:  # its name stays taken
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def run(self, head: dict[str, Any]) -> Any:
        """The current run of the record's model, which has this record, or none of its stage yet; else a new one."""
        model, mark = model_of(head["tags"]), f"record.{head['tags']['stage']}"
        place = self.experiment(f"{model.profile}/{model.experiment}")
        found = self.client.search_runs([place], f"tags.model = '{model.key}' and tags.current = 'yes'",
                                        order_by=["attributes.start_time DESC"])
        current = [run for run in found if run.data.tags.get(mark, head["id"]) == head["id"]][:1]
        if not current:
            tags = {"model": model.key, "current": "yes", **model._asdict(), **source(head["provenance"])}
            current = [self.client.create_run(place, start_time=head["time"], run_name=model.name, tags=tags)]
        for run in found:
            if run.info.run_id != current[0].info.run_id:
                self.client.set_tag(run.info.run_id, "current", "no")
        return current[0]

    def take(self, path: Path, lines: Lines) -> None:
        """Send what is new of a record; what an interrupted sending has brought there stays single."""
        head, stage = lines[0], lines[0]["tags"]["stage"]
        run = self.run(head)
        name, known = run.info.run_id, self.sent.get(relative(path), {})
        same = known.get("id") == head["id"] and known["run"] == name
        start = known["lines"] if same else 0
        ended = lines[-1]["kind"] == "end"
        if start == 0:
            params = {key: value for key, value in head["params"].items() if key not in run.data.params}
            self.log(name, params=params, tags={f"record.{stage}": head["id"], **source(head["provenance"])})
            self.log_data(name, head)
        self.log(name, metrics=[(metric(stage, key), value, line["time"], line["step"]) for line in lines[start:]
                                if line["kind"] == "metrics" for key, value in line["values"].items()])
        if start < len(lines):
            self.close(run, stage, lines[-1]["status"] if ended else "RUNNING", lines[-1]["time"])
        if ended:
            self.log_files(name, stage, path)
        self.sent[relative(path)] = {"id": head["id"], "lines": len(lines), "run": name, "files": ended}
        self.sent[model_of(head["tags"]).key] = {"run": name}
        write_json(SENT, self.all)

    def log(self, run: str, **what: Any) -> None:
        """Parameters, tags and metrics, in requests as large as MLflow allows."""
        from mlflow import entities  # as above

        kinds = {"params": entities.Param, "tags": entities.RunTag, "metrics": entities.Metric}
        for name, given in what.items():
            rows = [kinds[name](*row) for row in (given.items() if isinstance(given, dict) else given)]
            for first in range(0, len(rows), LIMITS[name]):  # the same value at the same time and step is stored once
                self.client.log_batch(run, **{name: rows[first : first + LIMITS[name]]})

    def log_data(self, run: str, head: dict[str, Any]) -> None:
        """The data set, with the hash of its file, as the run's input."""
        if not (hashed := head["provenance"].get("inputs", {}).get("data")):
            return
        from mlflow import entities  # as above

        model = model_of(head["tags"])
        place = STAGES["data"].out.format(**model._asdict())
        given = entities.Dataset(model.experiment, hashed, "local", json.dumps({"uri": place}))
        role = [entities.InputTag("mlflow.data.context", "data")]
        self.client.log_inputs(run, [entities.DatasetInput(given, role)])

    def log_files(self, run: str, stage: str, record: Path) -> None:
        """The stage's scores, curve and log, and pictures of what it made."""
        out = record.parent / Path(STAGES[stage].out).name
        logs = [folder / f"{stage}.log" for folder in record.parents[:3]]  # runs of one process share theirs
        files = [out] * (out.suffix == ".json") + [out.with_suffix(".csv"), *logs]
        for path in [path for path in files if path.exists()]:
            self.client.log_artifact(run, str(path), stage)
        for name, picture in import_module(PICTURES).of(stage, out).items():
            log = self.client.log_figure if hasattr(picture, "savefig") else self.client.log_image
            log(run, picture, artifact_file=f"{stage}/{name}.png")

    def close(self, run: Any, stage: str, status: str, ended: int) -> None:
        """The run's status, of all its stages'."""
        states = {key: value for key, value in run.data.tags.items() if key.startswith("status.")}
        states[f"status.{stage}"] = status
        self.client.set_tag(run.info.run_id, f"status.{stage}", status)
        worst = next((each for each in ("RUNNING", "FAILED", "KILLED") if each in states.values()), "FINISHED")
        if worst == "RUNNING":
            self.client.update_run(run.info.run_id, "RUNNING")
        else:
            self.client.set_terminated(run.info.run_id, worst, max(ended, run.info.end_time or 0))


def source(provenance: dict[str, Any]) -> dict[str, str]:
    """Tags of where a record comes from, under MLflow's names where it has some."""
    commit, command = str(provenance.get("commit", "")), str(provenance.get("command", ""))
    return {"commit": commit, "dirty": str(provenance.get("dirty", "")), "device": str(provenance.get("device", "")),
            "mlflow.source.name": " ".join(command.split()[:4]), "mlflow.source.type": "PROJECT",
            "mlflow.source.git.commit": commit}


def send(path: Path, uri: str | None = None) -> bool:
    """Mirror one record from where the last sending stopped; False, with a warning, if that fails."""
    uri = uri or tracking_uri()
    try:
        with alone():
            server, lines = Server(uri), read_record(path)
            if server.waits(path, lines):
                server.take(path, lines)
        return True
    except Exception as error:  # any failure of the mirror, of whatever kind, must not cost the run
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        log.warning("MLflow (%s) did not take %s: %s. Send it later: python -m fce send", uri, path, said)
        return False


@contextmanager
def alone() -> Iterator[None]:
    """One sender at a time: the first creates the database, and what was sent is kept in one file."""
    SENT.parent.mkdir(exist_ok=True)
    with open(SENT.with_suffix(".lock"), "w") as lock:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def mirrored(paths: Sequence[Path]) -> Iterator[None]:
    """Inside the block, if it lasts longer than a minute, records are mirrored while they grow; and at its end."""
    over, started = threading.Event(), time.monotonic()

    def keep_sending() -> None:
        while not over.wait(LIVE):
            for path in paths:
                send(path)
        if time.monotonic() - started > LIVE:
            for path in paths:
                send(path)

    thread = threading.Thread(target=keep_sending, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)


def runs() -> dict[str, str]:
    """{record's path: the id of the run that has it}, of the server that is set."""
    return {name: each["run"] for name, each in Server(tracking_uri()).sent.items()}


def relative(path: Path) -> str:
    return os.path.relpath(path.absolute(), ROOT)


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(prog="fce send", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--to", metavar="URI", help="another server than that of MLFLOW_TRACKING_URI, or the default")
    flags.add_argument("--links", metavar="ADDRESS", help="where the UI will be: say where it compares the arms")
    given = flags.parse_args(argv)
    uri = given.to or tracking_uri()
    open_door()
    failed = 0
    for _ in range(2):  # a record that begins its model's run anew leaves those sent before it in the old one
        server, records = Server(uri), {path: read_record(path) for path in (ROOT / "build").rglob("*.run.jsonl")}
        waiting = [path for path, lines in records.items() if lines and server.waits(path, lines)]
        waiting.sort(key=lambda path: records[path][0]["time"])  # a model's run begins with its training
        sent = in_row = 0
        for path in waiting:
            taken = send(path, uri)
            sent, failed, in_row = sent + taken, failed + (not taken), 0 if taken else in_row + 1
            if in_row == 2:  # the server is down: its other records wait too
                break
        if waiting:
            log.info("%d records sent to MLflow, %d wait", sent, len(waiting) - sent)
        if failed:
            break
    if given.links:
        for name, place in comparisons.places(connect(uri)).items():
            log.info("%s: %s%s", name, given.links.rstrip("/"), place)
    return 1 if failed else 0
