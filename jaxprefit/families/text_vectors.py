"""Vectors of the texts in a packed batch, all rows at once or chunk by chunk.

Chunk by chunk is gradient caching (GradCache, Gao et al., 2021, arXiv 2101.06983): memory holds the activations of
one chunk, however many rows the batch has, and the loss still sees all vectors together. In JAX it needs no training
code of its own: rematerialisation inside a scan keeps only a chunk's ids, and the backward pass encodes each chunk
again. Loss and gradients are those of the whole batch; the price is one more forward pass.
"""

import jax
import jax.numpy as jnp

from jaxprefit.encoder.transformer import pool_segments
from jaxprefit.families.base import Encode


def text_vectors(
    encode: Encode, input_ids: jax.Array, segments: jax.Array, per_row: int, chunk_rows: int = 0
) -> jax.Array:
    """Mean-pooled vectors [R * per_row, D] float32 of the texts in `input_ids`, `segments` [R, L]; zeros where none is.

    `chunk_rows` must divide R, and the devices of the data axis must divide it; 0 encodes all rows at once.
    """
    rows, length = input_ids.shape
    if not chunk_rows:
        return pool_segments(encode(input_ids, segments), segments, per_row)
    chunks = rows // chunk_rows

    def split(x: jax.Array) -> jax.Array:
        # Row r goes to chunk r % chunks. Devices hold blocks of neighbouring rows, so every chunk has rows of every
        # device and no row moves; chunks of neighbouring rows would leave all devices but one idle.
        return x.reshape(chunk_rows, chunks, length).swapaxes(0, 1)

    def one_chunk(chunk: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        index, ids, which = chunk
        return pool_segments(encode(ids, which, fold=index), which, per_row)

    # Inside a scan the second encoding cannot be merged with the first, so no barrier against that is needed.
    once_more = jax.checkpoint(one_chunk, prevent_cse=False)
    vectors = jax.lax.map(once_more, (jnp.arange(chunks), split(input_ids), split(segments)))
    vectors = vectors.reshape(chunks, chunk_rows, per_row, -1).swapaxes(0, 1)
    return vectors.reshape(rows * per_row, -1)
