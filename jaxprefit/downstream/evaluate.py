"""Scores of predictions. NER: strict IOB2 span F1 and the lenient score beside it. TC: accuracy and macro-F1.

scikit-learn is imported when it is needed: what it imports starts a thread that allocates, which must not come before
`allocator.keep_freed_memory`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxprefit.significance import f1, span_counts


def score(
    kind: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]], predictions: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Scores of `predictions`, indices into `labels` per test row, against the rows of that kind ('ner' or else)."""
    if kind == "ner":
        return ner_scores([r["tags"] for r in rows], [[labels[c] for c in classes] for classes in predictions])
    return tc_scores([r["label"] for r in rows], [labels[c] for (c,) in predictions])


def ner_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Span scores of IOB2 tag sequences, each in [0, 1]; 0 where a score divides by zero.

    `f1` is strict: a span counts only if it is well-formed IOB2. `f1_lenient` repairs ill-formed tags first, as
    conlleval and seqeval's default do. `ill_formed` is the share of predicted sequences with an I- tag that does not
    continue a span of its type. All scores are of the counts of `significance.span_counts`. They are those of seqeval,
    but for types with a hyphen at an end, which seqeval's strict mode strips: there PER and PER- are one type.
    """
    return {
        **strict_scores(span_counts(gold, predicted)),
        "f1_lenient": float(f1(span_counts(repaired(gold), repaired(predicted)).sum(0))),
        "ill_formed": sum(map(ill_formed, predicted)) / len(predicted),
    }


def strict_scores(counts: npt.ArrayLike) -> dict[str, float]:
    """F1, precision and recall of the spans counted, [N, 3] of `significance.span_counts`."""
    total = np.sum(counts, 0)
    right, wrong, missed = total.tolist()
    return {
        "f1": float(f1(total)),
        "precision": right / max(right + wrong, 1),
        "recall": right / max(right + missed, 1),
    }


def tc_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro-F1 over the labels that occur in `gold`, each in [0, 1]."""
    import sklearn.metrics

    labels = sorted(set(gold))
    return {
        "accuracy": float(sklearn.metrics.accuracy_score(gold, predicted)),
        "macro_f1": float(sklearn.metrics.f1_score(gold, predicted, labels=labels, average="macro", zero_division=0)),
    }


def continues(before: str, tag: str) -> bool:
    """Whether an I- tag goes on with the entity of the tag before it."""
    return before != "O" and before[2:] == tag[2:]


def ill_formed(tags: Sequence[str]) -> bool:
    """Whether some I-X does not follow B-X or I-X."""
    return any(tag.startswith("I-") and not continues(before, tag) for before, tag in zip(["O", *tags], tags))


def repaired(sequences: Iterable[Sequence[str]]) -> list[list[str]]:
    """The sequences in well-formed IOB2: an I-X that does not follow B-X or I-X becomes B-X."""
    return [
        [tag if tag == "O" or continues(before, tag) else f"B-{tag[2:]}" for before, tag in zip(["O", *tags], tags)]
        for tags in sequences
    ]
