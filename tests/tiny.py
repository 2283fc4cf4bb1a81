"""A quick profile of seconds, and a build folder of it."""

from pathlib import Path
from typing import Any

import yaml

from fce.params import load, merge

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "seeds": {"toy": [0, 1], "images": [0, 1]},
    "toy": ["ring"],
    "images": ["digits"],
    "overrides": {
        "ring": {
            "pretrain": {"steps": 20, "validate_every": 20},
            "joint": {"ebm_updates": 20, "warm_start": 0, "log_every": 10},
            "arms": {"joint-from-random": {"head_start": 4}},
            "density": {"points": [40, 20], "plot_points": 20},
        },
        "digits": {
            "flow": {"steps": 1, "width": 8},
            "energy": {"widths": [4, 8, 8]},
            "pretrain": {"steps": 40, "validate_every": 20},
            "joint": {"ebm_updates": 12, "warm_start": 10, "log_every": 6},
            "arms": {"residual": {"head_start": 4}},
            "dcgan": {"widths": [4, 8], "orig": {"updates": 20}},
            "classifier": {"epochs": 1, "width": 4, "features": 8},
            "sample": {"count": 200},
            "log_z": {"samples": 300, "chains": 4, "temperatures": 4, "leapfrog": 2},
            "probe": {"labels": [50], "draws": 2, "inverse_l2": [0.01]},
            "supervised": {"updates": 4, "epochs": 1, "validations": 2, "lr": [0.001], "weight_decay": [0.01]},
        },
    },
}


def write_slices(folder: Path, changes: dict[str, Any]) -> Path:
    """Write the slices of TINY with these overrides below folder/build; returns the path of the quick profile."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"quick": merge(TINY, {"overrides": changes})}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    load(folder / "params.yaml").write_slices(folder / "build")
    return folder / "build/quick"
