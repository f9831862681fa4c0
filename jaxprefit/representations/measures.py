"""Measures of hidden states: how alike two encoders are, how spread out one is, and whether it pulls a sentence's
tokens together.

Pure NumPy functions, in float64 inside. Vectors are [n, D], float, one a token or a text; `text` [n] says which text a
token belongs to. Each measure takes all vectors of one layer; `leave_groups_out` gives its interval.

The hypothesis they are for: contrastive text classification, which trains the mean of a sentence's tokens, pulls the
tokens toward it (`intra_sentence` rises), while NER needs them apart (its probe, `layer_probes`, then falls).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.spatial.distance
import scipy.stats

LEVEL = 0.95
RESAMPLES = 1000


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of `x` [n, D] at length 1; a zero row stays zero."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def cka(features: Sequence[np.ndarray]) -> np.ndarray:
    """[M, M] linear centered kernel alignment between M encoders' vectors of the same n >= 4 tokens, each [n, D_m].

    Kornblith et al., arXiv 1905.00414: HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with linear kernels; 1 where one is
    the other but for rotation, one scale and an offset. The plain ratio ||X'Y||^2 / (||X'X|| ||Y'Y||) is far above 0
    for independent X and Y unless n is far above D. So HSIC is the unbiased estimator of Song et al. (JMLR 13, 2012),
    which may come out a little below 0; it is written in D x D products, as n is large. NaN where a variance is not
    positive.
    """
    x = [np.asarray(f, np.float64) for f in features]
    x = [f - f.mean(0) for f in x]
    squares = [np.einsum("nd,nd->n", f, f) for f in x]
    n, m = len(x[0]), len(x)
    hsic = np.empty((m, m))
    for i in range(m):
        for j in range(i, m):
            own = squares[i].sum() * squares[j].sum() / ((n - 1) * (n - 2)) - n / (n - 2) * (squares[i] @ squares[j])
            hsic[i, j] = hsic[j, i] = np.sum((x[i].T @ x[j]) ** 2) + own
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.diag(hsic))
        return hsic / (scale[:, None] * scale)


def intra_sentence(tokens: np.ndarray, text: np.ndarray) -> np.ndarray:
    """[T] per text, the mean cosine of its tokens to their mean; every text 0 ... T - 1 has a token.

    Ethayarajh 2019, "How Contextual are Contextualized Word Representations?" (arXiv 1909.00512), section 3. Vectors
    that share a direction, and short texts, have a high one in any case: compare with `mixed_sentences`.
    """
    tokens = np.asarray(tokens, np.float64)
    count = np.bincount(text)
    sums = np.zeros((len(count), tokens.shape[1]))
    np.add.at(sums, text, tokens)
    cosines = np.einsum("nd,nd->n", unit(tokens), unit(sums)[text])  # a sum points where the mean points
    return np.bincount(text, cosines) / count


def mixed_sentences(tokens: np.ndarray, text: np.ndarray, seed: int) -> np.ndarray:
    """[T]: `intra_sentence` of texts of the same lengths made of tokens drawn from all texts: what length and a
    direction common to all tokens give alone.

    Ethayarajh's baseline is the mean cosine of tokens of different sentences; this one knows the lengths as well.
    """
    return intra_sentence(tokens[np.random.default_rng(seed).permutation(len(tokens))], text)


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the singular values of centred `x` [n, D], normalised to sum 1: from 1 to min(n - 1, D).

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality" (EUSIPCO). NaN where all rows are
    the same.
    """
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(x.T @ x if len(x) > x.shape[1] else x @ x.T), 0.0))
    if not values.sum() > 0:
        return float("nan")
    p = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def alignment(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance of paired unit vectors, a[i] with b[i]: 0 (the same) to 4 (opposite).

    Wang and Isola 2020, arXiv 2005.10242, with alpha = 2.
    """
    return float(np.mean(np.sum((unit(a) - unit(b)) ** 2, -1)))


def uniformity(x: np.ndarray) -> float:
    """log of the mean of exp(-2 ||x_i - x_j||^2) over all pairs of unit vectors: 0 (all the same), lower is more even.

    Wang and Isola 2020, arXiv 2005.10242, with t = 2. Points drawn evenly on a sphere of many dimensions come to -4.
    """
    return float(np.log(np.mean(np.exp(-2.0 * scipy.spatial.distance.pdist(unit(x), "sqeuclidean")))))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic of all texts, `value` [...], and of all but those of each group, `parts` [G, ...]."""

    value: np.ndarray
    parts: np.ndarray

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two statistics of the same texts in the same groups."""
        return Estimate(self.value - other.value, self.parts - other.parts)

    def __getitem__(self, index: int | tuple[int, ...]) -> "Estimate":
        """One entry of the statistic."""
        index = index if isinstance(index, tuple) else (index,)
        of_all_parts: Any = (slice(None), *index)
        return Estimate(self.value[index], self.parts[of_all_parts])

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) at LEVEL by the grouped jackknife: Student's t with G - 1 degrees of freedom."""
        groups = len(self.parts)
        error = np.sqrt((groups - 1) / groups * np.sum((self.parts - self.parts.mean(0)) ** 2, 0))
        half = scipy.stats.t.ppf((1 + LEVEL) / 2, groups - 1) * error
        return self.value - half, self.value + half


def leave_groups_out(statistic: Callable[[np.ndarray], Any], groups: int) -> Estimate:
    """The jackknife over groups of texts. `statistic` takes which groups to count, [G] bool.

    Not the bootstrap: a text drawn twice would be its own neighbour, and CKA and uniformity are made of pairs.
    """
    kept = ~np.eye(groups, dtype=bool)
    return Estimate(
        np.asarray(statistic(np.ones(groups, bool)), np.float64),
        np.stack([np.asarray(statistic(k), np.float64) for k in kept]),
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A mean difference, second minus first, over the same sentences, with its interval at LEVEL."""

    difference: float
    low: float
    high: float


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Comparison:
    """Two encoders' values [S] of the same S sentences, by a percentile bootstrap over the sentences.

    Paired, so that a sentence's length and words, which move both, cancel.
    """
    change = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(change), (RESAMPLES, len(change)))
    low, high = np.quantile(change[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Comparison(float(change.mean()), float(low), float(high))
