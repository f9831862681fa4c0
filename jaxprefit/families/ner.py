"""Named entity recognition (NER): token vectors learn entity concepts, after NuNER (arXiv 2402.15343).

A word's vector (at its first sub-word) is compared with vectors of concepts, the readable names of the sources' entity
types (`concepts`). Where those vectors come from is `data.ner.concept_encoder` (`concept_sides`), how they are compared
`data.ner.loss` (`ner_losses`). Concepts pass a trained matrix that starts as the identity; both are unit vectors with a
learned scale, so that the loss starts in the same range whatever the encoder's norm. The loss `distill` knows no
concepts and is a family of its own (`ner_distill`).

"No entity" is dealt with on purpose. `sigmoid`: a word outside any entity is a negative of every type its source
annotates. `softmax`: it has a learned concept of its own. In both, a type that the source does not annotate is neither
positive nor negative there.

A batch is about at most `data.ner.max_concepts` concepts, gathered once: those of its entities first, then a sample of
what its sources annotate. A word whose concept found no place is left out of the loss and counted in `dropped`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.packing import Packing
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.tokenization import counted_words
from jaxprefit.encoder.transformer import unit
from jaxprefit.families.base import Encode, Family
from jaxprefit.families.concept_encoders import SIDES, ConceptSide, name_vectors
from jaxprefit.families.concepts import Vocabulary
from jaxprefit.families.ner_distill import DistillFamily
from jaxprefit.families.ner_losses import DROPPED, IGNORE, OUTSIDE, is_word, sigmoid_loss, softmax_loss

LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
NO_ENTITY = "no entity"  # the name whose vector the concept of words outside starts from


@dataclasses.dataclass(frozen=True)
class NerFamily(Family):
    """Batch, for R rows of L tokens with S texts at most, and K concepts: input_ids, segments, labels [R, L] int32
    (place among the K, OUTSIDE, IGNORE or DROPPED); annotated [R, S, K] bool: which concepts a text's source annotates;
    and what the concept side adds. K is max_concepts, or the vocabulary's size if smaller, made a multiple of R."""

    name = "ner"
    kind = "ner"
    accumulates = True
    of_batch = ("concepts", "concept_ids", "concept_sizes")

    tokenizer: tokenizers.Tokenizer
    max_length: int
    loss_name: str
    side: ConceptSide
    vocabulary: Vocabulary
    max_concepts: int
    constants: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> type[Family]:
        return DistillFamily if config["loss"] == "distill" else cls

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        vocabulary = Vocabulary.of(sources)
        side = SIDES[config["concept_encoder"]](tokenizer, vocabulary.names)
        constants, encoders = (tuple(f"head/ner/{p}" for p in part) for part in (side.constants, side.encoders))
        settings = (config["max_length"], config["loss"], side, vocabulary, config["max_concepts"])
        return cls(tokenizer, *settings, constants, encoders)

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        head = self.side.init(start) | {
            "projection": {"kernel": jnp.eye(start.config.hidden_size)},
            "log_scale": jnp.asarray(np.log(20.0), jnp.float32),
        }
        if self.loss_name == "softmax":
            return head | {"outside": jnp.asarray(name_vectors(start, [NO_ENTITY])[0])}
        return head | {"bias": jnp.asarray(-10.0, jnp.float32)}  # most pairs of word and concept are negatives

    def describe(self) -> dict[str, Any]:
        return {
            "loss": self.loss_name,
            "concept_encoder": self.side.name,
            "concepts": list(self.vocabulary.names),
        }

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        ids, first, cuts = counted_words(self.tokenizer, record["tokens"], record["tags"], self.max_length)
        labels = np.full(len(ids), IGNORE, np.int32)
        index = self.vocabulary.index[source]
        for tag, position in zip(record["tags"], first):  # words past max_length have no position
            labels[position] = OUTSIDE if tag == "O" else index[tag[2:]]
        return {"texts": (ids,), "labels": labels, "source": source, "cuts": cuts}

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        layout = packing.layout
        labels = np.concatenate([e["labels"] for e in examples])
        inside = labels >= 0
        places = -(-min(self.max_concepts, len(self.vocabulary.names)) // layout.rows) * layout.rows
        chosen = self.vocabulary.choose(labels[inside], {e["source"] for e in examples}, places)
        at = np.searchsorted(chosen, labels)  # chosen is sorted, and never empty
        at = np.minimum(at, len(chosen) - 1).astype(np.int32)
        labels = np.where(inside, np.where(chosen[at] == labels, at, DROPPED), labels)
        annotated = np.zeros((layout.slots, places), bool)
        rows = {s: self.vocabulary.annotates(s, chosen) for s in {e["source"] for e in examples}}
        for slot, example in zip(packing.slot, examples):
            annotated[slot, : len(chosen)] = rows[example["source"]]
        ends = np.cumsum([len(e["labels"]) for e in examples])[:-1]
        # Places beyond the chosen hold concept 0, which nothing there annotates.
        return {
            "input_ids": packing.lay([e["texts"][0] for e in examples], 0),
            "segments": packing.segments(),
            "labels": packing.lay(np.split(labels, ends), IGNORE),
            "annotated": annotated.reshape(layout.rows, layout.per_row, places),
            **self.side.collate(np.pad(chosen, (0, places - len(chosen)))),
        }

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        words = unit(encode(batch["input_ids"], batch["segments"]).astype(jnp.float32))
        concepts = unit(self.side.vectors(head, encode, batch) @ head["projection"]["kernel"])
        text = jnp.maximum(batch["segments"] - 1, 0)  # padding has no label
        annotated = jnp.take_along_axis(batch["annotated"], text[..., None], axis=1)  # [R, L, K]
        return LOSSES[self.loss_name](head, words, concepts, batch["labels"], annotated)

    def counts(self, batch: Mapping) -> dict[str, jax.Array]:
        return {"loss": is_word(batch["labels"]).sum(), "accuracy": (batch["labels"] >= 0).sum()}
