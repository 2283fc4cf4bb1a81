"""What is published: results in one small file, from which the page is made anywhere."""

import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import SETTINGS, put, rendered
from tiny import ROOT

from pipeline.files import read_arrays
from reports import build, publish
from reports.archive import pack, unpacked
from reports.page import sizes
from reports.pictures import POINTS
from reports.scores import Results

PUBLISHED = sorted((ROOT / "reports" / "published").glob("*/results.tar.xz"))


@pytest.fixture
def made(tmp_path) -> Path:
    """A folder of results of the quick profile: a density, scores, a curve, samples."""
    root = tmp_path / "build"
    ring, digits = root / "quick" / "ring", root / "quick" / "digits"
    grid = {"axis": np.linspace(-2, 2, 4), **{name: np.full((4, 4), -1 / 3) for name in ("truth", "flow", "ebm")}}
    put(root, "quick", "ring", "mle", "density", {0: 0.5, 1: 0.7}, name="kl", model="flow")
    put(root, "quick", "ring", "joint-from-random", "density", {0: 0.1}, name="kl", model="ebm")
    for arm in ("mle", "joint-from-random"):
        np.savez(ring / "seed-0" / arm / "density.npz", **grid)
    np.savez(ring / "data.npz", test=np.ones((POINTS + 1, 2)))
    put(root, "quick", "digits", "mle", "fid", {0: 9.0}, name="frechet_distance", model="flow")
    put(root, "quick", "digits", "joint", "fid", {0: 8.0}, name="frechet_distance", model="flow")
    for arm in ("mle", "joint"):
        np.savez(digits / "seed-0" / arm / "samples.npz", images=np.ones((70, 8, 8, 1), np.uint8), levels=17)
    np.savez(digits / "data.npz", test_images=np.ones((70, 8, 8, 1), np.uint8), test_labels=np.zeros(70))
    (ring / "joint.benchmark.tsv").write_text("s\tcpu_time\n7200\t3600\n")
    (ring / "seed-0" / "joint-from-random" / "joint.pt").write_text("a checkpoint")
    return root


def without_pictures(html: str) -> str:
    return re.sub(r"data:image/svg\+xml;base64,[^\"]*", "", html)


def packed(root: Path, archive: Path) -> Path:
    pack(Results(SETTINGS, "quick", root), archive)
    return archive


def test_an_archive_has_what_the_page_shows_and_no_more(made, tmp_path):
    whole = rendered(made, "quick")
    archive = packed(made, tmp_path / "results.tar.xz")
    page = tmp_path / "again" / "index.html"
    assert build.main(["--profile", "quick", "--build", str(archive), "--out", str(page)]) == 0
    same = without_pictures(page.read_text()).replace(str(archive), str(made)).replace(str(page), str(
        made / "report" / "index.html"))
    assert same == re.sub("run-id-of-mlflow", "", without_pictures(whole))  # which is of this machine
    assert "70 test" in same and "2.0" in pd.read_csv(page.parent / "scope.csv", dtype=str)["Hours"].to_list()
    with unpacked(archive) as folder:
        assert len(read_arrays(folder / "quick" / "digits" / "data.npz", ("test_images",))["test_images"]) == 64
        assert len(read_arrays(folder / "quick" / "ring" / "data.npz", ("test",))["test"]) == POINTS
        assert not list(folder.glob("**/*.pt"))


def test_what_is_published_stays_while_params_yaml_names_it(made, tmp_path):
    archive = packed(made, tmp_path / "results.tar.xz")
    first = archive.read_bytes()
    assert packed(made, archive).read_bytes() == first  # the same results, the same bytes
    other = tmp_path / "other"
    put(other, "quick", "ring", "mle", "density", {1: 0.9}, name="kl", model="flow")
    packed(other, archive)
    with unpacked(archive) as folder:
        scores = Results(SETTINGS, "quick", folder).scores.set_index(["experiment", "arm", "seed"])["value"]
        assert scores["ring"].to_dict() == {("joint-from-random", 0): 0.1, ("mle", 0): 0.5, ("mle", 1): 0.9}
        (folder / "quick" / "ring" / "seed-0" / "mle").rename(folder / "quick" / "ring" / "seed-0" / "long-gone")
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(folder / "quick", "quick")
    packed(other, archive)
    with tarfile.open(archive) as tar:
        assert not [name for name in tar.getnames() if "long-gone" in name]


@pytest.mark.parametrize(("of_first", "shown"), [(("mle", "joint", "residual"), 0), (("mle",), 1), (("residual",), 1)])
def test_an_archive_keeps_the_arrays_that_the_figures_show(of_first, shown, tmp_path) -> None:
    arms = {0: of_first, 1: ("mle", "joint", "residual")}
    curve = {"updates": [0, 1, 2], "bits_per_dim": [3.0, 2.0, 1.0], "distance": [9.0, 8.0, 7.0], "samples": 32}
    runs = [(seed, arm, tmp_path / where) for seed in arms for arm in arms[seed] for where in ("build", f"part-{seed}")]
    for seed, arm, root in runs:
        put(root, "full", "digits", arm, "trajectory", {seed: 1.0}, name="bits_per_dim_change", model="flow")
        images = np.full((3, 32, 8, 8, 1), 8 * seed + 1, np.uint8)
        np.savez(root / f"full/digits/seed-{seed}" / arm / "trajectory.npz", images=images, levels=17, **curve)
    packed, by_part = tmp_path / "results.tar.xz", tmp_path / "by_part.tar.xz"
    pack(Results(SETTINGS, "full", tmp_path / "build"), packed)
    for seed in (1, 0):
        pack(Results(SETTINGS, "full", tmp_path / f"part-{seed}"), by_part)
    assert by_part.read_bytes() == packed.read_bytes()
    pages = [tmp_path / name / "index.html" for name in ("of-build", "of-archive")]
    for page, results in zip(pages, (tmp_path / "build", packed), strict=True):
        build.render("full", results, page)
    assert f"Seed {shown}, the first 8 samples" in pages[0].with_name("report.md").read_text()
    one, other = [page.with_name("moments-digits.svg").read_bytes() for page in pages]
    assert one == other


def test_an_archive_knows_how_many_images_without_labels_there_were(made, tmp_path):
    np.savez(made / "quick" / "digits" / "data.npz", test_images=np.ones((70, 8, 8, 1), np.uint8))
    archive = packed(made, packed(made, tmp_path / "results.tar.xz"))  # of itself and more
    with unpacked(archive) as folder:
        assert sizes(Results(SETTINGS, "quick", folder), "digits").startswith("70 test; no labels")


def test_what_runs_still_is_not_archived(made, tmp_path):
    record = made / "quick" / "ring" / "seed-0" / "mle" / "density.run.jsonl"
    record.write_text('{"kind": "run", "time": 0}\n')
    with tarfile.open(packed(made, tmp_path / "results.tar.xz")) as tar:
        assert record.relative_to(made).as_posix() not in tar.getnames()
    record.write_text('{"kind": "run", "time": 0}\n{"kind": "metr')  # its last line cut off by a kill
    packed(made, tmp_path / "results.tar.xz")


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_what_is_no_archive_is_an_error(content, tmp_path, capsys):
    archive = tmp_path / "results.tar.xz"
    if content is not None:
        archive.write_bytes(content)
    assert build.main(["--profile", "quick", "--build", str(archive), "--out", str(tmp_path / "index.html")]) == 2
    assert f"{archive} is neither the folder of results" in capsys.readouterr().err


def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, capsys):
    archive = tmp_path / "results.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("../evil"), io.BytesIO())
    assert build.main(["--profile", "quick", "--build", str(archive), "--out", str(tmp_path / "index.html")]) == 2
    assert "evil" in capsys.readouterr().err


def test_publishing_writes_page_scores_and_archive(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")
    (tmp_path / "published").mkdir()
    assert publish.main(["--profile", "quick", "--build", str(made)]) == 0
    assert sorted(path.name for path in (tmp_path / "published" / "quick").iterdir()) == [
        "index.html", "results.tar.xz", "scores.csv"]
    page = (tmp_path / "published" / "quick" / "index.html").read_text()
    archive = os.path.relpath(tmp_path / "published" / "quick" / "results.tar.xz", ROOT)
    assert f"--build {archive} --out page/index.html" in page  # which a reader has, and no folder of this machine's
    assert publish.main(["--profile", "full", "--build", str(made)]) == 2
    assert "has no results of the full profile" in capsys.readouterr().err


@pytest.mark.parametrize("archive", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_published_page_is_made_from_the_published_results(archive, tmp_path):
    page = tmp_path / "index.html"
    assert build.main(["--profile", archive.parent.name, "--build", str(archive), "--out", str(page)]) == 0
    assert (tmp_path / "scores.csv").read_text() == archive.with_name("scores.csv").read_text()

    def told(path: Path) -> str:  # but for how to make the page, which names where the archive lies
        return re.sub(r"python -m fce report.*", "", without_pictures(path.read_text("utf-8")))

    assert told(page) == told(archive.with_name("index.html"))
