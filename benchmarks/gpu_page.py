"""The page of `make gpu`: what lies in its folder, with the curves and samples of the training beside it."""

import json
import math
from base64 import b64encode
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.gpu_training import HOME, PLAYED
from eval.score import read_scores
from pipeline.catalogue import ARMS
from pipeline.files import read_arrays, write_bytes
from pipeline.track import read_record

GAME = {"accuracy": (("accuracy_data", "accuracy_gen"), "accuracy"), "V": (("value",), "V"),
        "log-ratios": (("r_data_mean", "r_gen_mean"), "nats")}
SIDE = 10  # images along a side of the grid
STYLE = ("body{margin:0 auto;max-width:66rem;padding:2rem;font:16px/1.5 system-ui,sans-serif}table{border-collapse:"
         "collapse;font-size:.85rem}td,th{text-align:left;padding:.3rem .8rem;border-bottom:1px solid #ddd}"
         ".wide{overflow-x:auto}img{max-width:100%}pre{background:#f4f5f6;padding:.7rem;overflow-x:auto;font-size:.8rem}")


def grid(images: np.ndarray) -> np.ndarray:
    """The first images [N, H, W, C] as one picture; not chosen ones."""
    side, n = images.shape[1], int(min(SIDE, len(images) ** 0.5))
    rows = images[: n * n].reshape(n, n, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
    return rows.reshape(n * side, n * side, images.shape[-1])


def draw_samples(folder: Path) -> None:
    files = {"training images": (HOME / "data.npz", "train_images"),
             "Glow (MLE)": (HOME / "seed-0/mle/samples.npz", "images"),
             **{f"Glow ({ARMS[arm].words})": (HOME / f"seed-0/{arm}/samples.npz", "images") for arm in PLAYED}}
    found = {title: read_arrays(path, (name,))[name] for title, (path, name) in files.items() if path.exists()}
    if len(found) < 2:
        return
    canvas, axes = plt.subplots(1, len(found), figsize=(5 * len(found), 5.2), layout="constrained")
    for ax, (title, images) in zip(axes, found.items(), strict=True):
        ax.imshow(grid(images).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
    canvas.savefig(folder / "samples.png", dpi=100)
    plt.close(canvas)


def draw_curves(folder: Path) -> None:
    """Of records, which also a stage has that is not done."""
    panels = {"pretrain": ("pretrain.run.jsonl", ("train", "validation"), "bits/dim"),
              **{f"{arm}, {what}": (f"{arm}/joint.run.jsonl", columns, unit) for arm in PLAYED
                 for what, (columns, unit) in GAME.items()}}
    drawn = {name: curve(HOME / "seed-0" / file) for name, (file, _, _) in panels.items()}
    drawn = {name: frame for name, frame in drawn.items() if len(frame)}
    if not drawn:
        return
    rows = math.ceil(len(drawn) / 4)
    canvas, axes = plt.subplots(rows, min(4, len(drawn)), figsize=(16, 3 * rows), layout="constrained", squeeze=False)
    for ax, (name, frame) in zip(axes.flat, drawn.items(), strict=False):
        _, columns, unit = panels[name]
        for column in [column for column in columns if column in frame]:  # no validation part, no such loss
            ax.plot(frame["step"], frame[column], label=column)
        ax.set(title=name, xlabel="step" if name == "pretrain" else "EBM updates", ylabel=unit)
        ax.legend(frameon=False)
    for ax in axes.flat[len(drawn):]:
        ax.set_axis_off()
    canvas.savefig(folder / "curves.png", dpi=120)
    plt.close(canvas)
    for file, name in {"pretrain": "pretrain", **{arm: f"{arm}, V" for arm in PLAYED}}.items():
        if name in drawn:
            write_bytes(folder / f"{file}.csv", drawn[name].to_csv(index=False).encode())


def curve(record: Path) -> pd.DataFrame:
    """The rows that a record has so far."""
    lines = read_record(record) if record.exists() else []
    return pd.DataFrame([{"step": line["step"], **line["values"]} for line in lines if line["kind"] == "metrics"])


def scores() -> list[dict[str, Any]]:
    """Every score of the training's measures."""
    rows = []
    for path in sorted(HOME.glob("seed-0/*/*.json")):
        content = read_scores(path)
        rows += [{"arm": content.arm, "model": score.model, "score": score.name, "value": score.value,
                  "standard error": score.standard_error, "n": score.n, "protocol": score.protocol}
                 for score in content.scores]
    return rows


def step_table(content: dict[str, Any]) -> pd.DataFrame:
    """Times, shares of the matrix rates, memory and power of each case, or why it has none."""
    rows = content.get("steps", [])
    rates: dict[str, Any] = next((row for row in rows if row["name"] == "matrix"), {})
    table = []
    for row in [row for row in rows if row["name"] != "matrix"]:
        case, speed = row["case"], row.get("flops_per_second")
        shares = {f"share of {kind} products": speed / rates[kind] if speed and kind in rates else None
                  for kind in ("tf32", "fp32")}
        table.append({"step": case["what"], "K": case["steps"], "batch": case["batch"], "mode": case["mode"],
                      "ms": 1000 * row["seconds"] if "seconds" in row else None, "error": row.get("error"), **shares,
                      **{name: row.get(name) for name in ("images_per_second", "peak_mib", "reserved_mib", "watts",
                                                          "warm_up_seconds")}})
    return pd.DataFrame(table)


def html(title: str, frame: pd.DataFrame) -> str:
    if frame.empty:
        return f"<h2>{escape(title)}</h2><p>Nothing yet.</p>"
    table = frame.to_html(index=False, float_format="{:.4g}".format, na_rep="", border=0)
    return f'<h2>{escape(title)}</h2><div class="wide">{table}</div>'


def picture(path: Path) -> str:
    if not path.exists():
        return ""
    return f'<p><img alt="{path.stem}" src="data:image/png;base64,{b64encode(path.read_bytes()).decode()}"></p>'


def render(folder: Path) -> None:
    """Write index.html and what it shows into the folder of results."""
    content = json.loads((folder / "results.json").read_text())
    draw_samples(folder)
    draw_curves(folder)
    steps, measured = step_table(content), pd.DataFrame(scores())
    for name, frame in (("steps", steps), ("scores", measured)):
        if len(frame):
            write_bytes(folder / f"{name}.csv", frame.to_csv(index=False).encode())
    plan = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").exists() else {}
    logs = {path: path.read_text(errors="replace").splitlines()[-40:] for path in sorted(HOME.rglob("*.log"))}
    write_bytes(folder / "log.txt", "\n".join(f"== {path}\n" + "\n".join(logs[path]) for path in logs).encode())
    matrix = [row for row in content.get("steps", []) if row["name"] == "matrix"]
    hours = pd.DataFrame([{"experiment": name, **row} for name, row in content.get("hours", {}).items()])
    parts = [
        f"<p>{escape(json.dumps(content['environment']))}</p>",
        html("GPU tests", pd.DataFrame(content.get("tests", {}).get("tests", []))),
        html("Step times", steps),
        f"<p>Products of large matrices, operations per second: {escape(json.dumps(matrix[0]))}</p>" if matrix else "",
        html("Hours of the full profile's trainings, by these times", hours),
        html(f"Training on {plan.get('data', 'CIFAR-10')}", pd.DataFrame(content.get("training", []))),
        f"<pre>{escape(json.dumps(plan.get('changes', {}), indent=1))}</pre>" if plan else "",
        picture(folder / "curves.png"), picture(folder / "samples.png"), html("Measures", measured)]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>make gpu</title><style>{STYLE}</style><body>'
    write_bytes(folder / "index.html", (page + "<h1>make gpu</h1>" + "\n".join(parts) + "</body></html>").encode())
