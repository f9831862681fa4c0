"""What lies below the trained part of an encoder, computed once per task and checkpoint.

With a frozen backbone the hidden states under the first trained layer never change. They are kept in host memory, one
row per token, and laid into each batch of every epoch and seed; where they would take more than a limit, each batch
computes its own. They are taken without dropout, as nothing below is trained.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprefit.data.packing import Layout, Packing, packed
from jaxprefit.downstream.batches import TEST_ROWS
from jaxprefit.encoder.transformer import Encoder, EncoderConfig


class Features:
    """Inputs of the trained part, text by text."""

    def __init__(
        self,
        config: EncoderConfig,
        backbone: Mapping,
        layer: int | None,
        texts: Sequence[np.ndarray],
        length: int,
        limit: int,
    ):
        """`texts` are ids [n] each; `layer` is the number of frozen layers below, None where even the embeddings are
        trained: the features are then the ids. Rows are packed to `length`; `limit` in bytes."""
        self.texts, self.layer = texts, layer
        self.hidden: np.ndarray | None = None
        if layer is None:
            return
        self.trunk = functools.partial(trunk(config, layer), backbone)
        size = sum(map(len, texts)) * config.hidden_size * jnp.dtype(config.dtype).itemsize
        if size <= limit:
            self.begin = np.cumsum([0, *map(len, texts)])
            self.hidden = self._compute(Layout.of(TEST_ROWS, length))

    def _compute(self, layout: Layout) -> np.ndarray:
        """[tokens of all texts, D]."""
        out: Any = None
        for texts, packing in packed([len(t) for t in self.texts], layout):
            hidden = np.asarray(self.trunk(packing.lay([self.texts[i] for i in texts]), packing.segments()))
            if out is None:
                out = np.empty((self.begin[-1], hidden.shape[-1]), hidden.dtype)
            for i, row, offset, size in zip(texts, packing.row, packing.offset, packing.size):
                out[self.begin[i] : self.begin[i + 1]] = hidden[row, offset : offset + size]
        return out

    def lay(self, texts: Sequence[int], packing: Packing) -> np.ndarray | jax.Array:
        """The features of the texts with these indices: [R, L, D], or the ids [R, L]."""
        if self.hidden is None:
            ids = packing.lay([self.texts[i] for i in texts])
            return ids if self.layer is None else self.trunk(ids, packing.segments())
        shape = packing.layout.rows, packing.layout.length, self.hidden.shape[-1]
        out = np.zeros(shape, self.hidden.dtype)
        for i, row, offset, size in zip(texts, packing.row, packing.offset, packing.size):
            out[row, offset : offset + size] = self.hidden[self.begin[i] : self.begin[i + 1]]
        return out


@functools.cache
def trunk(config: EncoderConfig, layer: int) -> Callable[[Mapping, Any, Any], jax.Array]:
    """Jitted (backbone, ids [R, L], segments [R, L]) -> hidden [R, L, D] after the first `layer` layers.

    Compiled once a process, for all tasks and checkpoints.
    """

    def apply(backbone: Mapping, ids: jax.Array, segments: jax.Array) -> Any:
        return Encoder(config).apply({"params": backbone}, ids, segments, layer=layer, method="trunk")

    return jax.jit(apply)
