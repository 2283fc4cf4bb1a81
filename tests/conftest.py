"""Every test starts from the same seed, leaves no trace in the global generator or in MLflow, and uses one core."""

import os

# Read when torch and numpy are loaded, here and in what a test starts. Threads do not survive a fork, and on a busy
# machine they waited for one another: 9 seconds became six minutes.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import pytest
import torch

from pipeline import mirror

FIRST = ("test_engines", "test_grain", "test_resume", "test_faults")  # the longest files: the workers then end together
FAST = {"test_compare", "test_energy", "test_explain", "test_flow", "test_house", "test_intervals", "test_objective",
        "test_params", "test_readme", "test_report", "test_screen",
        "test_stage"}  # `make test-fast`: theorems, parameters, the report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))
    for item in items:
        if item.path.stem in FAST:
            item.add_marker("fast")


@pytest.fixture(scope="session", autouse=True)
def no_server(tmp_path_factory):
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    mirror.SENT = tmp_path_factory.mktemp("mlflow") / "sent.json"


@pytest.fixture(autouse=True)
def same_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
