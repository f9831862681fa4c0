"""Gradient accumulation: a batch's gradient from micro-batches of its rows, one of which is in memory at a time.

A loss that is a mean over words or masked tokens is not the mean of the micro-batches' losses, since these hold
different numbers of them. Each micro-batch counts by its share of what the whole batch's loss averages over
(`Family.counts`), so loss, metrics and gradients are those of the whole batch but for rounding. Only dropout differs:
each micro-batch draws its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprefit.families.base import Family

Found = tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]
"""Loss, metrics, gradients by path."""


def accumulated(
    family: Family,
    gradients: Callable[[Mapping, jax.Array | None], Found],
    batch: Mapping[str, Any],
    parts: int,
    key: jax.Array | None,
) -> Found:
    """What `gradients(batch, key)` gives, from `parts` micro-batches; `parts` must divide the batch's rows."""
    whole = family.counts(batch)
    kept = {name: x for name, x in batch.items() if name in family.of_batch}
    rows = len(batch["input_ids"])

    def split(x: jax.Array) -> jax.Array:
        # Row r goes to micro-batch r % parts: devices hold blocks of neighbouring rows, so no row moves.
        return x.reshape(rows // parts, parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

    def scaled(index: jax.Array, some: Mapping) -> Found:
        micro = {**kept, **some}
        loss, metrics, grads = gradients(micro, None if key is None else jax.random.fold_in(key, index))
        share = {name: n / jnp.maximum(whole[name], 1) for name, n in family.counts(micro).items()}
        means = {name: value * share.get(name, 1) for name, value in metrics.items()}  # what has no count is a sum
        return loss * share["loss"], means, jax.tree.map(lambda g: g * share["loss"], grads)

    def add(total: Found, part: tuple[jax.Array, Mapping]) -> tuple[Found, None]:
        return jax.tree.map(jnp.add, total, scaled(*part)), None

    stacked = jnp.arange(parts), {name: split(x) for name, x in batch.items() if name not in kept}
    shapes = jax.eval_shape(scaled, *jax.tree.map(lambda x: x[0], stacked))
    return jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), stacked)[0]
