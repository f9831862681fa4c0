"""Inner products of expected gradients, estimated from batches, with the sources of their errors told apart.

K [F, G, F, G], of a probe: each family's batches dealt into G groups and averaged,
K[i, k, j, l] = <mean of i's group k, mean of j's group l>. Products of different groups, and of different families,
hold no noise in the mean. Their spread has two sources, told apart as in a two-way layout with random rows k, columns l
and interaction (Scheffe, "The Analysis of Variance", 1959, ch. 7; for a family with itself a round robin, Warner, Kenny
and Stoto, 1979):

    <x_k, y_l> = <Eg_i, Eg_j> + <e_k, Eg_j> + <Eg_i, f_l> + <e_k, f_l>        e, f: the noise of groups k and l

so that n batches give a variance of linear / n + quadratic / n^2. (A jackknife over groups counts the last part twice.)
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxprefit.significance import LEVEL

RESOLVED = 3.0
"""A squared norm is known when its estimate is so many standard errors above zero."""
UNIT = np.eye(3)
"""Directions of the three products: <Eg_i, Eg_j>, |Eg_i|^2, |Eg_j|^2."""


class Products(NamedTuple):
    """Estimates [..., 3] of <Eg_i, Eg_j>, |Eg_i|^2, |Eg_j|^2 for one pair of families, and their errors' sources."""

    mean: np.ndarray  # [..., 3]
    errors: np.ndarray  # [..., 3, 3, 3] covariance of `mean` by source: i's noise, j's (both linear), their products
    degrees: np.ndarray  # [3] of freedom of these three sources

    def variance(self, one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[...] linear and quadratic part of the covariance along directions [..., 3] of `mean`.

        Differences of variances: the linear part of a variance may come out negative.
        """
        parts = np.einsum("...a,...sab,...b->...s", one, self.errors, two)
        return parts[..., :2].sum(-1), parts[..., 2]

    def error(self, which: int) -> np.ndarray:
        """[...] standard error of one of the three."""
        linear, quadratic = self.variance(UNIT[which], UNIT[which])
        return np.sqrt(np.maximum(linear, 0.0) + quadratic)

    def resolved(self, which: int, spare: float = 0.0) -> np.ndarray:
        """[...] whether squared norm `which` (1: i's, 2: j's) is known to be above zero, by RESOLVED standard errors
        and `spare` more."""
        value = self.mean[..., which]
        return (value > 0) & (value > (RESOLVED + spare) * self.error(which))

    def quantile(self, direction: np.ndarray) -> np.ndarray:
        """[...] Student's t at LEVEL, two-sided, for the error along `direction` [..., 3]."""
        return stdtrit(self.freedom(direction), (1 + LEVEL) / 2)

    def freedom(self, direction: np.ndarray) -> np.ndarray:
        """[...] degrees of freedom of the variance along `direction` [..., 3]: Satterthwaite (1946)."""
        parts = np.maximum(np.einsum("...a,...sab,...b->...s", direction, self.errors, direction), 0.0)
        total = parts.sum(-1)
        # A linear part is a difference of mean squares: the products' spread, half on each side, was taken off it.
        parts = parts + parts[..., 2:] * np.asarray([0.5, 0.5, 0.0])
        below = np.sum(parts**2 / self.degrees, -1)
        return np.where(below > 0, total**2 / np.where(below > 0, below, 1.0), self.degrees.min())


def expected(k: np.ndarray) -> np.ndarray:
    """[..., F, F] unbiased estimate of the expected gradients' Gram matrix, from independent batches only."""
    k = k.astype(np.float64)
    own = np.einsum("...fkfl->...fkl", k)
    off = ~np.eye(k.shape[-1], dtype=bool)
    families = np.eye(k.shape[-2], dtype=bool)
    return np.where(families, own[..., off].mean(-1)[..., None], k.mean((-3, -1)))


def products(k: np.ndarray, i: int, j: int) -> Products:
    """Families i and j != i, from K [..., F, G, F, G] with G >= 4."""
    groups = k.shape[-1]
    if groups < 4 or i == j:
        raise ValueError(f"families {i} and {j} with {groups} groups of batches; an interval wants two and 4")
    k = k.astype(np.float64)
    cross = k[..., i, :, j, :]
    c = cross.mean((-2, -1))
    rows, columns = cross.mean(-1) - c[..., None], cross.mean(-2) - c[..., None]
    rest = cross - c[..., None, None] - rows[..., :, None] - columns[..., None, :]
    interaction = np.sum(rest**2, (-2, -1)) / (groups - 1) ** 2
    (a, own_i, pairs_i), (b, own_j, pairs_j) = (_round_robin(k[..., f, :, f, :]) for f in (i, j))
    errors = np.zeros((*c.shape, 3, 3, 3))
    errors[..., 0, :2, :2] = _linear(rows, own_i, interaction, pairs_i)
    errors[..., 1, ::2, ::2] = _linear(columns, own_j, interaction, pairs_j)
    pairs = 2 / (groups * (groups - 1))
    for which, variance in enumerate((interaction / groups**2, pairs * pairs_i, pairs * pairs_j)):
        errors[..., 2, which, which] = variance
    return Products(np.stack([c, a, b], -1), errors, np.asarray([groups - 1, groups - 1, (groups - 1) ** 2]))


def _round_robin(k: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, effects of groups [..., G] and variance of the rest of a symmetric [..., G, G] without its diagonal."""
    groups = k.shape[-1]
    off = ~np.eye(groups, dtype=bool)
    mean = k[..., off].mean(-1)
    effect = (np.where(off, k, 0.0).sum(-1) / (groups - 1) - mean[..., None]) * (groups - 1) / (groups - 2)
    rest = np.where(off, k - mean[..., None, None] - effect[..., :, None] - effect[..., None, :], 0.0)
    return mean, effect, np.sum(rest**2, (-2, -1)) / (groups * (groups - 3))


def _linear(cross: np.ndarray, own: np.ndarray, interaction: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[..., 2, 2] covariance of (<Eg_i, Eg_j>, |Eg_i|^2) by i's noise: the effects' spread, less what the rest adds.

    Unbiased, so not always positive.
    """
    groups = cross.shape[-1]
    effects = np.stack([cross, 2 * own], -2)
    v = effects @ np.swapaxes(effects, -1, -2) / (groups - 1)
    v[..., 0, 0] -= interaction / groups
    v[..., 1, 1] -= 4 * pairs / (groups - 2)
    return v / groups
