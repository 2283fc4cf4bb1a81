"""`fce compare`: two arms side by side, by the numbers of the page."""

import math
from pathlib import Path

import pytest
from test_report import put
from tiny import ROOT

from pipeline import command
from pipeline.params import load
from reports.compare import words
from reports.scores import Results, by_seed
from reports.verdicts import estimate

SAMPLES = {"name": "frechet_inception_distance", "model": "flow"}


def fce(build: Path, *argv: str) -> int:
    return command.main(["compare", *argv, "--build", str(build)])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_every_common_score_is_compared_as_the_page_does(tmp_path, capsys):
    for arm, fids in (("mle", {0: 50.0, 1: 52.0, 2: 51.0}), ("joint", {0: 40.0, 1: 43.0, 2: 41.0})):
        put(tmp_path, "full", "cifar10", arm, "fid", fids, **SAMPLES)
    put(tmp_path, "full", "cifar10", "joint", "log_z", {0: 1.0}, name="pareto_k", model="ebm")  # of one arm alone
    assert fce(tmp_path, "mle", "joint", "--on", "cifar10") == 0
    heading, _, columns, *rows = capsys.readouterr().out.splitlines()
    assert "MLE against ours" in heading and cells(columns)[1:3] == ["mle", "joint"] and len(rows) == 1
    scores = Results(load(ROOT / "params.yaml"), "full", tmp_path).scores
    mle, joint = (by_seed(scores, arm=arm, name=SAMPLES["name"]) for arm in ("mle", "joint"))
    assert cells(rows[0]) == ["samples: FID", estimate(mle), estimate(joint), estimate(joint - mle), "joint",
                              "samples/fid"]


def test_what_the_interval_does_not_tell_is_undetermined(tmp_path, capsys):
    for arm, found in (("joint", {0: 0.5, 1: 0.9, 2: 0.7}), ("random-init", {0: 0.6, 1: 0.7, 2: 0.8})):
        put(tmp_path, "full", "svhn", arm, "probe", found, name="accuracy", model="features", labels=1000)
    assert fce(tmp_path, "joint", "random-init", "--on", "svhn") == 0
    assert cells(capsys.readouterr().out.splitlines()[3])[::4] == ["features: accuracy, 1000 labels", "undetermined"]


def test_a_seed_alone_decides_nothing_and_that_is_said(tmp_path, capsys):
    put(tmp_path, "full", "cifar10", "mle", "fid", {0: 50.0, 1: 52.0}, **SAMPLES)
    put(tmp_path, "full", "cifar10", "joint", "fid", {1: 40.0}, **SAMPLES)
    assert fce(tmp_path, "mle", "joint", "--on", "cifar10") == 0
    *_, row, _, note = capsys.readouterr().out.splitlines()
    assert cells(row)[1:5] == ["51 ± 13 (n = 2)", "40.00", "−12.00", "one seed"]
    assert note.startswith("one seed: no interval over seeds")


@pytest.mark.parametrize(("argv", "says"), [
    (["mle", "jiont", "--on", "cifar10"], "no arm 'jiont'; did you mean 'joint'?"),
    (["mle", "joint", "--on", "cifar"], "no experiment 'cifar'; did you mean 'cifar10'?"),
    (["joint", "joint", "--on", "cifar10"], "'joint' is named twice"),
    (["mle", "joint", "--on", "cifar10"], "has no scores of 'mle'; `snakemake` makes them, `make pull`"),
])
def test_a_mistake_is_one_line_with_its_cure(tmp_path, capsys, argv, says):
    assert fce(tmp_path, *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and said.count("\n") == 1


def test_arms_without_a_common_score_are_refused(tmp_path, capsys):
    put(tmp_path, "full", "cifar10", "mle", "fid", {0: 50.0}, **SAMPLES)
    put(tmp_path, "full", "cifar10", "random-init", "probe", {0: 0.5}, name="accuracy", model="features", labels=1000)
    assert fce(tmp_path, "mle", "random-init", "--on", "cifar10") == 2
    assert "no score in common" in capsys.readouterr().err


def test_the_learned_constant_stays_unverified():
    row = {"measure": "bits_per_dim", "model": "ebm", "name": "bits_per_dim", "labels": math.nan}
    assert words(row) == "EBM: bits/dim, learned c, unverified"
    assert words(row | {"model": "flow"}) == "Glow: bits/dim"


def test_an_arm_whose_log_ratios_were_saturated_is_marked_here_too(tmp_path, capsys):
    for arm, updates in (("joint", 600.0), ("tilted", 0.0)):
        put(tmp_path, "full", "cifar10", arm, "fid", {0: 50.0, 1: 52.0}, **SAMPLES)
        put(tmp_path, "full", "cifar10", arm, "joint", {0: updates, 1: 0.0}, name="longest_saturated", model="ebm")
    assert fce(tmp_path, "joint", "tilted", "--on", "cifar10") == 0
    *rows, _, note = capsys.readouterr().out.splitlines()
    assert note.startswith("joint †: for so many updates in a row")
    assert any(cells(row)[0] == "game: saturated in a row" and cells(row)[-1] == "joint/longest_saturated"
               for row in rows if row)
