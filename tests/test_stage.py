"""How a stage begins, ends and is recorded."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import ROOT, flags, run_stage, write_slices

from fce.optim import Average
from fce.stack import Stack
from pipeline import command
from pipeline.catalogue import COMMANDS, STAGES
from pipeline.checkpoint import load, save
from pipeline.files import atomic
from pipeline.job import tags_of
from pipeline.params import read_slice


@pytest.mark.parametrize("name", [*STAGES, *COMMANDS])
def test_every_stage_and_command_explains_itself(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith(f"usage: fce {name} ")
    if name in STAGES:
        assert "--out" in said and all(f"--{flag} " in said for flag in STAGES[name].needs)
        assert ("--params" in said, "--seed" in said) == (bool(STAGES[name].sections), STAGES[name].seeded)


def test_the_command_is_a_process_like_any_other() -> None:
    def fce(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "fce", *words], cwd=ROOT, capture_output=True, text=True)

    help_of_all, mistyped, of_one = fce("--help"), fce("jiont"), fce("data", "--help")
    assert help_of_all.returncode == 0 and all(f"\n  {name} " in help_of_all.stdout for name in (*STAGES, *COMMANDS))
    assert mistyped.returncode == 2 and mistyped.stderr.count("\n") == 1 and "did you mean 'joint'?" in mistyped.stderr
    assert of_one.returncode == 0 and of_one.stdout.startswith("usage: fce data ")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The ring's folder of a tiny profile."""
    return write_slices(tmp_path, {}) / "ring"


def test_parameters_are_frozen(home: Path) -> None:
    params = read_slice((home / "params/joint/joint.json").read_text(), "joint")
    inner = ((params.joint, "ebm_lr"), (params.joint.alarms, "ratio_floor"), (params.data, "std"))
    for section, name in (*inner, (params, "joint"), (params, "probe")):
        before = section.model_dump()
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1.0)
        with pytest.raises(ValidationError, match="frozen"):
            delattr(section, name)
        assert section.model_dump() == before


def test_data_are_read_once_and_only_what_is_needed(tmp_path: Path, monkeypatch) -> None:
    """What a stage checks, trains on and measures is one and the same reading."""
    profile, read, whole = write_slices(tmp_path, {}), Counter(), np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda file, key: read.update([key]) or whole(file, key))
    images = {f"{part}_images" for part in ("train", "validation", "test")}
    points = {f"{part}{what}" for part in ("validation", "test") for what in ("", "_log_prob")}
    for experiment, stage, needed in (
        ("ring", "pretrain", points),
        ("digits", "pretrain", images | {"levels"}),
        ("digits", "sample", images | {"levels"}),
    ):
        home = profile / experiment
        if not (home / "data.npz").exists():
            assert run_stage("data", *flags("data", home)) == 0
        read.clear()
        seeds = (0, 1) if experiment == "ring" else (0,)  # side by side, in one process
        assert run_stage(stage, *flags(stage, home, seeds=seeds, arms=["mle"])) == 0
        assert set(read) <= needed and set(read.values()) == {1}, f"{experiment}/{stage}: {read}"


def make_data(home: Path, **changes: object) -> int:
    path = home / "params/data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"data": content["data"] | changes}))
    return run_stage("data", *flags("data", home))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sdt": 0.1}, "data.sdt.*did you mean 'std'"),
        ({"std": "1e-1"}, "data.std.*that is text: write numbers without quotes"),
        ({"modes": 0}, "data.modes"),
    ],
)
def test_a_bad_slice_ends_with_one_message_and_code_2(home, capfd, changes: dict, says: str) -> None:
    assert make_data(home, **changes) == 2
    message = capfd.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    assert re.search(says, message), message
    assert [path.name for path in home.iterdir()] == ["params"]


def test_a_missing_input_names_its_flag(home, capfd) -> None:
    assert run_stage("joint", *flags("joint", home, data="nowhere.npz")) == 2
    assert re.fullmatch("error: --data: .*nowhere.npz does not exist; the stage before this one makes it\n",
                        capfd.readouterr().err)


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
    assert load(tmp_path / "fine.pt")["weights"].sum() == 2
    torch.save({"path": Path("x")}, tmp_path / "pickled.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load(tmp_path / "pickled.pt")


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
