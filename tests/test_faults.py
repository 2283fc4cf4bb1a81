"""What breaks costs minutes, never a result: full disks, dead servers, kills of either engine, memory, divergence."""

import json
import math
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from tiny import edit, environment, flags, make_project, run_stage, write_slices

from eval import inception
from fce.models import open_flow, open_players
from fce.stages import pretrain
from pipeline import devices, mirror, provenance, track
from pipeline.checkpoint import load
from pipeline.errors import UserError
from pipeline.stage import fault


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    """The ring's folder of a tiny profile, with its data."""
    home = write_slices(tmp_path, {}) / "ring"
    assert run_stage("data", *flags("data", home)) == 0
    return home


def train(home: Path, *more: str) -> int:
    return run_stage("pretrain", *flags("pretrain", home), *more)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow beyond 20 kB: records still fit, checkpoints do not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_output_whole_and_says_so(ring: Path, small_disk: None, capfd) -> None:
    out = ring / "seed-0/pretrain.pt"
    out.parent.mkdir()
    out.write_bytes(b"the old one")
    assert train(ring, "--save-every", "0") == 1
    said = capfd.readouterr().err
    assert "no state could be saved" in said  # each state failed, and training went on to its end
    assert said.splitlines()[-1].startswith("error: ") and "too large" in said.splitlines()[-1]
    assert "run the same command again" in said.splitlines()[-1]
    assert out.read_bytes() == b"the old one"
    assert not list(ring.rglob("*.partial*"))


def test_after_a_full_disk_the_same_command_has_only_to_write(ring: Path, monkeypatch, capfd) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrain, "save", full)  # the output alone: the state fits
    assert train(ring) == 1
    assert "No space left on device" in capfd.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    assert train(ring) == 0
    said = capfd.readouterr().err
    assert "going on from the state" in said and "20/20" not in said  # no step was taken again


def test_divergence_stops_keeps_the_last_good_state_and_says_what_to_change(ring: Path, capfd) -> None:
    path = ring / "params/pretrain.json"
    path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 1e+9').replace('"clip": 100.0', '"clip": 1e+9'))
    assert train(ring) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "the loss is" in last and "lower pretrain.lr" in last and "stopped.pt" in last
    flow = open_flow(load(ring / "seed-0/pretrain.stopped.pt"))
    assert all(value.isfinite().all() for value in flow.state_dict().values())
    assert not (ring / "seed-0/pretrain.pt").exists()


def test_where_joint_training_diverges_both_players_are_kept_as_they_were(ring: Path, capfd) -> None:
    assert train(ring) == 0
    path = ring / "params/joint/joint.json"
    slice_of = json.loads(path.read_text())
    slice_of["joint"] |= {"flow_lr": 1e6, "log_every": 1}
    path.write_text(json.dumps(slice_of))
    assert run_stage("joint", *flags("joint", ring)) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "lower joint.flow_lr" in last and "The last good state is kept in" in last
    for model in open_players(load(ring / "seed-0/joint/joint.stopped.pt")):
        assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not (ring / "seed-0/joint/joint.pt").exists()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (lambda: torch.empty(10**15), 1, "error: out of memory"),  # torch's own error on a CPU
        (lambda: raises(torch.OutOfMemoryError("CUDA out of memory. Tried")), 1, "error: out of memory"),
        (lambda: raises(RuntimeError("CUDA error: an illegal access")), 1, "error: .*: CUDA error.*--device cpu"),
        (lambda: raises(RuntimeError("Failed to find C compiler, from triton")), 1, "error: .*FCE_COMPILE=no"),
        (lambda: raises(KeyboardInterrupt()), 130, "error: stopped by SIGINT"),
    ],
)
def test_a_fault_of_the_machine_ends_in_one_line(tmp_path: Path, monkeypatch, capfd, error, code, says) -> None:
    monkeypatch.setattr(inception, "run", lambda job: error())
    assert run_stage("inception", "--out", tmp_path / "x.pth") == code
    assert re.match(says, capfd.readouterr().err.splitlines()[-1])


def raises(error: BaseException) -> None:
    raise error


def test_out_of_memory_names_the_batch_of_its_stage() -> None:
    assert "lower pretrain.batch in" in fault(MemoryError(), "pretrain") and "fid.batch" in fault(MemoryError(), "fid")
    assert "lower" not in fault(MemoryError(), "data")


@pytest.mark.parametrize(("wanted", "driver", "says"), [("auto", 0, None), ("cpu", 1, None), ("auto", 1, "driver"),
                                                        ("cuda", 0, "--device cpu")])
def test_a_gpu_that_torch_cannot_use_is_an_error_and_none_is_the_cpu(monkeypatch, wanted, driver, says) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: driver)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: raises(RuntimeError("CUDA error: no kernel image")))
    if says is None:
        assert devices.choose(wanted) == "cpu"
    else:
        with pytest.raises(UserError, match=f"no kernel image.*{says}"):
            devices.choose(wanted)


def test_jobs_side_by_side_get_a_gpu_each(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held = []  # open files of one process have locks of their own, as those of several
    monkeypatch.setattr(os, "open", lambda *given, find=os.open: held.append(find(*given)) or held[-1])
    assert [devices.take(range(3)) for _ in range(3)] == [0, 1, 2] and devices.take(range(3)) in (0, 1, 2)
    os.close(held[1])
    assert devices.take(range(3)) == 1 and devices.take([0]) == 0


@pytest.mark.parametrize(("group", "file", "text", "says"), [
    ("0::/a/b", "a/b/cpu.max", "150000 100000", 1.5), ("0::/a/b", "a/cpu.max", "max 100000", math.inf),
    ("0::/a/b", "cpu.max", "200000 100000", 2.0), ("3:cpu,cpuacct:/a", "cpu,cpuacct/cpu.cfs_quota_us", "400000", 4.0),
    ("3:cpu,cpuacct:/a", "cpu,cpuacct/a/cpu.cfs_quota_us", "-1", math.inf), ("0::/a/b", "a/memory.max", "3145728", 3)])
def test_a_containers_limits_are_those_of_its_groups(tmp_path, monkeypatch, group, file, text, says) -> None:
    (tmp_path / "own").write_text(f"{group}\n")
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    monkeypatch.setattr(devices, "GROUPS", tmp_path)
    monkeypatch.setattr(devices, "OWN_GROUPS", tmp_path / "own")
    assert (devices.memory() if "memory" in file else devices.processors()) == says
    path.unlink()
    assert devices.memory() > 100 and devices.processors() == math.inf


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_checkout_of_another_owner_has_its_commit(tmp_path, monkeypatch) -> None:
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.chown(path, 12345, 12345)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert len(provenance.git("rev-parse", "HEAD")) == 40


def test_gpus_are_shared_where_nothing_can_be_locked(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    assert devices.take(range(3)) in (0, 1, 2) and "can't be locked" in caplog.text


# MLflow is a mirror of the records


def start(path: Path, key: str = "k") -> track.Run:
    tags = {"profile": "quick", "experiment": "ring", "seed": "0", "arm": "joint", "stage": "joint"}
    return track.Run(path, "ring/joint/seed-0", tags, {"joint": {"lr": 0.1}}, {"commit": "abc"}, key)


def record(path: Path, steps: range, key: str = "k", pause: float = 0.0) -> None:
    with mirror.mirrored([path]), start(path, key) as run:
        for step in steps:
            run.log(step, V=step / 2)
            time.sleep(pause)


def waits(path: Path) -> bool:
    return mirror.Server(mirror.tracking_uri()).waits(path, track.read_record(path))


def mirrored(uri: str) -> tuple[str, list[float]]:
    """The one run that MLflow has: its status, and its metric."""
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("quick/ring").experiment_id], "tags.current = 'yes'")
    assert run.data.params == {"joint.lr": "0.1"} and run.data.tags["commit"] == "abc"
    return run.info.status, [metric.value for metric in client.get_metric_history(run.info.run_id, "joint/V")]


@pytest.fixture
def uri(tmp_path: Path, monkeypatch) -> str:
    where = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setattr(mirror, "SENT", tmp_path / "sent.json")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return where


@pytest.mark.parametrize("listens", [False, True], ids=["unreachable", "silent"])
def test_a_broken_server_costs_no_time_and_later_gets_everything_once(tmp_path, uri, monkeypatch, listens) -> None:
    path = tmp_path / "joint.run.jsonl"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()  # takes a connection, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(mirror, "LIVE", 0.1)
        monkeypatch.setattr(mirror, "PATIENCE", 0.1)
        started = time.monotonic()
        record(path, range(10), pause=0.1)
        assert time.monotonic() - started < 2.5  # a second of work
        assert waits(path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mirror.send(path) and mirror.send(path)
    assert not waits(path)
    assert mirrored(uri) == ("FINISHED", [step / 2 for step in range(10)])


def test_a_locked_database_costs_nothing_either(tmp_path, uri) -> None:
    path = tmp_path / "joint.run.jsonl"
    record(path, range(3))
    assert mirror.send(path)
    record(path, range(3), key="another run")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("BEGIN EXCLUSIVE")
        assert not mirror.send(path)
        database.rollback()
    assert mirror.send(path)


def test_a_sending_that_breaks_off_doubles_nothing(tmp_path, uri, monkeypatch) -> None:
    path = tmp_path / "joint.run.jsonl"
    record(path, range(1500))  # two requests
    calls, whole = [], MlflowClient.log_batch

    def breaks(self: MlflowClient, *arguments: object, **named: object) -> None:
        calls.append(named)
        if len(calls) == 3:
            raise ConnectionError("gone")
        whole(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", breaks)
    assert not mirror.send(path)
    assert mirror.send(path)
    assert mirrored(uri) == ("FINISHED", [step / 2 for step in range(1500)])


def test_a_run_that_goes_on_is_one_run_in_mlflow(tmp_path, uri) -> None:
    path = tmp_path / "joint.run.jsonl"
    run = start(path)
    for step in range(5):
        run.log(step, V=step / 2)
    run.file.write('{"kind": "metr')  # killed while it wrote
    run.over.set()
    run.file.close()
    assert mirror.send(path)
    record(path, range(3, 8))  # from the state of step 3
    assert mirror.send(path)
    assert mirrored(uri) == ("FINISHED", [step / 2 for step in range(8)])
    record(path, range(2), key="other parameters")
    assert len(track.read_record(path)) == 4  # replaced


def of_stage(folder: Path, stage: str, key: str = "k", **values: float) -> Path:
    """The record of a stage that measures the ring's joint model."""
    path = folder / f"{stage}.run.jsonl"
    tags = {"profile": "quick", "experiment": "ring", "seed": "0", "arm": "joint", "stage": stage}
    params = {stage: {"points": [400]}, "data": {"density": "ring"}}
    with track.Run(path, stage, tags, params, {"commit": "abc", "inputs": {"data": "0123"}}, key) as run:
        run.log(0, **values)
    return path


def test_one_run_is_one_model_and_a_new_training_begins_a_new_one(tmp_path, uri) -> None:
    joint = of_stage(tmp_path, "joint", V=1.0)
    density = of_stage(tmp_path, "density", **{"flow/kl": 0.1, "ebm/kl": 0.2})
    assert mirror.send(density) and mirror.send(joint)
    client = MlflowClient(uri)

    def current() -> Run:
        place = client.get_experiment_by_name("quick/ring").experiment_id
        (run,) = client.search_runs([place], "tags.current = 'yes' and tags.arm = 'joint' and tags.seed = '0'")
        return run

    first = current()
    assert first.data.metrics == {"joint/V": 1.0, "density/kl": 0.1, "density/ebm_kl": 0.2}
    assert first.data.params == {"joint.points": "[400]", "density.points": "[400]", "data.density": "ring"}
    assert [(each.dataset.name, each.dataset.digest) for each in first.inputs.dataset_inputs] == [("ring", "0123")]
    assert first.info.status == "FINISHED" and first.info.run_name == "joint/seed-0"

    of_stage(tmp_path, "joint", "other parameters", V=2.0)
    assert mirror.send(joint) and waits(density)  # which is still that of the model
    assert mirror.send(density) and not waits(density) and not waits(joint)
    second = current()
    assert second.info.run_id != first.info.run_id
    assert second.data.metrics == {"joint/V": 2.0, "density/kl": 0.1, "density/ebm_kl": 0.2}
    assert client.get_run(first.info.run_id).data.tags["current"] == "no"


def test_another_server_gets_everything_too(tmp_path, uri, monkeypatch) -> None:
    path = of_stage(tmp_path / "build", "joint", V=1.0)
    assert mirror.send(path)
    monkeypatch.setattr(mirror, "ROOT", tmp_path)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert mirror.main(["--to", other]) == 0 and mirror.main(["--to", other]) == 0
    place = MlflowClient(other).get_experiment_by_name("quick/ring").experiment_id
    (run,) = MlflowClient(other).search_runs([place])
    assert run.data.metrics == {"joint/V": 1.0}
    Path(uri.removeprefix("sqlite:///")).unlink()  # a database that is gone gets all again
    assert waits(path)


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_a_user_deleted_in_mlflow_comes_back_with_the_next_sending(tmp_path, uri, what) -> None:
    path, client = tmp_path / "joint.run.jsonl", MlflowClient(uri)
    with start(path) as run:
        run.log(0, V=0.0)
        assert mirror.send(path)
        (sent,) = client.search_runs([client.get_experiment_by_name("quick/ring").experiment_id])
        if what == "run":
            client.delete_run(sent.info.run_id)
        else:
            client.delete_experiment(sent.info.experiment_id)
        run.log(1, V=0.5)
    assert mirror.send(path) and mirrored(uri) == ("FINISHED", [0.0, 0.5])


def test_a_record_without_an_end_that_nobody_writes_is_of_a_killed_run(tmp_path, uri) -> None:
    path = tmp_path / "joint.run.jsonl"
    run = start(path)
    assert not track.was_killed(path)  # it lives
    run.over.set()
    run.file.close()
    assert track.was_killed(path)
    record(path, range(2))
    assert not track.was_killed(path)


# Either engine


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-training of the ring takes some seconds."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    edit(folder, lambda params: params["quick"]["overrides"]["ring"]["pretrain"].update(steps=300, validate_every=100))
    return folder


@pytest.mark.parametrize("command", ["snakemake --cores 1 {out}", "dvc repro quick-run@ring"])
def test_either_engine_killed_in_mid_stage_goes_on_by_the_same_command(project: Path, command: str) -> None:
    home = project / "build/quick/ring"
    out = home / "seed-0/pretrain.pt"
    for path in home.glob("seed-*/pretrain.pt"):
        path.unlink()
    words = command.format(out=out.relative_to(project)).split()
    how = {"cwd": project, "env": environment(FCE_SAVE_EVERY="0.1"), "text": True, "start_new_session": True}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how) as first:
        while first.poll() is None and not list(home.glob("seed-0/.resume/*/training*/*.pt")):
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
    assert not out.exists()
    again = subprocess.run(words, capture_output=True, timeout=300, **how)
    assert again.returncode == 0, again.stdout + again.stderr
    assert out.exists()
    assert "going on from the state" in (home / "pretrain.log").read_text()
