"""README's results are those of the published scores, and these stand on the published page."""

import re

import pandas as pd
import pytest
from tiny import ROOT

from pipeline.errors import UserError
from reports import readme
from reports.scores import COLUMNS, anchor

HEADINGS = ("ring", "digits")


def scores(rows: list[tuple[str, str, str, str, list[float]]]) -> pd.DataFrame:
    """(experiment, arm, name, model, values at seeds 0, 1, …) as published scores."""
    every = [{"experiment": experiment, "arm": arm, "name": name, "model": model, "seed": seed, "value": value}
             for experiment, arm, name, model, values in rows for seed, value in enumerate(values)]
    return pd.DataFrame(every, columns=COLUMNS)


def test_the_readme_says_what_the_published_scores_say() -> None:
    text = readme.README.read_text("utf-8")
    assert readme.filled(text, readme.published()) == text, "run `make readme`"
    for heading in HEADINGS:  # and no table of results is written by hand
        assert len(re.findall(rf"^\| {heading} \|", text, re.MULTILINE)) == 1


def test_the_published_scores_stand_on_the_published_page() -> None:
    """With six digits, in the row of their stage."""
    page = (ROOT / "reports" / "published" / "full" / "index.html").read_text("utf-8")
    rows = dict(re.findall(r'<tr id="([^"]+)">(.*?)</tr>', page, re.DOTALL))
    found = readme.published()
    assert len(found) > 300 and not found.duplicated(["experiment", "seed", "arm", "name", "model", "labels"]).any()
    for score in found.to_dict("records"):
        labels = "" if pd.isna(score["labels"]) else f"{score['labels']:.0f}"
        here = rows[anchor(score["experiment"], score["arm"], score["measure"], score["seed"])]
        assert f"{score['model']} {score['name']} {labels} {score['value']:.6g}" in here


def test_a_table_has_means_intervals_worst_seeds_and_dashes() -> None:
    given = scores([("ring", "mle", "kl", "flow", [1.0, 2.0, 3.0]), ("ring", "mle", "kl", "ebm", [0.0] * 3),
                    ("ring", "mle", "smallest_mode_mass", "flow", [0.9, 0.5, 0.7])])
    head, _, mle, joint, *_ = readme.BLOCKS["ring"](given).splitlines()
    assert head.startswith("| ring | KL of Glow | its smallest mode | the same, worst seed | KL of the EBM |")
    assert mle == ("| Glow by maximum likelihood | 2.0 ± 2.5 | 0.70 ± 0.50 | 0.5000 | 0.000 ± 0 | – | – |")
    assert joint == "| FCE from that Glow | – | – | – | – | – | – |"


def test_a_fit_counts_where_it_is_better_than_both_glows() -> None:
    given = scores([("ring", "mle", "kl", "flow", [1.0, 1.0, 1.0]),
                    ("ring", "joint", "kl", "flow", [2.0, 0.5, 2.0]), ("ring", "joint", "kl", "ebm", [0.1, 0.7, 1.5]),
                    ("moons", "mle", "kl", "flow", [1.0]), ("moons", "joint-from-random", "kl", "flow", [1.0]),
                    ("moons", "joint-from-random", "kl", "ebm", [0.9])])
    assert "in 1 of 1 runs from a random start,\nand in 1 of 3 runs from the trained" in readme.BLOCKS["fits"](given)


@pytest.mark.parametrize("change", [("table: ring", "table: rings"), ("<!-- count: fits -->", "")])
def test_a_readme_that_lacks_a_block_is_refused(change, tmp_path, monkeypatch, capsys) -> None:
    place = tmp_path / "README.md"
    place.write_text(readme.README.read_text("utf-8").replace(*change), "utf-8")
    before = place.read_text("utf-8")
    with pytest.raises(UserError, match=r"makes .*'ring', 'fits', 'digits'.*each once"):
        readme.filled(before, readme.published())
    monkeypatch.setattr(readme, "README", place)
    assert readme.main() == 2 and capsys.readouterr().err.startswith("error: README.md has blocks")
    assert place.read_text("utf-8") == before
