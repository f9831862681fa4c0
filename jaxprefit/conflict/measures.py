"""Conflict measures: pure functions of Gram matrices [..., F, F] over F families (or data sets), at any leading axes.

They take the matrix of a train step, of the batches of a probe (`batch_grams`), or of the expected gradients
(`noise.expected`). Batch noise pulls cosines of batches toward zero and inflates norms: `noise` says by how much.
NaN is undefined (a zero gradient), which is not the same as zero.
"""

from collections.abc import Mapping

import numpy as np


def batch_grams(rounds: np.ndarray) -> np.ndarray:
    """[N, R, F, F] out of a probe's rounds [N, F, R, F, R]: of the a-th batch of every family in each round."""
    return np.einsum("nfaga->nafg", rounds)


def norms(gram: np.ndarray) -> np.ndarray:
    """[..., F] gradient norms; NaN where an estimated square is negative."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.einsum("...ff->...f", gram))


def cosine(gram: np.ndarray) -> np.ndarray:
    """[..., F, F] cos(g_i, g_j) = M_ij / sqrt(M_ii M_jj); below zero the gradients conflict.

    Yu et al., arXiv 2001.06782, definition 1.
    """
    n = norms(gram)
    return _ratio(gram, n[..., :, None] * n[..., None, :])


def cosine_within(rounds: np.ndarray) -> np.ndarray:
    """[N, F] cosine of different batches of one family, mean over their pairs: the reference level of every cosine.

    With isotropic noise it is s^2 / (1 + s^2) at signal-to-noise s; where it is near zero, no cosine between families
    can be large. The same idea as the own help in Zhu et al., arXiv 2206.04674.
    """
    own = np.einsum("nfafb->nfab", rounds)
    c = cosine(own)
    return c[:, :, ~np.eye(own.shape[-1], dtype=bool)].mean(-1)


def share_below(cosines: np.ndarray, threshold: float = 0.0) -> float:
    """Share of the defined values below `threshold`; NaN where none is defined.

    At 0 the share of negative steps of Yu et al., arXiv 2001.06782; at S < 0 that of S-conflicts, Shi et al., arXiv
    2302.11289. For unrelated gradients it is one half at any noise.
    """
    known = cosines[np.isfinite(cosines)]
    return float((known < threshold).mean()) if known.size else float("nan")


def conflict_scores(blocks: Mapping[str, np.ndarray], threshold: float = 0.0) -> dict[str, float]:
    """Block -> share of steps and pairs i < j with cos(g_i, g_j) < S, highest first, undefined blocks last.

    `blocks`: [..., F, F] each. Recon's S-conflict score (Shi et al., arXiv 2302.11289, which counts instead of
    dividing); its top layers are those to be made task-specific.
    """
    scores = {}
    for name, gram in blocks.items():
        i, j = np.triu_indices(gram.shape[-1], 1)
        scores[name] = share_below(cosine(gram)[..., i, j], threshold)
    return dict(sorted(scores.items(), key=lambda item: -item[1] if np.isfinite(item[1]) else np.inf))


def magnitude_similarity(gram: np.ndarray) -> np.ndarray:
    """[..., F, F] 2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2), from 0 (one dominates) to 1.

    Yu et al., arXiv 2001.06782, definition 2.
    """
    n = norms(gram)
    a, b = n[..., :, None], n[..., None, :]
    return _ratio(2 * a * b, a**2 + b**2)


def dominance(gram: np.ndarray) -> np.ndarray:
    """[..., F] |g_i| / sum_j |g_j|: each family's share of the gradient norms; 1 / F where none dominates."""
    n = norms(gram)
    return _ratio(n, n.sum(-1, keepdims=True))


def curvature_bound(gram: np.ndarray) -> np.ndarray:
    """[..., F, F] xi_ij = (1 - cos^2) |g_i - g_j|^2 / |g_i + g_j|^2, the multi-task curvature bounding measure.

    Yu et al., arXiv 2001.06782, before theorem 2: where curvature is above xi times the gradient's Lipschitz
    constant, conflict may be harmful (`curvature.tragic_triad`). 0 on the diagonal; NaN where g_i + g_j = 0.
    """
    squares = np.einsum("...ff->...f", gram)
    both = squares[..., :, None] + squares[..., None, :]
    return _ratio((1 - cosine(gram) ** 2) * (both - 2 * gram), both + 2 * gram)


def condition_number(gram: np.ndarray) -> np.ndarray:
    """[...] largest over smallest singular value of the stacked gradients: sqrt(lambda_max / lambda_min) of M.

    Senushkin et al., CVPR 2023 (Aligned-MTL): 1 where gradients are orthogonal and of one size, inf where one depends
    on the others; conflict and dominance both raise it. NaN for an estimate that is not positive semidefinite.
    """
    known = np.isfinite(gram).all((-2, -1))
    values = np.linalg.eigvalsh(np.where(known[..., None, None], gram, 0.0))
    low, high = values[..., 0], values[..., -1]
    rounding = gram.shape[-1] * np.finfo(np.float32).eps * high  # Gram matrices are measured in float32
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(np.abs(low) <= rounding, np.inf, np.sqrt(high / low))
    return np.where(known & (low >= -rounding) & (high > 0), kappa, np.nan)


def conflicting_share(inner: np.ndarray, absolute: np.ndarray) -> np.ndarray:
    """sum_p |g_ip g_jp| [g_ip g_jp < 0] / sum_p |g_ip g_jp|: weighted share of coordinates that disagree in sign.

    That is (1 - <g_i, g_j> / <|g_i|, |g_j|>) / 2, so two Gram entries (or means of them) of any one shape suffice.
    One half for unrelated gradients. Sign conflicts: Yadav et al., arXiv 2306.01708; weighted by what they move.
    """
    return (1 - _ratio(inner, absolute)) / 2


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.where(b == 0, np.nan, a / b)
