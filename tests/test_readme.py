"""README and the findings say what is published: their tables, the numbers in their sentences, and no other number."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from test_report import put, results_of
from tiny import ROOT

from pipeline.errors import UserError
from reports import readme
from reports.scores import COLUMNS, Results, anchor

HEADINGS = ("ring", "digits", "cifar10")
SOURCE = re.compile(r"`([\w./-]+)`")


@pytest.fixture(scope="module")
def every():
    with readme.published() as found:
        yield found


def results(tmp_path: Path, rows: list[tuple[str, str, str, str, list[float]]]) -> dict[str, Results]:
    """The full profile's, of (experiment, arm, name, model, values at seeds 0, 1, …)."""
    found = results_of(tmp_path)
    made = [{"experiment": experiment, "arm": arm, "name": name, "model": model, "seed": seed, "value": value}
            for experiment, arm, name, model, values in rows for seed, value in enumerate(values)]
    found.__dict__["scores"] = pd.DataFrame(made, columns=COLUMNS)
    return {"full": found}


def test_the_texts_say_what_is_published(every) -> None:
    texts = [path.read_text("utf-8") for path in readme.TEXTS]
    assert readme.filled(texts, every) == texts, "run `make readme`"
    ran = {experiment for results in every.values() for experiment in results.scores["experiment"]}
    for heading in HEADINGS:  # and no table of results is written by hand
        assert len(re.findall(rf"^\| {heading} \|", texts[0], re.MULTILINE)) == (heading in ran)


def test_a_number_leads_to_its_table() -> None:
    for path in readme.TEXTS:
        links = re.findall(r"published/(\w+)/index\.html(?:#(\S+))? ", path.read_text("utf-8"))
        named = [(profile, place) for profile, place in links if place]
        assert len(named) > 0.8 * len(links)  # Figure 2 has numbers that no table has
        for profile, place in named:
            assert f'id="{place}"' in (readme.PUBLISHED / profile / "index.html").read_text("utf-8")


def test_published_scores_stand_on_the_published_pages(every) -> None:
    """With six digits, in the row of their stage."""
    for profile, results in every.items():
        page = (readme.PUBLISHED / profile / "index.html").read_text("utf-8")
        rows = dict(re.findall(r'<tr id="([^"]+)">(.*?)</tr>', page, re.DOTALL))
        found = results.scores[results.scores["measure"] != "joint"]  # of curves
        assert len(found) and not found.duplicated(["experiment", "seed", "arm", "name", "model", "labels"]).any()
        for score in found.to_dict("records"):
            labels = "" if pd.isna(score["labels"]) else f"{score['labels']:.0f}"
            here = rows[anchor(score["experiment"], score["arm"], score["measure"], score["seed"])]
            assert f"{score['model']} {score['name']} {labels} {score['value']:.6g}" in here


def numbers_in(path: Path) -> set[float]:
    """Every number in a published file, or in all files of a folder."""
    if path.is_dir():
        return set().union(*(numbers_in(each) for each in path.rglob("*") if each.suffix in (".json", ".csv", ".md")))
    return {float(each) for each in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", path.read_text().replace("−", "-"))}


@pytest.mark.parametrize("path", readme.TEXTS, ids=lambda path: path.name)
def test_every_other_number_stands_in_a_file_that_its_section_names(path) -> None:
    """Numbers with a decimal point, as printed, or as a percentage."""
    text = re.sub(r"```.*?```|<!-- (?:table|count).*?<!-- end -->", "", path.read_text("utf-8"), flags=re.DOTALL)
    for section in text.split("\n## "):
        bare = re.sub(r"arXiv \S+|Python \S+", "", readme.LINK.sub("", section))
        sources = {ROOT / name for name in SOURCE.findall(bare) if (ROOT / name).exists()}
        known = set().union(*map(numbers_in, sources))
        for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", re.sub(r"`[^`]*`|\]\([^)]*\)", "", bare)):
            rounding = 0.501 * 10 ** -len(number.partition(".")[2])
            assert any(abs(abs(each) * scale - float(number)) <= rounding for each in known for scale in (1, 100)), (
                number, section)


def test_a_table_has_means_intervals_worst_seeds_and_dashes(tmp_path) -> None:
    given = results(tmp_path, [("ring", "mle", "kl", "flow", [1.0, 2.0, 3.0]), ("ring", "mle", "kl", "ebm", [0.0] * 3),
                               ("ring", "mle", "smallest_mode_mass", "flow", [0.9, 0.5, 0.7]),
                               ("ring", "joint", "log_z_error", "ebm", [0.0])])
    head, _, mle, joint = readme.BLOCKS["ring"](given).splitlines()
    assert head.startswith("| ring | KL of Glow | its smallest mode | the same, worst seed | KL of the EBM |")
    assert mle == ("| Glow by maximum likelihood | 2.0 ± 2.5 | 0.70 ± 0.50 | 0.5000 | 0.000 ± 0 | – | – |")
    assert joint == "| FCE from that Glow | – | – | – | – | – | 0.000 |", "and what has not run has no row"


def test_a_fit_counts_where_it_is_better_than_both_glows(tmp_path) -> None:
    given = results(tmp_path, [("ring", "mle", "kl", "flow", [1.0, 1.0, 1.0]),
                               ("ring", "joint", "kl", "flow", [2.0, 0.5, 2.0]),
                               ("ring", "joint", "kl", "ebm", [0.1, 0.7, 1.5]),
                               ("moons", "mle", "kl", "flow", [1.0]),
                               ("moons", "joint-from-random", "kl", "flow", [1.0]),
                               ("moons", "joint-from-random", "kl", "ebm", [0.9])])
    assert "in 1 of 1 runs from a random start,\nand in 1 of 3 runs from the trained" in readme.BLOCKS["fits"](given)


def test_the_runs_have_their_cost(tmp_path) -> None:
    put(tmp_path, "full", "ring", "mle", "density", {0: 0.5, 1: 0.7}, name="kl", model="flow")
    (tmp_path / "full" / "ring" / "joint.benchmark.tsv").write_text("s\tcpu_time\n7200\t3600\n")
    *_, row = readme.runs({"full": results_of(tmp_path)}).splitlines()
    assert row.startswith("| full: ring | 2 |") and row.endswith("| 2.0 | 1.0 | `reports/published/full` |")


@pytest.mark.parametrize(("title", "says"), [
    ("ring mle flow kl", "2.0 ± 2.5"), ("ring mle flow kl minus joint flow", "1.000 ± 0"),
    ("ring mle flow kl minus joint flow jsd", "−1.000 ± 0"),
    ("ring joint features accuracy/100", "0.5000"), ("ring joint features accuracy/50", None),
    ("ring joint flow kl minus", None), ("ring nobody flow kl", None)])
def test_a_number_in_a_sentence_is_that_of_its_title(title, says, tmp_path) -> None:
    given = results(tmp_path, [("ring", "mle", "kl", "flow", [1.0, 2.0, 3.0]),
                               ("ring", "joint", "kl", "flow", [0.0, 1.0, 2.0]),
                               ("ring", "joint", "jsd", "flow", [2.0, 3.0, 4.0]),
                               ("ring", "joint", "accuracy", "features", [0.5])])
    scores = given["full"].scores
    scores["labels"] = [100 if name == "accuracy" else math.nan for name in scores["name"]]
    if says is None:
        with pytest.raises(UserError, match=f"a link's title is '{title}'"):
            readme.told(given["full"], title)
    else:
        assert readme.told(given["full"], title) == says


@pytest.mark.parametrize("change", [("table: ring", "table: rings"), ("<!-- count: fits -->", "")])
def test_a_readme_that_lacks_a_block_is_refused(change, tmp_path, monkeypatch, capsys, every) -> None:
    places = tmp_path / "README.md", tmp_path / "findings.md"
    for place, path in zip(places, readme.TEXTS, strict=True):
        place.write_text(path.read_text("utf-8").replace(*change), "utf-8")
    before = [place.read_text("utf-8") for place in places]
    with pytest.raises(UserError, match=r"makes .*'ring', 'fits', 'digits'.*each once"):
        readme.filled(before, every)
    monkeypatch.setattr(readme, "TEXTS", places)
    assert readme.main() == 2 and capsys.readouterr().err.startswith("error: README.md and findings.md have blocks")
    assert [place.read_text("utf-8") for place in places] == before
