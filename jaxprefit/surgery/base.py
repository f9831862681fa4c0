"""What a method is, and the pieces that methods share. All in float32, whatever the gradients' scale."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RIDGE = 1e-6  # added to the diagonal of a correlation matrix before it is inverted


class Method(NamedTuple):
    """weights(gram [F, F], losses [F], state) -> (w [F], the next state), and init(F) -> the first state.

    A state is a pytree of float32 arrays, of which every axis runs over the families; () for most methods. A method
    that does not read the Gram matrix, but the losses only, says so.
    """

    weights: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
    init: Callable[[int], Any] = lambda families: ()
    reads_gram: bool = True


def stateless(weights: Callable[[jax.Array], jax.Array], reads_gram: bool = True) -> Method:
    """A method that is a pure function of the Gram matrix."""
    return Method(lambda gram, losses, state: (weights(gram), state), reads_gram=reads_gram)


def correlation(gram: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(norms [F], cosines [F, F], alive [F] bool) of the gradients.

    A gradient is not alive where it is zero, or so small beside the largest that float32 cannot tell; its norm is
    given as 1, so that one may divide by it, and its cosines as 0, with itself 1.
    """
    square = jnp.diag(gram)
    alive = square > jnp.maximum(1e-30, 1e-24 * square.max())
    norms = jnp.where(alive, jnp.sqrt(jnp.maximum(square, 0)), 1.0)
    cosines = jnp.clip(gram / norms[:, None] / norms, -1.0, 1.0)
    both = alive[:, None] & alive & ~jnp.eye(len(gram), dtype=bool)
    return norms, jnp.where(both, cosines, jnp.eye(len(gram))), alive


def supports(families: int) -> np.ndarray:
    """[2**F, F] bool: all subsets of the families, the empty one first. Meant for a handful of families."""
    return np.asarray([*itertools.product((False, True), repeat=families)])


def solve_on(support: np.ndarray, matrix: jax.Array, b: jax.Array) -> jax.Array:
    """[S, F]: for each of S subsets, x with matrix x = b on the subset's rows and columns, and 0 outside.

    The solution of a small quadratic programme is the x of one of the subsets, so trying them all is exact, and has
    no iteration that could end early.
    """
    inside = jnp.asarray(support)
    kept = jnp.where(inside[:, :, None] & inside[:, None, :], matrix, jnp.eye(len(matrix)))
    right = jnp.where(inside, b, 0.0)
    return jnp.linalg.solve(kept + RIDGE * jnp.eye(len(matrix)), right[..., None])[..., 0]
