"""Conflict measures: pure functions of Gram matrices.

Input is a stack M [N, F, R, F, R] in float64 or float32: N batches drawn at the same parameters, F families, R = 2
replicates, disjoint batches of the same family. M[n, i, a, j, b] = <g_i on replicate a, g_j on replicate b>.

A cosine of mini-batch gradients is pulled toward zero by noise, so each comes with the same quantity inside one
family: if two batches of one family hardly agree, the cosine between families says nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def cosine(m: np.ndarray, i: int, j: int) -> np.ndarray:
    """Per batch [N], the cosine between families i and j, mean over the R x R replicate pairs; i = j: distinct ones.

    arXiv 2001.06782 (between tasks). NaN where a gradient is zero: undefined, not unrelated.
    """
    norms = np.sqrt(np.einsum("nfrfr->nfr", m))
    with np.errstate(invalid="ignore", divide="ignore"):
        c = m[:, i, :, j, :] / (norms[:, i, :, None] * norms[:, j, None, :])
    if i != j:
        return c.mean((1, 2))
    return c[:, ~np.eye(c.shape[1], dtype=bool)].mean(1)


def inner(m: np.ndarray, i: int, j: int) -> np.ndarray:
    """Per batch [N], an unbiased estimate of <E g_i, E g_j>: only products of independent batches."""
    block = m[:, i, :, j, :]
    return block.mean((1, 2)) if i != j else block[:, ~np.eye(block.shape[1], dtype=bool)].mean(1)


def corrected_cosine(m: np.ndarray, i: int, j: int) -> float:
    """Cosine of the expected gradients: <g_i, g_j> over sqrt(<g_i, g_i'> <g_j, g_j'>), each averaged over batches first.

    Correction for attenuation (Spearman, 1904). Consistent, unlike the mean of raw cosines. NaN where a denominator's
    estimate is not positive: too much noise to say.
    """
    own = inner(m, i, i).mean(), inner(m, j, j).mean()
    return float(inner(m, i, j).mean() / np.sqrt(own[0] * own[1])) if min(own) > 0 else float("nan")


def norm_ratio(m: np.ndarray, i: int, j: int) -> float:
    """Root mean square norm of family i's gradients over family j's; noise included in both. NaN where j's is zero."""
    squares = np.einsum("nfrfr->nfr", m).mean((0, 2))
    return float(np.sqrt(squares[i] / squares[j])) if squares[j] > 0 else float("nan")


def interval(m: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of M at LEVEL, over the N batches. NaN where a resample's is."""
    rng = np.random.default_rng(seed)
    values = [statistic(m[rng.integers(0, len(m), len(m))]) for _ in range(RESAMPLES)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def describe(m: np.ndarray, i: int, j: int) -> dict[str, Any]:
    """All measures of one block for one pair of families, as JSON; None stands for undefined or undecided.

    `verdict` is 'conflict' or 'agreement' where the corrected cosine's interval excludes zero, else 'undecided'.
    """
    raw = cosine(m, i, j)
    low, high = interval(m, lambda x: float(np.mean(cosine(x, i, j))))
    corrected = corrected_cosine(m, i, j)
    bounds = interval(m, lambda x: corrected_cosine(x, i, j))
    if not all(np.isfinite([corrected, *bounds])):
        corrected, bounds, verdict = float("nan"), (float("nan"), float("nan")), "undecided"
    else:
        verdict = "conflict" if bounds[1] < 0 else "agreement" if bounds[0] > 0 else "undecided"
    return {
        "cosine": _number(raw.mean()),
        "cosine_interval": [_number(low), _number(high)],
        "cosine_within": [_number(cosine(m, k, k).mean()) for k in (i, j)],
        "corrected_cosine": _number(corrected),
        "corrected_interval": [_number(b) for b in bounds],
        "verdict": verdict,
        "share_negative": _number((raw < 0).mean() if np.isfinite(raw).all() else np.nan),
        "norm_ratio": _number(norm_ratio(m, i, j)),
    }


def describe_blocks(blocks: Mapping[str, np.ndarray], i: int, j: int) -> dict[str, dict[str, Any]]:
    """`describe` for every block."""
    return {name: describe(np.asarray(m, np.float64), i, j) for name, m in blocks.items()}


def _number(x: Any) -> float | None:
    return round(float(x), 6) if np.isfinite(x) else None
