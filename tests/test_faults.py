"""What breaks costs minutes, never a result: full disks, dead servers, kills of either engine, memory, divergence."""

import json
import math
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import edit, environment, flags, make_project, run_stage, write_slices

from eval import inception
from fce.models import open_flow, open_players
from fce.stages import pretrain
from pipeline import devices, provenance
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
    os.close(held[5])
    monkeypatch.setenv("LOCAL_RANK", "1")  # of torchrun, beside other jobs
    assert devices.take([1, 2, 0]) == 2 and devices.take([1, 2, 0]) == 1


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


def test_a_changed_file_is_a_change_but_what_dvc_locks_is_not(tmp_path, monkeypatch) -> None:
    for name in ("dvc.lock", "params.yaml"):
        (tmp_path / name).write_text("before")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for name, dirty in (("dvc.lock", False), ("params.yaml", True)):
        (tmp_path / name).write_text("after")
        assert provenance.environment.__wrapped__()["dirty"] is dirty


def test_gpus_are_shared_where_nothing_can_be_locked(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    assert devices.take(range(3)) in (0, 1, 2) and "can't be locked" in caplog.text


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


def test_an_interrupted_run_ends_at_once_and_goes_on(project: Path) -> None:
    """Ctrl-C reaches the engine and its stages: they keep their state, and nobody asked for a report."""
    home = project / "build/quick/ring"
    for path in home.glob("seed-*/pretrain.pt"):
        path.unlink()
    words = ["snakemake", "--cores", "1", str((home / "seed-0/pretrain.pt").relative_to(project))]
    how = {"cwd": project, "env": environment(FCE_SAVE_EVERY="0.1"), "text": True, "start_new_session": True,
           "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell's background job ignores it
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how) as run:
        while run.poll() is None and not list(home.glob("seed-0/.resume/*/training*/*.pt")):
            time.sleep(0.01)
        started = time.monotonic()
        os.killpg(run.pid, signal.SIGINT)
        said = run.communicate(timeout=60)[0]
    assert time.monotonic() - started < 10 and "stopping: what trains keeps its state" in said
    assert not (project / "build/report").exists() and list(home.glob("seed-0/.resume/*"))
