"""Figures of the report on hidden states: layers on x, one line an encoder, bands of 95 %."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np

from jaxprefit.render.html import figure_text

KINDS = {"ner": "NER texts", "tc": "TC texts"}
_GEOMETRY = {
    "effective_rank": "effective rank of tokens",
    "uniformity": "uniformity of texts (lower: more even)",
    "alignment": "alignment of pairs (lower: closer)",
}
SCORE = {"ner": "NER probe, macro-F1 of tokens", "tc": "TC probe, accuracy of texts"}

Figures = dict[str, tuple[matplotlib.figure.Figure, str]]


def figures(content: Mapping[str, Any]) -> Figures:
    """Name -> (figure, what it shows in words)."""
    found: Figures = {
        "together": (_two_rows(content, _together(content)), "Intra-sentence similarity by layer"),
        "geometry": (_geometry(content), "CKA with the reference, effective rank, uniformity and alignment by layer"),
    }
    if any(family in next(iter(content["measures"].values()))["probes"] for family in SCORE):
        found["probes"] = (_two_rows(content, _probes(content)), "Scores of linear probes by layer")
    if len(content["differences"]) > 1:
        found["cka"] = (_cka(content), "CKA of every two encoders by layer")
    return found


def band_of(entry: Mapping[str, Any], part: str, sample: str) -> Mapping[str, Any] | None:
    return entry["probes"].get(part) if sample == "probes" else entry["texts"][sample].get(part)


def against_reference(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [d for d in content["differences"] if d["first"] == content["reference"]]


def probed(content: Mapping[str, Any], family: str) -> bool:
    return family in content["measures"][content["reference"]]["probes"]


def _caption(content: Mapping[str, Any], sample: str) -> str:
    s = content["samples"][sample]
    return f"{KINDS[sample]}: {s['texts']:,} texts, {s['tokens']:,} tokens"


def _together(content: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(title, measure, sample, label of the y axis) of each column of `_two_rows`."""
    return [(_caption(content, s), "intra_sentence", s, "cosine of tokens\nto their mean") for s in content["samples"]]


def _probes(content: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    found = []
    for family, title in SCORE.items():
        if probed(content, family):
            tasks = [t for t in content["tasks"] if t["family"] == family]
            rows_ = sum(t["folds"] * t["test_rows"] for t in tasks)
            what = f"{title}\nmean of {len(tasks)} tasks, {min(t['folds'] for t in tasks)} folds, {rows_:,} test texts"
            found.append((what, family, "probes", title.split(", ")[1].partition(" of ")[0]))
    return found


def _two_rows(content: Mapping[str, Any], columns: Sequence[tuple[str, str, str, str]]) -> matplotlib.figure.Figure:
    """Values of every encoder above, differences from the reference below."""
    deep = 2 if content["differences"] else 1
    figure = matplotlib.figure.Figure(figsize=(5.6 * len(columns), 3.1 * deep + 0.6), layout="constrained")
    axes = figure.subplots(deep, len(columns), sharex=True, squeeze=False)
    colors = _colors(content)
    for (title, part, sample, label), column in zip(columns, axes.T):
        for name, entry in content["measures"].items():
            _line(column[0], band_of(entry, part, sample), colors[name], figure_text(name))
            excess = None if sample == "probes" else entry["texts"][sample]["intra_sentence_excess"]
            if excess:
                level = _floats(entry["texts"][sample][part]["value"]) - _floats(excess["value"])
                column[0].plot(level, ":", color=colors[name], lw=1)
        column[0].set_title(title, fontsize=10)
        column[0].set_ylabel(label)
        for d in against_reference(content):
            _line(column[-1], band_of(d, part, sample), colors[d["second"]], "")
        if deep > 1:
            column[-1].axhline(0, color="#444", lw=0.8)
            column[-1].set_ylabel(f"difference from\n{figure_text(content['reference'])}")
        _layer_axis(column[-1], content)
    _legend(figure, axes[0, 0])
    return figure


def _geometry(content: Mapping[str, Any]) -> matplotlib.figure.Figure:
    samples, colors = list(content["samples"]), _colors(content)
    parts = [*(["cka"] if content["differences"] else []), *_GEOMETRY]
    figure = matplotlib.figure.Figure(figsize=(4 * len(parts), 3.1 * len(samples) + 0.6), layout="constrained")
    axes = figure.subplots(len(samples), len(parts), sharex=True, squeeze=False)
    for sample, row in zip(samples, axes):
        for part, ax in zip(parts, row):
            entries = (
                {d["second"]: d for d in against_reference(content)} if part == "cka" else dict(content["measures"])
            )
            bands = {name: band_of(entry, part, sample) for name, entry in entries.items()}
            if not any(bands.values()):
                ax.set_axis_off()
                continue
            for name, band in bands.items():
                _line(ax, band, colors[name], "")
            unit = {"uniformity": "texts", "alignment": "pairs"}.get(part, "scored_tokens")
            count = f"{content['samples'][sample][unit]:,} {unit.removeprefix('scored_')}"
            ax.set_title(f"{KINDS[sample]}, {count}", fontsize=10)
            ax.set_ylabel(_GEOMETRY.get(part, f"linear CKA with {figure_text(content['reference'])}"), fontsize=9)
            _layer_axis(ax, content)
    for name, color in colors.items():
        axes[0, -2].plot([], [], "o-", color=color, ms=3, label=figure_text(name))
    _legend(figure, axes[0, -2])
    return figure


def _cka(content: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Pairs of encoders x layers, a panel a sample."""
    pairs, samples = content["differences"], list(content["samples"])
    names = [figure_text(f"{d['first']} - {d['second']}") for d in pairs]
    size = (2.5 + 0.62 * (content["layers"] + 1) * len(samples), 0.32 * len(pairs) + 1.7)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(samples), sharey=True, squeeze=False)[0]
    for sample, ax in zip(samples, axes):
        values = np.stack([_floats(d["texts"][sample]["cka"]["value"]) for d in pairs])
        image = ax.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            text = f"{value:.2f}" if np.isfinite(value) else "-"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="black" if value > 0.55 else "white")
        ax.set_title(f"{KINDS[sample]}, {content['samples'][sample]['scored_tokens']:,} tokens", fontsize=10)
        ax.set(yticks=range(len(names)), yticklabels=names)
        ax.tick_params(length=0)
        _layer_axis(ax, content)
    figure.colorbar(image, ax=list(axes), label="linear CKA")
    return figure


def _line(ax: Any, band: Mapping[str, Any] | None, color: Any, label: str) -> None:
    if band is None:
        return
    value, low, high = (_floats(band[key]) for key in ("value", "low", "high"))
    ax.plot(value, "o-", color=color, ms=3, lw=1.4, label=label)
    ax.fill_between(range(len(value)), low, high, color=color, alpha=0.15, lw=0)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.asarray([np.nan if v is None else v for v in values])


def _layer_axis(ax: Any, content: Mapping[str, Any]) -> None:
    ax.set_xlabel("layer (0: embeddings)")
    ax.set_xticks(range(content["layers"] + 1))


def _colors(content: Mapping[str, Any]) -> dict[str, Any]:
    colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    return {name: colors[i % len(colors)] for i, name in enumerate(content["measures"])}


def _legend(figure: matplotlib.figure.Figure, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
