"""Pictures of what one stage made, for its model's run in MLflow: the first samples, a training's curve."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.files import read_arrays

CURVES = {"pretrain": [["train", "validation"]], "joint": [["value"], ["accuracy_data", "accuracy_gen"]]}
GRID = 8  # the first 8 x 8 samples, not chosen ones
ROW = 8  # of the samples of each moment of a training
POINTS = 2000  # of 2D data
SHOWN = ("mle", "joint", "joint-from-random", "tilted")  # the arms whose grids and images the report shows


def of(stage: str, out: Path) -> dict[str, Any]:
    """{name: picture} of the stage's output `out`; none for most."""
    if stage == "sample" and out.exists():
        file = read_arrays(out, ("images", "levels"))
        return {"samples": np.uint8(255 * tiled(file["images"][: GRID**2], GRID, int(file["levels"])))}
    if stage in CURVES and (table := out.with_suffix(".csv")).exists():
        return {"curve": curve(table, CURVES[stage])}
    return {}


def tiled(images: np.ndarray, columns: int, levels: int) -> np.ndarray:
    """Images [N, H, W, C] of these grey levels side by side, with white gaps, in [0, 1]."""
    gaps = ((0, -len(images) % columns), (0, 1), (0, 1), (0, 0))
    tiles = np.pad(images / (levels - 1), gaps, constant_values=1)
    tiles = tiles.reshape(-1, columns, *tiles.shape[1:])
    return np.vstack([np.hstack(list(row)) for row in tiles]).squeeze()


def curve(table: Path, panels: Sequence[Sequence[str]]) -> Figure:
    """Columns of a training's curve, panel by panel, against its first."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    canvas = Figure(figsize=(3.5 * len(panels), 2.6))
    for at, names in enumerate(panels, 1):
        ax = canvas.add_subplot(1, len(panels), at, xlabel=next(iter(rows[0])))
        for name in names:
            points = [(float(next(iter(row.values()))), float(row[name])) for row in rows if row[name]]
            if points:
                ax.plot(*zip(*points, strict=True), linewidth=1, label=name)
        ax.legend(frameon=False)
    canvas.subplots_adjust(bottom=0.2)
    return canvas
