"""Hidden states of every layer, for encoders with and without their adapters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxprefit.data.packing import Layout, packed, row_length
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, pool_segments
from jaxprefit.model import Model

ROWS = 16  # of a packed batch: few, as a fold of a probe has few texts


@dataclasses.dataclass(frozen=True)
class View:
    """An encoder as texts see it: bare, or through one adapter."""

    name: str
    config: EncoderConfig
    variables: Mapping[str, Any]  # what `Encoder.apply` takes


def views(name: str, model: Model) -> list[View]:
    """The bare backbone of `model`, as `name`, and it through each of its adapters, as `name+ADAPTER`.

    All compute in float32, whatever the run did, so that they differ by their weights alone.
    """
    config = dataclasses.replace(model.config, dtype="float32")
    adapters = {model.strategy.adapter_of(family): family for family in reversed(model.adapters)}
    through = [View(f"{name}+{a}", config, model.variables(family)) for a, family in reversed(adapters.items())]
    return [View(name, config, model.variables(None)), *through]


@dataclasses.dataclass(frozen=True)
class States:
    """Hidden states of T texts at the embeddings (layer 0) and after each layer, float32."""

    tokens: np.ndarray  # [N + 1, n, D], the kept tokens of the first text, then those of the second, ...
    sentences: np.ndarray  # [N + 1, T, D], means over all tokens of a text, special ones too, as TC trains them


def hidden_states(view: View, texts: Sequence[np.ndarray], keep: Sequence[np.ndarray]) -> States:
    """States of `texts`, ids [length] int32 each, keeping of each the tokens at positions `keep[t]`.

    Texts run in packed batches of one shape; only what is kept stays in memory.
    """
    begin = np.cumsum([0, *map(len, keep)])
    shape = view.config.num_layers + 1, view.config.hidden_size
    tokens = np.empty((shape[0], begin[-1], shape[1]), np.float32)
    sentences = np.empty((shape[0], len(texts), shape[1]), np.float32)
    sizes = [len(t) for t in texts]
    for chosen, packing in packed(sizes, Layout.of(ROWS, row_length(max(sizes)))):
        ids = packing.lay([texts[i] for i in chosen])
        hidden, pooled = map(np.asarray, _apply(view.config)(view.variables, ids, packing.segments()))
        sentences[:, chosen] = pooled[:, packing.slot]
        for i, row, offset in zip(chosen, packing.row, packing.offset):
            tokens[:, begin[i] : begin[i + 1]] = hidden[:, row, offset + keep[i]]
    return States(tokens, sentences)


def ordinary_tokens(tokenizer: tokenizers.Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Positions of the tokens of `ids` [length] that are none of those the tokenizer puts around a text."""
    return np.flatnonzero(~np.isin(ids, tokenizer.encode("").ids))


@functools.cache
def _apply(config: EncoderConfig) -> Callable[[Mapping, Any, Any], tuple[jax.Array, jax.Array]]:
    """Jitted (variables, ids [R, L], segments [R, L]) -> (hidden [N + 1, R, L, D], pooled [N + 1, slots, D])."""

    def apply(variables: Mapping, ids: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
        states: Any = Encoder(config).apply(variables, ids, segments, all_hidden=True)
        per_row = Layout.of(*ids.shape).per_row
        return jnp.stack(states), jnp.stack([pool_segments(h, segments, per_row) for h in states])

    return jax.jit(apply)
