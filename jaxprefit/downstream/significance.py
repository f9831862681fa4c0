"""Is a difference between two systems more than luck? Tests on saved predictions and on scores.

Over the sentences of one test set: `paired_bootstrap` (span F1, or accuracy) and `mcnemar` (accuracy). Over the seeds
of one task: `almost_stochastic_order`. Over tasks and seeds: `crossed_bootstrap`. Over tasks: `wilcoxon`, and `holm`
for the p-values of several comparisons.
Which to use when: Dror et al., 2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP" (ACL).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from jaxprefit.errors import UserError


@dataclasses.dataclass(frozen=True)
class Interval:
    """A difference of two systems (first minus second), its interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def span_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
    """[N, 3] int: true positives, false positives, false negatives of each sentence's IOB2 spans.

    Strict as `evaluate.ner_scores`: an I- that continues no span of its type makes none. `f1` of the sum is that score.
    """
    counts = np.zeros((len(gold), 3), int)
    for i, (true, guess) in enumerate(zip(gold, predicted, strict=True)):
        right, found = spans(true), spans(guess)
        both = len(right & found)
        counts[i] = both, len(found) - both, len(right) - both
    return counts


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(begin, end, type) of every well-formed span: B-X and the I-X that follow it."""
    found, begin = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if begin is not None and not (tag.startswith("I-") and tag[2:] == tags[begin][2:]):
            found.add((begin, i, tags[begin][2:]))
            begin = None
        if tag.startswith("B-"):
            begin = i
    return found


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of summed counts [..., 3]; 0 where there is nothing to find and nothing found."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, float), -1, 0)
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1e-300)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Share of the first column of summed counts [..., 2]: right, wrong."""
    counts = np.asarray(counts, float)
    return counts[..., 0] / np.maximum(counts.sum(-1), 1e-300)


def label_counts(gold: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
    """[N, 2] int: right and wrong, per text."""
    right = np.asarray([g == p for g, p in zip(gold, predicted, strict=True)])
    return np.stack([right, ~right], 1).astype(int)


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Difference of a corpus score recomputed on sentences drawn anew, the same for both systems.

    `first`, `second` are counts per sentence, [N, 3] (scored by `f1`) or [N, 2] (by `accuracy`). Seeds of one system
    are stacked, [S, N, 3]: the score is then the mean over seeds, with the sentences drawn once for all. Percentile
    interval; p-value as the doubled share of draws on the other side of zero, with 1 added to both counts (Efron and
    Tibshirani, 1993, chapter 13; Berg-Kirkpatrick et al., 2012, for its use in NLP).
    """
    a, b = (np.asarray(c)[None] if np.ndim(c) == 2 else np.asarray(c) for c in (first, second))
    if a.shape[1:] != b.shape[1:]:
        raise UserError(f"the two systems were not scored on the same sentences: {a.shape[1:]} and {b.shape[1:]}")
    score = f1 if a.shape[-1] == 3 else accuracy
    number = a.shape[1]
    rng = np.random.default_rng(seed)
    differences = np.empty(draws)
    for begin in range(0, draws, 500):
        # How often each sentence is drawn: sums of counts are then one matrix product.
        times = rng.multinomial(number, np.full(number, 1 / number), size=min(500, draws - begin)).astype(float)
        sums = [np.einsum("kn,snc->ksc", times, c.astype(float), optimize=True) for c in (a, b)]
        differences[begin : begin + 500] = score(sums[0]).mean(1) - score(sums[1]).mean(1)
    tail = (1 - level) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    observed = float(score(a.sum(1)).mean() - score(b.sum(1)).mean())
    return Interval(observed, float(low), float(high), float(min(1.0, 2 * (beyond + 1) / (draws + 1))))


def crossed_bootstrap(differences: np.ndarray, draws: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of paired differences [T, P, S] by task, pre-finetuning seed and fine-tuning seed, all drawn anew.

    The three are drawn independently, whole slices at a time (the pigeonhole bootstrap of Owen, 2007, which errs toward
    wide intervals): the interval speaks of other tasks and seeds like these. An axis of length one adds no spread, and
    few seeds tell little of theirs. Percentile interval and p-value as in `paired_bootstrap`.
    """
    d = np.asarray(differences, float)
    rng = np.random.default_rng(seed)
    times = [rng.multinomial(n, np.full(n, 1 / n), size=draws) / n for n in d.shape]
    means = np.einsum("kt,kp,ks,tps->k", *times, d, optimize=True)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Interval(float(d.mean()), float(low), float(high), float(min(1.0, 2 * (beyond + 1) / (draws + 1))))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test (1947): that two classifiers are right on equally many texts.

    `first`, `second` [N] bool: right or wrong on each text.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def wilcoxon(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test over paired scores, one pair per task (Demsar, 2006).

    Exact for few tasks without ties; 1 where no pair differs.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    if not differences.any():
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values by name (Holm, 1979): reject those at most alpha, and the chance of any false one is alpha."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted, largest = {}, 0.0
    for i, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - i) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def violation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """How far `first` is from being stochastically larger than `second`: 0 it is, 1 the reverse, 0.5 if neither.

    The violation ratio of del Barrio et al. (2018): the share of the squared distance of the two quantile functions
    that lies where `first` is smaller. 0.5 where the two do not differ.
    """
    a, b = np.sort(np.asarray(first, float)), np.sort(np.asarray(second, float))
    # Both quantile functions are steps: their common refinement integrates exactly.
    edges = np.union1d(np.arange(1, len(a) + 1) / len(a), np.arange(1, len(b) + 1) / len(b))
    middles, widths = edges - np.diff(edges, prepend=0.0) / 2, np.diff(edges, prepend=0.0)
    difference = a[(middles * len(a)).astype(int)] - b[(middles * len(b)).astype(int)]
    squares = widths * difference**2
    total = squares.sum()
    return 0.5 if total == 0 else float(squares[difference < 0].sum() / total)


def almost_stochastic_order(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> float:
    """Upper bound at `confidence` on `violation`: below 0.5, `first` is almost stochastically larger.

    Dror et al., 2019, "Deep Dominance: How to Properly Compare Deep Neural Models" (ACL); Ulmer et al., 2022, advise to
    claim it only below 0.2. Scores are of one task, one per seed. The variance comes from a bootstrap of both samples;
    with a few seeds a side it is itself uncertain.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    rng = np.random.default_rng(seed)
    observed = violation(a, b)
    scale = np.sqrt(len(a) * len(b) / (len(a) + len(b)))
    drawn = [violation(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(draws)]
    spread = np.std(scale * (np.asarray(drawn) - observed))
    bound = observed - spread * scipy.stats.norm.ppf(1 - confidence) / scale
    return float(np.clip(bound, 0.0, 1.0))
