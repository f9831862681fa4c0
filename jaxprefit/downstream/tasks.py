"""Downstream tasks: records in, packed batches and a linear head over vectors of tokens or texts.

Both kinds classify *places* of a packed row: a tagging task its tokens, a labelling task its texts. So labels are
[R, P] int32 (IGNORE where nothing is to be classified), vectors [R, P, D], and all else is shared.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.packing import Packing
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.tokenization import counted_text, counted_words
from jaxprefit.encoder.transformer import pool_segments
from jaxprefit.errors import UserError
from jaxprefit.families.base import Encode

IGNORE = -1


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """What both kinds of task share: the label set and a linear head [D, C].

    Batch: input_ids [R, L], segments [R, L], labels [R, P], all int32.
    """

    kind: ClassVar[str]  # of the records it reads

    tokenizer: tokenizers.Tokenizer
    max_length: int
    labels: tuple[str, ...]

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        return cls(tokenizer, config["max_length"], cls.label_set(sources[0].types))

    @staticmethod
    @abc.abstractmethod
    def label_set(types: Sequence[str]) -> tuple[str, ...]:
        """The classes of the head, from the types or labels of the training rows."""

    @abc.abstractmethod
    def encode_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One record, tokenised: 'ids' [n] int32, 'cuts' (`data.cuts.Cuts`), and what `places` and `read` need."""

    @abc.abstractmethod
    def places(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> np.ndarray:
        """Labels [R, P] of the examples where `packing` puts them."""

    @abc.abstractmethod
    def read(self, classes: np.ndarray, example: Mapping[str, Any], packing: Packing, text: int) -> list[int]:
        """The classes [R, P] of one text of a batch: one per word of a tagging task, one of a labelling task."""

    @staticmethod
    @abc.abstractmethod
    def vectors(hidden: jax.Array, segments: jax.Array, per_row: int) -> jax.Array:
        """Hidden states [R, L, D] -> float32 vectors [R, P, D] of the places."""

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        shape = (start.config.hidden_size, len(self.labels))
        return {"kernel": 0.02 * jax.random.normal(key, shape), "bias": jnp.zeros(len(self.labels))}

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        """Encoded records -> one batch, with text t of `packing` being example t."""
        return {
            "input_ids": packing.lay([e["ids"] for e in examples]),
            "segments": packing.segments(),
            "labels": self.places(examples, packing),
        }

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.loss_of(head, encode(batch["input_ids"], batch["segments"]), batch), {}

    @classmethod
    def loss_of(cls, head: Mapping, hidden: jax.Array, batch: Mapping) -> jax.Array:
        """Mean cross-entropy over the labelled places of a batch, from the last hidden states [R, L, D]."""
        labels = batch["labels"]
        per_row = labels.shape[1]  # of a labelling task; a tagging task has no use for it
        logits = cls.logits(head, cls.vectors(hidden, batch["segments"], per_row))
        counted = labels != IGNORE
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1)

    @staticmethod
    def logits(head: Mapping, vectors: jax.Array) -> jax.Array:
        """Class scores [R, P, C], float32."""
        return vectors @ head["kernel"] + head["bias"]


class TaggingTask(Task):
    """NER: a tag (IOB2) at every word's first sub-word. Places are tokens, P = L."""

    kind = "ner"

    @staticmethod
    def label_set(types: Sequence[str]) -> tuple[str, ...]:
        return ("O", *(f"{letter}-{t}" for t in types for letter in "BI"))

    def encode_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        ids, first, cuts = counted_words(self.tokenizer, record["tokens"], record["tags"], self.max_length)
        labels = np.full(len(ids), IGNORE, np.int32)
        index = {tag: i for i, tag in enumerate(self.labels)}
        labels[first] = [index[tag] for tag in record["tags"][: len(first)]]
        places = {"first": np.asarray(first, int), "words": len(record["tags"])}
        return {"ids": ids, "labels": labels, "cuts": cuts, **places}

    def places(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> np.ndarray:
        return packing.lay([e["labels"] for e in examples], IGNORE)

    def read(self, classes: np.ndarray, example: Mapping[str, Any], packing: Packing, text: int) -> list[int]:
        found = classes[packing.row[text], packing.offset[text] + example["first"]].tolist()
        # Words past max_length are O, so that an entity there counts as missed: the test's entities are all counted.
        return found + [0] * (example["words"] - len(found))

    @staticmethod
    def vectors(hidden: jax.Array, segments: jax.Array, per_row: int) -> jax.Array:
        return hidden.astype(jnp.float32)


class LabellingTask(Task):
    """TC: one label per text, read off the mean-pooled sentence vector. Places are texts, P = per_row."""

    kind = "labelled"

    @staticmethod
    def label_set(types: Sequence[str]) -> tuple[str, ...]:
        return tuple(types)

    def encode_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        ids, cuts = counted_text(self.tokenizer, record["text"], self.max_length)
        return {"ids": ids, "labels": self.labels.index(record["label"]), "cuts": cuts}

    def places(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> np.ndarray:
        labels = np.full((packing.layout.rows, packing.layout.per_row), IGNORE, np.int32)
        labels[packing.row, packing.segment - 1] = [e["labels"] for e in examples]
        return labels

    def read(self, classes: np.ndarray, example: Mapping[str, Any], packing: Packing, text: int) -> list[int]:
        return [int(classes[packing.row[text], packing.segment[text] - 1])]

    @staticmethod
    def vectors(hidden: jax.Array, segments: jax.Array, per_row: int) -> jax.Array:
        return pool_segments(hidden, segments, per_row).reshape(hidden.shape[0], per_row, hidden.shape[-1])


TASKS: dict[str, type[Task]] = {"ner": TaggingTask, "tc": LabellingTask}
"""By the pre-finetuning family that a task belongs to."""


def check_labels(name: str, train: Prepared, test: Prepared) -> None:
    """Raises UserError naming the labels of the test rows that no training row has."""
    unseen = sorted(set(test.types) - set(train.types))
    if unseen:
        what = "entity types" if train.kind == "ner" else "labels"
        raise UserError(
            f"task '{name}': the test rows have {what} never seen in training: {', '.join(unseen[:5])}"
            f"{' ...' if len(unseen) > 5 else ''}; add training rows for them or drop them from the test file"
        )
