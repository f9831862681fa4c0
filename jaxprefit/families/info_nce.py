"""Symmetric InfoNCE on text vectors: copies masked, hard negatives, learned temperature, truncated dimensions.

Under jit the similarity matrix is that of the whole batch however its rows are spread over devices, so negatives come
from all of them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprefit.encoder.transformer import unit

MAX_SCALE = 100.0  # of the logits, 1 / temperature; the bound of CLIP (arXiv 2103.00020)


class Texts(NamedTuple):
    """One side of a batch of N pairs: `vectors` [N, D] float32; `key` [N] int32, equal for texts that the encoder
    cannot tell apart; `there` [N]
    bool, False where the batch has no such text."""

    vectors: jax.Array
    key: jax.Array
    there: jax.Array


def info_nce(a: Texts, b: Texts, scale: jax.Array | float, c: Texts | None = None) -> tuple[jax.Array, jax.Array]:
    """Symmetric InfoNCE, pair i being row i of `a` and of `b`; and the accuracy of a -> b.

    Logits are `scale` times cosines. `c` are hard negatives: further candidates for every a. A text that equals the
    wanted one, or the one that asks, is no negative: (i, j) is left out where b_j is the same text as b_i, a_j the
    same as a_i, or a_i the same as b_j; and (i, c_j) where c_j is the same text as a_i or b_i. The loss is the mean
    over the pairs that are there; one without any negative adds 0 to it. The accuracy is the share of the pairs with a
    negative whose a finds its b: NaN where no pair has one, since then nothing was asked.
    """
    there, own = a.there & b.there, jnp.eye(len(a.there), dtype=bool)
    copies = (a.key[:, None] == a.key) | (b.key[:, None] == b.key) | (a.key[:, None] == b.key)
    negative = ~own & ~copies & there[:, None] & there
    asked = there & negative.any(1)
    left = unit(a.vectors)
    logits = jnp.where(own | negative, scale * (left @ unit(b.vectors).T), -jnp.inf)  # [N, N]
    rows = logits
    if c is not None:
        negative = ~((a.key[:, None] == c.key) | (b.key[:, None] == c.key)) & c.there
        asked |= there & negative.any(1)
        hard = jnp.where(negative, scale * (left @ unit(c.vectors).T), -jnp.inf)
        rows = jnp.concatenate([logits, hard], 1)  # [N, 2 N]
    labels = jnp.arange(len(there))
    losses = optax.softmax_cross_entropy_with_integer_labels(rows, labels)
    losses += optax.softmax_cross_entropy_with_integer_labels(logits.T, labels)
    count = jnp.maximum(there.sum(), 1)
    correct = asked & (rows.argmax(1) == labels)
    return jnp.where(there, losses, 0.0).sum() / (2 * count), correct.sum() / asked.sum()


def truncated_info_nce(
    a: Texts, b: Texts, scale: jax.Array | float, c: Texts | None = None, dims: Sequence[int] = ()
) -> tuple[jax.Array, jax.Array]:
    """Mean of `info_nce` over all dimensions and over the first d of them for each d in `dims`, each made unit again.

    Matryoshka representations (Kusupati et al., 2022, arXiv 2205.13147). The accuracy is of all dimensions.
    """

    def first(texts: Texts, d: int) -> Texts:
        return texts._replace(vectors=texts.vectors[:, :d])

    whole, accuracy = info_nce(a, b, scale, c)
    parts = [info_nce(first(a, d), first(b, d), scale, c and first(c, d))[0] for d in dims]
    return sum(parts, whole) / (1 + len(parts)), accuracy


@jax.custom_vjp
def clipped_scale(log_scale: jax.Array) -> jax.Array:
    """exp(log_scale), at most MAX_SCALE.

    CLIP clips the parameter after each step. Here the parameter is free and its gradient vanishes only where descent
    would take it further past the bound; so, as in CLIP, it can come back.
    """
    return jnp.minimum(jnp.exp(log_scale), MAX_SCALE)


def _forward(log_scale: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    scale = clipped_scale(log_scale)
    return scale, (log_scale, scale)


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    log_scale, scale = residuals
    slope = cotangent * scale
    return (jnp.where((log_scale >= math.log(MAX_SCALE)) & (slope < 0), 0.0, slope),)


clipped_scale.defvjp(_forward, _backward)
