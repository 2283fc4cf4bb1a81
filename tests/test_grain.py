"""A run for each arm and seed, as the profiles of hours have: seeds and arms come and go, and nothing else is trained.

One checkout is led through the scenarios in turn, by both engines.
"""

from pathlib import Path
from typing import Any

import pytest
from tiny import TINY, append, call, commit, edit, make_project, own_images, read_yaml, run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose profile `small` has own images, without labels."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    entry = own_images(folder)

    def add(params: dict[str, Any]) -> None:
        params["experiments"]["plain"] = entry | {"data": entry["data"] | {"labels": False}}
        params["experiments"]["plain"] |= TINY["overrides"]["digits"]
        params["small"] = {"seeds": TINY["seeds"], "experiments": ["plain"], "overrides": {}}

    edit(folder, add)
    return commit(folder)


def test_seeds_and_arms_come_and_go(project: Path) -> None:
    # 9: a seed added: only its runs, and the control, which plants its flow in place of the jointly trained one
    home = "build/small/plain"
    first = run(project, f"snakemake --cores 2 {home}/scores.txt")
    assert {"plain/data", "plain/seed-0/tilted/log_z", "plain/seed-0/planted/log_z_control"} <= first
    edit(project, lambda params: params["small"].update(seeds={"toy": [0], "images": [0, 1]}))
    added = run(project, f"snakemake --cores 2 {home}/scores.txt")
    assert added - {"plain/seed-0/planted/log_z_control"} == {place for place in added if "/seed-1/" in place}
    assert {"plain/seed-1/pretrain", "plain/seed-1/tilted/joint", "plain/seed-1/joint/samples"} <= added
    assert run(project, "dvc repro small-run@plain") == set()

    # an arm removed: nothing is trained; what is left of it is named, and in no table
    arms = read_yaml(project / "params.yaml")["defaults"]["images"]["arms"]
    assert set(arms) == {"joint", "tilted"}
    edit(project, lambda params: params["defaults"]["images"]["arms"].pop("tilted"))
    edit(project, lambda params: params["experiments"]["plain"]["arms"].pop("tilted"))
    assert "tilted" in (project / home / "scores.txt").read_text()
    assert run(project, f"snakemake --cores 2 {home}/scores.txt") == set()
    assert "tilted" not in (project / home / "scores.txt").read_text()
    assert run(project, "dvc repro small-run@plain") == set()
    call(project, "python -m fce report --profile small --build build --out page/index.html")
    assert "left over, not shown: plain/seed-0/tilted" in (project / "page/index.html").read_text()
    assert "tilted" not in (project / "page/plain-images.csv").read_text()


MEASURE = '''"""How bright the samples are: a measure that a test adds."""

from eval.score import Score, write_scores
from pipeline.files import read_arrays
from pipeline.job import Job


def run(job: Job) -> None:
    images = read_arrays(job.inputs["samples"], ("images",))["images"]
    write_scores(job, [Score(name="brightness", model="flow", value=float(images.mean()), n=len(images),
                             protocol="mean grey level of the samples")])
'''


def test_a_measure_and_an_arm_are_two_files_each(project: Path) -> None:
    """A module and its table; a row of the arms and an entry in params.yaml; then the page has them."""
    commit(project)
    catalogue = project / "pipeline/catalogue.toml"
    (project / "eval/brightness.py").write_text(MEASURE)
    append(catalogue, '''
[stages.brightness]
file = "eval/brightness.py"
out = "build/{profile}/{experiment}/seed-{seed}/{arm}/brightness.json"
needs = {data = "data", samples = "sample"}
sections = ["sample"]
of = ["flows"]

[scores.brightness]
heading = "brightness"
unit = "grey levels"
''')
    assert len(call(project, "git status --porcelain").splitlines()) == 2
    flows = {f"plain/seed-{seed}/{arm}" for seed in (0, 1) for arm in ("mle", "joint")}
    assert run(project, "snakemake --cores 2 small") == {f"{flow}/brightness" for flow in flows}
    table = (project / "build/report/small/plain-images.csv").read_text()
    assert "brightness" in table and "Glow (ours)" in table

    commit(project)
    append(catalogue, '[arms.slow]\nwords = "ours, slowly"\nkinds = ["images"]\ncolour = 2\ndash = [9, 9]\n')
    edit(project, lambda params: params["experiments"]["plain"]["arms"].update(slow={"flow_lr": 1e-6}))
    assert len(call(project, "git status --porcelain").splitlines()) == 2
    made = run(project, "dvc repro small")
    assert {place.split("/")[2] for place in made} == {"slow"} and "plain/seed-1/slow/brightness" in made
    assert "Glow (ours, slowly)" in (project / "build/report/small/index.html").read_text()
