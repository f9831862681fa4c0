"""Gradients of low-rank adapters without their gauge.

An adapter adds s a b to a kernel W, and (a R, R^-1 b) is the same adapter for every invertible R, but the cosine of
gradients by (a, b) changes with R. What does not is the dense gradient G projected on the tangent space of the rank-r
matrices at a b, with U the columns' space of a and V the rows' space of b:

    P(G) = (1 - P_U) G P_V + P_U G         (Absil, Mahony and Sepulchre, "Optimization Algorithms on Matrix Manifolds",
                                            2008; Vandereycken, arXiv 1209.3834)

It follows from the factors' gradients G_a = s G b^T and G_b = s a^T G alone, and has the inner products of

    x = (1 - P_U) G_a (b b^T)^-1/2 / s   [in, r]        y = (a^T a)^-1/2 G_b / s   [r, out]

which take the places of G_a and G_b, so that Gram matrices need nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprefit.conflict.probe import View
from jaxprefit.gram import Flat


class Directions(NamedTuple):
    """How many of the 2 r directions of a and b of one adapted kernel its tangent space does not have.

    A fresh adapter has b = 0, where no step on `a` changes the map: such directions are undefined, not zero.
    """

    undefined: int
    total: int


class _Factors(NamedTuple):
    columns: Any  # [in, k] orthonormal columns that span a
    root_b: Any  # [r, r] (b b^T)^-1/2 / s
    root_a: Any  # [r, r] (a^T a)^-1/2 / s


def view(params: Mapping[str, np.ndarray | jax.Array]) -> tuple[View, dict[str, Directions]]:
    """(for `probe`: gradients with x and y for a and b, module -> its Directions), at `params` by path.

    Paths of no adapter pass as they are. A factor none of whose directions is defined is left out, as a parameter that
    a gradient does not have; of one that lacks some, the others count. Both factors of a module must be given.
    """
    modules = [path.removesuffix("/a") for path in params if path.startswith("lora/") and path.endswith("/a")]
    factors: dict[str, _Factors] = {}
    directions: dict[str, Directions] = {}
    left_out: set[str] = set()
    for module in modules:
        a, b = (np.asarray(params[f"{module}/{leaf}"], np.float64) for leaf in ("a", "b"))
        scale = float(params.get(f"{module}/scale", 1.0))
        (root_b, rank_b), (root_a, rank_a) = _inverse_root(b @ b.T), _inverse_root(a.T @ a)
        columns = np.linalg.svd(a, full_matrices=False)[0][:, :rank_a]
        factors[module] = _Factors(columns, root_b / scale, root_a / scale)
        directions[module] = Directions(2 * a.shape[1] - rank_a - rank_b, 2 * a.shape[1])
        left_out |= {f"{module}/{leaf}" for leaf, rank in (("a", rank_b), ("b", rank_a)) if rank == 0}
    on_device = {m: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), f) for m, f in factors.items()}
    project = jax.jit(_project)

    def seen(gradient: Flat) -> Flat:
        part = {m: on_device[m] for m in on_device if f"{m}/a" in gradient or f"{m}/b" in gradient}
        found: Mapping[str, jax.Array] = project(part, dict(gradient))
        return {path: g for path, g in found.items() if path not in left_out}

    return seen, directions


def undefined(directions: Mapping[str, Directions], modules: Sequence[str] | None = None) -> Directions:
    """The sum over `modules`, all by default."""
    chosen = directions.values() if modules is None else [directions[m] for m in modules]
    return Directions(sum(d.undefined for d in chosen), sum(d.total for d in chosen))


def _project(factors: Mapping[str, _Factors], gradient: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    found = dict(gradient)
    with jax.default_matmul_precision("highest"):
        for module, f in factors.items():
            x = gradient[f"{module}/a"].astype(jnp.float32) @ f.root_b
            found[f"{module}/a"] = x - f.columns @ (f.columns.T @ x)
            found[f"{module}/b"] = f.root_a @ gradient[f"{module}/b"].astype(jnp.float32)
    return found


def _inverse_root(gram: np.ndarray) -> tuple[np.ndarray, int]:
    """([r, r] pseudo-inverse square root of a positive semidefinite matrix, its rank)."""
    values, vectors = np.linalg.eigh(gram)
    keep = values > max(values[-1], 0.0) * len(gram) * np.finfo(np.float32).eps
    kept = vectors[:, keep]
    return (kept / np.sqrt(values[keep])) @ kept.T, int(keep.sum())
