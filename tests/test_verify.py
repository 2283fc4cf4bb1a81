"""`fce verify`: a published score is computed anew from its inputs, by its own command."""

import json
import math
from pathlib import Path

import pytest
from tiny import flags, run_stage, write_slices

from eval.score import Score
from eval.verify import WAYS, difference, way
from pipeline import command

HOME = Path("build/quick/ring")  # below the current folder, as the engines have it
SCORES = HOME / "seed-1/joint-from-random/density.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny ring with the densities of two seeds and two arms, all measured by one process."""
    folder = tmp_path_factory.mktemp("made")
    write_slices(folder, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_stage("data", *flags("data", HOME)) == 0
        assert run_stage("pretrain", *flags("pretrain", HOME, (0, 1))) == 0
        arms = ("joint", "joint-from-random")
        for arm in arms:
            assert run_stage("joint", *flags("joint", HOME, (0, 1), [arm])) == 0
        assert run_stage("density", *flags("density", HOME, (0, 1), arms)) == 0
    return folder


@pytest.fixture
def here(made: Path, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def verify(path: Path = SCORES) -> int:
    return command.main(["verify", str(path)])


def change(path: Path, text: str) -> str:
    """Write a file; returns what it held."""
    before = path.read_text()
    path.write_text(text)
    return before


def test_a_score_is_computed_anew_and_nothing_else_is_touched(here, capsys):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert verify() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("ring, joint-from-random, seed 1, density: ") and said[1] == "largest difference: 0"
    assert said[-1] == "equal"
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


@pytest.mark.parametrize(("off", "code", "says"), [(0.5, 0, WAYS[1]), (3.0, 1, WAYS[2])])
def test_a_difference_is_told_by_the_scores_own_error(here, capsys, off, code, says):
    content = json.loads(SCORES.read_text())
    (score,) = (each for each in content["scores"] if each["model"] == "ebm" and each["name"] == "log_likelihood")
    score["value"] += off * score["standard_error"]
    before = change(SCORES, json.dumps(content))
    try:
        assert verify() == code
    finally:
        SCORES.write_text(before)
    said = capsys.readouterr().out.splitlines()
    assert "(ebm/log_likelihood: " in said[1] and said[2].endswith(f": {says}") and said[-1] == says


def test_what_is_missing_is_one_error_that_names_make_pull(here, capsys):
    model = HOME / "seed-1/joint-from-random/joint.pt"
    model.rename(here / "aside")
    try:
        assert verify() == 2
    finally:
        (here / "aside").rename(model)
    said = capsys.readouterr().err
    assert said.startswith(f"error: --model: {model}, which") and "`make pull`" in said and said.count("\n") == 1
    assert verify(Path("nowhere.json")) == 2 and "make pull" in capsys.readouterr().err


def test_other_inputs_or_parameters_are_refused(here, capsys):
    params = HOME / "params/density.json"
    before = change(params, params.read_text().replace('"plot_points": 20', '"plot_points": 21'))
    try:
        assert verify() == 2 and "--params: the slice is not the one" in capsys.readouterr().err
    finally:
        params.write_text(before)
    other, own = (HOME / f"seed-{seed}/joint-from-random/joint.pt" for seed in (0, 1))
    kept = own.read_bytes()
    own.write_bytes(other.read_bytes())
    try:
        assert verify() == 2 and "is not the file that the scores were made from" in capsys.readouterr().err
    finally:
        own.write_bytes(kept)


@pytest.mark.parametrize("text", ["{}", "no json", None])
def test_what_no_stage_wrote_is_refused(here, capsys, tmp_path, text):
    content = json.loads(SCORES.read_text())
    content["provenance"]["command"] = "rm -rf /"
    (tmp_path / "scores.json").write_text(text or json.dumps(content))
    assert verify(tmp_path / "scores.json") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_rounding_is_no_difference_and_what_is_no_number_is_one():
    score = Score(name="kl", model="ebm", value=100.0, n=1, protocol="made up")
    assert way(score, 5e-5) == WAYS[0] and way(score, 5e-4) == WAYS[2]
    assert difference(math.nan, math.nan) == difference(-math.inf, -math.inf) == 0.0
    assert difference(math.nan, 1.0) == difference(1.0, math.nan) == difference(-math.inf, math.inf) == math.inf
