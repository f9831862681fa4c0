"""Aggregators: from the families' Gram matrix to the weights of their gradients.

A shared parameter is updated with sum_i w_i g_i. A method computes w [F] from M [F, F], M[i, j] = <g_i, g_j>, and some
of them from the losses and a small state, so it costs nothing beside the Gram matrix, and shards trivially. The
gradients are those after each family's clipping and static weight (`data.F.loss_weight`). Methods keep the lengths of
their papers: some sum the gradients and some average them, which hardly matters to Adam.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprefit.errors import UserError
from jaxprefit.surgery import balancing, losses, minimum_norm, projection
from jaxprefit.surgery.base import Method, stateless


def weighted_sum(gram: jax.Array) -> jax.Array:
    """w_i = 1: the sum of what each family contributes, clipped and weighted as it is by then."""
    return jnp.ones(gram.shape[0])


METHODS: dict[str, Method] = {
    "sum": stateless(weighted_sum),
    "uncertainty": Method(losses.uncertainty, losses.init_uncertainty),
    "gradnorm": Method(losses.gradnorm, losses.init_gradnorm),
    "famo": Method(losses.famo, losses.init_famo),
    "pcgrad": stateless(projection.pcgrad),
    "gradvac": Method(projection.gradvac, projection.init_gradvac),
    "upgrad": stateless(projection.upgrad),
    "mgda": stateless(minimum_norm.mgda),
    "cagrad": stateless(minimum_norm.cagrad),
    "imtl_g": stateless(balancing.imtl_g),
    "config": stateless(balancing.config),
    "nash_mtl": stateless(balancing.nash_mtl),
    "aligned_mtl": stateless(balancing.aligned_mtl),
}
SCOPES = ("whole", "block")


@dataclasses.dataclass(frozen=True)
class Aggregator:
    """A method at a granularity: one vector of weights for all shared parameters, or one for each block of them."""

    method: Method
    scope: str = "whole"

    def group(self, block: str) -> str:
        """The name of the group of blocks that share weights."""
        return "whole" if self.scope == "whole" else block

    def init(self, families: int, blocks: Sequence[str]) -> Any:
        """The state at step 0: a row per group, in the order of their names."""
        rows = len({self.group(block) for block in blocks})
        return jax.tree.map(lambda x: jnp.stack([x] * rows), self.method.init(families)) if rows else ()

    def __call__(
        self, grams: Mapping[str, jax.Array], losses: jax.Array, state: Any, present: Sequence[int]
    ) -> tuple[dict[str, jax.Array], Any]:
        """(group -> weights [P], the next state) from each group's Gram matrix [P, P] and the losses [P] of the
        families numbered `present`; the part of the state that belongs to the others stays as it is."""
        names = sorted(grams)

        def part(x: jax.Array) -> tuple[np.ndarray, ...]:
            return np.ix_(range(len(names)), *[present] * (x.ndim - 1))

        old = jax.tree.map(lambda x: x[part(x)], state)
        stacked = jnp.stack([grams[name] for name in names])
        weights, new = jax.vmap(self.method.weights, in_axes=(0, None, 0))(stacked, losses, old)
        return dict(zip(names, weights)), jax.tree.map(lambda x, y: x.at[part(x)].set(y), state, new)


def get(name: str, scope: str = "whole") -> Aggregator:
    """The aggregator `name`; UserError for an unknown one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METHODS)}"
        raise UserError(f"aggregator '{name}' is unknown; {hint}")
    return Aggregator(METHODS[name], scope)
