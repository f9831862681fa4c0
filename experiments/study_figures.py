"""The plots of a study, from the content of study.json: gains in NER against TC, and scores against label fractions."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.lines

from experiments.study_report import SCORE, has_curves, place

MARKERS = "os^vDP*X<>"


def figures(content: Mapping[str, Any]) -> dict[str, matplotlib.figure.Figure]:
    """File name without suffix -> figure; only what the study has scores for."""
    drawn = {}
    if content["fronts"]:
        drawn["study_front"] = front(content)
    if has_curves(content):
        drawn["study_fractions"] = fractions(content)
    return drawn


def front(content: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Gains over none, one panel a start, mode and fraction; a line joins the front of each strategy's variants."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for f in content["fronts"]:
        panels.setdefault(place(content, f), []).append(f)
    figure, axes = _panels(len(panels))
    colours = _colours([f["strategy"] for f in content["fronts"]])
    for (title, found), ax in zip(panels.items(), axes):
        for f in found:
            colour, marker = colours[f["strategy"]]
            points = {v: (100 * tc, 100 * ner) for v, (ner, tc) in f["gains"].items()}
            for variant, point in points.items():
                ax.plot(*point, marker, color=colour, ms=7, alpha=1 if variant in f["front"] else 0.35)
            ax.plot(*zip(*(points[v] for v in f["front"])), "-", color=colour, lw=1, alpha=0.6)
        ax.axvline(0, color="0.5", lw=0.8, zorder=0)
        ax.axhline(0, color="0.5", lw=0.8, zorder=0)
        ax.set(title=title, xlabel="TC accuracy over none, points", ylabel="NER F1 over none, points")
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
        ax.set(title=f"{start}, {mode}", xlabel="training labels, %", ylabel=f"{SCORE[family]}, %", xscale="log")
        ax.set_xticks([100 * f for f in content["fractions"]], [f"{100 * f:g}" for f in content["fractions"]])
        ax.minorticks_off()
    _legend(figure, colours)
    return figure


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
