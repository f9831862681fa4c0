"""Methods that project conflicting gradients. Without a conflict PCGrad and UPGrad are the sum."""

import jax
import jax.numpy as jnp

from jaxprefit.surgery.base import correlation, solve_on, supports

GRADVAC_DECAY = 0.01  # of the moving average of cosines
GRADVAC_LIMIT = 0.999  # a target cosine of 1 cannot be reached by a finite step


def pcgrad(gram: jax.Array) -> jax.Array:
    """Each gradient loses its component along every other gradient it conflicts with; then the sum.

    Yu et al., 2020, arXiv 2001.06782, with the others taken in table order instead of random order; for two families
    there is no order.
    """
    n = gram.shape[0]
    coefficients = jnp.eye(n)  # row i: g_i's projection in terms of the original gradients
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            inner = coefficients[i] @ gram[:, j]
            step = jnp.minimum(inner, 0.0) / jnp.maximum(gram[j, j], 1e-30)
            coefficients = coefficients.at[i, j].add(-step)
    return coefficients.sum(0)


def init_gradvac(families: int) -> dict[str, jax.Array]:
    """Targets of 0, with which GradVac is PCGrad."""
    return {"targets": jnp.zeros((families, families))}


def gradvac(gram: jax.Array, losses: jax.Array, state: dict) -> tuple[jax.Array, dict]:
    """Where g_i's cosine with g_j is below the pair's target, as much of g_j is added to g_i as brings it there; then
    the sum. A target is the moving average of the pair's cosines.

    Gradient Vaccine, Wang et al., 2021, arXiv 2010.05874, there per block of parameters; the others in table order.
    """
    norms, cosines, alive = correlation(gram)
    n = gram.shape[0]
    coefficients, targets = jnp.eye(n), state["targets"]  # row i: g_i / |g_i| in terms of all unit gradients
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            row, target = coefficients[i], targets[i, j]
            norm = jnp.sqrt(jnp.maximum(row @ cosines @ row, 0.0))
            found = jnp.clip(row @ cosines[:, j] / jnp.maximum(norm, 1e-6), -1.0, 1.0)
            wanted = jnp.clip(target, -GRADVAC_LIMIT, GRADVAC_LIMIT)
            step = norm * (wanted * jnp.sqrt((1 - found**2) / (1 - wanted**2)) - found)
            both = alive[i] & alive[j]
            coefficients = coefficients.at[i, j].add(jnp.where(both & (found < wanted), step, 0.0))
            moved = (1 - GRADVAC_DECAY) * target + GRADVAC_DECAY * found
            targets = targets.at[i, j].set(jnp.where(both, moved, target))
    return _sum_of_rows(coefficients, norms), {"targets": targets}


def upgrad(gram: jax.Array) -> jax.Array:
    """Each gradient is projected on the cone of directions in which no loss grows; then the sum.

    Quinton and Rey, 2024, arXiv 2406.16232. The projection of u_i is u_i + sum_j x_j u_j with x >= 0 that minimises
    the length. For two families it is PCGrad.
    """
    norms, cosines, _ = correlation(gram)
    support = supports(len(gram))

    def project(i: jax.Array) -> jax.Array:
        start = cosines[i]
        x = solve_on(support, cosines, -start)
        violation = jnp.maximum(jnp.max(-x, 1), jnp.max(-(x @ cosines + start), 1))
        return jnp.maximum(x[jnp.argmin(violation)], 0.0)

    return _sum_of_rows(jnp.eye(len(gram)) + jax.vmap(project)(jnp.arange(len(gram))), norms)


def _sum_of_rows(coefficients: jax.Array, norms: jax.Array) -> jax.Array:
    """Weights of the gradients from rows in terms of unit gradients, row i for g_i / |g_i|."""
    return (coefficients * (norms[:, None] / norms)).sum(0)
