"""Gradients in the optimizer's eyes: Adam divides each coordinate by the root of its second moment before it steps.

A step on family i moves the shared parameters by u_i = -eta P g_i with P = 1 / (sqrt(nu_hat) + eps) of the shared
group's own Adam state (Kingma and Ba, arXiv 1412.6980), and changes L_j by <g_j, u_i> = -eta <g_j, P g_i> to first
order. So the Gram matrix in the metric P takes the place of the plain one in every measure; `noise.transfer` of it is
the transfer between families. Momentum, weight decay and clipping are left out: P is what the families share.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprefit.conflict.probe import View
from jaxprefit.gram import Flat


def preconditioner(opt_state: Any, b2: float, eps: float) -> dict[str, jax.Array]:
    """Path -> P of every parameter that an Adam state in `opt_state` has updated at least once, float32.

    `opt_state` is the optimizer's own or a checkpoint's (`checkpoints.read_optimizer`), b2 and eps as in the run. A
    group that was never updated has no second moment, and its paths are left out.
    """
    found: dict[str, jax.Array] = {}
    for count, nu in _moments(opt_state):
        if int(count) > 0:
            correction = 1 - b2 ** int(count)
            found |= {
                path: 1 / (jnp.sqrt(jnp.asarray(x, jnp.float32) / correction) + eps)
                for path, x in nu.items()
                if hasattr(x, "shape")  # a parameter of another group has a place holder here
            }
    return found


def view(metric: Flat) -> View:
    """For `probe`: g -> sqrt(P) g, whose Gram matrix is <g_i, P g_j>. Raises ValueError at a path without P."""
    root = {path: jnp.sqrt(p) for path, p in metric.items()}
    scale = jax.jit(lambda r, g: {path: r[path] * x for path, x in g.items()})

    def seen(gradient: Flat) -> Flat:
        missing = [path for path in gradient if path not in root]
        if missing:
            raise ValueError(f"the optimizer never updated {missing[0]}: it has no second moment to divide by")
        scaled: Flat = scale({path: root[path] for path in gradient}, dict(gradient))
        return scaled

    return seen


def update(gradient: Flat, metric: Flat, learning_rate: float) -> dict[str, jax.Array]:
    """-eta P g: what a step on this gradient alone adds to the parameters, for `lookahead`."""
    return {path: -learning_rate * metric[path] * g for path, g in gradient.items()}


def _moments(state: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """(count, nu) of every Adam state in a tree of tuples and mappings."""
    if isinstance(state, Mapping):
        if "nu" in state:
            yield state["count"], state["nu"]
        else:
            for part in state.values():
                yield from _moments(part)
    elif hasattr(state, "nu"):
        yield state.count, state.nu
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from _moments(part)
