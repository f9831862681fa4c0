"""The plots of a study, from the content of study.json: NER against TC, and scores against label fractions."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.lines

from experiments.study_report import SCORE, places

MARKERS = "os^vDP*X<>"


def figures(content: Mapping[str, Any]) -> dict[str, matplotlib.figure.Figure]:
    """File name without suffix -> figure; only what the study has scores for."""
    drawn = {}
    if content["fronts"]:
        drawn["study_front"] = front(content)
    if len(content["fractions"]) > 1:
        drawn["study_fractions"] = fractions(content)
    return drawn


def front(content: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """NER against TC, one panel a start, mode and fraction; a line joins the front of each strategy's variants."""
    panels = [(title, found) for title, found in places(content) if _points(found)]
    figure, axes = _panels(len(panels))
    colours = _colours([f["strategy"] for f in content["fronts"]])
    for (title, found), ax in zip(panels, axes):
        points, place = _points(found), (found[0]["start"], found[0]["mode"], found[0]["fraction"])
        for f in content["fronts"]:
            if (f["start"], f["mode"], f["fraction"]) != place:
                continue
            colour, marker = colours[f["strategy"]]
            for variant in f["variants"]:
                ax.plot(*points[variant], marker, color=colour, ms=7, alpha=1 if variant in f["front"] else 0.35)
            line = [points[v] for v in f["front"]]
            ax.plot([x for x, _ in line], [y for _, y in line], "-", color=colour, lw=1, alpha=0.6)
        if "none" in points:
            ax.axvline(points["none"][0], color="0.7", lw=0.8, zorder=0)
            ax.axhline(points["none"][1], color="0.7", lw=0.8, zorder=0)
        ax.set(title=title, xlabel="TC accuracy, %", ylabel="NER strict span F1, %")
        ax.margins(0.12)
    _legend(figure, colours)
    return figure


def fractions(content: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Mean scores against the share of the training labels, one panel a start, mode and family."""
    curves: dict[tuple, dict[str, list[tuple[float, float]]]] = {}
    for r in content["results"]:
        if r["mean"] is not None and not content["modes"][r["mode"]]["shots"]:
            panel = curves.setdefault((r["start"], r["mode"], r["family"]), {})
            panel.setdefault(r["variant"], []).append((100 * r["fraction"], 100 * r["mean"]))
    figure, axes = _panels(len(curves))
    colours = _colours(content["variants"])
    for ((start, mode, family), variants), ax in zip(curves.items(), axes):
        for variant, line in variants.items():
            colour, marker = colours[variant]
            xs, ys = zip(*sorted(line))
            ax.plot(xs, ys, f"{marker}-", color=colour, ms=5, lw=1.2)
        ax.set(title=f"{start}: mode {mode}", xlabel="training labels, %", ylabel=f"{SCORE[family]}, %", xscale="log")
        ax.set_xticks([100 * f for f in content["fractions"]], [f"{100 * f:g}" for f in content["fractions"]])
        ax.minorticks_off()
    _legend(figure, colours)
    return figure


def _points(found: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Variant -> (TC, NER) in percent, of those that have both."""
    means: dict[str, dict[str, float]] = {}
    for r in found:
        if r["mean"] is not None:
            means.setdefault(r["variant"], {})[r["family"]] = 100 * r["mean"]
    return {v: (m["tc"], m["ner"]) for v, m in means.items() if len(m) == 2}


def _panels(number: int) -> tuple[matplotlib.figure.Figure, list[Any]]:
    columns = min(max(number, 1), 2)
    lines = -(-max(number, 1) // columns)
    figure = matplotlib.figure.Figure(figsize=(4.6 * columns + 2.2, 3.7 * lines), layout="constrained")
    axes = [ax for line in figure.subplots(lines, columns, squeeze=False) for ax in line]
    for ax in axes[number:]:
        ax.axis("off")
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def _colours(names: Any) -> dict[str, tuple[Any, str]]:
    """Name -> (colour, marker), both different for up to ten."""
    palette = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    return {n: (palette[i % 10], MARKERS[i % 10]) for i, n in enumerate(dict.fromkeys(names))}


def _legend(figure: matplotlib.figure.Figure, colours: Mapping[str, tuple[Any, str]]) -> None:
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, marker=marker, ls="", label=name)
        for name, (colour, marker) in colours.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
