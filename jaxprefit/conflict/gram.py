"""Gram matrices of per-family gradients, per block of parameters.

`M[block][i, j] = <g_i, g_j>` over the block's parameters, in float32. Every conflict measure and every aggregator is a
function of these small matrices. Gram matrices add up: a coarser block's is the sum of its parts'.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Flat = Mapping[str, jax.Array]


def gram(gradients: Sequence[Flat], block_of: Callable[[str], str]) -> dict[str, jax.Array]:
    """Block -> [T, T] Gram matrix of T gradients given separately, each by slash-joined path.

    Only parameters present in all T count. Raises TypeError when given one (summed) gradient instead of a sequence:
    conflict cannot be read off a sum.
    """
    if isinstance(gradients, Mapping) or len(gradients) < 2:
        raise TypeError("gram() takes a sequence of at least two separate gradients; a summed one has no conflict")
    shared = [path for path in gradients[0] if all(path in g for g in gradients)]
    blocks: dict[str, jax.Array] = {}
    for path in shared:
        # Products entry by entry, not one big matrix product: on a sharded tensor each device sums its own part.
        flat = [g[path].astype(jnp.float32).ravel() for g in gradients]
        n = len(flat)
        products = {(i, j): jnp.vdot(flat[i], flat[j]) for i in range(n) for j in range(i, n)}
        m = jnp.stack([jnp.stack([products[min(i, j), max(i, j)] for j in range(n)]) for i in range(n)])
        block = block_of(path)
        blocks[block] = blocks[block] + m if block in blocks else m
    return blocks


def by_layer(path: str) -> str:
    """'backbone/layer_3/query/kernel' -> 'layer_3'; embeddings are their own block, and so is an adapter."""
    return layer_of(by_module(path))


def by_module(path: str) -> str:
    """'backbone/layer_3/query/kernel' -> 'layer_3/query': the finest blocks a report is built from.

    Outside the backbone a block keeps the name of its group: 'lora/shared/layer_3/query'.
    """
    return path.removeprefix("backbone/").rpartition("/")[0]


def layer_of(block: str) -> str:
    """'layer_3/query' -> 'layer_3'; 'lora/shared/layer_3/query' -> 'lora/shared'."""
    parts = block.split("/")
    return "/".join(parts[:2]) if parts[0] == "lora" else parts[0]


def kind_of(block: str) -> str:
    """'layer_3/query' -> 'query'; LayerNorms together, embeddings and adapters apart."""
    part, *_, module = block.split("/")
    return part if part in ("embeddings", "lora") else "norm" if module.endswith("norm") else module


def regroup(blocks: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Coarser blocks by adding up: `rename` maps a fine block's name to its coarse one. Values are whatever adds."""
    coarse: dict[str, Any] = {}
    for block, m in blocks.items():
        name = rename(block)
        coarse[name] = coarse[name] + m if name in coarse else m
    return coarse
