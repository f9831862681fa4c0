"""Text classification (TC), supervised: labelled sets with a head each, mixed in one batch.

After Muppet (Aghajanyan et al., 2021, arXiv 2101.11038): the loss of an example is divided by the logarithm of its
set's number of classes, so that every set starts near 1 whatever its size. The sets' heads stand side by side in one
kernel [D, C], C = classes of all sets together: one matrix product scores every text against every class, and the
classes of other sets are masked out of its softmax.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.packing import Packing
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.tokenization import counted_text
from jaxprefit.errors import UserError
from jaxprefit.families.base import Encode, Family
from jaxprefit.families.text_vectors import text_vectors


@dataclasses.dataclass(frozen=True)
class LabelledFamily(Family):
    """Batch: input_ids, segments [R, L] int32; slot [N] int32, where the pooled vector of each text stands; set [N]
    int32, the index of its source; label [N] int32, its class among those of all sets; valid [N] bool, False where
    there is no text. N = layout.slots."""

    name = "tc"
    kind = "labelled"

    tokenizer: tokenizers.Tokenizer
    max_length: int
    chunk_rows: int
    sets: Mapping[str, tuple[str, ...]]  # source -> its labels, in the order of the head's columns

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        for source in sources:
            if len(source.types) < 2:
                raise UserError(
                    f"labelled source '{source.name}' has one class, '{source.types[0]}', so it teaches nothing; "
                    "leave it out, or check its label column"
                )
        sets = {source.name: source.types for source in sources}
        return cls(tokenizer, config["max_length"], config["chunk_rows"], sets)

    @property
    def sizes(self) -> np.ndarray:
        """Number of classes of each set."""
        return np.asarray([len(labels) for labels in self.sets.values()])

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        classes = int(self.sizes.sum())
        kernel = 0.02 * jax.random.normal(key, (start.config.hidden_size, classes))
        return {"kernel": kernel, "bias": jnp.zeros(classes)}

    def describe(self) -> dict[str, Any]:
        return {"sets": {name: list(labels) for name, labels in self.sets.items()}}

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        index = list(self.sets).index(source)
        label = int(self.sizes[:index].sum()) + self.sets[source].index(record["label"])
        ids, cuts = counted_text(self.tokenizer, record["text"], self.max_length)
        return {"texts": (ids,), "set": index, "label": label, "cuts": cuts}

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        most = packing.layout.slots
        batch = {
            "input_ids": packing.lay([e["texts"][0] for e in examples]),
            "segments": packing.segments(),
            "valid": np.arange(most) < len(examples),
        }
        columns = {"slot": packing.slot, "set": [e["set"] for e in examples], "label": [e["label"] for e in examples]}
        for name, values in columns.items():
            batch[name] = np.zeros(most, np.int32)
            batch[name][: len(examples)] = np.asarray(values, np.int32)
        return batch

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        per_row = batch["slot"].shape[0] // batch["input_ids"].shape[0]
        vectors = text_vectors(encode, batch["input_ids"], batch["segments"], per_row, self.chunk_rows)
        return labelled_loss(head, vectors[batch["slot"]], batch["set"], batch["label"], batch["valid"], self.sizes)


def labelled_loss(
    head: Mapping, vectors: jax.Array, which: jax.Array, label: jax.Array, valid: jax.Array, sizes: np.ndarray
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy over the classes of each text's own set, divided by their number's logarithm; mean over texts.

    vectors [N, D]; which [N], the set's index in sizes [S]; label [N] among the C = sum(sizes) classes; valid [N].
    """
    owner = np.repeat(np.arange(len(sizes)), sizes)  # [C]
    logits = vectors @ head["kernel"] + head["bias"]
    logits = jnp.where(which[:, None] == owner, logits, -jnp.inf)
    # A slot without a text has set 0 and label 0, whose logits are finite.
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    losses /= jnp.log(jnp.asarray(sizes, jnp.float32))[which]
    count = jnp.maximum(valid.sum(), 1)
    correct = valid & (logits.argmax(1) == label)
    return jnp.where(valid, losses, 0.0).sum() / count, {"accuracy": correct.sum() / count}
