"""Scores of predictions. NER: strict IOB2 span F1 and the lenient score beside it. TC: accuracy and macro-F1.

seqeval and scikit-learn are imported when they are needed: what they import starts a thread that allocates,
which must not come before `allocator.keep_freed_memory`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any


def score(
    kind: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]], predictions: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Scores of `predictions`, indices into `labels` per test row, against the rows of that kind ('ner' or else)."""
    if kind == "ner":
        return ner_scores([r["tags"] for r in rows], [[labels[c] for c in classes] for classes in predictions])
    return tc_scores([r["label"] for r in rows], [labels[c] for (c,) in predictions])


def ner_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Span scores of IOB2 tag sequences, each in [0, 1].

    `f1` is strict: a span counts only if it is well-formed IOB2. `f1_lenient` is seqeval's default, which imitates
    conlleval and repairs ill-formed tags. `ill_formed` is the share of predicted sequences with an I- tag that does
    not continue a span of its type.
    """
    import seqeval.metrics
    from seqeval.scheme import IOB2

    truth, guess = [list(t) for t in gold], [list(t) for t in predicted]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no span predicted: the score is 0, which is what we report
        strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        return {
            "f1": float(seqeval.metrics.f1_score(truth, guess, **strict)),
            "precision": float(seqeval.metrics.precision_score(truth, guess, **strict)),
            "recall": float(seqeval.metrics.recall_score(truth, guess, **strict)),
            "f1_lenient": float(seqeval.metrics.f1_score(truth, guess, zero_division=0)),
            "ill_formed": sum(map(ill_formed, guess)) / len(guess),
        }


def tc_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro-F1 over the labels that occur in `gold`, each in [0, 1]."""
    import sklearn.metrics

    labels = sorted(set(gold))
    return {
        "accuracy": float(sklearn.metrics.accuracy_score(gold, predicted)),
        "macro_f1": float(sklearn.metrics.f1_score(gold, predicted, labels=labels, average="macro", zero_division=0)),
    }


def ill_formed(tags: Sequence[str]) -> bool:
    """Whether some I-X does not follow B-X or I-X."""
    return any(tag.startswith("I-") and before[2:] != tag[2:] for before, tag in zip(["O", *tags], tags))
