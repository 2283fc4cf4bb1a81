"""What MLflow's UI shows: the arms of an experiment side by side, means over seeds, as in the report.

It is opened in headless Chromium; FCE_SCREENSHOT names a file to keep the picture in.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

from eval.score import Score, ScoreFile
from pipeline import comparisons, mirror, track
from pipeline.files import write_json
from pipeline.params import load
from reports.scores import Results, by_seed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BITS = {"mle": (2.0612, 2.0488), "joint": (2.0399, 2.0511)}  # by arm and seed


def write(build: Path) -> None:
    """Score files of the test images' bits/dim, and their records."""
    for arm, values in BITS.items():
        for seed, value in enumerate(values):
            place = build / f"full/digits/seed-{seed}/{arm}/bits_per_dim.json"
            origin, kind = {"seconds": 1}, {"profile": "full", "experiment": "digits", "seed": seed, "arm": arm}
            score = Score(name="bits_per_dim", model="flow", value=value, n=100, protocol="made up for a test")
            tags = {**kind, "seed": str(seed), "stage": "bits_per_dim"}
            record = place.with_suffix(".run.jsonl")
            with track.Run(record, place.stem, tags, {"data": {"levels": 17}}, {"commit": "abc"}, "key") as run:
                run.log(0, **{score.key: score.value})
            content = ScoreFile(measure="bits_per_dim", scores=[score], provenance=origin, **kind)
            write_json(place, content.model_dump(mode="json"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory):
    """MLflow's UI with these runs: where it compares the arms."""
    folder = tmp_path_factory.mktemp("mlflow-ui")
    write(folder / "build")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert all(mirror.send(path, uri) for path in sorted((folder / "build").rglob("*.run.jsonl")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"{sys.executable} -m mlflow server --port {port} --workers 1 --backend-store-uri {uri}".split()
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with subprocess.Popen(command, env=environment, **quiet) as server:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            time.sleep(0.5)
        yield folder, f"http://127.0.0.1:{port}{comparisons.places(mirror.connect(uri))['full/digits']}"
        server.terminate()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_ui_shows_what_the_report_does(address) -> None:
    folder, place = address
    picture = Path(os.environ.get("FCE_SCREENSHOT", folder / "mlflow.png"))
    browser = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1900,800",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000"]
    seen = subprocess.run([*browser, "--dump-dom", place], capture_output=True, text=True, timeout=120).stdout
    subprocess.run([*browser, f"--screenshot={picture}", place], capture_output=True, timeout=120, check=True)
    assert picture.stat().st_size > 20_000
    means = [float(mean) for mean in re.findall(r"([\d.]+)\s*\(average\)", re.sub("<[^>]*>", "", seen))]
    scores = Results(load(ROOT / "params.yaml"), "full", folder / "build").scores
    for arm, values in BITS.items():
        assert f"{arm}/seed-0" in seen and all(str(value) in seen for value in values)
        mean = by_seed(scores, experiment="digits", arm=arm, name="bits_per_dim").interval()[0]
        assert any(found == pytest.approx(mean, rel=1e-12) for found in means)


def test_every_experiment_has_its_view(tmp_path: Path) -> None:
    write(tmp_path / "build")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mirror.send(next((tmp_path / "build").rglob("*.run.jsonl")), uri)
    (place,) = comparisons.places(mirror.connect(uri)).values()
    assert "viewStateShareKey=arms" in place
