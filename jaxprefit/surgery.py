"""Aggregators: from the families' Gram matrix to the weights of their gradients.

A shared group is updated with sum_i w_i g_i. An aggregator is a pure function M [F, F] -> w [F] with
M[i, j] = <g_i, g_j>, so it costs nothing beside the Gram matrix, and shards trivially.
"""

import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprefit.errors import UserError

Aggregator = Callable[[jax.Array], jax.Array]


def weighted_sum(gram: jax.Array) -> jax.Array:
    """w_i = 1: the sum of what each family contributes, clipped and weighted as it is by then."""
    return jnp.ones(gram.shape[0])


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


AGGREGATORS: dict[str, Aggregator] = {"sum": weighted_sum, "pcgrad": pcgrad}


def get(name: str) -> Aggregator:
    """The aggregator `name`; UserError for an unknown one."""
    if name not in AGGREGATORS:
        near = difflib.get_close_matches(name, AGGREGATORS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(AGGREGATORS)}"
        raise UserError(f"aggregator '{name}' is unknown; {hint}")
    return AGGREGATORS[name]
