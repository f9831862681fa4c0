"""A downstream task has a loss as a family has, so that it trains through the same step; its batches are padded."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.encode import encode_text, encode_words, pad_ids
from jaxprefit.encoder import mean_pool
from jaxprefit.errors import UserError
from jaxprefit.families.base import Encode
from jaxprefit.pretrained import Pretrained

IGNORE = -1


@dataclasses.dataclass(frozen=True)
class Task:
    """What both kinds of task share: the label set and a linear head [D, C]."""

    kind: ClassVar[str]  # of the records it reads

    tokenizer: tokenizers.Tokenizer
    max_length: int
    labels: tuple[str, ...]

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        return cls(tokenizer, config["max_length"], cls.label_set(sources[0].types))

    @staticmethod
    def label_set(types: Sequence[str]) -> tuple[str, ...]:
        """The classes of the head, from the types or labels of the training rows."""
        return tuple(types)

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        shape = (start.config.hidden_size, len(self.labels))
        return {"kernel": 0.02 * jax.random.normal(key, shape), "bias": jnp.zeros(len(self.labels))}

    def logits(self, head: Mapping, encode: Encode, batch: Mapping) -> jax.Array:
        """Class scores: [B, L, C] of a tagging task, [B, C] of a labelling task. Float32."""
        raise NotImplementedError

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        """One record, tokenised: 'ids' [n] and 'labels'."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Encoded records -> one batch padded to `max_length`."""
        raise NotImplementedError

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, labels = self.logits(head, encode, batch), batch["labels"]
        counted = labels != IGNORE
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1), {}


class TaggingTask(Task):
    """NER: a tag (IOB2) at every word's first sub-word.

    Batch: input_ids [B, L], mask [B, L], labels [B, L] (IGNORE where no word starts).
    """

    kind = "ner"

    @staticmethod
    def label_set(types: Sequence[str]) -> tuple[str, ...]:
        return ("O", *(f"{letter}-{t}" for t in types for letter in "BI"))

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        ids, first = encode_words(self.tokenizer, record["tokens"], self.max_length)
        labels = np.full(len(ids), IGNORE, np.int32)
        index = {tag: i for i, tag in enumerate(self.labels)}
        labels[first] = [index[tag] for tag in record["tags"][: len(first)]]
        return {"ids": ids, "labels": labels, "first": first}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        ids, mask = pad_ids([e["ids"] for e in examples], self.max_length)
        labels, _ = pad_ids([e["labels"] for e in examples], self.max_length, IGNORE)
        return {"input_ids": ids, "mask": mask, "labels": labels}

    def logits(self, head: Mapping, encode: Encode, batch: Mapping) -> jax.Array:
        hidden = encode(batch["input_ids"], batch["mask"]).astype(jnp.float32)
        return hidden @ head["kernel"] + head["bias"]


class LabellingTask(Task):
    """TC: one label per text, read off the mean-pooled sentence vector.

    Batch: input_ids [B, L], mask [B, L], labels [B].
    """

    kind = "labelled"

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        return {
            "ids": encode_text(self.tokenizer, record["text"], self.max_length),
            "labels": self.labels.index(record["label"]),
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        ids, mask = pad_ids([e["ids"] for e in examples], self.max_length)
        return {"input_ids": ids, "mask": mask, "labels": np.asarray([e["labels"] for e in examples], np.int32)}

    def logits(self, head: Mapping, encode: Encode, batch: Mapping) -> jax.Array:
        pooled = mean_pool(encode(batch["input_ids"], batch["mask"]), batch["mask"])
        return pooled @ head["kernel"] + head["bias"]


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
