"""Text classification (TC), contrastive: sentence vectors learn from weakly paired texts.

Symmetric InfoNCE over mean-pooled, normalised sentence vectors with in-batch negatives, as in E5 (Wang et al., 2022,
arXiv 2212.03533). The negatives are those of the whole batch, over all devices and all chunks of gradient caching.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxprefit.data.builders import Prepared
from jaxprefit.data.packing import Packing
from jaxprefit.encoder.cuts import Cuts
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.tokenization import counted_text, special_ends
from jaxprefit.families.base import Encode, Family
from jaxprefit.families.info_nce import Texts, clipped_scale, truncated_info_nce
from jaxprefit.families.tc_supervised import LabelledFamily
from jaxprefit.families.text_vectors import text_vectors


@dataclasses.dataclass(frozen=True)
class ClassificationFamily(Family):
    """Batch: input_ids, segments [R, L] int32; a_slot, b_slot [N] int32, where the pooled vectors of each pair stand;
    a_key, b_key [N] int32, equal for texts of equal tokens; valid [N] bool, False where there is no pair. With hard
    negatives also c_slot, c_key, c_valid [N]. N = layout.slots // 2."""

    name = "tc"
    kind = "pairs"

    tokenizer: tokenizers.Tokenizer
    max_length: int
    temperature: float
    learn_temperature: bool = False
    prefixes: tuple[str, str] = ("", "")  # put before a, and before b and c
    dims: tuple[int, ...] = ()  # leading dimensions that must do alone
    chunk_rows: int = 0  # of gradient caching; 0: off
    negatives: bool = False  # whether any source has hard negatives

    @classmethod
    def create(cls, config: Mapping[str, Any], sources: Sequence[Prepared], tokenizer: tokenizers.Tokenizer) -> Self:
        return cls(
            tokenizer,
            config["max_length"],
            config["temperature"],
            config["learn_temperature"],
            (config["prefix_a"], config["prefix_b"]),
            tuple(config["dims"]),
            config["chunk_rows"],
            any("negative" in source[0] for source in sources),
        )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> type[Family]:
        """By data.tc.objective."""
        objectives: dict[str, type[Family]] = {"contrastive": cls, "supervised": LabelledFamily}
        return objectives[config["objective"]]

    @property
    def sides(self) -> dict[str, str]:
        """Side of a pair in a batch -> its field in a record."""
        return {"a": "a", "b": "b"} | ({"c": "negative"} if self.negatives else {})

    @property
    def texts_per_example(self) -> int:
        return len(self.sides)

    @functools.cached_property
    def prefix_ids(self) -> dict[str, list[int]]:
        """Prefix -> its tokens with the opening special ones, which every text that it is put before begins with."""
        closing = special_ends(self.tokenizer.encode("a"))[1]
        encoded = {prefix: self.tokenizer.encode(prefix).ids for prefix in self.prefixes}
        return {prefix: ids[: len(ids) - closing] for prefix, ids in encoded.items()}

    def init_head(self, key: jax.Array, start: Pretrained) -> dict:
        """The logarithm of the logits' scale where the temperature is learned; else nothing, since the sentence vector
        is the pooled hidden state itself."""
        return {"log_scale": jnp.asarray(-math.log(self.temperature), jnp.float32)} if self.learn_temperature else {}

    def encode_record(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        texts = [record[field] for field in self.sides.values() if record.get(field)]
        prefixes = self.prefixes[0], self.prefixes[1], self.prefixes[1]
        pairs = [*zip(prefixes, texts)]
        encoded = [counted_text(self.tokenizer, prefix + text, self.max_length) for prefix, text in pairs]
        keys = (self._key(ids, prefix) for (ids, _), (prefix, _) in zip(encoded, pairs))
        return {
            "texts": tuple(ids for ids, _ in encoded),
            "keys": tuple(keys),
            "cuts": Cuts.total(cuts for _, cuts in encoded),
        }

    def _key(self, ids: np.ndarray, prefix: str) -> int:
        """A number of the tokens as cut: texts that the encoder sees alike are one text, whatever they were before.

        The prefix is left out, so that a text is the same on both sides of a pair.
        """
        before = self.prefix_ids[prefix]
        tokens = ids[len(before) :] if ids[: len(before)].tolist() == before else ids
        # 32 bits: a chance collision in a batch only drops one negative.
        return zlib.crc32(tokens.astype("<i4").tobytes()) & 0x7FFFFFFF

    def collate(self, examples: Sequence[Mapping[str, Any]], packing: Packing) -> dict[str, np.ndarray]:
        pairs = packing.layout.slots // 2
        batch = {
            "input_ids": packing.lay([t for e in examples for t in e["texts"]]),
            "segments": packing.segments(),
            "valid": np.arange(pairs) < len(examples),
        }
        first = np.cumsum([0, *(len(e["texts"]) for e in examples)])[:-1]  # number of each example's first text
        for k, side in enumerate(self.sides):
            there = [i for i, e in enumerate(examples) if k < len(e["texts"])]
            slot, key, valid = np.zeros(pairs, np.int32), np.zeros(pairs, np.int32), np.zeros(pairs, bool)
            slot[there], valid[there] = packing.slot[first[there] + k], True
            key[there] = [examples[i]["keys"][k] for i in there]
            batch |= {f"{side}_slot": slot, f"{side}_key": key}
            if side == "c":
                batch["c_valid"] = valid
        return batch

    def loss(self, head: Mapping, encode: Encode, batch: Mapping) -> tuple[jax.Array, dict[str, jax.Array]]:
        per_row = 2 * len(batch["valid"]) // len(batch["input_ids"])
        vectors = text_vectors(encode, batch["input_ids"], batch["segments"], per_row, self.chunk_rows)

        def texts(side: str, valid: str) -> Texts:
            return Texts(vectors[batch[f"{side}_slot"]], batch[f"{side}_key"], batch[valid])

        scale = clipped_scale(head["log_scale"]) if self.learn_temperature else jnp.asarray(1 / self.temperature)
        hard = texts("c", "c_valid") if self.negatives else None
        loss, accuracy = truncated_info_nce(texts("a", "valid"), texts("b", "valid"), scale, hard, self.dims)
        metrics = {"accuracy": accuracy}
        return loss, {**metrics, "temperature": 1 / scale} if self.learn_temperature else metrics
