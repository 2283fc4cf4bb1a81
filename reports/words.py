"""Words of the report alone: what it calls experiments, models and the paper's figures; and paper.yaml."""

from functools import cache
from pathlib import Path
from typing import Any

from pipeline.catalogue import ROOT
from pipeline.params import load, read

PAPER: dict[str, Any] = read(Path(__file__).with_name("paper.yaml"))
NOTES: dict[str, str] = PAPER["notes"]

DATA = {"svhn": "SVHN", "cifar10": "CIFAR-10", "digits": "digits (8×8, not the paper's)",
        "ring-tight": "ring, tight modes", "ring-paper": "ring, the paper's literal recipe"}
BUDGETED = ("ring-paper",)  # whose results are those of so many updates, not of a recipe: their names say it
MODELS = {"flow": "Glow", "ebm": "EBM"}  # the others go by their own names
SAMPLES = {"svhn": "Figures 3 and 5. ", "cifar10": "Figures 3 and 6. "}  # numbers in the paper


@cache
def called(experiment: str, profile: str = "full") -> str:
    """An experiment by its data, and by its EBM updates where they decide its results."""
    words, settings = DATA.get(experiment, experiment), None
    if experiment in BUDGETED:
        settings = load(ROOT / "params.yaml").experiments[profile].get(experiment)
    updates = sorted({arm.ebm_updates for arm in settings.arms.values()}) if settings else []
    return f"{words}, {' or '.join(map(str, updates))} EBM updates" if updates else words
