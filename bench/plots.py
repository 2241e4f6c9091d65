"""Bar charts of times and a roofline, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#1b6ca8", "#e07b39", "#5a9e6f", "#b04a5a", "#8a6fb0", "#8c8c8c", "#c2a83e", "#4bb3b3")
MAX_BARS = 8  # cases a chart of bars can show; beyond that a chart of ratios


def draw(result: dict[str, Any], folder: Path) -> None:
    """`OP-GROUP.png` for each group of cases and `OP-roofline.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in result["cases"]:
        groups.setdefault(case["group"], []).append(case)
    for group, cases in groups.items():
        name = group.replace(" ", "-").replace("/", "-")
        if all(case["size"] for case in cases):
            chart = curves(cases, group)
        else:
            chart = bars(cases) if len(cases) <= MAX_BARS else ratios(cases)
        _save(chart, folder / f"{result['op']}-{name}.png")
    if result["limits"] and any(case["limit"] for case in result["cases"]):
        _save(roofline(result), folder / f"{result['op']}-roofline.png")


def _colours(cases: list[dict[str, Any]]) -> dict[str, str]:
    names = list(dict.fromkeys(row["name"] for case in cases for row in case["rows"]))
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def bars(cases: list[dict[str, Any]]) -> Figure:
    """Milliseconds of each contender, case by case, with quartiles; logarithmic, since ratios are what matters."""
    colours = _colours(cases)
    height = sum(0.28 * len(case["rows"]) + 0.3 for case in cases)
    figure = Figure(figsize=(9, height + 1.3), layout="constrained")
    axes = figure.subplots()
    place, ticks = 0.0, []
    for case in cases:
        begin = place
        for row in case["rows"]:
            middle = row["median"] * 1e3
            spread = [[middle - row["low"] * 1e3], [row["high"] * 1e3 - middle]]
            axes.barh(place, middle, 0.85, xerr=spread, color=colours[row["name"]], error_kw={"lw": 0.8})
            axes.text(row["high"] * 1e3 * 1.04, place, f"{middle:.3g} ms", va="center", fontsize=7)
            place += 1
        ticks.append(((begin + place - 1) / 2, case["case"]))
        place += 1
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a step, median and quartiles; shorter is better")
    _legend(axes, colours)
    return figure


def ratios(cases: list[dict[str, Any]]) -> Figure:
    """How many times slower than ours each rival is, case by case."""
    colours = {name: colour for name, colour in _colours(cases).items() if name != "deeprec"}
    figure = Figure(figsize=(9, 0.17 * len(cases) + 1.4), layout="constrained")
    axes = figure.subplots()
    for place, case in enumerate(cases):
        for row in case["rows"]:
            if row["name"] != "deeprec":
                axes.plot(row["ratio"], place, "o", ms=4, color=colours[row["name"]])
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(range(len(cases)), [case["case"] for case in cases], fontsize=6)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.grid(axis="x", which="both", lw=0.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time of the rival / time of deeprec; right of 1 deeprec is faster")
    _legend(axes, colours)
    return figure


def curves(cases: list[dict[str, Any]], label: str) -> Figure:
    """Milliseconds of each contender against what the group varies."""
    colours = _colours(cases)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, colour in colours.items():
        points = [(case["size"], row) for case in cases for row in case["rows"] if row["name"] == name]
        sizes, middle = [size for size, _ in points], [row["median"] * 1e3 for _, row in points]
        low, high = ([row[key] * 1e3 for _, row in points] for key in ("low", "high"))
        axes.plot(sizes, middle, "o-", color=colour)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.2)
        for size, value in zip(sizes, middle, strict=True):
            axes.annotate(f"{value:.3g}", (size, value), (0, 5), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(y=0.2)
    axes.grid(which="major", lw=0.3)
    axes.set_xlabel(label)
    axes.set_ylabel("milliseconds a step, median and quartiles")
    _legend(axes, colours)
    return figure


def roofline(result: dict[str, Any]) -> Figure:
    """Bytes a second of every contender, below the measured limit of each case and that of a copy."""
    cases = [case for case in result["cases"] if case["limit"]]
    colours = _colours(cases)
    figure = Figure(figsize=(9, 0.35 * len(cases) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, case in enumerate(cases):
        for row in case["rows"]:
            axes.plot(row["bytes_per_second"] / 1e9, place, "o", ms=6, alpha=0.85, color=colours[row["name"]])
        limit = case["limit_bytes_per_second"] / 1e9
        axes.plot([limit, limit], [place - 0.4, place + 0.4], color="black", lw=2)
        axes.plot([0.7 * limit, 0.7 * limit], [place - 0.4, place + 0.4], color="black", lw=0.8, ls=":")
    if "copy" in result["limits"]:
        axes.axvline(result["limits"]["copy"] / 1e9, color="grey", lw=1, ls="--")
    axes.set_yticks(range(len(cases)), [case["case"] for case in cases], fontsize=8)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.grid(axis="x", which="both", lw=0.3)
    axes.set_xlabel(
        "GB/s: bytes that must be moved / time; black: the prefetching gather, dotted: 70% of it, grey: a large copy"
    )
    _legend(axes, colours)
    return figure


def _legend(axes: Axes, colours: dict[str, str]) -> None:
    handles = [axes.plot([], [], "s", color=colour, label=name)[0] for name, colour in colours.items()]
    axes.figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=7, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(str(path))
