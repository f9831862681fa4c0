"""Is a difference between two systems more than luck? Tests on saved predictions and on scores.

Over the sentences of one test set, and the seeds: `paired_bootstrap` (span F1, or accuracy); over the sentences alone:
`mcnemar` (accuracy). Over the seeds of one task: `almost_stochastic_order`. Over one or two sources of variation, such
as tasks and seeds: `mean_difference`. Over tasks by ranks: `wilcoxon`. `holm` adjusts the p-values of several
comparisons.
Which to use when: Dror et al., 2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP" (ACL).
"""

import dataclasses
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from jaxprefit.errors import UserError

ASO_BOUND = 0.2
"""Bound of almost stochastic order below which the first is larger (Ulmer et al., 2022). At 0.5, where the violation
itself is balanced, three seeds a side without any difference fall below in one case of four."""
ASO_SEEDS = 5
"""Scores a side that it takes: with three, one case of nine without any difference falls below ASO_BOUND."""


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
    """Difference of a corpus score on sentences and seeds drawn anew, the sentences the same for both systems.

    `first`, `second` are counts per sentence, [N, 3] (scored by `f1`) or [N, 2] (by `accuracy`). Seeds of one system
    are stacked, [S, N, 3], or [P, S, N, 3] where S seeds of fine-tuning follow each of P of pre-finetuning: the score
    is the mean over seeds. Those that count as drawn are the P, or the S where P is 1. Three seeds are too few to draw
    from, so that a draw moves the mean over them by its standard error times Student's t. With one seed a side the
    interval speaks of that seed's model alone. Percentile interval; p-value as the doubled share of draws on the other
    side of zero, with 1 added to both counts (Efron and Tibshirani, 1993, chapter 13; Berg-Kirkpatrick et al., 2012,
    for its use in NLP). Raises UserError where the sentences are not the same.
    """
    sides = [c.reshape((1,) * (4 - c.ndim) + c.shape) for c in map(np.asarray, (first, second))]  # [P, S, N, 2 or 3]
    if sides[0].shape[2:] != sides[1].shape[2:]:
        raise UserError(
            f"the two systems were not scored on the same sentences: {sides[0].shape[2:]} and {sides[1].shape[2:]}"
        )
    rng = np.random.default_rng(seed)
    drawn = _redrawn(sides, draws, rng)
    scores = [_seed_scores(c.sum(2)[None])[0] for c in sides]
    observed = float(scores[0].mean() - scores[1].mean())
    differences = drawn[0].mean(1) - drawn[1].mean(1)
    error, freedom = _over_seeds(scores)
    if error:
        # What a sentence does to a single seed differs between seeds, and is in their spread already.
        twice = sum(
            float((x - x.mean(1, keepdims=True)).var(0).mean()) / (x.shape[1] - 1) for x in drawn if x[0].size > 1
        )
        rest = np.sqrt(max(0.0, 1 - twice / max(float(differences.var()), 1e-300)))
        differences = observed + rest * (differences - observed) + error * rng.standard_t(freedom, draws)
    tail = (1 - level) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return Interval(observed, float(low), float(high), float(min(1.0, 2 * (beyond + 1) / (draws + 1))))


def _redrawn(sides: Sequence[np.ndarray], draws: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Scores [draws, U] of each side by seed (`_seed_scores`), on sentences drawn anew; `sides` [P, S, N, 2 or 3]."""
    # Sentences with equal counts everywhere are one kind, drawn as often as its members together.
    number = sides[0].shape[2]
    columns = np.concatenate([np.moveaxis(c, 2, 0).reshape(number, -1) for c in sides], 1)
    _, first, members = np.unique(columns, axis=0, return_index=True, return_counts=True)
    kinds = [c[:, :, first].astype(float) for c in sides]
    parts = []
    for begin in range(0, draws, 500):
        # How often each is drawn: sums of counts are then one matrix product.
        times = rng.multinomial(number, members / number, size=min(500, draws - begin)).astype(float)
        parts.append([_seed_scores(np.einsum("kn,psnc->kpsc", times, c, optimize=True)) for c in kinds])
    return [np.concatenate(side) for side in zip(*parts)]


def _seed_scores(counts: np.ndarray) -> np.ndarray:
    """[K, U] scores of summed counts [K, P, S, 2 or 3], by the seeds that count as drawn: the P, or the S of one P."""
    scores = f1(counts) if counts.shape[-1] == 3 else accuracy(counts)
    return scores.mean(2) if scores.shape[1] > 1 else scores[:, 0]


def _over_seeds(scores: Sequence[np.ndarray]) -> tuple[float, float]:
    """Standard error of the difference of two systems' means over seeds [U], and its degrees of freedom (Welch)."""
    parts = [(float(x.var(ddof=1)) / len(x), len(x) - 1) for x in scores if len(x) > 1]
    variance = sum(v for v, _ in parts)
    return variance**0.5, variance**2 / sum(v * v / df for v, df in parts) if variance else 1.0


def mean_difference(differences: np.ndarray, margin: float = 0.0, level: float = 0.95) -> dict[str, Any]:
    """The mean of paired differences with its interval and the p-value of `margin`, as JSON.

    `differences` are [N], or [N, M] by two crossed sources of variation, both random, such as tasks and seeds, or seeds
    and batches: the variance of the mean is the sum of what differs between the means of each, which counts the noise
    of a single cell twice. Each source has its own Student's t, and the half widths add in squares: with few seeds that
    keeps the level, where one t with Satterthwaite's degrees of freedom does not. Of one source it is the t test of
    paired samples. A source of length one adds nothing: the interval then speaks of that one task or seed only, and
    with one of each it is [None, None]. `p_value`, two-sided, is one minus the level at which the interval touches
    `margin`; None without an interval.
    """
    d = np.asarray(differences, np.float64)
    d = d.reshape(len(d), -1)
    mean, parts = float(d.mean()), list[tuple[float, int]]()
    for axis in (0, 1):
        n = d.shape[axis]
        if n > 1:
            parts.append((float(d.mean(1 - axis).var(ddof=1)) / n, n - 1))
    if not parts:
        return {"difference": mean, "interval": [None, None], "p_value": None}
    half = _half_width(parts, 1 - level)
    return {"difference": mean, "interval": [mean - half, mean + half], "p_value": _p_value(parts, mean - margin)}


def _half_width(parts: Sequence[tuple[float, int]], p: float) -> float:
    """Half width of the interval at level 1 - p, from (variance, degrees of freedom) of each part."""
    return float(np.sqrt(sum(scipy.special.stdtrit(df, p / 2) ** 2 * v for v, df in parts)))


def _p_value(parts: Sequence[tuple[float, int]], distance: float) -> float:
    """At which `_half_width` is the distance from the mean; 1e-12 for any smaller."""
    if not distance or not any(v for v, _ in parts):
        return float(distance == 0)
    low, high = 1e-12, 1.0  # the width falls from high p to low
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _half_width(parts, middle) > abs(distance) else (low, middle)
    return high


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


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Adjusted p-values by name (Holm, 1979): reject those at most alpha, and the chance of any false one is alpha.

    None, of what was not tested, stays None and does not count.
    """
    tested = {name: p for name, p in p_values.items() if p is not None}
    adjusted, largest = dict[str, float](), 0.0
    for i, name in enumerate(sorted(tested, key=lambda name: tested[name])):
        largest = max(largest, min(1.0, (len(tested) - i) * tested[name]))
        adjusted[name] = largest
    return {name: adjusted.get(name) for name in p_values}


def holm_by_table(lines: Iterable[tuple[Hashable, float | None]]) -> list[float | None]:
    """Adjusted p-values (Holm) of lines, (table, p-value), in their order: each over the lines of the same table."""
    rows = [*lines]
    tables: dict[Hashable, dict[str, float | None]] = {}
    for i, (table, p_value) in enumerate(rows):
        tables.setdefault(table, {})[str(i)] = p_value
    adjusted = {i: p_value for table in tables.values() for i, p_value in holm(table).items()}
    return [adjusted[str(i)] for i in range(len(rows))]


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
) -> float | None:
    """Upper bound at `confidence` on `violation`: below ASO_BOUND, `first` is almost stochastically larger.

    None with fewer than ASO_SEEDS scores a side, which cannot decide it. Dror et al., 2019, "Deep Dominance: How to
    Properly Compare Deep Neural Models" (ACL). Scores are of one task, one per seed. The variance comes from a
    bootstrap of both samples.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if min(len(a), len(b)) < ASO_SEEDS:
        return None
    rng = np.random.default_rng(seed)
    observed = violation(a, b)
    scale = np.sqrt(len(a) * len(b) / (len(a) + len(b)))
    drawn = [violation(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(draws)]
    spread = np.std(scale * (np.asarray(drawn) - observed))
    bound = observed - spread * scipy.stats.norm.ppf(1 - confidence) / scale
    return float(np.clip(bound, 0.0, 1.0))


RESAMPLES = 1000


LEVEL = 0.95


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [N] at LEVEL; NaN where one is undefined."""
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(x: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, low, high, two-sided p of mean 0) by Student's t over values [n]; NaN for fewer than two."""
    if len(x) < 2 or not np.isfinite(x).all():
        return (float("nan"),) * 4
    mean, error = float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)) * error
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, len(x) - 1)) if error > 0 else float(mean == 0)
    return mean, mean - half, mean + half, p


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (None of a single one) and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation, "seeds": values}
