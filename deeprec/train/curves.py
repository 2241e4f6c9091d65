"""Training curves as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from deeprec._files import write_atomically
from deeprec.evaluate.metrics import gain


def plot_curves(
    entries: list[dict[str, float]], path: Path, *, title: str, chosen: int | None = None, sample: str = ""
) -> None:
    """Draw loss and validation metrics over the epochs into the PNG file `path`; nothing without entries.

    Args:
        entries: as `FitResult.history`.
        chosen: the epoch whose weights the model has, which is marked.
        sample: what part of the validation rows the figures are of, "" for all.
    """
    if not entries:
        return
    # Imported here: it takes half a second, which nobody wants to wait for on `import deeprec`.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, metric_axes = figure.subplots(1, 2)
    shown = [entry for entry in entries if not entry.get("refit")]
    epochs = [entry["epoch"] for entry in shown]
    loss_axes.plot(epochs, [entry["loss"] for entry in shown], color="#c44e52", marker="o", markersize=3)
    loss_axes.set(xlabel="epoch", ylabel="training loss")
    known = ("epoch", "loss", "seconds", "samples_per_second", "validation_seconds", "refit")
    metrics = [key for key in (shown[-1] if shown else {}) if key not in known]
    for metric, colour in zip(metrics, ("#4c72b0", "#55a868"), strict=False):  # the first two of the protocol
        points = [(entry["epoch"], entry[metric]) for entry in shown if metric in entry]
        if points:
            best = max(points, key=lambda point: gain(metric, point[1]))
            metric_axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=metric)
            metric_axes.annotate(f"{best[1]:.4f}", best, textcoords="offset points", xytext=(0, 6), ha="center", size=8)
    metric_axes.set(xlabel="epoch", ylabel=f"validation metric{f' ({sample})' if sample else ''}")
    if chosen is not None and shown:
        for axes, label in ((loss_axes, f"chosen: epoch {chosen}"), (metric_axes, "_")):
            axes.axvline(chosen, color="0.4", linewidth=1, linestyle="--", zorder=0, label=label)
        loss_axes.legend(frameon=False)
    if metric_axes.get_legend_handles_labels()[0]:
        metric_axes.legend(frameon=False)
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    write_atomically(path, buffer.getvalue())
