"""Aggregators: from the families' Gram matrix to the weights of their gradients.

A shared parameter is updated with sum_i w_i g_i. A method computes w [F] from M [F, F], M[i, j] = <g_i, g_j>, and some
of them from the losses and a small state, so it costs nothing beside the Gram matrix, and shards trivially. The
gradients carry each family's static weight (`data.F.loss_weight`). Methods keep the lengths of their papers: some sum
the gradients and some average them, which hardly matters to Adam.

**Gradients of equal norm.** For two of them every method that reads M gives the direction of the plain sum, whatever
their angle: by symmetry the weights are equal. Clipping each family to one norm before surgery makes them so, and
turns it off. So with these methods the combined update is clipped instead (`optimizer.clip`), and so it must be with
'sum' in a fair comparison: `optimizer.clip=combined`. Methods with weights from the losses alone ('sum', 'uncertainty',
'famo') take either.

**Noise.** A batch's gradient is mostly noise: in M it stays on the diagonal and averages out beside it, so that cosines
of single batches are nearer to 0 than those of expected gradients, and vary around that. A moving average of M over
steps (`aggregator_decay`) takes the variation away; the noise on the diagonal stays, and with it cosines near 0.
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
    "sum": stateless(weighted_sum, reads_gram=False),
    "uncertainty": Method(losses.uncertainty, losses.init_uncertainty, reads_gram=False),
    "gradnorm": Method(losses.gradnorm, losses.init_gradnorm),
    "famo": Method(losses.famo, losses.init_famo, reads_gram=False),
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
    """A method at a granularity: one vector of weights for all shared parameters, or one for each block of them.

    With a `decay` above 0 weights come from a moving average of the Gram matrices M_t over steps, M <- decay M +
    (1 - decay) M_t, corrected for its start at 0 as Adam's moments are. Methods that read no M have none.
    """

    method: Method
    scope: str = "whole"
    decay: float = 0.0

    @property
    def averages(self) -> bool:
        """Whether the state holds a moving average."""
        return self.decay > 0 and self.method.reads_gram

    def group(self, block: str) -> str:
        """The name of the group of blocks that share weights."""
        return "whole" if self.scope == "whole" else block

    def init(self, families: int, blocks: Sequence[str]) -> Any:
        """The state at step 0: a row per group, in the order of their names."""
        rows = len({self.group(block) for block in blocks})
        state = self.method.init(families)
        if self.averages:
            zeros = jnp.zeros((families, families))
            state = {"method": state, "average": {"gram": zeros, "weight": zeros}}
        return jax.tree.map(lambda x: jnp.stack([x] * rows), state) if rows else ()

    def __call__(
        self, grams: Mapping[str, jax.Array], losses: jax.Array, state: Any, present: Sequence[int]
    ) -> tuple[dict[str, jax.Array], Any]:
        """(group -> weights [P], the next state) from each group's Gram matrix [P, P] and the losses [P] of the
        families numbered `present`; the part of the state that belongs to the others stays as it is, and all of it
        where a loss or a Gram matrix is not finite."""
        names = sorted(grams)

        def part(x: jax.Array) -> tuple[np.ndarray, ...]:
            return np.ix_(range(len(names)), *[present] * (x.ndim - 1))

        old = jax.tree.map(lambda x: x[part(x)], state)
        stacked = jnp.stack([grams[name] for name in names])
        weights, new = jax.vmap(self._weigh, in_axes=(0, None, 0))(stacked, losses, old)
        finite = jnp.isfinite(stacked).all() & jnp.isfinite(losses).all()
        state = jax.tree.map(lambda x, y: x.at[part(x)].set(jnp.where(finite, y, x[part(x)])), state, new)
        return dict(zip(names, weights)), state

    def _weigh(self, gram: jax.Array, losses: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        if not self.averages:
            return self.method.weights(gram, losses, state)
        # One weight a pair: a pair of families is averaged over the steps that both took part in.
        fresh = {"gram": gram, "weight": jnp.ones_like(gram)}
        average = jax.tree.map(lambda m, x: self.decay * m + (1 - self.decay) * x, state["average"], fresh)
        weights, method = self.method.weights(average["gram"] / average["weight"], losses, state["method"])
        return weights, {"method": method, "average": average}


def get(name: str, scope: str = "whole", decay: float = 0.0) -> Aggregator:
    """The aggregator `name`; UserError for an unknown one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METHODS)}"
        raise UserError(f"aggregator '{name}' is unknown; {hint}")
    return Aggregator(METHODS[name], scope, decay)
