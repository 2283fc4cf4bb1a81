"""The one door to MLflow, and provenance.

A stage writes its record (parameters, curves, scores) as lines of JSON beside its output; MLflow is a
mirror of these files. A run longer than a minute is mirrored while it lasts; what is left is sent by
`python -m fce.track`, which Snakemake calls at its end. A broken server warns and costs nothing.
"""

import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from fce.progress import log

ROOT = Path(__file__).resolve().parent.parent
LIVE = 60.0  # seconds after which a running stage begins to be mirrored, and between two mirrorings


@cache
def environment() -> dict[str, Any]:
    """What made a number: commit, dirty flag, lock, device, versions."""
    import torch

    from fce.state import sha256

    lock = ROOT / "envs" / "requirements.lock"
    gpu = torch.cuda.is_available()
    return {
        "commit": git("rev-parse", "HEAD") or "not a git checkout",
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "lock": sha256(lock)[:16] if lock.exists() else "none",
        "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


class Run:
    """The record of one stage's run, and its mirror in MLflow.

    Args:
        path: the record, a file of JSON lines; an older one there is replaced.
        name: `<experiment>/<stage>/seed-<n>`, flat.
        tags: profile, experiment, stage, seed, arm.
        params: the stage's parameters.
        provenance: commit, lock, device, hashes of the inputs.
    """

    def __init__(self, path: Path, name: str, tags: dict[str, str], params: dict[str, Any], provenance: dict[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        path.with_suffix(".sent").unlink(missing_ok=True)
        self.file = open(path, "w", buffering=1)  # noqa: SIM115 - closed in __exit__
        self.started = time.time()
        self.write(kind="run", name=name, tags=tags, params=flat(params), provenance=provenance, time=now())
        self.over = threading.Event()
        self.mirror = threading.Thread(target=self.keep_sending, daemon=True)
        self.mirror.start()

    def write(self, **line: Any) -> None:
        self.file.write(json.dumps(line) + "\n")

    def log(self, step: int, **values: float) -> None:
        """Record one step's metrics."""
        self.write(kind="metrics", step=step, time=now(), values=values)

    def keep_sending(self) -> None:
        while not self.over.wait(LIVE):
            send(self.path)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.write(kind="end", status="FAILED" if kind else "FINISHED", time=now())
        self.file.close()
        if time.time() - self.started > LIVE:
            self.mirror.join()
            send(self.path)


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
    marker = path.with_suffix(".sent")  # "<run id> <lines sent>"
    try:
        with open(lock_path(), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one sender at a time: the first creates the database
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            run_id, sent = marker.read_text().split() if marker.exists() else ("", "0")
            if int(sent) < len(lines):
                run_id = mirror(lines, int(sent), run_id)
                marker.write_text(f"{run_id} {len(lines)}")
        return True
    except Exception as error:  # any failure of the mirror, of whatever kind, must not cost the run
        log.warning(
            "MLflow (%s) did not take %s: %s. Send it later: python -m fce.track",
            tracking_uri(),
            path,
            str(error).splitlines()[0][:200],
        )
        return False


def lock_path() -> Path:
    (ROOT / "build").mkdir(exist_ok=True)
    return ROOT / "build" / ".mlflow.lock"


def mirror(lines: list[dict[str, Any]], start: int, run_id: str) -> str:
    """Send lines[start:] to the run, which is created where `run_id` is empty."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(tracking_uri=tracking_uri())
    head = lines[0]
    if not run_id:
        profile = head["tags"].get("profile", "none")
        experiment = client.get_experiment_by_name(f"fce-{profile}")
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(f"fce-{profile}")
        run = client.create_run(experiment_id, start_time=head["time"], run_name=head["name"], tags=head["tags"])
        run_id = run.info.run_id
        params = [Param(key, value) for key, value in head["params"].items()]
        tags = [RunTag(f"provenance.{key}", value) for key, value in flat(head["provenance"]).items()]
        client.log_batch(run_id, params=params[:100], tags=tags)
    metrics = [
        Metric(name, float(value), line["time"], line["step"])
        for line in lines[start:]
        if line["kind"] == "metrics"
        for name, value in line["values"].items()
    ]
    for first in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[first : first + 1000])
    if lines[-1]["kind"] == "end":
        client.set_terminated(run_id, lines[-1]["status"], lines[-1]["time"])
    return run_id


def main() -> int:
    """Send every record below build/ that MLflow does not have yet."""
    from fce.progress import open_door

    open_door()
    waiting = [path for path in sorted((ROOT / "build").rglob("*.run.jsonl")) if unsent(path)]
    failed = 0
    for path in waiting:
        failed += not send(path)
        if failed == 2:  # the server is down: its other records wait too
            break
    if waiting:
        log.info("%d runs sent to MLflow, %d wait", len(waiting) - failed, failed)
    return 1 if failed else 0


def unsent(path: Path) -> bool:
    marker = path.with_suffix(".sent")
    with suppress(OSError, ValueError, IndexError):
        return int(marker.read_text().split()[1]) < len(path.read_text().splitlines())
    return True


if __name__ == "__main__":
    sys.exit(main())
