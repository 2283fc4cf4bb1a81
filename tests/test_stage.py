"""How a stage begins, ends and is recorded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fce import joint
from fce.data import data
from fce.optim import Average
from fce.params import load
from fce.stack import Stack
from fce.stage import tags_of
from fce.state import atomic, save
from fce.state import load as load_state

ROOT = Path(__file__).resolve().parent.parent
STAGES = [
    *("fce.data.data", "fce.pretrain", "fce.joint"),
    *("eval.density", "eval.classifier", "eval.weights", "eval.sample", "eval.fid", "eval.bits_per_dim", "eval.probe"),
    "reports.build",
]


@pytest.mark.parametrize("module", STAGES)
def test_every_stage_explains_itself(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"python -m {module}" in done.stdout
    assert "--out" in done.stdout


def make_data(folder: Path, **changes: object) -> int:
    settings = load(ROOT / "params.yaml").experiments["quick"]["ring"].data.model_dump() | changes
    (folder / "slice.json").write_text(json.dumps({"data": settings}))
    out = folder / "build/quick/ring/data.npz"
    argv = ["--params", str(folder / "slice.json"), "--out", str(out)]
    return data.main(data.__doc__, data.run, seeded=False, argv=argv)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sdt": 0.1}, "data.sdt.*did you mean 'std'"),
        ({"std": "1e-1"}, "data.std.*1.0e-4"),
        ({"modes": 0}, "data.modes"),
    ],
)
def test_a_bad_slice_ends_with_one_message_and_code_2(tmp_path, capfd, changes: dict, says: str) -> None:
    assert make_data(tmp_path, **changes) == 2
    message = capfd.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    assert re.search(says, message), message
    assert not (tmp_path / "build").exists()


def test_a_missing_input_names_its_flag(tmp_path, capfd) -> None:
    (tmp_path / "slice.json").write_text("{}")
    argv = [
        "--params",
        str(tmp_path / "slice.json"),
        "--data",
        "nowhere.npz",
        "--seed",
        "0",
        "--out",
        str(tmp_path / "o.pt"),
    ]
    assert joint.main(joint.__doc__, joint.run, inputs=["data"], optional=["flow"], argv=argv) == 2
    assert "error: --data: nowhere.npz does not exist" in capfd.readouterr().err


def test_the_path_law_names_a_run() -> None:
    found = tags_of(Path("/x/build/quick/ring/seed-3/joint-from-random/joint.pt"), "joint")
    assert found == {
        "stage": "joint",
        "profile": "quick",
        "experiment": "ring",
        "seed": "3",
        "arm": "joint-from-random",
    }
    assert tags_of(Path("build/full/svhn/data.npz"), "data") == {
        "stage": "data",
        "profile": "full",
        "experiment": "svhn",
    }
    assert tags_of(Path("elsewhere.pt"), "data") == {"stage": "data"}


def test_a_failed_write_leaves_the_old_file_whole(tmp_path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_load_without_running_code(tmp_path) -> None:
    save(tmp_path / "fine.pt", {"weights": torch.ones(2), "note": "text", "shape": [1, 2]})
    assert load_state(tmp_path / "fine.pt")["weights"].sum() == 2
    torch.save({"path": Path("x")}, tmp_path / "pickled.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_state(tmp_path / "pickled.pt")


def test_an_average_forgets_its_start_and_is_undone_after_use() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
        average = Average(Stack([module]), 0.9)
        module.weight.fill_(1.0)
        for _ in range(200):
            average.update()
        module.weight.fill_(5.0)
    assert average.state["weight"].item() == pytest.approx(1, abs=1e-6)
    with average.applied():
        assert module.weight.item() == pytest.approx(1, abs=1e-6)
    assert module.weight.item() == 5
