"""Pictures of a conflict report. Axes name their quantity and unit; captions (`page`) say what they rest on."""

from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from jaxprefit.conflict.blocks import KINDS, ordered, sign_known
from jaxprefit.conflict.results import AblationRow, PairReport, PairTrend
from jaxprefit.render.tables import bounds

Cell = tuple[float, Sequence[float | None], bool]
"""A number, its interval, and whether its sign is decided."""

COLORS = {"conflict": "#b2182b", "agreement": "#2166ac", "undecided": "#888888"}


def over_training(pair: PairTrend) -> matplotlib.figure.Figure:
    """Layers x training: the mean raw cosine of each window of steps, coloured where its sign is decided."""
    blocks, (a, b) = {**ordered(pair.layer), **pair.whole}, pair.families
    windows = next(iter(blocks.values())).windows
    cells = [
        [None if w.cosine is None else (w.cosine, w.cosine_interval, w.verdict != "undecided") for w in block.windows]
        for block in blocks.values()
    ]
    figure = matplotlib.figure.Figure(figsize=(1.0 * len(windows) + 3, 0.42 * len(blocks) + 1.6), layout="constrained")
    _heat(
        figure, cells, [f"{w.first_step}-{w.last_step}" for w in windows], list(blocks),
        f"mean raw cosine of\n{a} and {b} gradients", digits=3,
    )  # fmt: skip
    figure.axes[0].set_xlabel("training steps")
    return figure


def layers(pair: PairReport) -> matplotlib.figure.Figure:
    """Per layer: corrected and raw cosine with intervals, share of negative batches, ratio of norms."""
    blocks, (a, b) = pair.blocks.layer, pair.families
    names = list(blocks)
    figure = matplotlib.figure.Figure(figsize=(12, 0.4 * len(names) + 1.9), layout="constrained")
    corrected, raw, share, norm = figure.subplots(1, 4, sharey=True, width_ratios=(2, 2, 1, 1))
    for y, block in enumerate(blocks.values()):
        color = COLORS[block.verdict if sign_known(block) else "undecided"]
        _point(corrected, block.corrected_cosine, block.corrected_interval, y, color, "D")
        _point(raw, block.cosine, block.cosine_interval, y, "#444444", "o")
        for c, marker in zip(block.cosine_within, ("|", "x")):
            if c is not None:
                raw.plot(c, y, marker, color="#d98c00", ms=8)
        if block.share_negative is not None:
            share.barh(y, block.share_negative, color="#bbbbbb")
        if block.norm_ratio is not None:
            norm.plot(block.norm_ratio, y, "o", color="#444444")
    handles = [
        *(corrected.plot([], [], "D", color=c, label=v)[0] for v, c in COLORS.items()),
        raw.plot([], [], "o", color="#444444", label=f"{a} with {b}")[0],
        raw.plot([], [], "|", color="#d98c00", ms=8, label=f"two batches of {a}")[0],
        raw.plot([], [], "x", color="#d98c00", ms=8, label=f"two batches of {b}")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    for ax, at, style in ((corrected, 0, "-"), (raw, 0, "-"), (share, 0.5, ":"), (norm, 1, ":")):
        ax.axvline(at, color="#444", lw=0.8, ls=style)
    corrected.set(yticks=range(len(names)), yticklabels=names, xlim=(-1.05, 1.05))
    corrected.set_xlabel(f"noise-corrected cosine, {a} with {b}, 95 %")
    corrected.invert_yaxis()
    raw.set_xlabel("raw cosine of batch gradients, 95 %")
    share.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="share of negative batches")
    norm.set(xlim=(0, None), xlabel=f"norm {a} / {b}")
    return figure


def modules(pair: PairReport) -> matplotlib.figure.Figure:
    """Layers x kinds of matrix: the noise-corrected cosine, coloured where its sign is decided."""
    blocks = pair.blocks.module
    names = [n for n in pair.blocks.layer if n.startswith("layer_")]
    found = [[blocks.get(f"{n}/{kind}") for kind in KINDS] for n in names]
    cells = [
        [
            (b.corrected_cosine, b.corrected_interval, sign_known(b)) if b and b.corrected_cosine is not None else None
            for b in row
        ]
        for row in found
    ]
    figure = matplotlib.figure.Figure(figsize=(8, 0.5 * len(names) + 1.6), layout="constrained")
    _heat(figure, cells, [k.replace("_", "\n") for k in KINDS], names, "noise-corrected cosine")
    return figure


def matrix(names: Sequence[str], cells: Sequence[Sequence[Cell | None]], label: str) -> matplotlib.figure.Figure:
    """Families x families; undefined entries are None."""
    figure = matplotlib.figure.Figure(figsize=(1.4 * len(names) + 2.6, 0.7 * len(names) + 1.2), layout="constrained")
    _heat(figure, cells, list(names), list(names), label)
    figure.axes[0].set(xlabel="effect on", ylabel="a step on")
    return figure


def effects(rows: Sequence[AblationRow], families: Sequence[str]) -> matplotlib.figure.Figure:
    """One line a variant, one panel a family: the change of the held-out loss with its interval."""
    rows = [r for r in rows if r.effect]
    figure = matplotlib.figure.Figure(figsize=(5.5 * len(families), 0.33 * len(rows) + 1.2), layout="constrained")
    colors = {"lower": "#2166ac", "higher": "#b2182b", "undecided": "#888888"}
    for ax, family in zip(np.atleast_1d(figure.subplots(1, len(families), sharey=True)), families):
        for y, row in enumerate(rows):
            if effect := row.effect.get(family):
                _point(ax, effect.difference, effect.interval, y, colors[effect.verdict], "o")
        ax.axvline(0, color="#444", lw=0.8)
        ax.set(yticks=range(len(rows)), yticklabels=[r.says for r in rows], ylim=(len(rows) - 0.5, -0.5))
        ax.set_xlabel(f"change of held-out {family} loss, nats, 95 %")
    return figure


def _heat(
    figure: matplotlib.figure.Figure,
    cells: Sequence[Sequence[Cell | None]],
    columns: list[str],
    rows: list[str],
    label: str,
    digits: int = 2,
) -> None:
    """Numbers over their intervals, on colours, red below zero, where the sign is decided; None is a dash."""
    ax = figure.subplots()
    values = np.asarray([[cell[0] if cell and cell[2] else np.nan for cell in row] for row in cells], float)
    floor = 10.0 ** -(digits - 1)
    limit = max(floor, float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else floor)
    image = ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        cell = cells[i][j]
        color = "white" if abs(value) > 0.6 * limit else "#333"  # never of an undecided one, which is NaN here
        text = f"{cell[0]:+.{digits}f}\n{bounds(cell[1], digits)}".rstrip() if cell else "-"
        text += "\nundecided" if cell and not cell[2] else ""
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    ax.tick_params(length=0)
    figure.colorbar(image, label=label)


def _point(ax: Any, value: float | None, bounds: Sequence[float | None], y: float, color: str, marker: str) -> None:
    if value is None:
        return
    if None not in bounds:
        ax.plot(bounds, [y, y], color=color, lw=1.5)
    ax.plot(value, y, marker, color=color, ms=5)
