"""The figures, in one style: each as svg and png with the numbers it draws beside it as csv.

A figure whose inputs are missing is not drawn: its `why` says what is missing, and the report prints that.
"""

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Bbox

from pipeline.catalogue import ARMS
from pipeline.files import read_arrays, write_bytes
from reports.blocks import Figure
from reports.pictures import GRID, POINTS, tiled
from reports.scores import Reason, Results, by_seed, curves
from reports.verdicts import Values, number
from reports.words import NOTES, SAMPLES, called

DENSEST = 60
WIDTH = 7.0  # inches, the report's text column
EDGE = 0.04  # inches around what is drawn
PICTURES: dict[str, Any] = {  # how panels that are pictures stand
    "subplot_kw": {"xticks": [], "yticks": [], "aspect": "equal"},
    "gridspec_kw": {"wspace": 0.06, "hspace": 0.2, "left": 0.03, "right": 0.99, "bottom": 0.06, "top": 0.93}}
DENSITIES = {  # the panels of Figure 1 beside the points: arm, array of its file, model
    "Truth": ("mle", "truth", "data"), "Glow (MLE)": ("mle", "flow", "flow"),
    "Glow (ours)": ("joint-from-random", "flow", "flow"), "EBM (ours)": ("joint-from-random", "ebm", "ebm")}
AXES = {"step": "step", "ebm_updates": "EBM updates", "seconds": "CPU seconds of a run", "labels": "labelled examples"}
PALETTE = sns.color_palette("colorblind")
STYLE: dict[str, Any] = {"figure.dpi": 200, "savefig.dpi": 200,
         "svg.hashsalt": "fce", "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9,
         "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
         "legend.frameon": False, "lines.linewidth": 1.4}
plt.switch_backend("agg")
sns.set_theme(context="paper", style="ticks", rc=STYLE)


def save(canvas: Canvas, out: Path, name: str, data: pd.DataFrame | None, profile: str) -> None:
    """Write the figure's files; those of another profile than `full` carry its name across.

    Beside a figure with curves, <name>.points.json: what the page says where a pointer is near one of their points.
    """
    if profile != "full":
        canvas.text(0.5, 0.5, f"{profile} profile", rotation=25, fontsize=44, color="0.7",
                    alpha=0.45, ha="center", va="center", zorder=100)
    edge = canvas.get_tightbbox().padded(EDGE)
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, bbox_inches=edge, metadata={"Date": None})
        write_bytes(out / f"{name}.{kind}", buffer.getvalue())
    if points := drawn_points(canvas, edge):
        write_bytes(out / f"{name}.points.json", json.dumps(points, separators=(",", ":")).encode())
    plt.close(canvas)
    if data is not None:
        write_bytes(out / f"{name}.csv", data.to_csv(index=False).encode())


def drawn_points(canvas: Canvas, edge: Bbox) -> list[tuple[float, float, str]]:
    """(x, y, words) of points of named lines, some DENSEST a line at most.

    x and y are shares of the picture, whose edges [inches] these are, from its top left corner.
    """
    found = []
    for ax in canvas.axes:
        inside = ax.get_window_extent()
        for line in [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]:
            known = np.asarray(line.get_xydata(), float)
            for x, y in known[::-1][::1 + len(known) // DENSEST]:  # the last is always among them
                if inside.contains(*(pixel := ax.transData.transform((x, y)))):
                    across, up = canvas.dpi_scale_trans.inverted().transform(pixel)
                    place = (across - edge.x0) / edge.width, (edge.y1 - up) / edge.height
                    words = f"{line.get_label()}, {ax.get_xlabel()} {x:g}: {number(y)}"
                    found.append((round(place[0], 4), round(place[1], 4), words))
    return found


def lines(ax: Axes, data: pd.DataFrame, x: str, y: str, band: bool = True, **style: Any) -> None:
    """Mean over seeds against x, a line for each arm, with a band from the lowest to the highest seed."""
    for arm, known in [(arm, known) for arm, known in ARMS.items() if arm in set(data["arm"])]:
        runs = data[data["arm"] == arm].dropna(subset=[x, y]).groupby(x)[y].agg(["mean", "min", "max"])
        look = {"linestyle": (0, known.dash) if known.dash else "-", "label": known.legend or known.words, **style}
        ax.plot(runs.index, runs["mean"], color=PALETTE[known.colour], **look)
        if band:
            ax.fill_between(runs.index, runs["min"], runs["max"], color=PALETTE[known.colour], alpha=0.2, linewidth=0)
    if data[x].max() >= 10_000:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set(xlabel=AXES[x], ylabel="")


def densities(results: Results, experiments: list[str], out: Path, why: Reason) -> Figure:
    """Figure 1: points, the true density, Glow (MLE), Glow and EBM trained jointly from a random start."""
    name, title, ours = "figure1", "Figure 1. Densities learned from 2D data", "joint-from-random"
    found = {each: results.pictured("density", each) for each in experiments}
    drawn = {each: data for each, (_, files) in found.items() for data in results.found("data", each, ".npz").values()
             if {"mle", ours} <= files.keys()}
    left_out = "; ".join(f"{each} {why(each, ours, 'density')}" for each in found if each not in drawn)
    if not drawn:
        return Figure(name, title, "", left_out)
    canvas, axes = plt.subplots(len(drawn), 5, figsize=(WIDTH, 1.62 * len(drawn)), squeeze=False, **PICTURES)
    rows = []
    for row, (experiment, data) in zip(axes, drawn.items(), strict=True):
        points = read_arrays(data, ("test",))["test"][:POINTS]
        seed, files = found[experiment]
        mle, joint = (read_arrays(files[arm], ("axis", "truth", "flow"), ("ebm",)) for arm in ("mle", ours))
        axis, highest = mle["axis"], np.exp(mle["truth"].max())
        side, edge = 1.08 * np.abs(points).max(), axis[-1] + 0.5 * (axis[1] - axis[0])
        row[0].scatter(*points.T, s=0.5, color="0.25", linewidths=0, rasterized=True)
        row[0].set(ylabel=experiment, xlabel="log-likelihood:")
        for ax, (panel, (arm, array, model)) in zip(row[1:], DENSITIES.items(), strict=True):
            density = np.exp((mle if arm == "mle" else joint)[array]).T
            ax.imshow(density, origin="lower", extent=(-edge, edge, -edge, edge), cmap="viridis", vmin=0, vmax=highest)
            scores = by_seed(results.scores, experiment=experiment, arm=arm, name="log_likelihood", model=model)
            value = scores.means.get(seed, math.nan)
            rows.append({"experiment": experiment, "panel": panel, "seed": seed, "log_likelihood": value})
            ax.set_xlabel(f"{value:.3f}")
        plt.setp(row, xlim=(-side, side), ylim=(-side, side))
    for ax, panel in zip(axes[0], ("Observed", *DENSITIES), strict=True):
        ax.set_title(panel)
    sns.despine(canvas, left=True, bottom=True)
    save(canvas, out, name, pd.DataFrame(rows), results.profile)
    return Figure(name, title, NOTES[name] + (f" Missing: {left_out}." if left_out else ""))


def errors(results: Results, experiments: list[str], out: Path, why: Reason) -> Figure:
    """Figure 2: mean squared error of the EBM's log-density against its updates."""
    name, title = "figure2", "Figure 2. Error of the log-density over the EBM's updates"
    runs = {each: run for each in experiments if "mse_ema" in (run := curves(results, each, "joint"))}
    if not runs:
        return Figure(name, title, "", why(experiments[0], "joint-from-random", "joint"))
    experiment, run = next(iter(runs.items()))  # the paper draws the mixture of Gaussians, our first density
    canvas, axes = plt.subplots(2, 2, sharey=True, figsize=(WIDTH, 4.8))
    # a run's seconds differ a little between seeds: their mean at each update gives the band its place
    timed = run.assign(seconds=run.groupby(["arm", "ebm_updates"])["seconds"].transform("mean"))
    panels = {"averaged weights, learned c": ("ebm_updates", "mse_ema"), "the same over time": ("seconds", "mse_ema"),
              "last weights, learned c": ("ebm_updates", "mse_raw"),
              "averaged weights, exact Z": ("ebm_updates", "mse_ema_normalised")}
    for ax, (panel, (x, y)) in zip(axes.flat, panels.items(), strict=True):
        lines(ax, timed, x, y)
        ax.set_title(panel)
    plt.setp(axes[:, 0], ylabel="MSE of log p")
    axes[0, 0].set_yscale("log")  # shared
    legend(canvas, axes[0])
    columns = ["experiment", "arm", "seed", "ebm_updates", "flow_updates", "seconds", "mse_raw",
               "mse_ema", "mse_ema_normalised"]
    data = pd.concat(runs, names=["experiment"]).reset_index("experiment")
    save(canvas, out, name, data[columns], results.profile)
    return Figure(name, title, f"{called(experiment, results.profile).capitalize()}, {NOTES[name]}")


def samples(results: Results, experiment: str, out: Path, why: Reason) -> Figure:
    """Figures 3, 5 and 6: images of the test part, of Glow (MLE) and of Glow (ours): the plain and the tilted game."""
    name, title = f"samples-{experiment}", f"{SAMPLES.get(experiment, '')}Samples, {called(experiment)}"
    seed, files = results.pictured("sample", experiment)
    data = [*results.found("data", experiment, ".npz").values()]
    if not data or len(files) < 2 or "mle" not in files:
        return Figure(name, title, "", why(experiment, "joint", "sample"))
    ours = {arm: read_arrays(path, ("images", "levels")) for arm, path in files.items()}
    mle = ours.pop("mle")
    panels = {"Data": read_arrays(data[0], ("test_images",))["test_images"], "Glow (MLE)": mle["images"],
              **{f"Glow ({ARMS[arm].words})": each["images"] for arm, each in ours.items()}}
    canvas, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 7.5 / len(panels)), **PICTURES)
    for ax, (panel, images) in zip(axes, panels.items(), strict=True):
        ax.imshow(tiled(images[:GRID**2], GRID, int(mle["levels"])), cmap="gray", vmin=0, vmax=1)
        ax.set_title(panel)
    sns.despine(canvas, left=True, bottom=True)
    save(canvas, out, name, None, results.profile)
    return Figure(name, title, f"The first {GRID**2} images of each, seed {seed}; none was chosen.")


def probe(results: Results, experiments: list[str], out: Path, why: Reason) -> Figure:
    """Figure 4: accuracy of a linear classifier on the EBM's features against the number of labels."""
    name, title = "figure4", "Figure 4. Accuracy of a linear classifier on the EBM's features"
    chosen = accuracies(results.scores)
    drawn = [experiment for experiment in experiments if experiment in set(chosen["experiment"])]
    if not drawn:
        return Figure(name, title, "", why(experiments[0], "joint", "probe"))
    canvas, axes = plt.subplots(len(drawn), 2, sharey="row", squeeze=False, figsize=(WIDTH, 2.7 * len(drawn)))
    for row, experiment in zip(axes, drawn, strict=True):
        panels = {"accuracy": f"{called(experiment)}, top layer", "accuracy_all_layers": "all hidden layers"}
        for ax, (layers, panel) in zip(row, panels.items(), strict=True):
            ax.set(xscale="log", title=panel)
            here = (chosen["name"] == layers) | (chosen["arm"] == "supervised")
            side = chosen[here & (chosen["experiment"] == experiment)]
            # of the three, the mean is the line, the lowest and the highest are the band
            ends = [side["mean"] + sign * side["half_width"].fillna(0) for sign in (-1, 0, 1)]
            lines(ax, pd.concat([side.assign(value=end) for end in ends], ignore_index=True), "labels", "value")
            low, high = ax.get_ylim()  # the interval of few seeds may leave what an accuracy can be
            ax.set_ylim(max(low, 0), min(high, 1))
        row[0].set_ylabel("accuracy")
    legend(canvas, axes[0])
    save(canvas, out, name, chosen, results.profile)
    return Figure(name, title, NOTES[name])


def accuracies(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and half-width over seeds and draws of labels, for each experiment, arm, name and label count."""
    keys = ["experiment", "arm", "name", "labels"]
    chosen = scores[scores["name"].isin(["accuracy", "accuracy_all_layers"])].groupby(keys)
    found = {place: Values.of(group) for place, group in chosen}
    rows = [(*place, len(values), values.at.shape[1], *values.interval()) for place, values in found.items()]
    return pd.DataFrame(rows, columns=[*keys, "seeds", "draws", "mean", "half_width"])


def training(results: Results, experiment: str, out: Path, why: Reason) -> Figure:
    """The value V and the accuracies over joint training, and over pre-training the loss on the validation part.

    Where none was held out, it is that of the training minibatches.
    """
    name, title = f"training-{experiment}", f"Training curves, {called(experiment, results.profile)}"
    joint, pretrain = curves(results, experiment, "joint"), curves(results, experiment, "pretrain")
    if joint.empty or pretrain.empty:
        return Figure(name, title, "", why(experiment, "joint", "joint"))
    canvas, (loss, value, accuracy) = plt.subplots(1, 3, figsize=(WIDTH, 2.5))
    part = "validation" if pretrain["validation"].notna().any() else "train"
    lines(loss, pretrain.assign(arm="mle"), "step", part)
    unit = "nats" if "mse_ema" in joint else "bits/dim"
    loss.set(title="Glow, maximum likelihood", ylabel=f"{part}, {unit}")
    lines(value, joint, "ebm_updates", "value")
    known = levels(results.folder / experiment / "params" / "joint", joint["arm"])
    for level in known:
        value.axhline(level, color="0.3", linewidth=0.8)
    value.set_title("value V (grey: p = q)" if known else "value V")
    lines(accuracy, joint, "ebm_updates", "accuracy_data", band=False, linestyle="-")
    lines(accuracy, joint, "ebm_updates", "accuracy_gen", band=False, linestyle=":")
    accuracy.set(title="accuracy (dotted: samples)", ylim=(0, 1))
    legend(canvas, [value])
    save(canvas, out, name, joint, results.profile)
    return Figure(name, title, "")


def levels(folder: Path, arms: Iterable[str]) -> set[float]:
    """V (eq. 4) where p = q, -2 log 2 with as many samples as points, by the slices of these arms' parameters."""
    slices = [path for arm in set(arms) if (path := folder / f"{arm}.json").exists()]
    ratios = {json.loads(path.read_text())["joint"].get("noise_ratio", 1) for path in slices}
    return {ratio * math.log(ratio) - (1 + ratio) * math.log(1 + ratio) for ratio in ratios}


def legend(canvas: Canvas, axes: Iterable[Axes]) -> None:
    """One legend below all panels."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    canvas.tight_layout()
    canvas.legend(handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4)
