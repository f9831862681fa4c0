"""Datasets of the Hugging Face hub, or of a folder in its layout, through the `datasets` library (extra `hub`).

Class indices become their names. `format=spans` reads text with a list of 'span <> concept' beside it, as NuNER
(arXiv 2402.15343) is published, into words and IOB2 tags.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from typing import Any

from jaxprefit.errors import UserError

ADVICE = "check the name, subset, revision and split, and that the data is no Python script (newer than datasets 3)"
SPANS = "spans"


class BadSpans(ValueError):
    """A row whose spans cannot be read. Such rows are dropped: their words would pass for words outside any entity."""


def find(name: str, subset: str, revision: str) -> Any:
    """The `datasets` builder; only what describes the data is downloaded. Its `hash` stands for the content."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"hub:{name}: needs the library datasets; pip install 'jaxprefit[hub]'") from None
    return datasets.load_dataset_builder(name, subset or None, revision=revision or None)


def rows(builder: Any, split: str, quiet: bool) -> Any:
    """The rows of one split, downloaded if need be: a sequence of dicts with `features`."""
    datasets = importlib.import_module("datasets")
    bars = datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        builder.download_and_prepare()
        return builder.as_dataset(split)
    finally:
        if not bars:
            datasets.enable_progress_bars()


def named(feature: Any, value: Any) -> Any:
    """A value with class indices as names; `feature` is what `datasets` says of its column."""
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [named(inner, item) for item in value]
    if not hasattr(feature, "int2str") or value is None:
        return value
    if value < 0:
        raise ValueError("the row has no class; take another split")
    return feature.int2str(value)


def tag_spans(text: str, spans: Any) -> tuple[dict[str, list[str]], int]:
    """({"tokens", "tags"}, number of spans not found) of a text and its list of 'span <> concept'.

    `spans` is the list or its Python spelling; BadSpans for anything else. Words are runs of letters and digits,
    every other sign is a token of its own. Each occurrence of a span is tagged, longer spans first; case counts only
    where the span stands in the text as it is written.
    """
    tokens = split_words(text)
    tags = ["O"] * len(tokens)
    folded = [token.casefold() for token in tokens]
    pairs = [(split_words(span), concept) for span, concept in _parsed(spans)]
    missed = 0
    for words, concept in sorted(pairs, key=lambda pair: -len(pair[0])):  # stable: the first concept of a span wins
        places = _places(tokens, words) or _places(folded, [word.casefold() for word in words])
        free = [i for i in places if all(tag == "O" for tag in tags[i : i + len(words)])]
        for i in free:
            if all(tag == "O" for tag in tags[i : i + len(words)]):  # a span may overlap itself
                tags[i : i + len(words)] = [f"B-{concept}"] + [f"I-{concept}"] * (len(words) - 1)
        missed += not free
    return {"tokens": tokens, "tags": tags}, missed


def split_words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, and every other sign that is no space."""
    return re.findall(r"\w+|[^\w\s]", text)


def _parsed(spans: Any) -> Iterator[tuple[str, str]]:
    if isinstance(spans, str):
        try:
            spans = ast.literal_eval(spans)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise BadSpans("the spans are not a list as Python writes it") from None
    if not isinstance(spans, list) or not all(isinstance(item, str) for item in spans):
        raise BadSpans("the spans are not a list of texts")
    for item in spans:
        span, _, rest = item.partition("<>")
        concept = " ".join(rest.partition("<>")[0].split())  # a description may follow
        if split_words(span) and concept:
            yield span, concept


def _places(tokens: list[str], words: list[str]) -> list[int]:
    return [i for i in range(len(tokens) - len(words) + 1) if tokens[i : i + len(words)] == words]
