"""Figures of what a Fréchet distance saw: its rise with distortions, and its course while Glow trains."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pipeline.catalogue import ARMS
from pipeline.files import read_arrays
from reports.blocks import Figure
from reports.figures import PALETTE, PICTURES, WIDTH, legend, save
from reports.pictures import ROW, tiled
from reports.scores import Reason, Results
from reports.words import NOTES, called


def trajectory(results: Results, experiment: str, out: Path, why: Reason) -> Figure:
    """Fréchet distance against bits/dim while Glow trains: a line for each arm and seed, a dot for each moment."""
    name, title = f"trajectory-{experiment}", f"Distance against likelihood while Glow trains, {called(experiment)}"
    found = results.found("trajectory", experiment, ".npz")
    if not found:
        return Figure(name, title, "", why(experiment, "joint", "trajectory"))
    rows, samples = [], 0
    for (seed, arm), path in found.items():
        content = read_arrays(path, ("updates", "bits_per_dim", "distance", "samples"))
        samples = int(content["samples"])
        each = zip(*(content[key] for key in ("updates", "bits_per_dim", "distance")), strict=True)
        rows += [{"arm": arm, "seed": seed, "updates": int(u), "bits_per_dim": float(b), "distance": float(d)}
                 for u, b, d in each]
    data = pd.DataFrame(rows)
    there = [arm for arm in ARMS if arm in set(data["arm"])]
    panels = {"maximum likelihood, from its start": [arm for arm in there if arm == "mle"],
              "from there on": [arm for arm in there if arm != "mle"]}
    panels = {panel: arms for panel, arms in panels.items() if arms}
    canvas, (axes,) = plt.subplots(1, len(panels), figsize=(WIDTH, 3.2), squeeze=False)
    for ax, (panel, arms) in zip(axes, panels.items(), strict=True):
        for arm in arms:
            for i, (_, run) in enumerate(data[data["arm"] == arm].groupby("seed")):
                if arm == "mle":  # untrained, a flow is off any scale
                    run = run[run["updates"] > 0]
                known = ARMS[arm]
                ax.plot(run["bits_per_dim"], run["distance"], color=PALETTE[known.colour], marker="o", markersize=3,
                        linestyle=(0, known.dash) if known.dash else "-", label=known.words if i == 0 else None)
                ax.plot(run["bits_per_dim"].iloc[-1], run["distance"].iloc[-1], "s", color=PALETTE[known.colour])
        ax.set(title=panel, xlabel="bits/dim")
    axes[0].set_ylabel(f"Fréchet distance of {samples} samples")
    legend(canvas, axes)
    save(canvas, out, name, data, results.profile)
    return Figure(name, title, NOTES["trajectory"])


def moments(results: Results, experiment: str, out: Path, why: Reason) -> Figure:
    """The same noise decoded at each moment of training, a row for each moment."""
    name, title = f"moments-{experiment}", f"The same noise, while Glow trains, {called(experiment)}"
    seed, files = results.pictured("trajectory", experiment)
    shown = {arm: read_arrays(path, ("updates", "images", "levels")) for arm, path in files.items()}
    shown = {arm: content for arm, content in shown.items() if content["images"].size}  # an archive has some without
    if not shown:
        return Figure(name, title, "", why(experiment, "joint", "trajectory"))
    room = {**PICTURES, "gridspec_kw": PICTURES["gridspec_kw"] | {"wspace": 0.25}}  # for the numbers of updates
    canvas, axes = plt.subplots(1, len(shown), figsize=(WIDTH, 7.2 / len(shown) + 0.5), squeeze=False, **room)
    for ax, (arm, content) in zip(axes[0], shown.items(), strict=True):
        images = content["images"][:, :ROW]
        picture = tiled(images.reshape(-1, *images.shape[2:]), ROW, int(content["levels"]))
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
        ax.set_title(ARMS[arm].words)
        places = [(images.shape[2] + 1) * (i + 0.5) for i in range(len(images))]
        ax.set_yticks(places, [str(int(update)) for update in content["updates"]], fontsize=6)
    axes[0][0].set_ylabel("update")
    save(canvas, out, name, None, results.profile)
    return Figure(name, title, f"Seed {seed}, the first {ROW} samples, averaged weights; none was chosen.")


def distortions(results: Results, experiment: str, out: Path, why: Reason) -> Figure:
    """The rise of the Fréchet distance with each distortion of real images."""
    name, title = f"distortions-{experiment}", f"What the Fréchet distance sees, {called(experiment)}"
    paths = results.found("classifier", experiment, ".csv")
    if not paths:
        return Figure(name, title, "", why(experiment, "", "classifier"))
    data = pd.read_csv(next(iter(paths.values())))
    kinds = list(data["distortion"].unique())
    canvas, axes = plt.subplots(1, len(kinds), figsize=(WIDTH, 1.9))
    for ax, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        run = data[data["distortion"] == kind]
        ax.plot(run["strength"], run["distance"], marker="o", markersize=3, color=PALETTE[0])
        falls = (run["distance"].diff() <= 0).any()  # as the classifier's stage says of it
        ax.set(title=kind + (", not ordered" if falls else ""), ylim=(0, None))
    axes[0].set_ylabel("distance")
    canvas.tight_layout()
    save(canvas, out, name, data, results.profile)
    return Figure(name, title, NOTES["distortions"])
