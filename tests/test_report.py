"""The report: verdicts by the rules of paper.yaml, quick numbers kept out, and a page for whatever there is."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import sent

from benchmarks.models import Sizes, flops
from eval.score import Score, ScoreFile
from fce import objective
from pipeline.catalogue import ROOT, SCORES, Caution, score, score_of
from pipeline.errors import UserError
from pipeline.params import load
from reports import build, figures, origins, scores, tables, verdicts
from reports.page import better, cautions
from reports.scores import Results, shown
from reports.verdicts import Values
from reports.words import NOTES, PAPER, called, claims_of

SETTINGS = load(ROOT / "params.yaml")
TABLE1, TABLE2 = PAPER["values"]
COMMAND = "python -m eval.fid <script>alert(1)</script>"


def values(*at_seeds: float, errors: float | list[float] = math.nan, draws: list[list[float]] | None = None,
           shared: bool = True) -> Values:
    """Values at seeds 0, 1, …"""
    n = len(draws or at_seeds)
    rows = {"seed": range(n), "value": at_seeds or 0.0, "standard_error": errors, "draws": draws or [None] * n,
            "shared": shared}
    return Values.of(pd.DataFrame(rows))


def put(root: Path, profile: str, experiment: str, arm: str, measure: str, values: dict[int, float], **score) -> None:
    """Score files, one for each seed, with a record beside each."""
    for seed, value in values.items():
        path = root / profile / experiment / f"seed-{seed}" / arm / f"{measure}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = ScoreFile(
            measure=measure,
            profile=profile,
            experiment=experiment,
            seed=seed,
            arm=arm,
            scores=[Score(value=value, n=1, protocol="made up", **score)],
            provenance={"command": COMMAND, "seconds": 2},
        )
        path.write_text(json.dumps(content.model_dump(mode="json")))
        path.with_suffix(".run.jsonl").write_text('{"kind": "run", "time": 0}\n{"kind": "end", "time": 3000}\n')
        sent(path.with_suffix(".run.jsonl"), "run-id-of-mlflow")


def fids(root: Path, profile: str = "full") -> None:
    """Made-up FIDs of SVHN: Glow (MLE) as printed, Glow (ours) too good."""
    score = {"name": "frechet_inception_distance", "model": "flow"}
    put(root, profile, "svhn", "mle", "fid", {0: 41.0, 1: 42.0, 2: 42.2}, **score)
    put(root, profile, "svhn", "joint", "fid", {0: 9.0, 1: 9.4, 2: 9.1}, **score)


def scores_of(root: Path, profile: str = "full") -> pd.DataFrame:
    return scores.score_table(scores.score_files(root / profile).values())


def results_of(root: Path, profile: str = "full") -> Results:
    return Results(SETTINGS, profile, root)


def why(experiment: str, arm: str, measure: str) -> str:
    return "not run yet"


def rendered(root: Path, profile: str) -> str:
    """The rendered page, read back."""
    out = root / "report" / "index.html"
    assert build.main(["--profile", profile, "--build", str(root), "--out", str(out)]) == 0
    return out.read_text()


def without_own_script(html: str) -> str:
    """A page without its one script, which is the template's byte for byte."""
    template = (ROOT / "reports/template.html.j2").read_text()
    (script,) = re.findall(r"<script>.*?</script>", template, re.DOTALL)
    assert html.count(script) == 1
    return html.replace(script, "")


def test_interval_is_students():
    mean, half = values(1.0, 2.0, 3.0).interval()
    assert mean == 2.0
    assert half == pytest.approx(4.302653 * 1.0 / math.sqrt(3), rel=1e-6)  # t of 2 degrees of freedom, by a table
    assert values(1.0, 2.0, 3.0, errors=9.0, shared=False).interval() == (2.0, half)  # samples, drawn anew
    both = values(1.0, 2.0, 3.0, errors=[0.3, 0.6, 0.9]).interval()[1]  # test images that all seeds share
    assert both == pytest.approx(math.hypot(half, 1.96 * 0.6))
    assert values(1.0, errors=0.1).interval() == (1.0, pytest.approx(0.196))  # a seed alone: its own standard error
    assert math.isnan(values(1.0).interval()[1])


def test_seeds_and_draws_are_crossed():
    """Effects of 4 seeds, of 5 draws that all seeds share, and of each pair: 95 % of the intervals hold the mean."""
    rng, n = np.random.default_rng(0), 1000
    table = (0.02 * rng.normal(size=(n, 4, 1)) + 0.03 * rng.normal(size=(n, 1, 5)) + 0.01 * rng.normal(size=(n, 4, 5)))
    both = [values(draws=each.tolist()).interval() for each in table]
    seeds = [values(*each.mean(1)).interval() for each in table]
    assert np.mean([abs(mean) < half for mean, half in both]) == pytest.approx(0.96, abs=0.025)
    assert np.mean([abs(mean) < half for mean, half in seeds]) < 0.9  # over seeds alone they would be too narrow
    mean, half = values(draws=[[0.5, 0.6, 0.7]], errors=0.05).interval()
    assert (mean, half) == (pytest.approx(0.6), pytest.approx(math.hypot(4.302653 * 0.1 / 3**0.5, 1.96 * 0.05)))
    assert math.isnan(values(draws=[[0.5, 0.6, 0.7]]).interval()[1])


def test_differences_are_paired_in_draws_too():
    """What a draw does to both arms leaves their difference."""
    easy = np.array([0.0, 0.2, -0.1])
    first, second = (values(draws=[list(level + easy), list(level + 0.01 + easy)]) for level in (0.7, 0.5))
    assert (first - second).interval() == (pytest.approx(0.2), pytest.approx(0, abs=1e-9))
    every = pd.DataFrame({"seed": [0, 0], "value": [0.6, 0.9], "standard_error": 0.1, "draws": [[0.5, 0.7], [0.9]]})
    assert Values.of(every).at.to_numpy() == pytest.approx(np.array([[0.7, 0.8]]))  # all labels have one draw


@pytest.mark.parametrize(
    ("at_seeds", "verdict"),
    [
        ([], "not run"),
        ([10.0], "undetermined"),  # one seed has no interval, where its score has no error
        ([9.9, 10.0, 10.1], "reproduced"),
        ([11.4, 11.5, 11.6], "near"),
        ([12.4, 12.5, 12.6], "not reproduced"),
        ([9.0, 10.0, 11.0], "undetermined"),  # half-width 2.5
        ([10.0, 10.0, math.inf], "undetermined"),
        ([10.0, 10.0, math.nan], "undetermined"),
    ],
)
def test_verdict_on_a_number(at_seeds, verdict):
    assert verdicts.value_verdict(values(*at_seeds), paper=10.0, tolerance=1.0) == verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([], "not run"),
        ([0.1], "undetermined"),
        ([0.09, 0.10, 0.11], "reproduced"),
        ([-0.1, -0.11, -0.09], "not reproduced"),
        ([0.30, 0.31, 0.32], "not reproduced"),  # above is not "slightly above"
        ([0.0, 0.1, 0.2], "undetermined"),
        ([0.1, 0.1, math.nan], "undetermined"),
    ],
)
def test_verdict_on_an_ordering(differences, verdict):
    assert verdicts.ordering_verdict(values(*differences), low=0.0, high=0.2) == verdict


@pytest.mark.parametrize(
    ("value", "error", "on_a_number", "on_an_ordering"),
    [
        (10.0, 0.4, "reproduced", "reproduced"),
        (11.5, 0.4, "near", "undetermined"),
        (12.5, 0.4, "not reproduced", "not reproduced"),
        (10.0, 0.6, "undetermined", "undetermined"),  # half-width 1.2
    ],
)
def test_a_seed_alone_is_judged_by_its_standard_error(value, error, on_a_number, on_an_ordering):
    alone = values(value, errors=error)
    assert verdicts.value_verdict(alone, paper=10.0, tolerance=1.0) == on_a_number
    zero = values(0.0, errors=0.0)
    assert verdicts.ordering_verdict(alone - zero, low=9.0, high=11.0) == on_an_ordering
    assert (alone - values(1.0, errors=0.3)).interval()[1] == pytest.approx(1.96 * math.hypot(error, 0.3))


def test_a_seed_alone_is_marked_and_explained(tmp_path):
    score = {"name": "bits_per_dim", "model": "flow"}
    put(tmp_path, "full", "cifar10", "mle", "bits_per_dim", {0: 3.35}, standard_error=0.01, **score)
    put(tmp_path, "full", "cifar10", "joint", "bits_per_dim", {0: 3.45}, standard_error=0.01, **score)
    put(tmp_path, "full", "svhn", "mle", "bits_per_dim", {0: 2.17, 1: 2.18}, standard_error=0.01, **score)
    put(tmp_path, "full", "svhn", "joint", "bits_per_dim", {0: 2.25}, **score)
    found = scores_of(tmp_path)
    table = tables.printed_table(found, TABLE2, why).set_index(["Data", "Model"])
    ours = table.loc[[("CIFAR-10", "Glow (MLE)"), ("SVHN", "Glow (MLE)"), ("SVHN", "Glow (ours)")], "Ours"]
    assert ours.tolist() == ["3.350 ± 0.020 (one seed)", "2.175 ± 0.066", "2.250"]
    claims = tables.claims_table(found, PAPER["claims"], why).set_index(["Claim", "Data"])
    cost = claims.loc[("Joint training costs Glow a little likelihood", "CIFAR-10")]
    assert cost[["Value or difference", "Verdict"]].tolist() == ["0.100 ± 0.028 (one seed)", "reproduced"]
    here = shown(found, "cifar10")
    by_model, by_seed = (tables.table(here, "results", rows) for rows in (["Model"], ["Model", "Seed"]))
    assert by_model["bits/dim"].tolist() == ["3.350 ± 0.020 (one seed)", "3.450 ± 0.020 (one seed)"]
    assert by_seed["bits/dim"].tolist() == ["3.350", "3.450"]
    assert tables.table(here, "trade", ["Arm"])["bits/dim"].tolist() == ["0.100 ± 0.028 (one seed)"]
    html = rendered(tmp_path, "full")
    assert html.count("does not contain the variation between seeds") == 4  # claims, Table 2, results, trade


def test_differences_are_paired_and_keep_a_diverged_seed():
    difference = values(1.0, math.nan, 5.0) - values(3.0, 1.0)
    assert list(difference.at.index) == [0, 1]
    assert math.isnan(difference.means[1])


@pytest.mark.parametrize(
    ("x", "half", "text"),
    [
        (41.73, 1.62, "41.7 ± 1.6"),
        (-197.4, 409.0, "−197 ± 409"),
        (2_345_678.9, math.nan, "2.346×10^6"),
        (2_345_678.9, 123_456.7, "(2.35 ± 0.12)×10^6"),
        (-1_234.5, 987_654.3, "(−0.0 ± 9.9)×10^5"),
        (174_336.0, 0.0, "174336 ± 0"),  # a count
        (math.inf, math.nan, "inf"),
    ],
)
def test_numbers_are_readable(x, half, text):
    assert verdicts.number(x, half) == text


@pytest.mark.parametrize("ratio", [1, 4])
def test_the_grey_line_is_the_value_at_p_equal_q(tmp_path, ratio):
    zero = torch.zeros(1)
    (tmp_path / "joint.json").write_text(json.dumps({"joint": {"noise_ratio": ratio}}))
    found = figures.levels(tmp_path, ["joint", "joint", "without-a-slice"])
    assert list(found) == pytest.approx([objective.value(zero, zero, ratio).item()])


def test_paper_tables_show_paper_ours_and_verdict(tmp_path):
    fids(tmp_path)
    table = tables.printed_table(scores_of(tmp_path), TABLE1, why).set_index(["Data", "Model"])
    mle = table.loc[("SVHN", "Glow (MLE)")]
    assert mle[["Paper", "Ours", "Verdict"]].tolist() == ["41.70", "41.7 ± 1.6", "reproduced"]
    assert table.loc[("SVHN", "Glow (ours)"), "Verdict"] == "not reproduced"
    assert table.loc[("SVHN", "DCGAN"), "Verdict"] == "not run"
    missing = table.loc[("CIFAR-10", "Glow (MLE)")]
    assert missing[["Ours", "Verdict", "Note"]].tolist() == ["–", "not run", "not run yet"]
    claims = tables.claims_table(scores_of(tmp_path), PAPER["claims"], why).set_index(["Claim", "Data"])
    assert claims.loc[("Joint training lowers Glow's FID", "SVHN"), "Verdict"] == "reproduced"


@pytest.mark.parametrize(
    ("experiment", "fid", "held"),
    [("svhn", 20.0, [True, False]), ("svhn", 12.0, [True, True]), ("cifar10", 37.3, [True, False]),
     ("cifar10", 38.0, [False, False]), ("cifar10", 36.0, [True, True])],
)
def test_glow_is_compared_with_both_rows_that_ttur_printed_of_dcgan(tmp_path, experiment, fid, held):
    """The paper's own 20.19 and 37.30 are below the "orig" rows (21.4, 37.7) and above the others (12.5, 36.9)."""
    seeds = {0: fid - 0.01, 1: fid, 2: fid + 0.01}
    put(tmp_path, "full", experiment, "joint", "fid", seeds, name="frechet_inception_distance", model="flow")
    claims = tables.claims_table(scores_of(tmp_path), PAPER["claims"], why)
    rows = claims[claims["Claim"].str.contains("as printed by TTUR") & (claims["Data"] == called(experiment))]
    assert ["orig" in claim for claim in rows["Claim"]] == [True, False]
    assert [verdict == "reproduced" for verdict in rows["Verdict"]] == held
    assert set(rows["Verdict"]) <= {"reproduced", "not reproduced"}


def test_ebm_likelihood_is_never_confirmed(tmp_path):
    for arm, model, value in (("mle", "flow", 2.17), ("joint", "ebm", 2.15)):
        seeds = {0: value, 1: value + 1e-3}
        put(tmp_path, "full", "svhn", arm, "bits_per_dim", seeds, name="bits_per_dim", model=model)
    table = tables.printed_table(scores_of(tmp_path), TABLE2, why).set_index(["Data", "Model"])
    assert table.loc[("SVHN", "EBM (ours)"), "Verdict"] == "unverified"
    bounds = {"certificate": {0: 2.16, 1: 2.17}, "ais": {0: 2.19, 1: 2.191}}
    for kind, values in bounds.items():
        put(tmp_path / kind, "full", "svhn", "joint", "log_z", values, name=f"bits_per_dim_{kind}", model="ebm")
    found = pd.concat([scores_of(tmp_path), *(scores_of(tmp_path / kind) for kind in bounds)])
    claims = tables.claims_table(found, PAPER["claims"], why).set_index(["Claim", "Data"])
    claim = claims.loc[("The EBM's bits/dim are below those of Glow (MLE)", "SVHN")]
    assert claim["Verdict"] == "not refuted" and "by AIS 0.0200" in claim["Note"]  # below it, but for AIS
    assert set(claims.filter(like="bits/dim are below", axis=0)["Verdict"]) == {"not refuted", "not run"}


@pytest.mark.parametrize(
    ("differences", "error", "verdict"),
    [
        ([], math.nan, "not run"),
        ([0.02, 0.021], math.nan, "refuted"),
        ([0.02, 0.021], 0.01, "not refuted"),  # the error over test images reaches below 0
        ([-0.02, 0.021], math.nan, "not refuted"),
        ([-0.02, -0.021], math.nan, "not refuted"),
        ([0.02, math.nan], math.nan, "undetermined"),
        ([math.nan], math.nan, "undetermined"),
        ([math.inf, 0.02], math.nan, "refuted"),  # a lower bound of infinity
        ([0.02], math.nan, "refuted"),  # its 99 % hold for a seed alone
        ([0.02], 0.015, "not refuted"),  # on these images, but maybe not on others
    ],
)
def test_verdict_on_a_bound(differences, error, verdict):
    assert verdicts.bound_verdict(values(*differences, errors=error)) == verdict


def test_what_our_budget_decides_is_undetermined(tmp_path):
    for arm, model, kl in (("joint-from-random", "ebm", 1.8), ("mle", "flow", 0.1)):
        for experiment in ("ring", "ring-paper"):
            put(tmp_path, "full", experiment, arm, "density", {0: kl, 1: kl + 0.01}, name="kl", model=model)
    claim = next(claim for claim in PAPER["claims"] if claim["claim"] == "The EBM fits better than Glow (MLE)")
    claim = {**claim, "experiments": ["ring", "ring-paper", "spiral"],
             "budget": {"ring-paper": "too few updates", "spiral": "none"}}
    rows = tables.claims_table(scores_of(tmp_path), [claim], why).set_index("Data")
    assert rows["Verdict"].to_list() == ["not reproduced", "undetermined: budget", "not run"]
    updates = SETTINGS.experiments["full"]["ring-paper"].arms["joint"].ebm_updates
    assert rows.index[1] == f"ring, the paper's literal recipe, {updates} EBM updates"
    assert rows["Note"].to_list() == ["", "too few updates", "not run yet"]
    assert called("ring-paper", "quick") == "ring, the paper's literal recipe"  # which does not run it


def test_undetermined_by_budget_counts_as_undetermined_and_chance_is_told(tmp_path, monkeypatch):
    fids(tmp_path)
    lowers = next(claim for claim in PAPER["claims"] if claim["claim"] == "Joint training lowers Glow's FID")
    budgeted = {**lowers, "claim": "again", "budget": {"svhn": "few updates"}}
    monkeypatch.setitem(PAPER, "claims", [lowers, budgeted])
    html = rendered(tmp_path, "full")
    # Table 1: Glow (MLE) reproduced, Glow (ours) not; Tables 1 and 2 have 12 numbers
    assert "Of 16 claims and printed numbers: 2 reproduced, 1 undetermined, 1 not reproduced, 12 not run.</p>" in html
    assert "for their number: 1. Were none of these claims true, up to 1 × 2.5 % = 0.025 “reproduced”" in html
    assert '<span class="verdict undetermined">undetermined: budget</span>' in html
    assert html.count("what another run on other test images of the same kind would give") == 5  # at every interval


def test_the_page_says_in_short_what_held_and_where(tmp_path):
    """What we added to the paper's claims is counted apart, and what was not run is folded with its reason."""
    fids(tmp_path)
    html = rendered(tmp_path, "full")
    summary = pd.read_csv(tmp_path / "report/summary.csv").set_index("Verdict")["Where"]
    assert summary["reproduced"] == "Table 1 (2), Tests of ours (1), printed in Table 1 (1)"
    claims = pd.read_csv(tmp_path / "report/claims.csv")
    assert int(re.findall(r"(\d+) not run", html)[0]) == (claims["Verdict"] == "not run").sum() + 10
    folded = re.findall(r"<details><summary>Table 1: \d+ not run, and why</summary>.*?</details>", html, re.DOTALL)
    assert len(folded) == 1 and "not run yet" in folded[0]


def test_a_number_past_its_limit_has_a_caution(tmp_path, monkeypatch):
    limits = {"frechet_inception_distance": {"above": 20.0}, "precision": {"below": 0.5}}
    for name, limit in limits.items():
        caution = Caution(words=f"{name} is odd", **limit)
        monkeypatch.setitem(SCORES, name, SCORES[name]._replace(caution=caution))
    fids(tmp_path)
    precisions = [{"name": "precision", "model": "flow"}, {"name": "frechet_distance", "model": "flow"}]
    for each in precisions:
        put(tmp_path / each["name"], "full", "svhn", "mle", "fid", {0: 0.4, 1: 0.7}, **each)
    found = pd.concat([scores_of(tmp_path), *(scores_of(tmp_path / each["name"]) for each in precisions)])
    table = tables.table(shown(found, "svhn"), "results", ["Model"]).set_index("Model")
    assert table["FID"].tolist() == ["41.7 ± 1.6 †", "9.17 ± 0.52"]
    assert table.loc["Glow (MLE)", ["FD", "precision"]].str.endswith("†").tolist() == [False, False]  # mean 0.55
    assert cautions(table) == " † Caution, FID: frechet_inception_distance is odd."
    seeds = tables.table(shown(found, "svhn"), "results", ["Model", "Seed"]).set_index(["Model", "Seed"])
    assert seeds["precision"].tolist()[:2] == ["0.4000 †", "0.7000"]
    assert list(seeds.attrs["cautions"]) == ["FID", "precision"]
    html = rendered(tmp_path, "full")
    assert html.count("† Caution, FID: frechet_inception_distance is odd.") == 2  # the means' table, each seed's
    row = {"heading": "h", "unit": "u", "caution": {"words": "w", "above": 1}}  # as catalogue.toml has it
    assert score_of(row).caution.meets(2.0) and not score_of(row).caution.meets(1.0)


def test_label_counts_are_averaged_and_convergence_is_counted(tmp_path):
    put(tmp_path, "full", "svhn", "joint", "probe", {0: 0.5}, name="accuracy", model="features", labels=50)
    found = pd.concat([scores_of(tmp_path), scores_of(tmp_path).assign(labels=100, value=0.7)])
    assert scores.by_seed(found, arm="joint", name="accuracy").means.tolist() == [0.6]
    runs = pd.DataFrame(
        {
            "seed": 0,
            "arm": ["joint"] * 3 + ["gaussian-noise"] * 3,
            "ebm_updates": [50, 100, 150] * 2,
            "mse_ema": [1.0, 0.19, 0.3, 1.0, 0.5, 0.4],
        }
    )
    found = scores.of_game(runs, "full", "ring", ())
    assert set(found.loc[found["name"] == "updates_to_converge", "value"]) == {100.0, 150.0}  # never: the whole budget
    images = scores.of_game(runs.drop(columns="mse_ema"), "full", "svhn", ())
    assert set(images["name"]) == {"ebm_updates"} and set(images["value"]) == {150.0}


def test_a_game_whose_turns_a_cap_ended_or_that_was_below_chance_is_marked():
    runs = pd.DataFrame({
        "seed": [0, 0, 1], "arm": ["joint", "joint", "one-to-one"], "ebm_updates": [5, 10, 10], "turns": [2, 4, 9],
        "capped": [0, 1, None], "mean_value": [-3.0, -2.0, -1.0], "mean_below_chance": [1.0, 0.75, 0.5]})
    found = shown(scores.of_game(runs, "full", "digits", ()), "digits")
    table = tables.table(found, "game", ["Model"]).set_index("Model")
    capped, below = table["turns ended by a cap"], table["updates with V below chance"]
    assert capped.to_list()[0].startswith("0.2500") and "†" in capped.iloc[0] and capped.iloc[1] == "–"
    assert "†" in below.iloc[0] and "†" not in below.iloc[1]
    assert table["mean V"].iloc[0].startswith("−2.000")  # of the last row
    assert len(table.attrs["cautions"]) == 2
    listening = scores.of_game(runs, "full", "digits", {"joint"})  # to nothing: its flow learns by likelihood alone
    assert set(listening.loc[listening["arm"] == "joint", "name"]) == {"ebm_updates"} < set(listening["name"])


def test_floors_stand_in_the_column_of_their_measure():
    names = {
        "flow": ["kernel_inception_distance", "frechet_inception_distance_test", "frechet_inception_distance"],
        "data": ["frechet_inception_distance_halves", "frechet_inception_distance_floor", "precision_floor"],
    }
    score = ("full", "svhn", 0, "mle", "fid")
    rows = [(*score, name, model, None, 1.0, None, None, True) for model in names for name in names[model]]
    frame = pd.DataFrame(rows, columns=scores.COLUMNS)
    table = tables.table(shown(frame, "svhn"), "results", ["Model"]).set_index("Model")
    assert list(table) == ["FID", "FID to test", "KID", "precision", "Seeds"]
    assert list(table.loc["Glow (MLE)"]) == ["1.000", "1.000", "1.000", "–", "1"]
    assert list(table.loc["real test images (the floor)"]) == ["1.000", "–", "–", "1.000", "1"]
    assert table.loc["two halves of the training images", "FID"] == "1.000"
    assert better(table) == " Lower is better: FID; FID to test; KID. Higher is better: precision."


def test_few_labels_are_those_up_to_the_claims_limit(tmp_path):
    """Our features win at 100 labels and lose at 5,000: few are up to 1,000."""
    for labels, ours in ((100, 0.6), (5000, 0.1)):
        for arm, measure, model, value in (("joint", "probe", "features", ours),
                                           ("supervised", "supervised", "network", 0.5)):
            place, seeds = tmp_path / str(labels), {0: value, 1: value + 0.01, 2: value - 0.01}
            put(place, "full", "svhn", arm, measure, seeds, name="accuracy", model=model, labels=labels)
    found = pd.concat([scores_of(tmp_path / "100"), scores_of(tmp_path / "5000")])
    claim = next(claim for claim in PAPER["claims"] if "supervised" in claim["claim"])
    row = tables.claims_table(found, [claim], why).iloc[0]
    assert row[["Value or difference", "Verdict"]].tolist() == ["0.1000 ± 0", "reproduced"]
    table = tables.table(shown(found, "svhn"), "probe", ["Labels"])
    assert list(table) == ["Labels", "features (ours)", "network (supervised)", "Seeds"]


def test_baselines_have_names_of_their_own(tmp_path):
    fids(tmp_path)
    put(tmp_path, "full", "svhn", "dcgan", "fid", {0: 21.0, 1: 21.1},
        name="frechet_inception_distance", model="generator")
    found = scores_of(tmp_path)
    models = ["Glow (MLE)", "Glow (ours)", "generator (DCGAN)"]
    assert tables.table(shown(found, "svhn"), "results", ["Model"])["Model"].tolist() == models
    assert list(tables.table(shown(found, "svhn"), "trade", ["Arm"])["Arm"]) == ["ours"]  # a DCGAN is no trained Glow
    claims = tables.claims_table(found, PAPER["claims"], why).set_index(["Claim", "Data"])
    assert claims.loc[("Glow (ours) outperforms DCGAN", "SVHN"), "Verdict"] == "reproduced"
    printed = tables.printed_table(found, TABLE1, why).set_index(["Data", "Model"])
    assert printed.loc[("SVHN", "DCGAN"), "Verdict"] == "reproduced"
    for name, value in (("effective_rank", 3.0), ("effective_rank_all_layers", 5.0)):
        put(tmp_path / name, "full", "svhn", "joint", "probe", {0: value, 1: value}, name=name, model="features")
    ranks = pd.concat(scores_of(tmp_path / name) for name in ("effective_rank", "effective_rank_all_layers"))
    table = tables.table(shown(ranks, "svhn"), "rank", ["Model"]).set_index("Model")
    assert list(table.index) == ["features (ours)", "features (ours), all layers"]
    assert list(table["effective rank"]) == ["3.000 ± 0", "5.000 ± 0"]


def test_quick_numbers_are_refused_by_the_papers_tables(tmp_path):
    fids(tmp_path, "quick")
    found = scores_of(tmp_path, "quick")
    for refuse in (
        lambda: tables.printed_table(found, TABLE1, why),
        lambda: tables.claims_table(found, PAPER["claims"], why),
        lambda: tables.architecture_table(tmp_path / "quick", PAPER["architectures"][0]),
    ):
        with pytest.raises(ValueError, match="not of the paper's sizes"):
            refuse()


def test_quick_files_in_the_full_folder_are_refused(tmp_path, capsys):
    fids(tmp_path, "quick")
    (tmp_path / "quick").rename(tmp_path / "full")
    with pytest.raises(UserError, match="moved"):
        scores_of(tmp_path)
    assert build.main(["--profile", "full", "--build", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_broken_score_file_is_named(tmp_path):
    fids(tmp_path)
    broken = tmp_path / "full" / "svhn" / "seed-0" / "mle" / "fid.json"
    broken.write_text("{")
    with pytest.raises(UserError, match=re.escape(str(broken))):
        scores_of(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("frechet_inception_distance", "frechet_distence",
         r"\(scores\.0\.the score 'frechet_distence' is in no list; "
         r"add it to \[scores\] in pipeline/catalogue\.toml\)"),
        ("mle", "mel", r"\(the arm 'mel' is in no list; add it to \[arms\] in pipeline/catalogue\.toml\)"),
    ],
)
def test_what_no_list_knows_is_refused_with_the_cure(tmp_path, capsys, old, new, says):
    fids(tmp_path)
    seed = tmp_path / "full" / "svhn" / "seed-0"
    if (seed / old).exists():
        (seed / old).rename(seed / new)
    for path in seed.glob("*/fid.json"):
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
    with pytest.raises(UserError, match=f"fid.json is not a score file {says}"):
        scores_of(tmp_path)
    assert build.main(["--profile", "full", "--build", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "pipeline/catalogue.toml" in capsys.readouterr().err


def every_score() -> pd.DataFrame:
    """A number of every kind, of SVHN; those of baselines are the data's."""
    names = [name.replace("*", str(n)) for name in reversed(SCORES) for n in range(3 if "*" in name else 1)]
    rows = [("full", "svhn", 0, "joint", "made up", name, model, 50, 1.0, None, None, True) for name in names
            for model in (*(("flow", "ebm") if score(name).column in ("", name) else ("features",)),
                          *(("data",) if score(name).row else ()))]
    return pd.DataFrame(rows, columns=scores.COLUMNS)


def test_tables_and_columns_follow_the_catalogue():
    frame, listed = every_score(), {known.table for known in SCORES.values() if known.table}
    assert set(tables.TABLES) - {"trade"} == listed  # which is made of differences
    for name in listed - {"probe"}:  # whose columns are models
        of_it = [key for key, known in SCORES.items() if known.table == name and known.column in ("", key)]
        headings = [SCORES[key].heading for key in of_it]
        assert len(set(headings)) == len(headings), "two columns of one name would be one"
        expected = {"modes": ["mode 0", "mode 1", "mode 2"], "bounds": ["bits/dim", *headings]}.get(name, headings)
        assert list(tables.table(shown(frame, "svhn"), name, ["Model"])) == ["Model", *expected, "Seeds"]
    for known in SCORES.values():
        if known.row.startswith(", "):
            assert f"features (ours){known.row}" in tables.table(shown(frame, "svhn"), "probe", ["Labels"])
        elif known.row:
            row = tables.table(shown(frame, "svhn"), known.table, ["Model"]).set_index("Model").loc[known.row]
            assert row[SCORES[known.column].heading] == "1.000"
    with pytest.raises(ValueError, match=r"is in no list; add it to \[scores\] in pipeline/catalogue\.toml"):
        tables.table(shown(frame.assign(name="surprise"), "svhn"), "results", ["Model"])


def test_what_is_left_over_is_named_and_not_shown(tmp_path):
    """Of seeds and arms that params.yaml names no longer."""
    fids(tmp_path)
    score = {"name": "frechet_inception_distance", "model": "flow"}
    put(tmp_path, "full", "svhn", "mle", "fid", {7: 777.7}, **score)
    put(tmp_path, "full", "svhn", "one-to-one", "fid", {0: 777.7}, **score)
    put(tmp_path, "full", "gone", "mle", "fid", {0: 777.7}, **score)
    columns = "step,validation\n", "ebm_updates,value,accuracy_data,accuracy_gen\n"
    for seed, arm, rows in ((0, "joint", "1,1,1,1\n2,2,1,1\n"), (7, "joint", "777,1,1,1\n"),
                            (0, "one-to-one", "777,1,1,1\n")):
        folder = tmp_path / f"full/svhn/seed-{seed}"
        (folder / arm).mkdir(parents=True, exist_ok=True)
        (folder / "pretrain.csv").write_text(columns[0] + "1,1\n2,1\n")
        (folder / arm / "joint.csv").write_text(columns[1] + rows)
    (tmp_path / "full/svhn/seed-7/pretrain.log").write_text("error: of a seed that is gone\n")
    html = rendered(tmp_path, "full")
    assert ("left over, not shown: gone/seed-0/mle (fid); svhn/seed-0/one-to-one (fid); svhn/seed-7/mle (fid)</p>"
            in html)
    assert "41.7 ± 1.6" in html and "seed that is gone" not in html
    assert 'id="svhn-mle-fid-2"' in html and 'id="svhn-mle-fid-7"' not in html
    for path in (tmp_path / "report").glob("*.csv"):
        assert "777" not in path.read_text(), path
    assert set(pd.read_csv(tmp_path / "report" / "training-svhn.csv")["seed"]) == {0}
    assert pd.read_csv(tmp_path / "report" / "scope.csv").set_index("Data").loc["SVHN", "Seeds"] == "0, 1, 2"


@pytest.mark.parametrize("profile", ["full", "quick"])
def test_nothing_yet_still_makes_a_page(tmp_path, profile, capsys):
    html = rendered(tmp_path, profile)
    assert capsys.readouterr().out == f"{tmp_path}/report/index.html\n"
    assert "not run yet" in html and "<img" not in html and "left over" not in html
    assert f"python -m fce report --profile {profile} " in html
    assert "not run yet" in (tmp_path / "report" / "report.md").read_text()


def test_missing_numbers_say_why_from_the_furthest_upstream_log(tmp_path):
    fids(tmp_path)
    logs = {
        "full/cifar10/data.log": "no <b>archive</b>",
        "full/cifar10/seed-0/pretrain.log": "later",
        "full/svhn/seed-0/tilted/joint.log": "diverged",
        "downloads/inception.log": "no Inception",
    }
    for log, message in logs.items():
        (tmp_path / log).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / log).write_text(f"12:00:00 INFO hello\nerror: {message}\n")
    (tmp_path / "full/digits/seed-1/tilted").mkdir(parents=True, exist_ok=True)
    (tmp_path / "full/digits/seed-1/tilted/joint.run.jsonl").write_text('{"kind": "run"}\n')  # and it is gone
    results = results_of(tmp_path)
    failed = origins.failures(results)
    assert "joint failed: killed" in origins.why_missing(results, failed, "digits", "tilted", "probe")
    assert origins.why_missing(results, failed, "cifar10", "joint", "fid") == "not run: data failed: no <b>archive</b>"
    assert origins.why_missing(results, failed, "svhn", "tilted", "probe") == "not run: joint failed: diverged"
    assert origins.why_missing(results, failed, "svhn", "joint", "fid") == "not run: inception failed: no Inception"
    assert origins.why_missing(results, failed, "digits", "joint", "fid") == "not run yet"  # through its classifier
    assert origins.why_missing(results, failed, "svhn", "joint", "bits_per_dim") == "not run yet"
    assert origins.why_missing(results, failed, "svhn", "one-to-one", "fid") == origins.NOT_NAMED
    assert origins.why_missing(results, failed, "moons2", "joint", "density") == origins.NOT_NAMED
    later = [failure for failure in failed if failure["stage"] == "pretrain"]
    assert origins.why_missing(results, later, "cifar10", "joint", "fid") == "not run: pretrain failed: later"
    assert origins.why_missing(results, later, "cifar10", "dcgan", "fid") == "not run yet"  # a DCGAN needs no flow
    html = rendered(tmp_path, "full")
    assert "data failed: no &lt;b&gt;archive&lt;/b&gt;" in html and "no <b>" not in html
    assert "41.7 ± 1.6" in html
    (tmp_path / "full/svhn/seed-0/tilted/joint.pt").touch()  # the log is of an earlier try
    assert ("svhn", "tilted") not in {(each["experiment"], each["arm"]) for each in origins.failures(results)}


def test_a_seed_that_is_missing_is_named(tmp_path):
    fids(tmp_path)
    (tmp_path / "full/svhn/seed-1/mle/fid.json").unlink()
    html = rendered(tmp_path, "full")
    assert "fid of mle, seed 1" in html and "fid of joint, seed" not in html


def test_an_ebm_that_only_looks_on_has_no_numbers(tmp_path):
    for arm in ("joint", "mle-continued"):
        put(tmp_path, "full", "digits", arm, "bits_per_dim", {0: 1.5}, name="bits_per_dim", model="ebm")
        put(tmp_path, "full", "digits", arm, "fid", {0: 0.5}, name="frechet_distance", model="flow")
    found = results_of(tmp_path).scores
    assert set(zip(found["arm"], found["model"], strict=True)) == {
        ("joint", "ebm"), ("joint", "flow"), ("mle-continued", "flow")}


def test_the_page_stands_alone_and_escapes(tmp_path):
    fids(tmp_path)
    html = without_own_script(rendered(tmp_path, "full"))
    assert not re.findall(r"<(?:script|link|iframe|object|embed)\b|@import|url\(", html)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', html))
    assert "&lt;script&gt;alert(1)" in html
    assert "run-id-of-mlflow" in html
    ids = set(re.findall(r'id="([^"]*)"', html))
    seeds = set(re.findall(r'href="#([^"]*)"', html))
    assert "svhn-joint-fid-2" in seeds and seeds <= ids


def test_the_small_profile_judges_signs_by_its_own_distance_and_no_printed_value(tmp_path):
    for arm, value in (("mle", 20.0), ("joint", 22.0), ("tilted", 12.0), ("mle-continued", 19.0)):
        put(tmp_path, "small", "cifar10", arm, "fid", {0: value, 1: value + 0.1, 2: value + 0.2},
            name="frechet_distance", model="flow")
    html = rendered(tmp_path, "small")
    assert not list((tmp_path / "report").glob("table*"))
    found = pd.read_csv(tmp_path / "report/claims.csv").set_index("Claim")["Verdict"]
    assert found["Joint training lowers Glow's FD"] == "not reproduced"
    assert found["Joint training of a tilted EBM lowers Glow's FD"] == "reproduced"
    assert not any("FID" in claim or "printed" in claim for claim in found.index)
    assert "with a Glow that two cores can train" in " ".join(html.split())
    words = NOTES["small"]
    sizes = [Sizes(32, steps=steps, width=width) for steps, width in ((32, 512), (8, 128))]
    assert "a thirty-eighth" in words and flops(sizes[0]) / flops(sizes[1]) == pytest.approx(38, abs=0.5)
    assert "4,000 steps of 32 images" in words and SETTINGS.experiments["small"]["cifar10"].pretrain.steps == 4000


def test_every_row_of_an_arm_whose_log_ratios_were_saturated_is_marked(tmp_path):
    for arm, longest in (("joint", 700.0), ("tilted", 0.0)):
        put(tmp_path, "full", "digits", arm, "bits_per_dim", {0: 2.0, 1: 2.1}, name="bits_per_dim", model="flow")
        for seed in (0, 1):
            (tmp_path / f"full/digits/seed-{seed}/{arm}/joint.csv").write_text(
                "ebm_updates,flow_updates,value,accuracy_data,accuracy_gen,longest_saturated\n"
                f"100,100,-9,0.4,0.4,{longest}\n")
    put(tmp_path, "full", "digits", "mle", "bits_per_dim", {0: 1.9, 1: 2.0}, name="bits_per_dim", model="flow")
    html = rendered(tmp_path, "full")
    rows = {name: pd.read_csv(tmp_path / f"report/digits-{name}.csv").iloc[:, 0].tolist()
            for name in ("images", "game", "trade")}
    assert rows["images"] == ["Glow (MLE)", "Glow (ours) †", "Glow (ours, tilted EBM)"]
    assert rows["game"] == ["EBM (ours) †", "EBM (ours, tilted EBM)"] and rows["trade"][0] == "ours †"
    assert html.count("the EBM learned the sign of an error") >= 3
    claims = set(pd.read_csv(tmp_path / "report/claims.csv")["Claim"])
    assert {"On data, p is in general above q †", "With a tilted EBM no log-ratio saturates"} <= claims


def test_watermark_in_quick_only(tmp_path):
    for profile, experiment in (("quick", "digits"), ("full", "svhn")):
        put(tmp_path, profile, experiment, "joint", "probe", {0: 0.5}, name="accuracy", model="features", labels=50)
        html, svg = rendered(tmp_path, profile), (tmp_path / "report" / "figure4.svg").read_text()
        assert (
            ("quick profile" in svg)
            == ('class="watermark"' in html)
            == ("not the paper's sizes" in html)
            == (profile == "quick")
        )
        assert ("Table 1" in html) == (profile == "full")


def test_figures_are_drawn_from_what_the_stages_write(tmp_path):
    grids = {"axis": np.linspace(-1, 1, 4), **dict.fromkeys(("truth", "flow", "ebm"), np.zeros((4, 4)))}
    ring, digits = tmp_path / "quick" / "ring", tmp_path / "quick" / "digits"
    for arm in ("mle", "joint-from-random"):
        put(tmp_path, "quick", "ring", arm, "density", {1: -1.5}, name="log_likelihood", model="flow")
        np.savez(ring / "seed-1" / arm / "density.npz", **grids)
    np.savez(ring / "data.npz", test=np.ones((5, 2)))
    for arm in ("mle", "joint"):
        (digits / "seed-0" / arm).mkdir(parents=True)
        np.savez(digits / "seed-0" / arm / "samples.npz", images=np.ones((70, 8, 8, 1), np.uint8), levels=17)
    np.savez(digits / "data.npz", test_images=np.ones((3, 8, 8, 1), np.uint8))
    row = {
        "value": -1.4,
        "accuracy_data": 0.5,
        "accuracy_gen": 0.5,
        "flow_updates": 1,
        "seconds": 1.0,
        "mse_raw": 1.0,
        "mse_ema": 1.0,
        "mse_ema_normalised": 1.0,
    }
    joint = pd.DataFrame([{"ebm_updates": n, **row} for n in (50, 100)])
    joint.to_csv(ring / "seed-1" / "joint-from-random" / "joint.csv")
    pd.DataFrame([{"step": n, "validation": 2.0} for n in (1, 2)]).to_csv(ring / "seed-1" / "pretrain.csv")
    html = rendered(tmp_path, "quick")
    for name in ("figure1", "figure2", "samples-digits", "training-ring"):
        assert (tmp_path / "report" / f"{name}.svg").exists() and (tmp_path / "report" / f"{name}.png").exists(), name
    assert pd.read_csv(tmp_path / "report" / "figure1.csv")["log_likelihood"].notna().sum() == 2
    assert html.count("<img") == 4
    left_out = pd.read_csv(tmp_path / "report" / "figures.csv").set_index("Figure")["Why"]
    assert left_out["Figure 4. Accuracy of a linear classifier on the EBM's features"] == "not run yet"
    points = json.loads((tmp_path / "report" / "training-ring.points.json").read_text())
    assert {words for *_, words in points if "100: −1" in words} == {"ours, random start, EBM updates 100: −1.400"}
    assert all(0 < share < 1 for *place, _ in points for share in place)


def test_figure_4_has_intervals_over_seeds_and_draws(tmp_path):
    for arm, draws in (("joint", [[0.5, 0.7], [0.5, 0.8]]), ("random-init", [[0.5, 0.7]])):
        for seed, at in enumerate(draws):
            put(tmp_path, "full", "svhn", arm, "probe", {seed: 0.6}, name="accuracy", model="features", labels=50,
                draws=at)
    figures.probe(results_of(tmp_path), ["svhn"], tmp_path, why)
    drawn = pd.read_csv(tmp_path / "figure4.csv").set_index("arm")
    expected = values(draws=[[0.5, 0.7], [0.5, 0.8]]).interval()
    assert tuple(drawn.loc["joint", ["mean", "half_width"]]) == pytest.approx(expected)
    assert tuple(drawn.loc["joint", ["seeds", "draws"]]) == (2, 2)
    assert math.isnan(drawn.loc["random-init", "half_width"])
    table = tables.table(shown(scores_of(tmp_path), "svhn"), "probe", ["Labels"])
    assert table["features (ours)"].tolist() == [verdicts.number(*expected)]


def test_every_judged_entry_names_a_score_that_can_exist():
    entries = [
        {**table, **cell, "experiments": [cell["experiment"]], "first": cell}
        for table in PAPER["values"]
        for cell in table["cells"]
    ] + PAPER["claims"]
    for entry in entries:
        assert entry["reason"] and entry["protocol"] and entry["where"] and entry.get("bound", True) is True
        assert set(entry.get("budget", {})) <= set(entry["experiments"])
        for experiment in entry["experiments"]:
            measured = SETTINGS.measured("full", experiment)
            for side in (entry["first"], entry.get("second", entry["first"])):
                measure = side.get("measure", entry["measure"])
                assert score(side.get("name", entry["name"]))
                assert measure == "joint" or side["arm"] in measured[measure]
    printed = [cell["paper"] for table in PAPER["values"] for cell in table["cells"]]
    assert printed == [21.40, 41.70, 20.19, 37.70, 45.99, 37.30, 2.17, 2.25, 2.15, 3.35, 3.45, 3.27]


def test_neither_torch_nor_mlflow_is_imported():
    check = ("import sys, reports.build, reports.page, reports.figures; "
             "sys.exit(bool({'torch', 'mlflow'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("profile", ["full", "small"])
def test_a_control_of_the_same_rate_has_it(profile):
    checked = 0
    for claim in claims_of(profile):
        same = "at the same rate" in claim["protocol"] and not (profile == "small" and "`small`" in claim["protocol"])
        if same and claim["second"]["arm"] == "mle-continued":
            for experiment in claim["experiments"]:
                arms = SETTINGS.experiments[profile][experiment].arms
                game, control = arms[claim["first"]["arm"]], arms["mle-continued"]
                assert (game.flow_lr, game.decay) == (control.flow_lr, control.decay), (claim["claim"], experiment)
                checked += 1
    assert checked >= 2
