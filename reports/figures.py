"""The figures, in one style: each as svg and png with the numbers it draws beside it as csv.

A figure whose inputs are missing is not drawn: its `why` says what is missing, and the report prints that.
"""

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter

from pipeline.catalogue import ARMS
from pipeline.files import read_arrays, write_bytes
from pipeline.params import Run
from reports.blocks import Figure
from reports.scores import Reason, Results, by_seed, curves
from reports.verdicts import Values
from reports.words import SAMPLES, called

WIDTH = 7.0  # inches, the report's text column
FILL = {"left": 0.03, "right": 0.99, "bottom": 0.06, "top": 0.93}
GRID = 8  # a sample figure shows the first 8 x 8 images, not chosen ones
PALETTE = sns.color_palette("colorblind")
STYLE = {"figure.dpi": 200, "savefig.dpi": 200, "svg.hashsalt": "fce", "axes.spines.top": False,
         "axes.spines.right": False, "axes.titlesize": 9, "axes.labelsize": 8.5, "xtick.labelsize": 8,
         "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.4}
sns.set_theme(context="paper", style="ticks", rc=STYLE)


def save(canvas: Canvas, out: Path, name: str, data: pd.DataFrame | None, profile: str) -> None:
    """Write the figure's files; those of another profile than `full` carry its name across."""
    if profile != "full":
        canvas.text(0.5, 0.5, f"{profile} profile", rotation=25, fontsize=44, color="0.7", alpha=0.45, ha="center",
                    va="center", zorder=100)
    for kind, metadata in (("svg", {"Date": None}), ("png", {})):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, metadata=metadata, bbox_inches="tight", pad_inches=0.04)
        write_bytes(out / f"{name}.{kind}", buffer.getvalue())
    plt.close(canvas)
    if data is not None:
        write_bytes(out / f"{name}.csv", data.to_csv(index=False).encode())


def lines(ax: Axes, data: pd.DataFrame, x: str, y: str, **style: Any) -> None:
    """Mean over seeds against x, a line for each arm, with a band from the lowest to the highest seed."""
    for arm in [arm for arm in ARMS if arm in set(data["arm"])]:
        known = ARMS[arm]
        look = {"linestyle": (0, known.dash) if known.dash else "-", "errorbar": ("pi", 100), **style}
        sns.lineplot(data[data["arm"] == arm], x=x, y=y, ax=ax, color=PALETTE[known.colour],
                     label=known.legend or known.words, legend=False, **look)
    if data[x].max() >= 10_000:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def densities(results: Results, experiments: list[str], out: Path, why: Reason) -> Figure:
    """Figure 1: points, the true density, Glow (MLE), Glow and EBM trained jointly from a random start."""
    name, title = "figure1", "Figure 1. Densities learned from 2D data"
    data = {experiment: results.found("data", experiment, ".npz") for experiment in experiments}
    found = {experiment: results.found("density", experiment, ".npz") for experiment in experiments}
    seeds = {experiment: first_seed(found[experiment], "mle", "joint-from-random") for experiment in experiments}
    drawn = {experiment: seed for experiment, seed in seeds.items() if seed is not None and data[experiment]}
    left_out = "; ".join(f"{e} {why(e, 'joint-from-random', 'density')}" for e in experiments if e not in drawn)
    if not drawn:
        return Figure(name, title, "", left_out)
    canvas, axes = plt.subplots(len(drawn), 5, figsize=(WIDTH, 1.62 * len(drawn)), squeeze=False,
                                gridspec_kw={"wspace": 0.06, "hspace": 0.2, **FILL})
    rows = []
    for row, (experiment, seed) in zip(axes, drawn.items(), strict=True):
        points = read_arrays(data[experiment][None, ""], ("test",))["test"][:2000]
        mle, ours = (read_arrays(found[experiment][seed, arm], ("axis", "truth", "flow"), ("ebm",))
                     for arm in ("mle", "joint-from-random"))
        side, edge = 1.08 * np.abs(points).max(), mle["axis"][-1] + 0.5 * (mle["axis"][1] - mle["axis"][0])
        row[0].scatter(*points.T, s=0.5, color="0.25", linewidths=0, rasterized=True)
        panels = {"Truth": (mle["truth"], "mle", "data"), "Glow (MLE)": (mle["flow"], "mle", "flow"),
                  "Glow (ours)": (ours["flow"], "joint-from-random", "flow"),
                  "EBM (ours)": (ours["ebm"], "joint-from-random", "ebm")}
        for ax, (label, (log_density, arm, model)) in zip(row[1:], panels.items(), strict=True):
            ax.imshow(np.exp(log_density).T, origin="lower", extent=(-edge, edge, -edge, edge), cmap="viridis",
                      vmin=0, vmax=np.exp(mle["truth"].max()))
            values = by_seed(results.scores, experiment=experiment, arm=arm, name="log_likelihood", model=model).means
            value = values.get(seed, math.nan)
            rows.append({"experiment": experiment, "panel": label, "seed": seed, "log_likelihood": value})
            ax.set_xlabel(f"{value:.3f}")
        row[0].set(ylabel=experiment, xlabel="log-likelihood:")
        for ax in row:
            ax.set(xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[], aspect="equal")
            sns.despine(ax=ax, left=True, bottom=True)
    for ax, label in zip(axes[0], ("Observed", *panels), strict=True):
        ax.set_title(label)
    save(canvas, out, name, pd.DataFrame(rows), results.profile)
    caption = ("Joint training from a random Glow, as in the paper; the first seed, not a chosen one. One colour scale "
               "in a row, from 0 to the maximum of the truth; the EBM is normalised by quadrature. Below: mean "
               "log-likelihood of held-out points, in nats.")
    return Figure(name, title, caption + (f" Missing: {left_out}." if left_out else ""))


def first_seed(found: dict[Run, Path], *arms: str) -> int | None:
    """The first seed that has files of all these arms."""
    return next((seed for seed, _ in found if all((seed, arm) in found for arm in arms)), None)


def errors(results: Results, experiments: list[str], out: Path, why: Reason) -> Figure:
    """Figure 2: mean squared error of the EBM's log-density against its updates."""
    name, title = "figure2", "Figure 2. Error of the log-density over the EBM's updates"
    runs = {experiment: curves(results, experiment, "joint") for experiment in experiments}
    runs = {experiment: run for experiment, run in runs.items() if "mse_ema" in run}
    if not runs:
        return Figure(name, title, "", why(experiments[0], "joint-from-random", "joint"))
    experiment, run = next(iter(runs.items()))  # the paper draws the mixture of Gaussians, our first density
    canvas, axes = plt.subplots(2, 2, sharey=True, figsize=(WIDTH, 4.8))
    # a run's seconds differ a little between seeds: their mean at each update gives the band its place
    timed = run.assign(seconds=run.groupby(["arm", "ebm_updates"])["seconds"].transform("mean"))
    panels = (("mse_ema", "ebm_updates", "averaged weights, learned c"), ("mse_ema", "seconds", "the same over time"),
              ("mse_raw", "ebm_updates", "last weights, learned c"),
              ("mse_ema_normalised", "ebm_updates", "averaged weights, exact Z"))
    for ax, (y, x, label) in zip(axes.flat, panels, strict=True):
        lines(ax, timed, x, y)
        ax.set(title=label, xlabel="EBM updates" if x == "ebm_updates" else "CPU seconds of a run",
               ylabel="MSE of log p" if ax in axes[:, 0] else "")
    axes[0, 0].set_yscale("log")  # shared; only now, for on a logarithmic axis seaborn averages logarithms
    legend(canvas, axes[0])
    data = pd.concat([run.assign(experiment=experiment) for experiment, run in runs.items()])
    columns = ["experiment", "arm", "seed", "ebm_updates", "flow_updates", "seconds", "mse_raw", "mse_ema",
               "mse_ema_normalised"]
    save(canvas, out, name, data[columns], results.profile)
    return Figure(name, title, f"{called(experiment).capitalize()}, held-out points; mean over seeds, band from the "
                               "lowest to the highest. Top left as in the paper; top right over CPU seconds, which "
                               "count the flow's updates too (a run's share where seeds train side by side). The "
                               "constant c is learned, or replaced by log Z from quadrature.")


def samples(results: Results, experiment: str, out: Path, why: Reason) -> Figure:
    """Figures 3, 5 and 6: images of the test part, of Glow (MLE) and of Glow (ours)."""
    name, title = f"samples-{experiment}", f"{SAMPLES.get(experiment, '')}Samples, {called(experiment)}"
    data, found = results.found("data", experiment, ".npz"), results.found("sample", experiment, ".npz")
    seed = first_seed(found, "mle", "joint")
    if seed is None or not data:
        return Figure(name, title, "", why(experiment, "joint", "sample"))
    mle, ours = (read_arrays(found[seed, arm], ("images", "levels")) for arm in ("mle", "joint"))
    panels = {"Data": read_arrays(data[None, ""], ("test_images",))["test_images"], "Glow (MLE)": mle["images"],
              "Glow (ours)": ours["images"]}
    canvas, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.5), gridspec_kw={"wspace": 0.06, **FILL})
    for ax, (label, images) in zip(axes, panels.items(), strict=True):
        tiles = images[:GRID**2] / (float(mle["levels"]) - 1)
        tiles = np.pad(tiles, ((0, GRID**2 - len(tiles)), (0, 1), (0, 1), (0, 0)), constant_values=1)  # gaps
        _, h, w, c = tiles.shape
        picture = tiles.reshape(GRID, GRID, h, w, c).transpose(0, 2, 1, 3, 4).reshape(GRID * h, GRID * w, c)
        ax.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1)
        ax.set(title=label, xticks=[], yticks=[])
        sns.despine(ax=ax, left=True, bottom=True)
    save(canvas, out, name, None, results.profile)
    return Figure(name, title, f"The first {GRID**2} images of each, seed {seed}; none was chosen.")


def probe(results: Results, experiments: list[str], out: Path, why: Reason) -> Figure:
    """Figure 4: accuracy of a linear classifier on the EBM's features against the number of labels."""
    name, title = "figure4", "Figure 4. Accuracy of a linear classifier on the EBM's features"
    chosen = accuracies(results.scores[results.scores["name"].isin(["accuracy", "accuracy_all_layers"])])
    drawn = [experiment for experiment in experiments if experiment in set(chosen["experiment"])]
    if not drawn:
        return Figure(name, title, "", why(experiments[0], "joint", "probe"))
    canvas, axes = plt.subplots(len(drawn), 2, sharey="row", squeeze=False, figsize=(WIDTH, 2.7 * len(drawn)))
    for row, experiment in zip(axes, drawn, strict=True):
        here = chosen[chosen["experiment"] == experiment]
        for ax, layers in zip(row, ("accuracy", "accuracy_all_layers"), strict=True):
            ax.set_xscale("log")
            side = here[(here["name"] == layers) | (here["arm"] == "supervised")]
            ends = [side["mean"] + sign * side["half_width"].fillna(0) for sign in (-1, 0, 1)]
            # of the three, the mean is the line, the lowest and the highest are the band
            lines(ax, pd.concat([side.assign(value=end) for end in ends], ignore_index=True), "labels", "value")
            low, high = ax.get_ylim()  # the interval of few seeds may leave what an accuracy can be
            ax.set(xlabel="labelled examples", ylabel="accuracy" if ax is row[0] else "")
            ax.set_ylim(max(low, 0), min(high, 1))
        row[0].set_title(f"{called(experiment)}, top layer")
        row[1].set_title("all hidden layers")
    legend(canvas, axes[0])
    save(canvas, out, name, chosen, results.profile)
    return Figure(name, title, "Test accuracy; mean over seeds and draws of the labelled examples, and its 95 % "
                               "interval over both (of a seed alone, over draws and test images). Left as in the "
                               "paper, which draws SVHN; its label counts are not in its text. The supervised net is "
                               "trained end to end, and the same on both sides.")


def accuracies(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and half-width over seeds and draws of labels, for each experiment, arm, name and label count."""
    rows = []
    for place, group in scores.groupby(keys := ["experiment", "arm", "name", "labels"]):
        values = Values.of(group)
        mean, half = values.interval()
        rows.append({**dict(zip(keys, place, strict=True)), "seeds": len(values), "draws": values.at.shape[1],
                     "mean": mean, "half_width": half})
    return pd.DataFrame(rows, columns=[*keys, "seeds", "draws", "mean", "half_width"])


def training(results: Results, experiment: str, out: Path, why: Reason) -> Figure:
    """The value V and the accuracies over joint training, and the validation loss over pre-training."""
    name, title = f"training-{experiment}", f"Training curves, {called(experiment)}"
    joint, pretrain = curves(results, experiment, "joint"), curves(results, experiment, "pretrain")
    if joint.empty or pretrain.empty:
        return Figure(name, title, "", why(experiment, "joint", "joint"))
    canvas, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.5))
    lines(axes[0], pretrain.assign(arm="mle"), "step", "validation")
    axes[0].set(title="Glow, maximum likelihood", xlabel="step",
                ylabel="validation, nats" if "mse_ema" in joint else "validation, bits/dim")
    lines(axes[1], joint, "ebm_updates", "value")
    known = levels(results.folder / experiment / "params" / "joint", joint["arm"])
    for level in known:
        axes[1].axhline(level, color="0.3", linewidth=0.8)
    axes[1].set(title="value V (grey: p = q)" if known else "value V", xlabel="EBM updates", ylabel="")
    lines(axes[2], joint, "ebm_updates", "accuracy_data", linestyle="-", errorbar=None)
    lines(axes[2], joint, "ebm_updates", "accuracy_gen", linestyle=":", errorbar=None)
    axes[2].set(title="accuracy (dotted: samples)", xlabel="EBM updates", ylabel="", ylim=(0, 1))
    legend(canvas, axes[1:2])
    save(canvas, out, name, joint, results.profile)
    return Figure(name, title, "")


def levels(folder: Path, arms: Iterable[str]) -> set[float]:
    """V (eq. 4) where p = q, -2 log 2 with as many samples as points, by the slices of these arms' parameters."""
    slices = [path for arm in set(arms) if (path := folder / f"{arm}.json").exists()]
    ratios = {json.loads(path.read_text())["joint"].get("noise_ratio", 1) for path in slices}
    return {ratio * math.log(ratio) - (1 + ratio) * math.log(1 + ratio) for ratio in ratios}


def legend(canvas: Canvas, axes: np.ndarray) -> None:
    """One legend below all panels."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    canvas.tight_layout()
    canvas.legend(handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4)
