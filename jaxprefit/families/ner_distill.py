"""NER without labels: token vectors regress a teacher encoder's token vectors, after a learned projection.

It reads the texts of NER sources and leaves their tags alone, so a source without entities is welcome.
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
from jaxprefit.families.base import Encode, Family
from jaxprefit.families.ner_losses import distill_loss
from jaxprefit.families.teacher import Teacher, load_teacher
from jaxprefit.families.teacher_cache import CachedTeacher, cached


@dataclasses.dataclass(frozen=True)
class DistillFamily(Family):
    """Batch: input_ids, segments [R, L] int32; teacher [R, L, T] float32 unit vectors."""

    name = "ner"
    kind = "ner"
    accumulates = True

    tokenizer: tokenizers.Tokenizer
    max_length: int
    teacher: Teacher | CachedTeacher

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        teacher = load_teacher(config["teacher"], tokenizer, config["max_length"])
        family = cls(tokenizer, config["max_length"], teacher)
        if not config["teacher_cache"]:
            return family
        kept = cached(
            teacher, config["teacher_cache"], sources, config["max_length"],
            lambda record, source: family.encode_record(record, source)["texts"][0],
        )  # fmt: skip
        return dataclasses.replace(family, teacher=kept)

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        # Orthogonal: the encoder's own geometry, until it has learned the teacher's. The bias takes the common part
        # of the teacher's vectors.
        shape = (start.config.hidden_size, self.teacher.config.hidden_size)
        kernel = jax.nn.initializers.orthogonal()(key, shape)
        return {"projection": {"kernel": kernel, "bias": jnp.zeros(shape[1])}}

    def describe(self) -> dict[str, Any]:
        return {"loss": "distill", "teacher": self.teacher.fingerprint}

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        ids, _, cuts = counted_words(self.tokenizer, record["tokens"], record["tags"], self.max_length)
        return {"texts": (ids,), "cuts": cuts}

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        ids, segments = packing.lay([e["texts"][0] for e in examples], 0), packing.segments()
        return {"input_ids": ids, "segments": segments, "teacher": self.teacher.vectors(ids, segments)}

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = encode(batch["input_ids"], batch["segments"]).astype(jnp.float32)
        return distill_loss(head, hidden, batch["teacher"], batch["segments"] > 0)

    def counts(self, batch: Mapping) -> dict[str, jax.Array]:
        tokens = (batch["segments"] > 0).sum()
        return {"loss": tokens, "cosine": tokens}
