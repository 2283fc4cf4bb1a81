"""MLflow mirrors the records: one run is one model, whatever breaks off, is deleted, made again or sent twice."""

import socket
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import devices, mirror, track
from reports.origins import POWER, energy


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


def test_a_record_tells_what_its_run_takes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(track, "LOOK", 0.05)
    record(tmp_path / "joint.run.jsonl", range(4), pause=0.1)
    taken = [line["values"] for line in track.read_record(tmp_path / "joint.run.jsonl")
             if line["kind"] == "metrics" and "V" not in line["values"]]
    assert len(taken) >= 3 and all(each["system/memory_usage_megabytes"] > 50 for each in taken)
    assert max(each["system/cpu_utilization_percentage"] for each in taken) >= 0


def test_a_run_that_goes_on_adds_what_it_takes_and_its_pause_costs_nothing(tmp_path, monkeypatch) -> None:
    path, clock = tmp_path / "joint.run.jsonl", iter(range(0, 10**9, 1000))
    monkeypatch.setattr(track, "now", lambda: next(clock))
    watts = {POWER: 100.0}
    for looks in (3, 2):  # the first is killed
        run = start(path)
        run.over.set()
        for _ in range(looks):
            run.look += 1
            run.log(run.look, **watts)
        run.file.close()
        for _ in range(50):  # a pause
            next(clock)
    lines = track.read_record(path)
    assert [line["step"] for line in lines if line["kind"] == "metrics"] == [1, 2, 3, 4, 5]
    assert track.seconds(lines) == 3 + 2 and energy(path) == 500
    run.log(9, V=1.0)  # a look that took until after the end
    assert track.read_record(path) == lines


def test_a_record_of_a_stage_that_is_no_more_is_left_alone(tmp_path, uri, monkeypatch) -> None:
    monkeypatch.setattr(mirror, "ROOT", tmp_path)
    for name in ("joint", "baselines"):
        path = tmp_path / f"build/quick/ring/{name}.run.jsonl"
        record(path, range(2))
        path.write_text(path.read_text().replace('"stage": "joint"', f'"stage": "{name}"'))
    mirror.SENT.unlink(missing_ok=True)
    assert mirror.main([]) == 0 and mirrored(uri)[0] == "FINISHED"


def test_a_gpus_driver_is_asked_for_what_the_gpu_takes(tmp_path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --id=GPU-7 ] && echo "93, 40960, 612.5"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda: type("Card", (), {"uuid": "7"}))
    found = devices.usage("cuda")
    assert found["system/gpu_utilization_percentage"] == 93 and found["system/gpu_power_usage_watts"] == 612.5
    tool.unlink()
    assert "system/gpu_power_usage_watts" not in devices.usage("cuda")
