"""The report on hidden states: tables on the terminal, figures, parts of a page. Its content is representations.json.

A difference between encoders stands with its interval; where the interval holds zero, the cell says "undecided", too.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxprefit.render import html
from jaxprefit.representations.figures import KINDS, SCORE, against_reference, band_of, figures, probed
from jaxprefit.runtime.terminal import lines, plain

_TOLD = {"higher": "nearer", "lower": "further apart"}
_PROBED = {"higher": "better", "lower": "worse"}


def explain(content: Mapping[str, Any]) -> str:
    """What was measured on what, and how to read it."""
    counts = "; ".join(
        f"{s['texts']:,} {KINDS[name]} with {s['tokens']:,} tokens ({s['scored_tokens']:,} of them for CKA and rank"
        + (f", {s['pairs']:,} pairs for alignment)" if s["pairs"] else ")")
        for name, s in content["samples"].items()
    )
    return (
        f"Layer 0 is the embeddings, layer {content['layers']} the last. Measured on {counts}. Bands are 95 % intervals"
        " per layer, not corrected for the number of layers: over texts, and for probes over folds that share no text."
        " Differences are taken on the same texts; 'undecided' where the interval holds zero. Intra-sentence similarity"
        " is the mean cosine of a sentence's tokens to their mean; the dotted level is that of sentences as long, mixed"
        " from tokens of all texts."
    )


def verdicts(content: Mapping[str, Any]) -> list[str]:
    """The hypothesis in words, one line for each encoder that is compared with the reference."""
    lines = []
    for name, found in content["hypothesis"].items():
        tokens, ner = _TOLD.get(found["tokens"], "undecided"), _PROBED.get(found["ner"], "undecided")
        told = {
            "consistent": "consistent with: pulling tokens toward the sentence's mean costs NER",
            "opposite": "the same relation the other way round: tokens further apart, NER better",
            "against": "not what the hypothesis says",
            "undecided": "undecided",
        }[found["verdict"]]
        lines.append(
            f"{name} against {content['reference']}, last layer, NER texts: tokens to their mean {tokens},"
            f" NER probe {ner}: {told}."
        )
    return lines


def header(content: Mapping[str, Any]) -> list[str]:
    """Column names for `rows`."""
    return ["encoder", "layer", *(name for name, _, _ in _columns(content))]


def rows(content: Mapping[str, Any]) -> list[list[str]]:
    """Differences from the reference, one row of text an encoder and layer."""
    out = []
    for d in against_reference(content):
        for layer in range(content["layers"] + 1):
            cells = [cell(band_of(d, part, sample), layer) for _, part, sample in _columns(content)]
            out.append([d["second"] if layer == 0 else "", str(layer), *cells])
    return out


def cell(band: Mapping[str, Any] | None, layer: int) -> str:
    """One number with its interval, and 'undecided' where the sign of a difference is."""
    if band is None or band["value"][layer] is None:
        return "-"
    value, low, high = (band[key][layer] for key in ("value", "low", "high"))
    sign = "+" if "verdict" in band else ""
    shown = f"{value:{sign}.3f}" + ("" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]")
    undecided = "verdict" in band and band["verdict"][layer] == "undecided"
    return shown + (", undecided" if undecided else "")


def print_tables(content: Mapping[str, Any]) -> None:
    """The report on the terminal: values of the reference, then what differs."""
    table = Table(title=plain(f"hidden states of {content['reference']}, by layer [95 %]", "table.title"))
    own = content["measures"][content["reference"]]
    columns = [column for column in _columns(content) if column[1] != "cka"]
    for i, name in enumerate(["layer", *(name for name, _, _ in columns)]):
        table.add_column(name, justify="left" if i == 0 else "right")
    for layer in range(content["layers"] + 1):
        table.add_row(str(layer), *(cell(band_of(own, part, sample), layer) for _, part, sample in columns))
    Console(width=200).print(table)
    if content["differences"]:
        title = f"difference from {content['reference']}, by layer [95 %]; CKA: with it"
        table = Table(title=plain(title, "table.title"))
        for i, name in enumerate(header(content)):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in rows(content):
            table.add_row(*map(plain, row))
        Console(width=200).print(table)
    print(lines("\n".join([explain(content), *verdicts(content)])))


def html_parts(content: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Sections for `html.page`."""
    pictures = figures(content)
    tokens = [html.paragraph(explain(content)), *map(html.paragraph, verdicts(content))]
    sections = [
        ("Are a sentence's tokens pulled together?", [*tokens, html.picture(*pictures["together"])]),
        ("What can be read off each layer?", [html.picture(*pictures["probes"])] if "probes" in pictures else []),
        ("How alike and how spread out?", [html.picture(*pictures[n]) for n in ("geometry", "cka") if n in pictures]),
    ]
    if content["differences"]:
        sections.append((f"Differences from {content['reference']}", [html.table(header(content), rows(content))]))
    return [(heading, parts) for heading, parts in sections if parts]


def _columns(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(heading, measure, sample or 'probes') of the tables."""
    short = {"cka": "CKA", "intra_sentence": "token to mean", "effective_rank": "effective rank"}
    texts = [(f"{text} {sample}", part, sample) for sample in content["samples"] for part, text in short.items()]
    return texts + [(f"{family} probe", family, "probes") for family in SCORE if probed(content, family)]
