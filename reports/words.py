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


OTHER_FEATURES = {"frechet_inception_distance": "frechet_distance"}  # where Inception is not what is looked through


def claims_of(profile: str) -> list[dict[str, Any]]:
    """The claims that a profile judges: `small` those on its data, of FID by its classifier's FD."""
    if profile == "full":
        return list(PAPER["claims"])
    here, chosen = load(ROOT / "params.yaml").experiments[profile], []
    for claim in PAPER["claims"]:
        name, experiments = claim["name"], [each for each in claim["experiments"] if each in here]
        printed = name in OTHER_FEATURES and "second" not in claim
        if experiments and not printed:
            own: dict[str, Any] = {"experiments": experiments}
            if name in OTHER_FEATURES:
                own |= {key: claim[key].replace("FID", "FD") for key in ("claim", "protocol")}
                own["name"] = OTHER_FEATURES[name]
            chosen.append(claim | own)
    return chosen


@cache
def called(experiment: str, profile: str = "full") -> str:
    """An experiment by its data, and by its EBM updates where they decide its results."""
    words, settings = DATA.get(experiment, experiment), None
    if experiment in BUDGETED:
        settings = load(ROOT / "params.yaml").experiments[profile].get(experiment)
    updates = sorted({arm.ebm_updates for arm in settings.arms.values()}) if settings else []
    return f"{words}, {' or '.join(map(str, updates))} EBM updates" if updates else words
