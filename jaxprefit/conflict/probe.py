"""The probe: Gram matrices at fixed parameters, from fresh batches, with replicates of every family."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprefit.conflict.gram import by_module, gram

Gradient = Callable[[str, Any], Mapping[str, jax.Array]]
"""(family, batch) -> that family's gradient by slash-joined path."""

REPLICATES = 2


def probe(
    gradient: Gradient,
    streams: Mapping[str, Iterator[Any]],
    shared: Sequence[str],
    batches: int,
    on_batch: Callable[[int], Any] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Block (one module, e.g. 'layer_3/query') -> M [N, F, R, F, R] over N = `batches` rounds.

    Each round draws R = 2 disjoint batches of every family from `streams` and takes their gradients at the same
    parameters. `shared` are the paths compared: those that every family may touch.
    """
    names = list(streams)
    compare = jax.jit(lambda grads: gram(grads, by_module))
    rounds: list[dict[str, np.ndarray]] = []
    for number in range(batches):
        grads = []
        for name in names:
            for _ in range(REPLICATES):
                g = gradient(name, next(streams[name]))
                grads.append({path: g[path] for path in shared})
        rounds.append({block: np.asarray(m) for block, m in compare(grads).items()})
        on_batch(number + 1)
    shape = (batches, len(names), REPLICATES, len(names), REPLICATES)
    return {block: np.stack([r[block] for r in rounds]).reshape(shape) for block in rounds[0]}
