"""Where the vectors of concepts come from: a frozen encoder, a trained one, or a learned table.

All three start alike: the start encoder's mean-pooled vectors of the concept names, centred over the vocabulary (raw
ones all point the same way). `frozen` keeps them. `table` learns one vector per concept from there, dense: the
optimizer moves the whole table in each step, so it suits vocabularies of thousands. `trained` encodes the names of the
batch's concepts in every step by a copy of the start encoder, trained beside the backbone and discarded afterwards, as
NuNER (arXiv 2402.15343) does.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.tokenization import batches_by_length, encode_text, pad_ids
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, mean_pool, unit
from jaxprefit.families.base import Encode

NAME_LENGTH = 32  # tokens of a concept's name; a longer one is cut
CHUNK = 512  # names encoded at once


class ConceptSide(abc.ABC):
    """One way to vectors of concepts; `constants` and `encoders` are subtrees of the family's head."""

    name: ClassVar[str]
    constants: ClassVar[tuple[str, ...]] = ()
    encoders: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def init(self, start: Pretrained) -> dict:
        """Its part of the head."""

    @abc.abstractmethod
    def collate(self, concepts: np.ndarray) -> dict[str, np.ndarray]:
        """Its part of a batch about `concepts` [K] int32."""

    @abc.abstractmethod
    def vectors(self, head: Mapping, encode: Encode, batch: Mapping) -> jax.Array:
        """Vectors [K, D] float32 of the batch's concepts."""


@dataclasses.dataclass(frozen=True)
class TableSide(ConceptSide):
    """Head: concepts [C, D]. Batch: concepts [K] int32."""

    name = "table"

    tokenizer: tokenizers.Tokenizer
    names: tuple[str, ...]

    def init(self, start: Pretrained) -> dict:
        vectors = name_vectors(start, self.names)
        return {"concepts": unit(jnp.asarray(vectors - centre(vectors)))}

    def collate(self, concepts: np.ndarray) -> dict[str, np.ndarray]:
        return {"concepts": concepts}

    def vectors(self, head: Mapping, encode: Encode, batch: Mapping) -> jax.Array:
        return head["concepts"][batch["concepts"]]


class FrozenSide(TableSide):
    """As TableSide, but never trained."""

    name = "frozen"
    constants = ("concepts",)


@dataclasses.dataclass(frozen=True)
class TrainedSide(ConceptSide):
    """Head: encoder, and centre [D], a constant. Batch: concept_ids [K, N] int32, concept_sizes [K] int32."""

    name = "trained"
    constants = ("centre",)
    encoders = ("encoder",)

    tokenizer: tokenizers.Tokenizer
    names: tuple[str, ...]

    @functools.cached_property
    def length(self) -> int:
        """N: tokens of the longest name, in eights."""
        return _in_eights(max(len(encode_text(self.tokenizer, n, NAME_LENGTH)) for n in self.names))

    def init(self, start: Pretrained) -> dict:
        vectors = name_vectors(start, self.names)
        return {"encoder": jax.tree.map(jnp.array, start.params), "centre": jnp.asarray(centre(vectors))}

    def collate(self, concepts: np.ndarray) -> dict[str, np.ndarray]:
        rows = [encode_text(self.tokenizer, self.names[c], NAME_LENGTH) for c in concepts]
        return {
            "concept_ids": pad_ids(rows, self.length)[0],
            "concept_sizes": np.asarray([len(r) for r in rows], np.int32),
        }

    def vectors(self, head: Mapping, encode: Encode, batch: Mapping) -> jax.Array:
        mask = jnp.arange(self.length) < batch["concept_sizes"][:, None]
        return mean_pool(encode.with_params(head["encoder"], batch["concept_ids"], mask), mask) - head["centre"]


SIDES: dict[str, Callable[[tokenizers.Tokenizer, tuple[str, ...]], ConceptSide]] = {
    side.name: side for side in (FrozenSide, TrainedSide, TableSide)
}


def name_vectors(start: Pretrained, names: Sequence[str]) -> np.ndarray:
    """Mean-pooled vectors [C, D] float32 of names, encoded a chunk of about equal lengths at a time."""
    rows = [encode_text(start.tokenizer, name, NAME_LENGTH) for name in names]
    out = np.zeros((len(rows), start.config.hidden_size), np.float32)
    params = jax.tree.map(jnp.asarray, start.params)  # onto the device once
    for numbers, ids, mask in batches_by_length(rows, min(CHUNK, len(rows)), _in_eights):
        out[numbers] = _pooled(start.config, params, ids, mask)[: len(numbers)]
    return out


def centre(vectors: np.ndarray) -> np.ndarray:
    """The mean [D] of vectors [C, D]; zero for a single one, which would lose itself."""
    return vectors.mean(0) if len(vectors) > 1 else np.zeros_like(vectors[0])


@functools.partial(jax.jit, static_argnums=0)
def _pooled(config: EncoderConfig, params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return mean_pool(cast(jax.Array, Encoder(config).apply({"params": params}, ids, mask)), mask)


def _in_eights(length: int) -> int:
    return -(-length // 8) * 8
