"""Publish a profile's results: `python -m reports.publish --profile full --build build`.

Adds them to published/<profile>/results.tar.xz beside this file, from which `fce report --build` makes the page in any
clone, and writes page, scores and the figures that README shows beside it. What is published already and not made here
stays: one machine may add what another has not. Then `make readme`.
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.catalogue import ROOT
from pipeline.errors import UserError, errors_in_one_line
from pipeline.mirror import relative
from pipeline.params import PROFILES, load
from reports import build
from reports.archive import pack
from reports.scores import Results

PUBLISHED = Path(__file__).with_name("published")
BESIDE = {"full": ("figure1.png", "figure2.png"), "small": ("samples-cifar10.png", "trajectory-cifar10.png")}


def publish(profile: str, results: Path) -> None:
    folder = PUBLISHED / profile
    folder.mkdir(exist_ok=True)
    archive = folder / "results.tar.xz"
    pack(Results(load(ROOT / "params.yaml"), profile, results), archive)
    with TemporaryDirectory() as place:
        shown = Path(relative(archive)), Path("page/index.html")  # what a reader of the page has of it
        build.render(profile, archive, Path(place) / "index.html", shown)
        for name in ("index.html", "scores.csv", *BESIDE.get(profile, ())):
            if (made := Path(place) / name).exists():  # a figure is not, where its inputs are missing
                shutil.copyfile(made, folder / name)


@errors_in_one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.publish", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, choices=PROFILES, help="whose results")
    parser.add_argument("--build", type=Path, default=Path("build"), help="the folder of results (default: build)")
    arguments = parser.parse_args(argv)
    if not (arguments.build / arguments.profile).is_dir():
        raise UserError(f"--build: {arguments.build} has no results of the {arguments.profile} profile")
    publish(arguments.profile, arguments.build)
    return 0


if __name__ == "__main__":
    sys.exit(main())
