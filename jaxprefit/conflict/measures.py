"""Conflict measures: pure functions of Gram matrices taken at fixed parameters.

Two stacks per block of parameters, over F families:

- rounds M [N, F, R, F, R]: in each of N rounds, R = 2 disjoint batches of every family. M[n, i, a, j, b] is
  <g_i on batch a, g_j on batch b>. Raw cosines come from here.
- groups K [F, G, F, G]: the rounds dealt into G groups and each family's gradients averaged inside a group.
  K[i, k, j, l] is the inner product of the averages. Products of different groups are free of batch noise in the mean,
  and there are as many as pairs of batches, so the estimates of <E g_i, E g_j> come from here.

A cosine of mini-batch gradients is pulled toward zero by noise. So the raw one stands beside the cosine inside each
family: where two batches of one family hardly agree, a small cosine between families says nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

RESAMPLES = 1000
LEVEL = 0.95


def cosine(m: np.ndarray, i: int, j: int) -> np.ndarray:
    """Per round [N], the cosine between families i and j, mean over the pairs of batches; i = j: of different batches.

    Between tasks: Yu et al., arXiv 2001.06782. NaN where a gradient is zero: undefined, not unrelated.
    """
    norms = np.sqrt(np.einsum("nfrfr->nfr", m))
    with np.errstate(invalid="ignore", divide="ignore"):
        c = m[:, i, :, j, :] / (norms[:, i, :, None] * norms[:, j, None, :])
    return _pair_mean(c, i == j)


def norm_ratio(m: np.ndarray, i: int, j: int) -> float:
    """Root mean square norm of family i's batch gradients over family j's, batch noise included; NaN where j's is 0."""
    squares = np.einsum("nfrfr->nfr", m).mean((0, 2))
    return float(np.sqrt(squares[i] / squares[j])) if squares[j] > 0 else float("nan")


def inner(k: np.ndarray, i: int, j: int) -> float:
    """Unbiased estimate of <E g_i, E g_j> (i = j: of the squared norm of E g_i), only from independent batches."""
    return float(_pair_mean(k[None, i, :, j, :], i == j)[0])


def corrected_cosine(k: np.ndarray, i: int, j: int) -> float:
    """Cosine of the expected gradients: <E g_i, E g_j> over the estimated norms (correction for attenuation,
    Spearman 1904). Consistent, unlike the mean of raw cosines. NaN where a squared norm's estimate is not positive:
    too much noise to say."""
    own = inner(k, i, i), inner(k, j, j)
    return inner(k, i, j) / float(np.sqrt(own[0] * own[1])) if min(own) > 0 else float("nan")


def jackknife(k: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Interval of a statistic of K at LEVEL: delete one group at a time, Student's t with G - 1 degrees of freedom.

    NaN where the statistic of some part is. In simulations with heavy tails and few effective dimensions the interval
    of `inner` keeps its level; that of `corrected_cosine`, a ratio, covers in about nine cases of ten where the noise
    is large.
    """
    groups = k.shape[1]
    kept = [np.delete(np.arange(groups), g) for g in range(groups)]
    parts = np.asarray([statistic(k[:, rest][:, :, :, rest]) for rest in kept])
    error = np.sqrt((groups - 1) / groups * np.sum((parts - parts.mean()) ** 2))
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, groups - 1) * error
    center = statistic(k)
    return float(center - half), float(center + half)


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [N] at LEVEL."""
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def describe(m: np.ndarray, k: np.ndarray, i: int, j: int) -> dict[str, Any]:
    """All measures of one block for one pair of families, as JSON; None stands for undefined.

    `verdict` is 'conflict' or 'agreement' where the interval of <E g_i, E g_j> excludes zero, else 'undecided'.
    """
    m, k = m.astype(np.float64), k.astype(np.float64)
    raw = cosine(m, i, j)
    low, high = jackknife(k, lambda x: inner(x, i, j))
    return {
        "cosine": _number(raw.mean()),
        "cosine_interval": [_number(b) for b in bootstrap_mean(raw)],
        "cosine_within": [_number(cosine(m, f, f).mean()) for f in (i, j)],
        "corrected_cosine": _number(np.clip(corrected_cosine(k, i, j), -1.0, 1.0)),
        "corrected_interval": [
            _number(np.clip(b, -1.0, 1.0)) for b in jackknife(k, lambda x: corrected_cosine(x, i, j))
        ],
        "verdict": "conflict" if high < 0 else "agreement" if low > 0 else "undecided",
        "share_negative": _number((raw < 0).mean() if np.isfinite(raw).all() else np.nan),
        "norm_ratio": _number(norm_ratio(m, i, j)),
    }


def _pair_mean(pairs: np.ndarray, same: bool) -> np.ndarray:
    """Mean of `pairs` [N, P, P] over its last axes; `same`: without the diagonal, a batch with itself."""
    if not same:
        return pairs.mean((1, 2))
    return pairs[:, ~np.eye(pairs.shape[1], dtype=bool)].mean(1)


def _number(x: Any) -> float | None:
    return round(float(x), 6) if np.isfinite(x) else None
