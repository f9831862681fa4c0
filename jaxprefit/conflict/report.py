"""The conflict report: tables on the terminal, figures, an HTML page. Its content is the dict of conflict.json.

A cosine never stands alone: beside it are its interval, the cosine inside each family at the same batch size (the
reference level), the batch size and the number of batches. Where the data cannot decide, the cell says so.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxprefit import html
from jaxprefit.conflict import gram, measures
from jaxprefit.conflict.describe import describe, verdicts
from jaxprefit.conflict.probe import Grams

VERSION = 2
KINDS = ("query", "key", "value", "attention_output", "intermediate", "output")
_COLORS = {"conflict": "#b2182b", "agreement": "#2166ac", "undecided": "#888888"}


def content(blocks: Mapping[str, Grams], families: tuple[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What conflict.json holds, from the probe's finest blocks (see experiments/results/README.md)."""
    groupings = {name: gram.regroup(blocks, rename) for name, rename in gram.GROUPINGS.items() if name != "tensor"}
    return {
        "schema": "jaxprefit.conflict",
        "version": VERSION,
        "families": list(families),
        **settings,
        "interval_level": measures.LEVEL,
        "blocks": {
            name: _ordered(verdicts({block: describe(grams, 0, 1) for block, grams in grouped.items()}))
            for name, grouped in groupings.items()
        },
    }


def rows(blocks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row of text a block."""
    out = []
    for name, b in blocks.items():
        within = " / ".join(_text(c) for c in b["cosine_within"])
        out.append(
            [
                name,
                f"{_text(b['cosine'])} {_range(b['cosine_interval'])}",
                within,
                b["verdict"],
                f"{_text(b['corrected_cosine'])} {_range(b['corrected_interval'])}" if _known(b) else "undecided",
                "-" if b["share_negative"] is None else f"{100 * b['share_negative']:.0f} %",
                "-" if b["norm_ratio"] is None else f"{b['norm_ratio']:.2f}",
            ]
        )
    return out


def header(families: tuple[str, str]) -> list[str]:
    """Column names for `rows`."""
    a, b = families
    return [
        "block",
        "cosine [95 %]",
        f"within {a} / {b}",
        "verdict",
        "noise-corrected [95 %]",
        "negative",
        f"norm {a}/{b}",
    ]


def print_tables(result: Mapping[str, Any], groupings: tuple[str, ...] = ("layer", "kind")) -> None:
    """The report on the terminal."""
    families = tuple(result["families"])
    for grouping in groupings:
        table = Table(title=f"gradient conflict {families[0]} vs {families[1]}, by {grouping}")
        for i, name in enumerate(header(families)):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in rows({**result["blocks"][grouping], **result["blocks"]["whole"]}):
            table.add_row(*row)
        Console(width=140).print(table)
    print(explain(result))


def explain(result: Mapping[str, Any]) -> str:
    """How to read the table, with the numbers that a cosine must not be without."""
    a, b = result["families"]
    sizes = ", ".join(f"{result['batch_tokens'][f]:,} tokens of {f}" for f in (a, b))
    at = f"(step {result['step']}, {result['strategy']})"
    scarce = [f for f in (a, b) if result["examples"][f] > result["rows"][f]]
    repeated = f" Rows of {' and '.join(scarce)} were drawn more than once, which inflates 'within'." if scarce else ""
    return (
        f"{result['rounds']} rounds at fixed parameters {at}, batches of {sizes}. 'within' is the cosine of two"
        " disjoint batches of one family: with that much noise, no raw cosine between families can be large."
        " 'verdict' is the sign of the expected gradients' inner product where its 95 % interval (per block, not"
        " corrected for the number of blocks) excludes zero; 'noise-corrected' is their cosine. 'negative' is the share"
        " of rounds with a cosine below zero. A negative cosine is consistent with harm; it does not show it."
        + repeated
    )


def figures(result: Mapping[str, Any]) -> dict[str, tuple[matplotlib.figure.Figure, str]]:
    """Name -> (figure, what it shows in words)."""
    a, b = result["families"]
    return {
        "layers": (_layers(result), f"Cosine between {a} and {b} gradients per layer, with reference levels and norms"),
        "modules": (_modules(result), f"Noise-corrected cosine between {a} and {b} by layer and kind of matrix"),
    }


def html_parts(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Sections for `html.page`."""
    families: tuple[str, str] = tuple(result["families"])
    pictures = figures(result)
    sections = [
        ("Per layer", [html.picture(*pictures["layers"])]),
        ("Per matrix", [html.picture(*pictures["modules"])]),
    ]
    for (_, parts), grouping in zip(sections, ("layer", "kind")):
        blocks = {**result["blocks"][grouping], **result["blocks"]["whole"]}
        parts.append(html.table(header(families), rows(blocks)))
    sections[0][1].insert(0, html.paragraph(explain(result)))
    return sections


def _layers(result: Mapping[str, Any]) -> matplotlib.figure.Figure:
    blocks, (a, b) = result["blocks"]["layer"], result["families"]
    names = list(blocks)
    figure = matplotlib.figure.Figure(figsize=(12, 0.4 * len(names) + 1.9), layout="constrained")
    corrected, raw, share, norm = figure.subplots(1, 4, sharey=True, width_ratios=(2, 2, 1, 1))
    for y, block in enumerate(blocks.values()):
        color = _COLORS[block["verdict"] if _known(block) else "undecided"]
        _point(corrected, block["corrected_cosine"], block["corrected_interval"], y, color, "D")
        _point(raw, block["cosine"], block["cosine_interval"], y, "#444444", "o")
        for c, marker in zip(block["cosine_within"], ("|", "x")):
            if c is not None:
                raw.plot(c, y, marker, color="#d98c00", ms=8)
        if block["share_negative"] is not None:
            share.barh(y, block["share_negative"], color="#bbbbbb")
        if block["norm_ratio"] is not None:
            norm.plot(block["norm_ratio"], y, "o", color="#444444")
    handles = [
        *(corrected.plot([], [], "D", color=c, label=v)[0] for v, c in _COLORS.items()),
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
    share.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="share of negative rounds")
    norm.set(xlim=(0, None), xlabel=f"norm {a} / {b}")
    return figure


def _point(ax: Any, value: float | None, bounds: list[float | None], y: float, color: str, marker: str) -> None:
    if value is not None and None not in bounds:
        ax.plot(bounds, [y, y], color=color, lw=1.5)
        ax.plot(value, y, marker, color=color, ms=5)


def _modules(result: Mapping[str, Any]) -> matplotlib.figure.Figure:
    blocks = result["blocks"]["module"]
    layers = [n for n in result["blocks"]["layer"] if n.startswith("layer_")]
    values = np.asarray(
        [
            [b["corrected_cosine"] if _known(b) else np.nan for b in (blocks[f"{layer}/{kind}"] for kind in KINDS)]
            for layer in layers
        ]
    )
    figure = matplotlib.figure.Figure(figsize=(8, 0.5 * len(layers) + 1.6), layout="constrained")
    ax = figure.subplots()
    limit = max(0.1, float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.1)
    image = ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        known = bool(np.isfinite(value))
        color = "white" if known and abs(value) > 0.6 * limit else "#333"
        text = f"{value:+.2f}" if known else "undecided"
        ax.text(j, i, text, ha="center", va="center", fontsize=9 if known else 7, color=color)
    ax.set(
        xticks=range(len(KINDS)),
        xticklabels=[k.replace("_", "\n") for k in KINDS],
        yticks=range(len(layers)),
        yticklabels=layers,
    )
    ax.tick_params(length=0)
    figure.colorbar(image, label="noise-corrected cosine")
    return figure


def _ordered(blocks: dict[str, Any]) -> dict[str, Any]:
    """Embeddings first, then layers by number, adapters last."""

    def key(name: str) -> tuple:
        part, _, rest = name.partition("/")
        number = int(part.removeprefix("layer_")) if part.startswith("layer_") else -1
        position = KINDS.index(rest or part) if (rest or part) in KINDS else len(KINDS)
        return (name.startswith("lora"), not name.startswith("embeddings"), number, position, name)

    return {name: blocks[name] for name in sorted(blocks, key=key)}


def _known(block: Mapping[str, Any]) -> bool:
    """Whether the noise-corrected cosine may stand as a number: its interval is there and excludes zero."""
    low, high = block["corrected_interval"]
    return block["verdict"] != "undecided" and low is not None and high is not None and low * high > 0


def _text(x: float | None) -> str:
    return "-" if x is None else f"{x:+.3f}"


def _range(bounds: list[float | None]) -> str:
    return "" if None in bounds else f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]"
