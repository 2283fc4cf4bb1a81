"""The list of an experiment's score files, each with its hash; names what is left over of other seeds and arms."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.catalogue import HOME, STAGES
from pipeline.errors import UserError
from pipeline.files import sha256, write_json
from pipeline.params import PROFILES, Params, load
from pipeline.progress import log, open_door


def left_over(params: Params, profile: str, experiment: str) -> list[str]:
    """Folders of seeds and arms of an experiment that params.yaml no longer names."""
    have = [name for name in STAGES if params.has(name, profile, experiment)]
    made = (path for name in have for run in params.runs(name, profile, experiment)
            for path in params.outputs(name, profile, experiment, *run))
    named = {parent for path in made for parent in Path(path).parents}
    home = Path(HOME.format(profile=profile, experiment=experiment))
    return sorted(str(folder) for pattern in ("seed-*", "seed-*/[!.]*") for folder in home.glob(pattern)
                  if folder.is_dir() and folder not in named)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="fce scores", description=__doc__)
    parser.add_argument("--profile", required=True, choices=PROFILES)
    parser.add_argument("--experiment", required=True, help="of that profile")
    parser.add_argument("--out", type=Path, required=True, help="the list")
    given = parser.parse_args(argv)
    open_door()
    try:
        params = load()
        if given.experiment not in params.experiments[given.profile]:
            raise UserError(f"--experiment: {given.profile} in params.yaml names no '{given.experiment}'")
        rest = left_over(params, given.profile, given.experiment)
        for folder in rest:
            log.warning("%s is left over: params.yaml no longer names it; no table has it; delete it if you like",
                        folder)
        files = {path: sha256(path)[:16] for path in params.scores(given.profile, given.experiment)}
        write_json(given.out, {"scores": files, "left_over": rest})
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
