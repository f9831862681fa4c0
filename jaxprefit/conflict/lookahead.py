"""What a step on one family does to the others' held-out losses: measured, and predicted from the gradient.

The measured part is the inter-task affinity of Fifty et al., arXiv 2109.04617 (TAG); the predictions are its expansion
in the step. Where they agree, the transfer that Gram matrices predict (`noise.transfer`) is what happens.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprefit.conflict.curvature import dot, hessian_vector
from jaxprefit.gram import Flat

Loss = Callable[[str, Mapping[str, jax.Array], Any], jax.Array]
"""(family, parameters by path, batch) -> its loss, a scalar, without dropout."""


class Affinity(NamedTuple):
    """Z[b, i, j] = 1 - L_j(theta + u_i) / L_j(theta) on held batch b of family j; above zero a step on i helps j.

    NaN where L_j is zero or where family j has fewer held batches.
    """

    measured: np.ndarray  # [B, F, F]
    first: np.ndarray  # [B, F, F] predicted, -<g_j, u_i> / L_j
    second: np.ndarray  # [B, F, F] predicted, -(<g_j, u_i> + u_i^T H_j u_i / 2) / L_j


def look_ahead(loss: Loss, params: Flat, updates: Mapping[str, Flat], held: Mapping[str, Sequence[Any]]) -> Affinity:
    """Families in the order of `updates`, u_i by path: what is added to `params` (`preconditioned.update`).

    The updates have to come from other batches than `held`, and g_j is taken on the held batch itself.
    """
    names = list(updates)
    shape = max(len(held[name]) for name in names), len(names), len(names)
    found = Affinity(*(np.full(shape, np.nan) for _ in Affinity._fields))
    for j, name in enumerate(names):
        change = _compiled(loss, name)
        for b, batch in enumerate(held[name]):
            for i, other in enumerate(names):
                for z, value in zip(found, change(dict(params), dict(updates[other]), batch)):
                    z[b, i, j] = value
    return found


@functools.lru_cache(maxsize=8)
def _compiled(loss: Loss, name: str) -> Callable[..., tuple[jax.Array, ...]]:
    """Once for all calls with this `loss`."""
    return jax.jit(lambda p, u, batch: _change(lambda q: loss(name, q, batch), p, u))


def _change(loss: Callable, params: dict[str, jax.Array], update: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Relative decrease of `loss` by `update`: measured, to first and to second order."""
    before, gradient = jax.value_and_grad(loss)(params)
    after = loss({**params, **{path: params[path] + u for path, u in update.items()}})
    slope = dot(update, gradient)
    bend = dot(update, hessian_vector(loss, params, update)) / 2
    whole = jax.numpy.where(before == 0, jax.numpy.nan, before)
    return (before - after) / whole, -slope / whole, -(slope + bend) / whole
