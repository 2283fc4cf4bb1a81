"""`fce doctor`: every line, with what is wrong made so."""

import http.server
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT

from pipeline import command, devices, doctor, fetch
from pipeline.fetch import OFFICIAL, WEIGHTS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """An empty FCE_DATA, in a folder without downloads."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_there_is_a_line_for_each_and_a_broken_check_breaks_no_other(monkeypatch, capsys):
    def breaks() -> doctor.Found:
        raise RuntimeError("the driver\nis strange")

    monkeypatch.setattr(doctor, "silent", lambda address: "it is switched off")
    quiet = dict.fromkeys(doctor.LOOKS, lambda: doctor.Found("ok", "fine"))
    monkeypatch.setattr(doctor, "LOOKS", quiet | {"GPU": breaks, "network": doctor.network})
    assert command.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and all(line.split()[0] in ("ok", "note") for line in lines)
    assert "note  GPU           could not be looked at (RuntimeError: the driver)" in lines
    assert any(line.startswith("note  network       no data set's host answers; nothing can be") for line in lines)
    doctor.LOOKS["disk"] = lambda: doctor.Found("mend", "full", "make room")
    assert command.main(["doctor"]) == 1 and "mend  disk          full; make room" in capsys.readouterr().out


def test_it_needs_no_package():
    """A Python without any is what it is for: the missing ones are lines with their cure."""
    alone = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; sys.path.insert(0, '.'); "
    told = ("from pipeline import doctor; print(doctor.look(doctor.packages)); print(doctor.look(doctor.compiler));"
            "print(doctor.look(doctor.LOOKS['svhn']))")
    done = subprocess.run([sys.executable, "-S", "-c", alone + told], cwd=ROOT, env={}, capture_output=True, text=True)
    packages, compiler, svhn = done.stdout.splitlines()
    assert "state='mend'" in packages and "make install" in packages
    assert "Found" in compiler and "Error" not in svhn


def test_another_python_and_other_packages_are_to_be_mended(monkeypatch):
    assert doctor.python().state == "ok"
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 12, 1)))
    assert doctor.python().state == "mend" and "make install" in doctor.python().cure
    versions = {"numpy": "1.0", "torch": "2.15.0+cu132"}
    monkeypatch.setattr(doctor, "ROOT", ROOT)
    monkeypatch.setattr(doctor, "version", lambda name: versions.get(name, "0"))
    found = doctor.packages()
    assert found.state == "mend" and "instead of" in found.what and "more" in found.what
    monkeypatch.setattr(doctor, "PIN", doctor.re.compile(r"^((?:numpy|torch)==[^\\]+?) *\\?$", doctor.re.MULTILINE))
    assert doctor.packages().what.startswith("numpy 1.0 instead of ") and "torch" not in doctor.packages().what


def test_little_disk_or_memory_and_no_compiler(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e9))
    monkeypatch.setattr(devices, "memory", lambda: 900)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(devices, "gpus", lambda: 0)
    assert [doctor.disk().state, doctor.memory().state, doctor.compiler().state] == ["note", "mend", "note"]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    monkeypatch.setattr(devices, "gpus", lambda: 1)
    assert doctor.disk().state == "mend" and doctor.compiler().state == "mend"


def test_a_gpu_that_torch_cant_use_is_to_be_mended(monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.zeros", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    found = doctor.look(doctor.gpu)
    assert found.state == "mend" and "no kernel image" in found.what and "driver" in found.what


def test_data_are_here_or_to_be_downloaded_or_broken(folder, monkeypatch):
    look = doctor.LOOKS["svhn"]
    assert look().state == "note" and "train_32x32.mat, test_32x32.mat" in look().what
    for file in OFFICIAL["svhn"]:
        (folder / file).write_text("no archive")
    assert look().state == "mend" and "wrong checksum" in look().what
    right = {file: ("", fetch.fingerprint(folder / file)) for file in OFFICIAL["svhn"]}
    monkeypatch.setitem(OFFICIAL, "svhn", right)
    assert look().state == "ok"
    (folder / "cifar10.npz").write_text("")
    assert doctor.data("cifar10").state == "ok" and "not the official archive" in doctor.data("cifar10").what
    monkeypatch.setenv("FCE_DATA", "nowhere")
    assert doctor.look(look).state == "mend" and "mend its name" in doctor.look(look).what


def test_weights_are_known_by_their_hash(folder, monkeypatch):
    assert doctor.weights().state == "note"
    (folder / WEIGHTS).write_text("none")
    assert doctor.weights().state == "mend"
    monkeypatch.setenv("FCE_ANY_WEIGHTS", "1")
    assert doctor.weights().state == "note" and "FD, not FID" in doctor.weights().what


def test_mlflows_server_is_asked_where_one_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert doctor.mlflow().state == "mend" and "fce send" in doctor.mlflow().cure
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert doctor.mlflow().state == "ok"
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        assert doctor.mlflow().state == "ok"  # it answers, if only that it can't do that


def test_a_remote_and_a_repository_are_named_where_there_are_any(monkeypatch):
    said = SimpleNamespace(returncode=0, stdout="store\t/srv/store\n", stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: said)
    assert doctor.remote() == doctor.Found("ok", "store")
    said.stdout = ""
    assert doctor.remote().state == "note" and "dvc remote add" in doctor.remote().cure
    monkeypatch.setattr("pipeline.provenance.git", lambda *_: "")
    assert doctor.repository().state == "note"
