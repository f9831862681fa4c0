"""Methods that look for the smallest or the least harmful combination on the simplex."""

import jax
import jax.numpy as jnp

from jaxprefit.surgery.base import correlation, solve_on, supports

CAGRAD_C = 0.5


def mgda(gram: jax.Array) -> jax.Array:
    """w on the simplex with the least |sum_i w_i g_i|: <g_i, d> >= |d|^2 for all i.

    Desideri, 2012; Sener and Koltun, 2018, arXiv 1810.04650. It follows the family with the smallest gradient, and
    stands still where one is zero.
    """
    norms, cosines = _scaled(gram)
    support = supports(len(gram))[1:]
    smallest = norms.min() / norms
    w = _on_simplex(smallest * solve_on(support, cosines, smallest), support)
    return w[jnp.argmin(_square(w * norms, cosines))]


def cagrad(gram: jax.Array, c: float = CAGRAD_C) -> jax.Array:
    """The direction d with the best worst case, max_d min_i <g_i, d> for |d - g_0| <= c |g_0|, g_0 the mean gradient.

    d = g_0 + c |g_0| g_w / |g_w| with w on the simplex that minimises <g_w, g_0> + c |g_0| |g_w|. Liu et al., 2021,
    arXiv 2110.14048, without their optional division by 1 + c^2.
    """
    norms, cosines = _scaled(gram)
    n = len(gram)
    support = supports(n)[1:]
    to_mean = cosines @ norms / n  # <u_i, g_0>
    radius = c * jnp.sqrt(jnp.maximum(norms @ to_mean / n, 0.0))
    # Where the minimum lies inside a face, M w radius / |g_w| = value 1 - <g, g_0> there, and the value solves
    # a quadratic equation.
    a = solve_on(support, cosines, 1 / norms) / norms
    b = solve_on(support, cosines, to_mean) / norms
    aa, ab = a.sum(1), b.sum(1)
    bb = jnp.sum(b * norms * to_mean * support, 1)
    value = (ab + jnp.sqrt(jnp.maximum(ab**2 - aa * (bb - radius**2), 0.0))) / aa
    w = _on_simplex(value[:, None] * a - b, support)
    length = jnp.sqrt(_square(w * norms, cosines))
    best = jnp.argmin((w * norms) @ to_mean + radius * length)
    return 1 / n + w[best] * radius / jnp.maximum(length[best], 1e-7)


def _scaled(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(norms relative to the largest, cosines). Norms are at least 1e-6, which keeps what follows inside float32."""
    norms, cosines, alive = correlation(gram)
    norms = jnp.where(alive, norms, 0.0)
    return jnp.maximum(norms / jnp.maximum(norms.max(), 1e-30), 1e-6), cosines


def _on_simplex(x: jax.Array, support: jax.Array) -> jax.Array:
    """[S, F], each row made non-negative with sum 1; even over the subset where nothing is positive."""
    x = jnp.maximum(x, 0.0)
    total = x.sum(1, keepdims=True)
    even = support / support.sum(1, keepdims=True)
    return jnp.where(total > 0, x / jnp.where(total > 0, total, 1.0), even)


def _square(v: jax.Array, cosines: jax.Array) -> jax.Array:
    """|sum_i v_i u_i|^2 of each row of `v` [S, F]."""
    return jnp.maximum(jnp.sum(v @ cosines * v, 1), 0.0)
