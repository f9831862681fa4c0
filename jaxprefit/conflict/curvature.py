"""Curvature of a loss along an update, from Hessian-vector products, and the tragic triad.

Three things together make conflict harmful (Yu et al., arXiv 2001.06782): gradients that conflict, sizes that differ
much, and high curvature along the joint step. None of them does alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprefit import significance
from jaxprefit.conflict import measures
from jaxprefit.gram import Flat

Loss = Callable[[dict[str, jax.Array]], jax.Array]
"""Parameters by path -> a scalar."""

Product = Callable[[Flat, Flat], Flat]
"""(parameters, v) -> (d^2 L) v by the paths of v: `hessian_vector` of a loss, best jitted once for all calls."""

_NODES, _WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(3))


def dot(a: Flat, b: Flat) -> jax.Array:
    """<a, b> over the paths of `a`, float32."""
    highest = jax.lax.Precision.HIGHEST
    total = jnp.zeros(())
    for path, x in a.items():
        total += jnp.vdot(x.astype(jnp.float32), b[path].astype(jnp.float32), precision=highest)
    return total


def hessian_vector(loss: Loss, params: Flat, vector: Flat) -> dict[str, jax.Array]:
    """(d^2 L) v at `params`, by the paths of `vector`, forward over reverse: about two gradients' worth of work.

    Pearlmutter (1994). Parameters outside `vector` stay fixed.
    """
    fixed = dict(params)
    at = {path: fixed[path] for path in vector}
    gradient = jax.grad(lambda moved: loss({**fixed, **moved}))
    product: dict[str, jax.Array] = jax.jvp(gradient, (at,), (dict(vector),))[1]
    return product


def along(product: Product, params: Flat, update: Flat) -> jax.Array:
    """[] u^T H u / |u|^2 at `params`; NaN for u = 0."""
    return dot(update, product(params, update)) / dot(update, update)


def multi_task_curvature(product: Product, params: Flat, update: Flat, gradient: Flat) -> jax.Array:
    """[] H = int_0^1 g^T (d^2 L at theta + a u) g da over |g|^2: curvature the step meets on its way, per unit length.

    Yu et al., arXiv 2001.06782, the integral before theorem 2; three Gauss-Legendre nodes, exact for losses up to the
    seventh order along the step. L is the sum of the families' losses, g its gradient, u the update.
    """
    total = jnp.zeros(())
    for node, weight in zip(_NODES + 0.5, _WEIGHTS):
        there = {**params, **{path: params[path] + node * u for path, u in update.items()}}
        total += weight * dot(gradient, product(there, gradient))
    return total / dot(gradient, gradient)


def largest(product: Product, params: Flat, start: Flat, iterations: int = 20) -> jax.Array:
    """[] a lower bound of the largest |eigenvalue| of the Hessian over the paths of `start`, the gradient's Lipschitz
    constant here, by power iteration from `start`: any direction, such as the gradient, that the eigenvector is not
    orthogonal to. More iterations bring it nearer."""
    vector, norm = dict(start), jnp.sqrt(dot(start, start))
    for _ in range(iterations):
        vector = dict(product(params, {path: x / jnp.maximum(norm, 1e-30) for path, x in vector.items()}))
        norm = jnp.sqrt(dot(vector, vector))
    return norm


class Triad(NamedTuple):
    """The three conditions for two tasks, each None where undefined or undecided, and all of them together."""

    conflict: bool | None  # (a) cos(g_i, g_j) <= -Phi: they conflict, given how their sizes differ
    curvature: bool | None  # (b) l >= xi L: curvature along the step is high against the bounding measure
    step: bool | None  # (c) eta >= 2 / (l - xi L): the step is long enough to feel it
    flag: bool | None


def tragic_triad(
    gram: np.ndarray,
    cosine: tuple[float, float],
    curvature: np.ndarray,
    lipschitz: np.ndarray,
    learning_rate: float,
) -> Triad:
    """Whether all conditions hold under which a projected step beats the plain one (theorem 2 of arXiv 2001.06782).

    gram [2, 2] of the two gradients (best the expected ones, `products.expected`) and the interval of their `cosine`;
    of n >= 2 batches [n] `curvature` l = H / |g|^2 (`multi_task_curvature`) and `lipschitz` L of the gradient
    (`largest`); `learning_rate` of a plain gradient step. The theorem is about plain steps: for Adam, pass all of it in
    Adam's metric, and read the flag as a hint. A condition is None where its interval holds the threshold: that of the
    cosine, and of l - xi L over the batches. How the sizes differ, and xi, are taken as `gram` has them.
    """
    similarity, bound = (m(gram)[0, 1] for m in (measures.magnitude_similarity, measures.curvature_bound))
    _, low, high, _ = significance.mean_interval(curvature - bound * lipschitz)

    def above(low: float, high: float, threshold: float) -> bool | None:
        if not np.isfinite([low, high, threshold]).all() or low < threshold <= high:
            return None
        return bool(low >= threshold)

    conditions = (
        above(-cosine[1], -cosine[0], similarity),
        above(low, high, 0.0),
        above(learning_rate * low, learning_rate * high, 2.0),
    )
    # One condition that fails settles it, whatever is unknown of the others.
    flag = False if False in conditions else None if None in conditions else True
    return Triad(*conditions, flag)
