"""A frozen teacher encoder, whose token vectors the NER family's `distill` loss regresses.

Its vectors are computed on the fly where batches are put together, by a jitted forward of the packed rows, or once for
all texts (`teacher_cache`). So its weights are neither in the trained tree nor in a checkpoint; a checkpoint keeps
their hash only.
"""

import dataclasses
import functools
import hashlib
import os
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict

from jaxprefit.encoder.huggingface import load_pretrained
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, unit
from jaxprefit.errors import UserError

# Case, accents composed and not, punctuation, Chinese, control characters, an unknown sign, a long word.
_PROBE = "Hello, WORLD! Caf\u00e9 cafe\u0301 isn't e-mail 3.14 \u4e2d\u56fd\ttab\u0000 \u2603 " + "x" * 101


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An encoder that is never trained."""

    config: EncoderConfig
    params: dict

    def vectors(self, input_ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """Unit vectors [R, L, T] float32 of packed rows [R, L]; what stands at padding means nothing."""
        return np.asarray(_forward(self.config, self.params, input_ids, segments))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of configuration and weights."""
        digest = hashlib.sha256(repr(self.config).encode())
        for path, leaf in sorted(flatten_dict(self.params, sep="/").items()):
            digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: EncoderConfig, params: dict, input_ids: jax.Array, segments: jax.Array) -> jax.Array:
    hidden = cast(jax.Array, Encoder(config).apply({"params": params}, input_ids, segments))
    return unit(hidden.astype(jnp.float32))


def load_teacher(path: str | os.PathLike, tokenizer: tokenizers.Tokenizer, max_length: int) -> Teacher:
    """The encoder of a Hugging Face directory as a teacher of texts up to `max_length` tokens of `tokenizer`.

    Raises UserError where its own tokenizer gives other tokens: other entries, or another treatment of a probe text.
    """
    start = load_pretrained(path)
    ours, theirs = tokenizer.get_vocab(), start.tokenizer.get_vocab()
    if ours != theirs:
        differing = {t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)}
        token = min(differing)
        raise UserError(
            f"data.ner.teacher: the tokenizer of {path} ({len(theirs)} entries) is not that of the start encoder, "
            f"model.path ({len(ours)} entries); {len(differing)} entries differ, as '{token}', {theirs.get(token)} "
            f"there and {ours.get(token)} here; choose a teacher with the same tokenizer"
        )
    if tokenizer.encode(_PROBE).ids != start.tokenizer.encode(_PROBE).ids:
        raise UserError(
            f"data.ner.teacher: the tokenizer of {path} has the entries of that of the start encoder, model.path, but "
            "splits text in another way (lower case or accents, say); choose a teacher with the same tokenizer"
        )
    if start.config.max_positions < max_length:
        raise UserError(
            f"data.ner.max_length is {max_length}; the teacher {path} takes {start.config.max_positions} tokens at most"
        )
    return Teacher(dataclasses.replace(start.config, hidden_dropout=0.0), jax.tree.map(jnp.asarray, start.params))
