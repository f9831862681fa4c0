"""Simulated gradients with a known truth: expected gradients of known cosine, and noise for every batch."""

import dataclasses
from typing import Any

import numpy as np

from jaxprefit.conflict.blocks import describe
from jaxprefit.conflict.probe import GROUPS, Grams
from jaxprefit.conflict.results import BlockMeasures

DIMENSIONS = 20_000


def expected(cosine: float) -> np.ndarray:
    """[2, 2] coordinates of the two expected gradients in their plane, both of norm 1."""
    return np.asarray([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])


def grams(
    cosine: float, snr: float, vectors: int, simulations: int, rng: np.random.Generator, dimensions: float = DIMENSIONS
) -> np.ndarray:
    """[simulations, 2 V, 2 V] Gram matrices of V noisy gradients of each family, drawn from their exact distribution.

    A gradient is the expected one plus isotropic Gaussian noise of root mean square norm 1 / snr in `dimensions`. In
    the plane of the expected gradients it is drawn as it is; outside it only the noise's Gram matrix counts, which is
    Wishart (Bartlett, 1933: the product of a triangular matrix of normal and chi variables with its transpose).
    """
    variance = 1 / (snr**2 * dimensions)
    n, degrees = 2 * vectors, int(dimensions) - 2
    triangle = np.tril(rng.normal(size=(simulations, n, n)), -1)
    triangle[:, range(n), range(n)] = np.sqrt(rng.chisquare(degrees - np.arange(n), (simulations, n)))
    plane = np.repeat(expected(cosine), vectors, 0) + np.sqrt(variance) * rng.normal(size=(simulations, n, 2))
    return plane @ plane.transpose(0, 2, 1) + variance * (triangle @ triangle.transpose(0, 2, 1))


def groups(
    cosine: float, snr: float, rounds: int, simulations: int, seed: int, dimensions: int = DIMENSIONS
) -> np.ndarray:
    """K [simulations, 2, G, 2, G] of a probe of so many rounds of 2 batches; means of groups are less noisy."""
    each = 2 * rounds / GROUPS
    k = grams(cosine, snr * np.sqrt(each), GROUPS, simulations, np.random.default_rng(seed), dimensions)
    return k.reshape(simulations, 2, GROUPS, 2, GROUPS)


def from_batches(batches: np.ndarray) -> Grams:
    """The Grams of gradients [N, F, R, D], dealt into groups as the probe deals them, by definition."""
    rounds, families, replicates, _ = batches.shape
    count = min(GROUPS, rounds * replicates)
    dealt = batches.swapaxes(0, 1).reshape(families, rounds * replicates, -1)
    means = np.stack([dealt[:, k::count].mean(1) for k in range(count)], 1)
    return Grams(
        np.einsum("nfad,ngbd->nfagb", batches, batches),
        np.einsum("fkd,gld->fkgl", means, means),
        np.einsum("fkd,gld->fkgl", np.abs(means), np.abs(means)),
    )


def batches(cosine: float, snr: float, seed: int, dimensions: int = 400, rounds: int = 24) -> np.ndarray:
    """Gradients [N, 2, 2, D]: expected ones of norms 1 and 2 with this cosine, signal-to-noise `snr` in a batch."""
    rng = np.random.default_rng(seed)
    mean = np.zeros((2, dimensions))
    mean[:, :2] = expected(cosine)
    noise = rng.normal(size=(rounds, 2, 2, dimensions)) / (snr * np.sqrt(dimensions))
    return (mean[:, None] + noise) * np.asarray([1.0, 2.0])[:, None, None]


def block(**changes: Any) -> BlockMeasures:
    """A block without any gradient, but for the given measures."""
    nothing = describe(Grams(np.zeros((2, 2, 2, 2, 2)), np.zeros((2, 4, 2, 4))))
    return dataclasses.replace(nothing, **changes)
