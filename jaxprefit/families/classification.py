"""Text classification (TC): contrastive learning of sentence vectors from weakly paired texts.

Symmetric InfoNCE over mean-pooled, normalised sentence vectors with in-batch negatives, as in E5 (Wang et al., 2022,
arXiv 2212.03533). A text that occurs twice in a batch is no negative of its own copy.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.encode import encode_text
from jaxprefit.data.packing import Packing
from jaxprefit.encoder import pool_segments, unit
from jaxprefit.families.base import Encode, Family
from jaxprefit.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class ClassificationFamily(Family):
    """Batch: input_ids, segments [R, L] int32; a_slot, b_slot [N] int32, where the pooled vectors of each pair stand;
    valid [N] bool, False where there is no pair; a_key, b_key [N] int32, equal for equal texts."""

    name = "tc"
    kind = "pairs"

    tokenizer: tokenizers.Tokenizer
    max_length: int
    temperature: float

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        return cls(tokenizer, config["max_length"], config["temperature"])

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        """No head: the sentence vector is the pooled hidden state itself."""
        return {}

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        texts = record["a"], record["b"]
        return {
            "texts": tuple(encode_text(self.tokenizer, t, self.max_length) for t in texts),
            # 32 bits: a chance collision in a batch only drops one negative.
            "keys": tuple(zlib.crc32(t.encode()) & 0x7FFFFFFF for t in texts),
        }

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        most = packing.layout.slots // 2
        pairs = np.zeros((4, most), np.int32)
        pairs[:2, : len(examples)] = packing.slot.reshape(-1, 2).T
        pairs[2:, : len(examples)] = np.asarray([e["keys"] for e in examples], np.int32).reshape(-1, 2).T
        return {
            "input_ids": packing.lay([t for e in examples for t in e["texts"]]),
            "segments": packing.segments(),
            "valid": np.arange(most) < len(examples),
            **dict(zip(("a_slot", "b_slot", "a_key", "b_key"), pairs)),
        }

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        segments = batch["segments"]
        per_row = 2 * len(batch["valid"]) // len(segments)
        vectors = unit(pool_segments(encode(batch["input_ids"], segments), segments, per_row))
        a, b = vectors[batch["a_slot"]], vectors[batch["b_slot"]]
        loss, accuracy = info_nce(a, b, batch["a_key"], batch["b_key"], batch["valid"], self.temperature)
        return loss, {"accuracy": accuracy}


def info_nce(
    a: jax.Array, b: jax.Array, a_key: jax.Array, b_key: jax.Array, valid: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Symmetric InfoNCE of unit vectors a, b [N, D], row i of a belonging to row i of b, and the a -> b accuracy.

    Rows that are not `valid` [N] are neither pairs nor negatives. Pair (i, j) is no negative where b_j is the same text
    as b_i, a_j the same as a_i, or one the other's copy.
    """
    logits = (a @ b.T) / temperature
    copies = (a_key[:, None] == a_key) | (b_key[:, None] == b_key) | (a_key[:, None] == b_key)
    own = jnp.eye(len(a), dtype=bool)
    # Finite, so that the rows of no pair have no NaN in their gradient.
    logits = jnp.where((copies | ~valid | ~valid[:, None]) & ~own, -1e9, logits)
    labels = jnp.arange(len(a))
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    columns = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels)
    count = jnp.maximum(valid.sum(), 1)
    loss = jnp.where(valid, rows + columns, 0.0).sum() / (2 * count)
    return loss, (valid & (logits.argmax(1) == labels)).sum() / count
