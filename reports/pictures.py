"""Pictures of what one stage made, for its model's run in MLflow: the first samples, a training's curve."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.files import read_arrays

GRID = 8  # the first 8 x 8 samples, not chosen ones


def of(stage: str, out: Path) -> dict[str, Any]:
    """{name: picture} of the stage's output `out`; none for most."""
    if stage == "sample" and out.exists():
        file = read_arrays(out, ("images", "levels"))
        return {"samples": np.uint8(255 * tiled(file["images"][: GRID**2], GRID, int(file["levels"])))}
    if (table := out.with_suffix(".csv")).exists():
        return {"curve": curve(table)}
    return {}


def tiled(images: np.ndarray, columns: int, levels: int) -> np.ndarray:
    """Images [N, H, W, C] of these grey levels side by side, with white gaps, in [0, 1]."""
    gaps = ((0, -len(images) % columns), (0, 1), (0, 1), (0, 0))
    tiles = np.pad(images / (levels - 1), gaps, constant_values=1)
    tiles = tiles.reshape(-1, columns, *tiles.shape[1:])
    return np.vstack([np.hstack(list(row)) for row in tiles]).squeeze()


def curve(table: Path) -> Figure:
    """Every column of a curve against its first."""
    with open(table, newline="") as file:
        names, *rows = csv.reader(file)
    columns = {name: [float(cell) if cell else math.nan for cell in column]
               for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    first, *others = [name for name in columns if not np.isnan(columns[name]).all()]
    canvas = Figure(figsize=(9, 1.9 * math.ceil(len(others) / 3)), layout="constrained")
    for at, name in enumerate(others, 1):
        known = ~np.isnan(columns[name])
        ax = canvas.add_subplot(math.ceil(len(others) / 3), 3, at, title=name, xlabel=first)
        ax.plot(np.array(columns[first])[known], np.array(columns[name])[known], linewidth=1)
    return canvas
