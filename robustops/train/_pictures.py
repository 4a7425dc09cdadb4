"""Pictures of a run: its curves, and what an autoencoder makes of its inputs."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

REFUSED, CLIPPED, TRAIN, VALIDATION = "#d62728", "#ff7f0e", "#1f77b4", "#2ca02c"


def plot_curves(metrics: str | os.PathLike[str], to: str | os.PathLike[str]) -> None:
    """Draws loss and gradient norm of each step, with refused and clipped steps marked.

    Args:
      metrics: the `*.csv` file that `fit(metrics=...)` wrote.
      to: the picture, e.g. a `*.png` or `*.svg` file.

    Raises:
      ImportError: without matplotlib.
      ValueError: the file has no rows.
    """
    plt = _matplotlib("plot_curves")
    with open(metrics, newline="") as opened:
        rows = list(csv.DictReader(opened))
    if not rows:
        raise ValueError(f"plot_curves: {metrics} has no rows")
    column = lambda name: np.array([float(row[name] or "nan") for row in rows])
    step, refused, clipped = column("step"), column("skipped") > 0, column("clipped") > 0
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, layout="constrained", gridspec_kw={"hspace": 0.05}
    )
    for axes, name in ((top, "loss"), (bottom, "grad_norm")):
        values = np.where(np.isfinite(column(name)) & (column(name) > 0), column(name), np.nan)
        axes.plot(step, values, color=TRAIN, linewidth=0.9, label="training step")
        axes.set_yscale("log")
        if clipped.any() and name == "grad_norm":
            share = f"clipped: {clipped.sum()} of {len(rows)} steps"
            axes.plot(step[clipped], values[clipped], ".", color=CLIPPED, ms=5, label=share)
        for i, x in enumerate(step[refused]):
            label = f"refused: {refused.sum()} of {len(rows)} steps" if i == 0 else None
            axes.axvline(x, color=REFUSED, linewidth=0.8, alpha=0.6, zorder=0, label=label)
    validation = column("validation_loss")
    there = np.isfinite(validation)
    if there.any():
        top.plot(
            step[there], validation[there], color=VALIDATION, linewidth=1.5, label="validation"
        )
    top.set_ylabel("loss")
    bottom.set_ylabel("gradient norm, before clipping")
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        axes.legend(loc="upper right", fontsize="small", framealpha=0.9)
        axes.grid(alpha=0.25)
    _save(plt, figure, to)


def plot_reconstructions(
    inputs: Any, outputs: Any, to: str | os.PathLike[str], rows: int = 10
) -> None:
    """Draws inputs above their reconstructions, square ones as images and others as curves.

    Args:
      inputs: `[rows, features]` or `[rows, height, width, 1]`.
      outputs: the same shape.
      to: the picture.
      rows: how many, the first ones.

    Raises:
      ImportError: without matplotlib.
      ValueError: the shapes differ.
    """
    plt = _matplotlib("plot_reconstructions")
    inputs, outputs = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    if inputs.shape != outputs.shape:
        raise ValueError(f"plot_reconstructions: shapes {inputs.shape} and {outputs.shape} differ")
    rows = min(rows, len(inputs))
    inputs, outputs = (x[:rows].reshape(rows, -1) for x in (inputs, outputs))
    side = round(inputs.shape[1] ** 0.5)
    square = side * side == inputs.shape[1] and side > 3
    height = 2.6 if square else 3.2
    figure, axes = plt.subplots(
        2 if square else 1, rows, figsize=(1.1 * rows + 0.6, height), squeeze=False,
        layout="constrained", sharey=not square,
    )  # fmt: skip
    low, high = np.percentile(inputs, [1, 99])
    for i in range(rows):
        if square:
            for ax, x in zip(axes[:, i], (inputs[i], outputs[i]), strict=True):
                ax.imshow(x.reshape(side, side), cmap="gray", vmin=low, vmax=high)
                ax.set_xticks([])
                ax.set_yticks([])
        else:
            feature = np.arange(inputs.shape[1])
            axes[0, i].plot(inputs[i], feature, color=TRAIN, linewidth=1, label="input")
            axes[0, i].plot(outputs[i], feature, color=CLIPPED, linewidth=1, label="output")
            axes[0, i].tick_params(labelsize="x-small")
    if square:
        axes[0, 0].set_ylabel("input")
        axes[1, 0].set_ylabel("output")
    else:
        axes[0, 0].set_ylabel("feature")
        axes[0, 0].legend(fontsize="x-small")
        figure.supxlabel("value, scaled", fontsize="small")
    _save(plt, figure, to)


def _save(plt: Any, figure: Any, to: str | os.PathLike[str]) -> None:
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=130)
    plt.close(figure)


def _matplotlib(where: str) -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{where} needs matplotlib: run `pip install 'robustops[train]'`"
        ) from error
    return plt
