"""Methods that give every family an equal part, each in a sense of its own. A zero gradient gets weight 0."""

import jax
import jax.numpy as jnp

from jaxprefit.surgery.base import RIDGE, correlation

NASH_ITERATIONS = 30
PARALLEL = 1e-5  # eigenvalues of a correlation matrix below it are noise of float32


def imtl_g(gram: jax.Array) -> jax.Array:
    """Equal projections on all unit gradients: <d, g_i / |g_i|> is the same for every i.

    Liu et al., 2021, "Towards Impartial Multi-task Learning" (ICLR). Weights sum to 1, as published, where none is
    negative, which is always so for two families; else their absolute values do: with the published sum, near 0 or
    below it, the step would grow without bound or go uphill.
    """
    norms, _, alive = correlation(gram)
    w = _equal_angles(gram) * jnp.where(alive, norms.min() / norms, 0.0)
    return w / jnp.maximum(jnp.abs(w).sum(), 1e-30)


def config(gram: jax.Array) -> jax.Array:
    """The direction of IMTL-G, as long as the sum of the gradients' projections on it.

    ConFIG, Liu et al., 2024, arXiv 2408.11104. 0 for opposite gradients.
    """
    norms, cosines, alive = correlation(gram)
    a = _equal_angles(gram)
    projections = cosines @ a
    square = jnp.maximum(a @ projections, 0.0)
    total = jnp.sum(jnp.where(alive, norms * projections, 0.0))
    return jnp.where(alive & (square > 0), total * a / (jnp.where(square > 0, square, 1.0) * norms), 0.0)


def nash_mtl(gram: jax.Array) -> jax.Array:
    """The Nash bargaining solution: w_i <g_i, d> = 1 for every i, so that |d|^2 is the number of families.

    Navon et al., 2022, arXiv 2202.01017. Solved for w_i |g_i|, which depends on the cosines only, by damped Newton
    steps on the convex 1/2 x C x - sum_i log x_i; for two families in closed form.
    """
    norms, cosines, alive = correlation(gram)
    n = len(gram)
    c = cosines + RIDGE * jnp.eye(n)
    start = jnp.full(
        n, jnp.sqrt(n / jnp.maximum(c.sum(), n * RIDGE))
    )  # the best with all entries equal, the solution for two families

    def newton(_: int, x: jax.Array) -> jax.Array:
        gradient = x * (c @ x) - 1
        hessian = x[:, None] * c * x + jnp.eye(n)
        step = -jnp.linalg.solve(hessian, gradient)
        decrement = jnp.sqrt(jnp.maximum(-gradient @ step, 0.0))
        return x * (1 + step * jnp.where(decrement < 0.25, 1.0, 1 / (1 + decrement)))

    x = start if n == 2 else jax.lax.fori_loop(0, NASH_ITERATIONS, newton, start)
    return jnp.where(alive, x / norms, 0.0)


def aligned_mtl(gram: jax.Array) -> jax.Array:
    """The sum of gradients made orthogonal and equally long: as long as the smallest singular value of the original.

    Aligned-MTL, Senushkin et al., 2023 (CVPR), arXiv 2305.19000.
    """
    return balance(gram).sum(0)


def balance(gram: jax.Array) -> jax.Array:
    """B [F, F], of which row i times the gradients is family i's balanced gradient. B M B = lambda_min on M's range."""
    values, vectors = jnp.linalg.eigh(gram / jnp.maximum(jnp.trace(gram), 1e-30))
    kept = values > 1e-6 * jnp.maximum(values[-1], 1e-6)
    least = jnp.min(jnp.where(kept, values, 1.0))
    scale = jnp.where(kept, jnp.sqrt(least / jnp.where(kept, values, 1.0)), 0.0)
    return (vectors * scale) @ vectors.T


def _equal_angles(gram: jax.Array) -> jax.Array:
    """a with d = sum_i a_i g_i / |g_i| at an equal angle to all gradients; 0 where there is none."""
    _, cosines, alive = correlation(gram)
    values, vectors = jnp.linalg.eigh(cosines)
    inverse = jnp.where(values > PARALLEL, 1 / jnp.maximum(values, PARALLEL), 0.0)
    return jnp.where(alive, vectors @ (inverse * (vectors.T @ jnp.where(alive, 1.0, 0.0))), 0.0)
