"""All measures of a block for one pair of families, and the verdicts over blocks, as JSON. None is undefined."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprefit import significance
from jaxprefit.conflict import measures, noise
from jaxprefit.conflict.inner_products import expected as expected_gram
from jaxprefit.conflict.probe import Grams
from jaxprefit.significance import holm


def describe(grams: Grams, i: int = 0, j: int = 1) -> dict[str, Any]:
    """Families i and j in one block. `verdicts` adds what depends on the other blocks.

    Raw measures are of single batches, mean over rounds, with their noise in; `within` is the reference level.
    """
    rounds, k = grams.rounds.astype(np.float64), grams.groups.astype(np.float64)
    single = measures.batch_grams(rounds)[..., (i, j), :][..., :, (i, j)]  # [N, R, 2, 2]
    cosines = measures.cosine(single)[..., 0, 1]
    raw = cosines.mean(1)
    levels = [noise.noise_level(rounds, k, f) for f in (i, j)]
    corrected = noise.corrected_cosine(k, i, j)
    expected = expected_gram(k)[np.ix_((i, j), (i, j))]
    expected = expected if np.isfinite(corrected.value) else np.full((2, 2), np.nan)
    p = float(noise.p_conflict(k, i, j))
    decide = noise.needed(k, i, j, grams.batches)
    sought = noise.needed(k, i, j, grams.batches, cosine=noise.SOUGHT).sign
    share = None
    if grams.absolute is not None:
        share = measures.conflicting_share(k[i, :, j, :].mean(), grams.absolute[i, :, j, :].mean())
    return {
        "batches": grams.batches,
        "cosine": number(raw.mean()),
        "cosine_interval": [number(b) for b in significance.bootstrap_mean(raw)],
        "cosine_within": [number(measures.cosine_within(rounds)[:, f].mean()) for f in (i, j)],
        "corrected_cosine": number(corrected.value),
        "corrected_interval": [number(corrected.low), number(corrected.high)],
        "near_refusal": bool(noise.near_refusal(k, i, j)),
        "p_conflict": number(p, 9),
        "share_negative": number(measures.share_below(cosines)),
        "undefined": int(np.sum(~np.isfinite(cosines))),
        "norm_ratio": number(_ratio(*np.sqrt(np.einsum("nrff->f", single)))),
        "magnitude_similarity": number(measures.magnitude_similarity(single)[..., 0, 1].mean()),
        "curvature_bound": number(measures.curvature_bound(single)[..., 0, 1].mean()),
        "condition_number": number(np.median(measures.condition_number(single))),
        "dominance": [number(x) for x in measures.dominance(single).mean((0, 1))],
        "corrected_magnitude_similarity": number(measures.magnitude_similarity(expected)[0, 1]),
        "corrected_curvature_bound": number(measures.curvature_bound(expected)[0, 1]),
        "corrected_condition_number": number(measures.condition_number(expected)),
        "conflicting_share": number(share),
        "snr": [number(x.snr.value) for x in levels],
        "snr_interval": [[number(x.snr.low), number(x.snr.high)] for x in levels],
        "noise_scale": [number(x.noise_scale) for x in levels],
        "batches_for_sign": number(decide.sign),
        "batches_for_norms": number(decide.norms),
        "batches_for_sought": number(sought),
    }


def verdicts(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`describe`'s blocks with `p_holm` [conflict, agreement] and `verdict`, adjusted over these blocks (Holm, 1979).

    'conflict' or 'agreement' where the two-sided test says so at ALPHA, else 'undecided': where no block has any
    relation, the chance that some verdict stands is at most ALPHA, whichever its sign. The `p_holm` of the sign that
    the estimate does not have is 1.
    """
    one_sided = {name: b["p_conflict"] for name, b in blocks.items()}
    adjusted = holm({name: None if p is None else 2 * min(p, 1 - p) for name, p in one_sided.items()})
    out = {}
    for name, block in blocks.items():
        p, q = one_sided[name], adjusted[name]
        both: list[float | None] = [None, None]
        verdict = "undecided"
        if p is not None and q is not None:
            both = [number(q if p < 0.5 else 1.0, 9), number(q if p > 0.5 else 1.0, 9)]
            if q < noise.ALPHA:
                verdict = "conflict" if p < 0.5 else "agreement"
        out[name] = {**block, "p_holm": both, "verdict": verdict}
    return out


def transfer_matrix(k: np.ndarray, scale: np.ndarray | None = None) -> list[list[dict[str, Any] | None]]:
    """[i][j]: `noise.transfer` of a step on i to j as {'value', 'interval'}; None on the diagonal, which is 1."""
    families = len(k)
    s = np.ones(families) if scale is None else scale
    return [
        [
            None if i == j else _estimate(noise.transfer(k.astype(np.float64), i, j, (float(s[i]), float(s[j]))))
            for j in range(families)
        ]
        for i in range(families)
    ]


def number(x: Any, digits: int = 6) -> float | None:
    """A JSON number, None where undefined."""
    return round(float(x), digits) if x is not None and np.isfinite(x) else None


def _estimate(e: noise.Estimate) -> dict[str, Any]:
    return {"value": number(e.value), "interval": [number(e.low), number(e.high)]}


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b > 0 else float("nan")
