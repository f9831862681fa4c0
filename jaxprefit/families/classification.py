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
from jaxprefit.data.encode import encode_text, pad_ids
from jaxprefit.encoder import mean_pool, unit
from jaxprefit.families.base import Encode, Family
from jaxprefit.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class ClassificationFamily(Family):
    """Batch: a_ids, b_ids [B, L] int32; a_mask, b_mask [B, L] bool; a_key, b_key [B] int32, equal for equal texts."""

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
        example: dict[str, Any] = {}
        for side in ("a", "b"):
            example[f"{side}_ids"] = encode_text(self.tokenizer, record[side], self.max_length)
            # 32 bits: a chance collision in a batch only drops one negative.
            example[f"{side}_key"] = zlib.crc32(record[side].encode()) & 0x7FFFFFFF
        return example

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        batch: dict[str, np.ndarray] = {}
        for side in ("a", "b"):
            batch[f"{side}_ids"], batch[f"{side}_mask"] = pad_ids([e[f"{side}_ids"] for e in examples], self.max_length)
            batch[f"{side}_key"] = np.asarray([e[f"{side}_key"] for e in examples], np.int32)
        return batch

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        # One pass over both sides: twice the batch keeps matrices large.
        ids = jnp.concatenate([batch["a_ids"], batch["b_ids"]])
        mask = jnp.concatenate([batch["a_mask"], batch["b_mask"]])
        vectors = unit(mean_pool(encode(ids, mask), mask))
        a, b = jnp.split(vectors, 2)
        loss, accuracy = info_nce(a, b, batch["a_key"], batch["b_key"], self.temperature)
        return loss, {"accuracy": accuracy}


def info_nce(
    a: jax.Array, b: jax.Array, a_key: jax.Array, b_key: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Symmetric InfoNCE of unit vectors a, b [B, D], row i of a belonging to row i of b, and the a -> b accuracy.

    Pair (i, j) is no negative where b_j is the same text as b_i, a_j the same as a_i, or one the other's copy.
    """
    logits = (a @ b.T) / temperature
    copies = (a_key[:, None] == a_key) | (b_key[:, None] == b_key) | (a_key[:, None] == b_key)
    own = jnp.eye(len(a), dtype=bool)
    logits = jnp.where(copies & ~own, -jnp.inf, logits)
    labels = jnp.arange(len(a))
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    columns = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels)
    return (rows.mean() + columns.mean()) / 2, (logits.argmax(1) == labels).mean()
