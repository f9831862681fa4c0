"""Named entity recognition (NER): token vectors learn entity concepts, after NuNER (arXiv 2402.15343).

A word's vector (at its first sub-word) is scored against every concept by a sigmoid over their product. Concepts are
the readable names of the sources' entity types; their vectors are the start encoder's mean-pooled vectors of those
names, computed once, centred over the vocabulary, and projected by a trained matrix that starts as the identity.

Words and concepts are compared as unit vectors with a learned scale and bias (as SigLIP, arXiv 2303.15343), so that
the loss starts in the same range whatever the encoder's norm. A word outside any entity is a negative for every type
its source annotates; a type that the source does not annotate is neither positive nor negative there.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.encode import encode_text, encode_words, pad_ids
from jaxprefit.data.packing import Packing
from jaxprefit.encoder import Encoder, mean_pool, unit
from jaxprefit.errors import UserError
from jaxprefit.families.base import Encode, Family
from jaxprefit.pretrained import Pretrained

IGNORE = -1  # not a first sub-word
OUTSIDE = -2  # a word outside any entity

# What no rule can know. Keys are lower case.
ABBREVIATIONS = {
    "per": "person", "loc": "location", "org": "organization", "misc": "miscellaneous name", "gpe": "country or city",
    "fac": "facility", "veh": "vehicle", "grp": "group", "prod": "product", "ggp": "gene or gene product",
    "chebi": "chemical entity", "so": "sequence feature", "go": "biological process or cell component",
    "cl": "cell type", "taxon": "organism species",
}  # fmt: skip


def concept_name(label: str) -> str:
    """A readable name for an entity type: 'city_of_event' -> 'city of event', 'OtherPER' -> 'other person'."""
    words = re.sub(r"[_\-/]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)).lower().split()
    return " ".join(ABBREVIATIONS.get(w, w) for w in words)


@dataclasses.dataclass(frozen=True)
class NerFamily(Family):
    """Batch: input_ids, segments [R, L] int32; labels [R, L] int32 (concept index, OUTSIDE or IGNORE); annotated
    [R, S, C] bool: the concepts that the source of a row's s-th text annotates."""

    name = "ner"
    kind = "ner"
    constants = ("head/ner/concepts",)

    tokenizer: tokenizers.Tokenizer
    max_length: int
    concepts: tuple[str, ...]
    annotated: Mapping[str, np.ndarray]  # source -> [C] bool

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Concept -> its number."""
        return {c: i for i, c in enumerate(self.concepts)}

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        by_source = {s.name: {concept_name(t) for t in s.types} for s in sources}
        for source, types in by_source.items():
            if not types:
                raise UserError(f"NER source '{source}' has no entity in any of its rows; leave it out")
        concepts = tuple(sorted(set().union(*by_source.values())))
        annotated = {s: np.asarray([c in types for c in concepts]) for s, types in by_source.items()}
        return cls(tokenizer, config["max_length"], concepts, annotated)

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        ids, mask = pad_ids([encode_text(self.tokenizer, c, 32) for c in self.concepts], 32)
        hidden = jax.jit(Encoder(start.config).apply)({"params": start.params}, ids, mask)
        vectors = mean_pool(hidden, jnp.asarray(mask))
        if len(self.concepts) > 1:  # one centred on itself would be zero
            vectors = vectors - vectors.mean(0)
        return {
            "concepts": unit(vectors),  # [C, D]
            "projection": {"kernel": jnp.eye(start.config.hidden_size)},
            "log_scale": jnp.asarray(np.log(20.0), jnp.float32),
            "bias": jnp.asarray(-10.0, jnp.float32),  # most pairs of word and concept are negatives
        }

    def describe(self) -> dict[str, Any]:
        return {"concepts": list(self.concepts)}

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        ids, first = encode_words(self.tokenizer, record["tokens"], self.max_length)
        labels = np.full(len(ids), IGNORE, np.int32)
        for tag, position in zip(record["tags"], first):  # words past max_length have no position
            labels[position] = OUTSIDE if tag == "O" else self.index[concept_name(tag[2:])]
        return {"texts": (ids,), "labels": labels, "annotated": self.annotated[source]}

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        layout = packing.layout
        annotated = np.zeros((layout.rows, layout.per_row, len(self.concepts)), bool)
        annotated[packing.row, packing.segment - 1] = [e["annotated"] for e in examples]
        return {
            "input_ids": packing.lay([e["texts"][0] for e in examples]),
            "segments": packing.segments(),
            "labels": packing.lay([e["labels"] for e in examples], IGNORE),
            "annotated": annotated,
        }

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        words = unit(encode(batch["input_ids"], batch["segments"]).astype(jnp.float32))
        slot = jnp.maximum(batch["segments"] - 1, 0)
        annotated = jnp.take_along_axis(batch["annotated"], slot[..., None], axis=1)  # [R, L, C]
        return concept_loss(head, words, batch["labels"], annotated)


def concept_loss(
    head: Mapping, words: jax.Array, labels: jax.Array, annotated: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Binary cross-entropy of word . concept products, summed over annotated concepts, mean over words.

    words [R, L, D] unit vectors; labels [R, L]; annotated [R, L, C], the concepts a word may be. The metric
    `accuracy` is over words inside entities: the right concept scores highest among the annotated ones, and above one
    half.
    """
    concepts = unit(head["concepts"] @ head["projection"]["kernel"])
    logits = jnp.exp(head["log_scale"]) * (words @ concepts.T) + head["bias"]  # [R, L, C]
    targets = jax.nn.one_hot(labels, concepts.shape[0])  # a negative label is no concept
    is_word = labels != IGNORE
    valid = is_word[..., None] & annotated
    losses = jnp.where(valid, optax.sigmoid_binary_cross_entropy(logits, targets), 0.0)
    loss = losses.sum() / jnp.maximum(is_word.sum(), 1)

    scores = jnp.where(annotated, logits, -jnp.inf)
    entity = labels >= 0
    correct = entity & (scores.argmax(-1) == labels) & (scores.max(-1) > 0)
    return loss, {"accuracy": correct.sum() / jnp.maximum(entity.sum(), 1)}
