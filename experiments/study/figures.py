"""The plots of a study, from the content of study.json: differences to none, gains in NER against TC, sweeps,
scores against label fractions, what training took and what a device keeps, and differences task by task."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.lines
import numpy as np
from adjustText import adjust_text

from experiments.common.results import Settings
from experiments.common.study_results import Cost, Front, Result, StudyResult, TaskTest, WithInterval
from experiments.study.page_tables import SCORE, by_task, has_curves, over_none, place, starred

MARKERS = "os^vDP*X<>"


def figures(content: StudyResult) -> dict[str, matplotlib.figure.Figure]:
    """File name without suffix -> figure; only what the study has scores for."""
    drawn = {}
    if over_none(content):
        drawn["study_differences"] = differences(content)
        drawn["study_costs"] = costs(content, "tokens trained on, millions", _tokens)
        drawn["study_sizes"] = costs(content, "backbones and families' LoRA in float32, MB", _size)
    if content.fronts:
        drawn["study_front"] = front(content)
    if content.sweeps:
        drawn["study_sweeps"] = sweeps(content)
    if has_curves(content):
        drawn["study_fractions"] = fractions(content)
    if by_task(content):
        drawn["study_tasks"] = tasks(content)
    return drawn


def differences(content: StudyResult) -> matplotlib.figure.Figure:
    """Mean scores over none with their intervals, one panel a start, mode and fraction."""
    panels: dict[str, list[Result]] = {}
    for r in content.results:
        if "none" in r.versus:
            panels.setdefault(place(content, r), []).append(r)
    figure, axes = _panels(len(panels))
    colours = _colours(SCORE.values())
    names = [v for v in content.variants if v != "none"]
    for (title, found), ax in zip(panels.items(), axes):
        for r in found:
            colour, marker = colours[SCORE[r.family]]
            y = names.index(r.variant) + {"ner": -0.13, "tc": 0.13}[r.family]
            gain = r.versus["none"]
            ax.plot(_ends(gain), [y, y][: len(_ends(gain))], "-", color=colour, lw=1.5)
            ax.plot(100 * gain.difference, y, marker, color=colour, ms=5)
        ax.axvline(0, color="0.5", lw=0.8, zorder=0)
        ax.set(title=title, xlabel="over none, points", ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), names)
    _legend(figure, colours)
    return figure


def costs(content: StudyResult, label: str, cost: Callable[[Cost], float | None]) -> matplotlib.figure.Figure:
    """Mean scores over none against one kind of cost, one panel a start, mode, fraction and family."""
    taken = {(c.start, c.variant): cost(c) for c in content.costs}
    panels: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for r in content.results:
        if "none" in r.versus and (at := taken[r.start, r.variant]) is not None:
            points = panels.setdefault((place(content, r), r.family), {})
            points[r.variant] = at, 100 * r.versus["none"].difference
    figure, axes = _panels(len(panels))
    colours = _colours(v for v in content.variants if v != "none")
    for ((title, family), points), ax in zip(panels.items(), axes):
        for variant, point in points.items():
            colour, marker = colours[variant]
            ax.plot(*point, marker, color=colour, ms=7)
        ax.axhline(0, color="0.5", lw=0.8, zorder=0)
        ax.set(title=title, xlabel=label, ylabel=f"{SCORE[family]} over none, points")
        ax.set_xlim(left=0)
        ax.locator_params(axis="x", nbins=5)
    _legend(figure, colours)
    return figure


def _tokens(cost: Cost) -> float | None:
    """Of all encoders that a variant trained."""
    return None if cost.train_tokens is None else sum(cost.train_tokens.values()) / 1e6


def _size(cost: Cost) -> float:
    """Of what a device keeps to serve every family."""
    return 4 * (cost.backbone_parameters + cost.family_adapter_parameters) / 1e6


def tasks(content: StudyResult) -> matplotlib.figure.Figure:
    """Differences between the pairs that a claim is about, task by task; * where its test finds one."""
    panels: dict[tuple[str, str], dict[tuple[str, str], TaskTest]] = {}
    for r in content.results:
        for t in r.tasks:
            for other, found in t.versus.items():
                cells = panels.setdefault((place(content, r), r.family), {})
                cells[t.task, f"{r.variant}\n- {other}"] = found
    most = max(len({pair for _, pair in cells}) for cells in panels.values())
    many = most > 8
    figure, axes = _panels(len(panels), 5.2, max(4.6, (0.45 if many else 0.85) * most), columns=1 if many else 2)
    for ((title, family), cells), ax in zip(panels.items(), axes):
        lines, columns = ([*dict.fromkeys(key[i] for key in cells)] for i in (0, 1))
        grid = np.full((len(lines), len(columns)), np.nan)
        for (line, column), found in cells.items():
            y, x = lines.index(line), columns.index(column)
            grid[y, x] = 100 * found.difference
            told, colour = f"{grid[y, x]:+.1f}{starred(found)}", "w" if abs(grid[y, x]) > 6 else "k"
            ax.text(x, y, told, ha="center", va="center", size=7, color=colour)
        ax.imshow(grid, cmap="PuOr", vmin=-10, vmax=10, aspect="auto")
        ax.set_title(f"{title}: {SCORE[family]}", size=9)
        ax.set_xticks(range(len(columns)), columns, size=6, rotation=90 if many else 0)  # long names, side by side
        ax.set_yticks(range(len(lines)), lines, size=7)
        ax.grid(visible=False)
    return figure


def front(content: StudyResult) -> matplotlib.figure.Figure:
    """Gains over none, one panel a start, mode and fraction; a line joins the front of each strategy's variants."""
    panels: dict[str, list[Front]] = {}
    for f in content.fronts:
        panels.setdefault(place(content, f), []).append(f)
    figure, axes = _panels(len(panels), height=4.6, width=5.6)
    colours = _colours([f.strategy for f in content.fronts])
    labels = []
    for (title, found), ax in zip(panels.items(), axes):
        texts, everything = [], [(100 * tc, 100 * ner) for f in found for ner, tc in f.gains.values()]
        for f in found:
            colour, marker = colours[f.strategy]
            points = {v: (100 * tc, 100 * ner) for v, (ner, tc) in f.gains.items()}
            for variant, point in points.items():
                ax.plot(*point, marker, color=colour, ms=7, alpha=1 if variant in f.front else 0.35)
                if variant != f.strategy:
                    texts.append(ax.text(*point, variant, size=6))
            ax.plot(*zip(*(points[v] for v in f.front)), "-", color=colour, lw=1, alpha=0.6)
        ax.axvline(0, color="0.5", lw=0.8, zorder=0)
        ax.axhline(0, color="0.5", lw=0.8, zorder=0)
        ax.set(title=title, xlabel="TC accuracy over none, points", ylabel="NER F1 over none, points")
        ax.margins(0.12)
        ax.locator_params(axis="x", nbins=6)
        labels.append((ax, texts, everything))
    _legend(figure, colours)
    figure.draw_without_rendering()  # the layout, which says where there is room
    for ax, texts, everything in labels:
        if texts:
            line = {"arrowstyle": "-", "lw": 0.4}
            adjust_text(texts, *zip(*everything), ax=ax, expand=(1.15, 1.7), iter_lim=500, arrowprops=line)
    return figure


def sweeps(content: StudyResult) -> matplotlib.figure.Figure:
    """Mean scores over the mean of their sweep with their intervals, one panel a sweep, start, mode and fraction."""
    figure, axes = _panels(len(content.sweeps))
    colours = _colours(SCORE.values())
    for s, ax in zip(content.sweeps, axes):
        for family, offset in {"ner": -0.06, "tc": 0.06}.items():
            found = [(i + offset, p.scores[family]) for i, p in enumerate(s.points) if family in p.scores]
            colour, marker = colours[SCORE[family]]
            middles = [100 * over.difference for _, over in found]
            ax.plot([x for x, _ in found], middles, f"{marker}-", color=colour, ms=5, lw=1)
            for x, over in found:
                ax.plot([x, x][: len(_ends(over))], _ends(over), "-", color=colour, lw=1.5)
        ax.axhline(0, color="0.5", lw=0.8, zorder=0)
        ax.set(ylabel="over the sweep's mean, points", xlim=(-0.5, len(s.points) - 0.5))
        ax.set_title(f"{s.sweep}\n{place(content, s)}", size=9)
        ax.set_xticks(range(len(s.points)), [_values(p.settings) for p in s.points], size=7)
    _legend(figure, colours)
    return figure


def _ends(result: WithInterval) -> list[float]:
    """Of a difference's interval in points; empty where it has none."""
    return [100 * end for end in result.interval if end is not None]


def _values(settings: Settings) -> str:
    """One setting a line."""
    return "\n".join(f"{key} {value}" for key, value in settings.items())


def fractions(content: StudyResult) -> matplotlib.figure.Figure:
    """Mean scores against the share of the training labels, one panel a start, mode and family."""
    curves: dict[tuple, dict[str, list[tuple[float, float]]]] = {}
    for r in content.results:
        if r.mean is not None and not content.modes[r.mode].shots:
            panel = curves.setdefault((r.start, r.mode, r.family), {})
            panel.setdefault(r.variant, []).append((100 * r.fraction, 100 * r.mean))
    figure, axes = _panels(len(curves))
    colours = _colours(content.variants)
    for ((start, mode, family), variants), ax in zip(curves.items(), axes):
        for variant, line in variants.items():
            colour, marker = colours[variant]
            xs, ys = zip(*sorted(line))
            ax.plot(xs, ys, f"{marker}-", color=colour, ms=5, lw=1.2)
        ax.set(title=f"{start}, {mode}", xlabel="training labels, %", ylabel=f"{SCORE[family]}, %", xscale="log")
        ax.set_xticks([100 * f for f in content.fractions], [f"{100 * f:g}" for f in content.fractions])
        ax.minorticks_off()
    _legend(figure, colours)
    return figure


def _panels(
    number: int, height: float = 3.7, width: float = 4.6, columns: int = 2
) -> tuple[matplotlib.figure.Figure, list[Any]]:
    columns = min(max(number, 1), columns)
    lines = -(-max(number, 1) // columns)
    figure = matplotlib.figure.Figure(figsize=(width * columns + 2.2, height * lines), layout="constrained")
    axes = [ax for line in figure.subplots(lines, columns, squeeze=False) for ax in line]
    for ax in axes[number:]:
        ax.axis("off")
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def _colours(names: Any) -> dict[str, tuple[Any, str]]:
    """Name -> (colour, marker): both different for up to ten, never both alike for up to a hundred."""
    palette = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    return {n: (palette[i % 10], MARKERS[(i + i // 10) % 10]) for i, n in enumerate(dict.fromkeys(names))}


def _legend(figure: matplotlib.figure.Figure, colours: Mapping[str, tuple[Any, str]]) -> None:
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, marker=marker, ls="", label=name)
        for name, (colour, marker) in colours.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
