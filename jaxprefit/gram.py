"""Gram matrices of per-family gradients, per block of parameters.

`M[block][i, j] = <g_i, g_j>` over the block's parameters, in float32. Every conflict measure and every aggregator is a
function of these small matrices. Gram matrices add up: a coarser block's is the sum of its parts', so one measurement
per tensor gives every grouping (`GROUPINGS`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Flat = Mapping[str, jax.Array]
"""A gradient, or parameters, by slash-joined path."""

_LEAVES = ("kernel", "bias", "scale", "embedding", "a", "b")
_FEW = 8
"""Up to so many gradients, products one by one: no copy is made, and a train step compiles little more."""


def gram(gradients: Sequence[Flat], block_of: Callable[[str], str]) -> dict[str, jax.Array]:
    """Block -> [T, T] Gram matrix of T gradients given separately, each by slash-joined path; float32.

    A gradient is that of one family, of one data set in a family, or of one batch of either. Only parameters present
    in all T count. Raises TypeError when given one (summed) gradient instead of a sequence of at least two: conflict
    cannot be read off a sum.
    """
    if isinstance(gradients, Mapping) or not isinstance(gradients, Sequence) or len(gradients) < 2:
        raise TypeError("gram() takes a sequence of at least two separate gradients; a summed one has no conflict")
    if not all(isinstance(g, Mapping) for g in gradients):
        raise TypeError("gram() takes gradients by path, one dict a family")
    shared = [path for path in gradients[0] if all(path in g for g in gradients)]
    blocks: dict[str, jax.Array] = {}
    for path in shared:
        m = _products([g[path] for g in gradients])
        block = block_of(path)
        blocks[block] = blocks[block] + m if block in blocks else m
    return blocks


def absolute(gradient: Flat) -> dict[str, jax.Array]:
    """|g| entry by entry; its Gram matrix beside g's gives `measures.conflicting_share`."""
    return {path: jnp.abs(g) for path, g in gradient.items()}


def _products(leaves: list[jax.Array]) -> jax.Array:
    """[T, T] inner products of T arrays of one shape. On sharded arrays each device sums its own part."""
    highest = jax.lax.Precision.HIGHEST  # accelerators would round the factors to bfloat16 or TF32
    n = len(leaves)
    if n > _FEW:
        return _matrix_product(leaves)
    flat = [x.astype(jnp.float32).ravel() for x in leaves]
    products = {(i, j): jnp.vdot(flat[i], flat[j], precision=highest) for i in range(n) for j in range(i, n)}
    return jnp.stack([jnp.stack([products[min(i, j), max(i, j)] for j in range(n)]) for i in range(n)])


@jax.jit
def _matrix_product(leaves: list[jax.Array]) -> jax.Array:
    rows = jnp.stack([x.astype(jnp.float32).ravel() for x in leaves])
    return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)


def by_layer(path: str) -> str:
    """'backbone/layer_3/query/kernel' -> 'layer_3'; embeddings are their own block, and so is an adapter."""
    return layer_of(by_tensor(path))


def by_module(path: str) -> str:
    """'backbone/layer_3/query/kernel' -> 'layer_3/query'."""
    return module_of(by_tensor(path))


def by_tensor(path: str) -> str:
    """'backbone/layer_3/query/kernel' -> 'layer_3/query/kernel': the finest blocks.

    Outside the backbone a block keeps the name of its group: 'lora/shared/layer_3/query/a'.
    """
    return path.removeprefix("backbone/")


def module_of(block: str) -> str:
    """'layer_3/query/kernel' -> 'layer_3/query'; a block that is a module already stays."""
    module, _, leaf = block.rpartition("/")
    return module if module and leaf in _LEAVES else block


def layer_of(block: str) -> str:
    """'layer_3/query' -> 'layer_3'; 'lora/shared/layer_3/query' -> 'lora/shared'."""
    parts = block.split("/")
    return "/".join(parts[:2]) if parts[0] == "lora" else parts[0]


def kind_of(block: str) -> str:
    """'layer_3/query' -> 'query'; LayerNorms together, embeddings and adapters apart."""
    part, *_, module = module_of(block).split("/")
    return part if part in ("embeddings", "lora") else "norm" if module.endswith("norm") else module


GROUPINGS: dict[str, Callable[[str], str]] = {
    "whole": lambda _: "whole",
    "layer": layer_of,
    "kind": kind_of,
    "module": module_of,
    "tensor": lambda block: block,
}
"""Grouping -> from a block's name to its coarser block's, for `regroup`; from few blocks to many."""


def regroup(blocks: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Coarser blocks by adding up: `rename` maps a fine block's name to its coarse one. Values are whatever adds."""
    coarse: dict[str, Any] = {}
    for block, m in blocks.items():
        name = rename(block)
        coarse[name] = coarse[name] + m if name in coarse else m
    return coarse
