"""Methods that give every family an equal part, each in a sense of its own. A zero gradient gets weight 0."""

import jax
import jax.numpy as jnp

from jaxprefit.surgery.base import RIDGE, correlation

NASH_ITERATIONS = 30
PARALLEL = 1e-5  # eigenvalues of a correlation matrix below it are noise of float32
SINGULAR = 1e-6  # the same, over the largest, where no inverse is taken
SWEEPS = 8  # of rotations over all pairs; five gradients need about five


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

    Aligned-MTL, Senushkin et al., 2023 (CVPR), arXiv 2305.19000. As there, directions that are numerically no part of
    the gradients' span do not count as singular values: here those in which unit gradients differ by less than float32
    can tell (`SINGULAR`), however much the gradients' lengths differ.
    """
    return balance(gram).sum(0)


def balance(gram: jax.Array) -> jax.Array:
    """B [F, F], of which row i times the gradients is family i's balanced gradient. B M B = lambda_min on M's range."""
    norms, cosines, alive = correlation(gram)
    values, vectors = jnp.linalg.eigh(cosines)
    kept = values > SINGULAR * values[-1]
    rank = kept.sum() - (~alive).sum()  # a gradient that is zero has a direction of its own in `cosines`
    # The gradients in coordinates of their span, one a column: unit vectors first, then times their lengths.
    units = jnp.where(kept, jnp.sqrt(jnp.maximum(values, 0.0)), 0.0)[:, None] * vectors.T
    lengths = jnp.where(alive, norms, 0.0)
    singular, left = _singular(units * lengths / jnp.maximum(lengths.max(), 1e-30))
    inside = jnp.argsort(jnp.argsort(-singular)) < rank
    least = jnp.min(jnp.where(inside, singular, jnp.inf))
    scale = jnp.where(inside, least / jnp.where(inside, singular, 1.0), 0.0)
    return (left * scale) @ left.T


def _singular(columns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Singular values [F] and right singular vectors [F, F], as columns, of a matrix [F, F].

    One-sided Jacobi rotations, which make the columns orthogonal in pairs. Where columns of different length are
    otherwise far from parallel, each value keeps the relative accuracy of float32 (Demmel and Veselic, 1992), while
    methods that first reduce the whole matrix, as LAPACK's, lose those below 1e-7 of the largest.
    """
    n = columns.shape[1]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]

    def sweep(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, v = state
        for i, j in pairs:
            product = a[:, i] @ a[:, j]
            ratio = (a[:, j] @ a[:, j] - a[:, i] @ a[:, i]) / jnp.where(product == 0, 1.0, 2 * product)
            tangent = jnp.where(ratio < 0, -1.0, 1.0) / (jnp.abs(ratio) + jnp.hypot(ratio, 1.0))
            tangent = jnp.where(product == 0, 0.0, tangent)
            cosine = jax.lax.rsqrt(1 + tangent**2)
            a, v = (_rotated(x, i, j, cosine, cosine * tangent) for x in (a, v))
        return a, v

    columns, vectors = jax.lax.fori_loop(0, SWEEPS, sweep, (columns, jnp.eye(n)))
    return jnp.linalg.norm(columns, axis=0), vectors


def _rotated(x: jax.Array, i: int, j: int, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """`x` with its columns i and j turned into each other."""
    first, second = cosine * x[:, i] - sine * x[:, j], sine * x[:, i] + cosine * x[:, j]
    return x.at[:, i].set(first).at[:, j].set(second)


def _equal_angles(gram: jax.Array) -> jax.Array:
    """a with d = sum_i a_i g_i / |g_i| at an equal angle to all gradients; 0 where there is none."""
    _, cosines, alive = correlation(gram)
    values, vectors = jnp.linalg.eigh(cosines)
    inverse = jnp.where(values > PARALLEL, 1 / jnp.maximum(values, PARALLEL), 0.0)
    return jnp.where(alive, vectors @ (inverse * (vectors.T @ jnp.where(alive, 1.0, 0.0))), 0.0)
