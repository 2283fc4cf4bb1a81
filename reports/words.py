"""Words of the report alone: what it calls experiments, models and the paper's figures; and paper.yaml."""

from pathlib import Path
from typing import Any

from pipeline.params import read

PAPER: dict[str, Any] = read(Path(__file__).with_name("paper.yaml"))
NOTES: dict[str, str] = PAPER["notes"]

DATA = {"svhn": "SVHN", "cifar10": "CIFAR-10", "digits": "digits (8×8, not the paper's)",
        "ring-tight": "ring, tight modes", "ring-paper": "ring, the paper's literal recipe"}
MODELS = {"flow": "Glow", "ebm": "EBM"}  # the others go by their own names
SAMPLES = {"svhn": "Figures 3 and 5. ", "cifar10": "Figures 3 and 6. "}  # numbers in the paper


def called(experiment: str) -> str:
    """An experiment by its data."""
    return DATA.get(experiment, experiment)
