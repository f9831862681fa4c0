"""Linear probes of frozen hidden states, layer by layer: what a linear head could read off them.

A ridge classifier on standardised vectors: for NER on the first sub-word of each word, whose class is its entity type
or none, by macro-F1 over the types; for TC on the text's mean-pooled vector, by accuracy. Its penalty is the number of
training vectors, the weight of the data in a standardised column, and classes count alike however rare: the same
choice for every layer and encoder. Folds share no text, in training or in test, so that their scores are independent
and their standard error means what it says.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.encoder.tokenization import encode_text, encode_words
from jaxprefit.errors import UserError
from jaxprefit.representations.hidden import View, hidden_states

SCORES = {"ner": "macro_f1", "tc": "accuracy"}
OUTSIDE = "O"


@dataclasses.dataclass(frozen=True)
class Part:
    """The texts of one half of a fold."""

    texts: list[np.ndarray]  # ids
    keep: list[np.ndarray]  # NER: positions of the words' first sub-words; TC: none
    labels: np.ndarray  # of all kept tokens, text by text; TC: one a text


@dataclasses.dataclass(frozen=True)
class Probe:
    """One task to probe: its folds of (training part, test part)."""

    name: str
    family: str  # 'ner' or 'tc'
    classes: int  # NER: entity types
    folds: list[tuple[Part, Part]]

    @classmethod
    def of(
        cls,
        name: str,
        train: Prepared,
        test: Prepared,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        rows: int,
        folds: int,
        seed: int,
    ) -> "Probe":
        """Draws `folds` disjoint samples of `rows` training rows, and of as many test rows; fewer where there are not
        so many."""
        halves = []
        for number, data in enumerate((train, test)):
            size = min(rows, len(data) // folds)
            if size < 2:
                raise UserError(f"task '{name}' has {len(data)} rows; {folds} folds of probes need {2 * folds} or more")
            order = np.random.default_rng((seed, number)).permutation(len(data))[: size * folds]
            halves.append(
                [_part(data, chosen.tolist(), tokenizer, max_length) for chosen in order.reshape(folds, size)]
            )
        return cls(name, "ner" if train.kind == "ner" else "tc", len(train.types), list(zip(*halves)))


def probe_scores(view: View, probe: Probe) -> np.ndarray:
    """[folds, N + 1]: the score of each fold at the embeddings and after each layer."""
    return np.asarray([_fold(view, probe.family, *fold) for fold in probe.folds])


def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Classes of `test` [m, D] by a linear classifier of `train` [n, D] with `labels` [n]."""
    if len(set(labels)) == 1:  # nothing to separate
        return np.full(len(test), labels[0])
    from sklearn.linear_model import RidgeClassifier  # here, as in downstream/evaluate.py
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), RidgeClassifier(len(train), class_weight="balanced"))
    return classifier.fit(train, labels).predict(test)


def macro_f1(true: np.ndarray, found: np.ndarray) -> float:
    """Mean F1 of the classes that occur in `true`, OUTSIDE left out; NaN where there is no other."""
    from sklearn.metrics import f1_score

    types = sorted(set(true) - {OUTSIDE})
    if not types:
        return float("nan")
    return float(f1_score(true, found, labels=types, average="macro", zero_division=0.0))


def _fold(view: View, family: str, train: Part, test: Part) -> list[float]:
    states = hidden_states(view, train.texts + test.texts, train.keep + test.keep)  # as one: fuller batches
    vectors = states.tokens if family == "ner" else states.sentences
    fitted, held = np.split(vectors, [len(train.labels)], axis=1)
    score = macro_f1 if family == "ner" else lambda true, found: float(np.mean(true == found))
    return [score(test.labels, predict(a, train.labels, b)) for a, b in zip(fitted, held)]


def _part(data: Prepared, rows: Sequence[int], tokenizer: tokenizers.Tokenizer, max_length: int) -> Part:
    texts, keep, labels = [], [], []
    for row in rows:
        record = data[int(row)]
        if data.kind == "ner":
            ids, first = encode_words(tokenizer, record["tokens"], max_length)
            labels += [tag.partition("-")[2] or OUTSIDE for tag in record["tags"][: len(first)]]
        else:
            ids, first = encode_text(tokenizer, record["text"], max_length), []
            labels.append(record["label"])
        texts.append(ids)
        keep.append(np.asarray(first, int))
    return Part(texts, keep, np.asarray(labels))
