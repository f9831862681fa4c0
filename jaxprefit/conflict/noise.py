"""What batches say of the expected gradients: the noise-corrected cosine and its kin with intervals, or a refusal.

All take K [..., F, G, F, G] (`products`), at any leading axes. A ratio's interval is Fieller's (1954), which stays
honest where the denominator is noisy; a norm less than RESOLVED standard errors above zero refuses the ratio.

How many batches that takes: with isotropic noise in d dimensions and signal-to-noise s per batch, both norms are
resolved in 95 of 100 probes from about n = 10 / (s^2 sqrt(d)) batches a family (simulated). In d = 20,000 dimensions s
= 0.1 wants 4 rounds of 2 batches, 0.04 wants 24, 0.03 wants 48. Real noise is not isotropic: d is then
(tr C)^2 / tr(C^2) of its covariance C, rather hundreds: at 400, s = 0.2 wants 6 rounds, 0.1 wants 24, 0.07 wants 48.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr

from jaxprefit.conflict.inner_products import RESOLVED, UNIT, Products, products

ALPHA = 0.05
"""Level of a verdict: the chance of any false one over the blocks of a grouping, of either sign."""
SOUGHT = 0.1
"""The cosine that a report says how many batches it would take to see."""


class Estimate(NamedTuple):
    """An estimate and its interval at LEVEL, each of the leading axes; NaN: refused, the data cannot say."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def corrected_cosine(k: np.ndarray, i: int, j: int) -> Estimate:
    """[...] cosine of the expected gradients, <Eg_i, Eg_j> / (|Eg_i| |Eg_j|); refused where a norm is not resolved.

    The correction for attenuation (Spearman, 1904). Consistent, unlike the mean of raw cosines, which falls short by
    s^2 / (1 + s^2). Clipped to [-1, 1].
    """
    p = products(k, i, j)
    known = p.resolved(1) & p.resolved(2)
    a, b = (np.where(known, p.mean[..., w], 1.0) for w in (1, 2))
    zero = np.zeros_like(a)
    denominator = np.stack([zero, np.sqrt(b / a) / 2, np.sqrt(a / b) / 2], -1)  # sqrt(a b), to first order in a and b
    found = _fieller(p, UNIT[0], denominator)
    return Estimate(*(np.where(known, np.clip(x, -1.0, 1.0), np.nan) for x in found))


def near_refusal(k: np.ndarray, i: int, j: int) -> np.ndarray:
    """[...] whether `corrected_cosine` stands, but would not if a norm came out one standard error shorter.

    Where many probes are refused, those that are not have overestimated a norm: their cosine is too small in size, and
    a lower bound of it rather than an estimate.
    """
    p = products(k, i, j)
    return p.resolved(1) & p.resolved(2) & ~(p.resolved(1, spare=1.0) & p.resolved(2, spare=1.0))


def transfer(k: np.ndarray, i: int, j: int, scale: tuple[float, float] = (1.0, 1.0)) -> Estimate:
    """[...] what a step on i does to j's loss, over what j's own step does: s_i <Eg_i, Eg_j> / (s_j |Eg_j|^2).

    First order: a step -eta s_i g_i changes L_j by -eta s_i <g_i, g_j>. 1: as good as j's own, 0: nothing, below 0: it
    takes back so much of it. Refused where |Eg_j| is not resolved. In the gradient's metric with `scale` = 1 / norm of
    the batch gradients it is the interference of Zhu et al., arXiv 2206.04674, as a ratio of means instead of their
    mean of ratios, whose denominators change sign in noise; on preconditioned Grams (`preconditioned`) it is in the
    optimizer's eyes, with `scale` for loss weights and clipping.
    """
    p = products(k, i, j)
    found = _fieller(p, np.asarray([scale[0], 0, 0]), np.asarray([0, 0, scale[1]]))
    return Estimate(*(np.where(p.resolved(2), x, np.nan) for x in found))


def inner(k: np.ndarray, i: int, j: int) -> Estimate:
    """[...] <Eg_i, Eg_j> with its interval, for i != j. Never refused; NaN only where a gradient is not finite."""
    p = products(k, i, j)
    half = p.quantile(UNIT[0]) * p.error(0)
    return Estimate(p.mean[..., 0], p.mean[..., 0] - half, p.mean[..., 0] + half)


def p_conflict(k: np.ndarray, i: int, j: int) -> np.ndarray:
    """[...] one-sided p-value of H0: <Eg_i, Eg_j> >= 0; small where they conflict. 1 minus it tests agreement.

    NaN where both gradients are zero. To be doubled where either sign is of interest, and adjusted over the blocks
    looked at, as `blocks.verdicts` does.
    """
    p = products(k, i, j)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = p.mean[..., 0] / p.error(0)
    return np.asarray(stdtr(p.freedom(UNIT[0]), t))


class NoiseLevel(NamedTuple):
    """One family's batches against its expected gradient, each [...]. NaN where that is not resolved."""

    norm: np.ndarray  # |Eg|
    noise: np.ndarray  # root mean square norm of a batch gradient's noise
    snr: Estimate  # norm / noise; its bounds stand even where the value is refused
    noise_scale: np.ndarray  # tr C / |Eg|^2 in batches: times the batch's size it is McCandlish's B_simple


def noise_level(rounds: np.ndarray, k: np.ndarray, i: int) -> NoiseLevel:
    """Signal-to-noise and gradient noise scale of family i (McCandlish et al., arXiv 1812.06162, appendix A).

    |Eg|^2 and tr C are estimated apart, from products of different batches and from squared norms, then divided.
    rounds [..., N, F, R, F, R], K [..., F, G, F, G].
    """
    p = products(k, i, 1 if i == 0 else 0)
    square, known = p.mean[..., 1], p.resolved(1)
    total = np.einsum("...naa->...na", rounds[..., i, :, i, :].astype(np.float64)).mean((-2, -1))
    half = p.quantile(UNIT[1]) * p.error(1)

    def refused(x: np.ndarray) -> np.ndarray:
        return np.where(known, x, np.nan)

    def snr(s: np.ndarray) -> np.ndarray:
        s = np.maximum(s, 0.0)
        none = np.where(total > 0, np.inf, np.nan)  # no noise, or no gradient
        return np.sqrt(np.where(s < total, s / np.where(s < total, total - s, 1.0), none))

    trace = np.maximum(total - square, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        norm, scale = np.sqrt(square), trace / square
    estimate = Estimate(refused(snr(square)), snr(square - half), snr(square + half))
    return NoiseLevel(refused(norm), np.sqrt(trace), estimate, refused(scale))


class Needed(NamedTuple):
    """Batches of a family in all, of the size probed; m times larger ones need m times fewer. [...]; NaN: unknown."""

    sign: np.ndarray  # to find the sign of the inner product
    norms: np.ndarray  # to resolve both norms, which the corrected cosine wants


def needed(k: np.ndarray, i: int, j: int, batches: int, cosine: float | None = None, power: float = 0.8) -> Needed:
    """How many batches would decide, if `batches` a family gave this K: error = linear / n + quadratic / n^2.

    `sign` is for the one-sided test at ALPHA with `power`, at the inner product as estimated or at a given `cosine`
    (NaN where a norm is not resolved, so that a cosine has no size).
    """
    p = products(k, i, j)

    def batches_for(which: int, signal: np.ndarray, z: float) -> np.ndarray:
        linear, quadratic = (z * z * v for v in p.variance(UNIT[which], UNIT[which]))
        linear = np.maximum(linear, 0.0)
        signal = np.where(signal > 0, signal, np.nan)
        root = np.sqrt(linear**2 + 4 * signal**2 * quadratic)
        return np.ceil(batches * (linear + root) / (2 * signal**2))

    signal = np.abs(p.mean[..., 0])
    if cosine is not None:
        square = np.where(p.resolved(1) & p.resolved(2), p.mean[..., 1] * p.mean[..., 2], np.nan)
        signal = abs(cosine) * np.sqrt(square)
    norms = [batches_for(w, p.mean[..., w], RESOLVED + ndtri(power)) for w in (1, 2)]
    return Needed(batches_for(0, signal, ndtri(1 - ALPHA) + ndtri(power)), np.maximum(*norms))


def _fieller(p: Products, numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """x / y with Fieller's interval, for x and y linear in p.mean: all r with |x - r y| <= t * its standard error.

    NaN where that set is unbounded: the denominator may be zero.
    """
    x, y = (np.einsum("...a,...a->...", p.mean, w) for w in (numerator, denominator))
    if denominator.ndim > 1:  # to first order: sqrt(a b) itself is the sum of its parts
        numerator = np.broadcast_to(numerator, denominator.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = x / y
        along = numerator - np.nan_to_num(ratio)[..., None] * denominator
        q = p.quantile(along) ** 2
        more = p.variance(along, along)[0] > 0  # else the linear part is lost in the quadratic one

        def covariance(one: np.ndarray, two: np.ndarray) -> np.ndarray:
            linear, quadratic = p.variance(one, two)
            return quadratic + np.where(more, linear, 0.0)

        xx, yy = covariance(numerator, numerator), covariance(denominator, denominator)
        xy = covariance(numerator, denominator)
        bend, middle, level = y * y - q * yy, x * y - q * xy, x * x - q * xx
        root = np.sqrt(np.maximum(middle * middle - bend * level, 0.0))
        bounds = (middle - root) / bend, (middle + root) / bend
    return Estimate(*(np.where(bend > 0, e, np.nan) for e in (ratio, *bounds)))
