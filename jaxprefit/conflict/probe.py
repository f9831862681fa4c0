"""The probe: Gram matrices at fixed parameters, from fresh batches, with replicates of every family."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprefit.conflict.gram import by_module, gram

Gradient = Callable[[str, Any], Mapping[str, jax.Array]]
"""(family, batch) -> that family's gradient by slash-joined path."""

REPLICATES = 2
GROUPS = 8


class Grams(NamedTuple):
    """What `conflict.measures` takes, for one block or summed over several."""

    rounds: np.ndarray  # [N, F, R, F, R]
    groups: np.ndarray  # [F, G, F, G]

    def __add__(self, other: "Grams") -> "Grams":  # type: ignore[override]
        """Gram matrices of two blocks taken as one."""
        return Grams(self.rounds + other.rounds, self.groups + other.groups)


def probe(
    gradient: Gradient,
    streams: Mapping[str, Iterator[Any]],
    shared: Sequence[str],
    rounds: int,
    on_round: Callable[[int], Any] = lambda _: None,
) -> dict[str, Grams]:
    """Block (one module, such as 'layer_3/query') -> its Grams over `rounds` rounds, at least 4 for an interval.

    Each round draws R = 2 disjoint batches of every family from `streams` and takes their gradients at the same
    parameters. `shared` are the paths compared: those that several families may touch. Memory: G = 8 (or `rounds`, if
    fewer) gradients per family.
    """
    names, groups = list(streams), min(GROUPS, rounds)
    compare = jax.jit(lambda grads: gram(grads, by_module))
    add = jax.jit(lambda a, b: jax.tree.map(jax.numpy.add, a, b), donate_argnums=0)
    per_round: list[dict[str, np.ndarray]] = []
    sums: dict[tuple[str, int], dict[str, jax.Array]] = {}
    for number in range(rounds):
        grads = []
        for name in names:
            for _ in range(REPLICATES):
                g = gradient(name, next(streams[name]))
                grads.append({path: g[path] for path in shared})
        per_round.append({block: np.asarray(m) for block, m in compare(grads).items()})
        for g, name in zip(grads, [n for n in names for _ in range(REPLICATES)]):
            key = name, number % groups
            sums[key] = add(sums[key], g) if key in sums else jax.tree.map(jax.numpy.copy, g)
        on_round(number + 1)
    # Groups may hold one round more or less than others.
    sizes = np.asarray([len(range(k, rounds, groups)) * REPLICATES for _ in names for k in range(groups)])
    between = compare([sums[name, k] for name in names for k in range(groups)])
    f = len(names)
    return {
        block: Grams(
            np.stack([r[block] for r in per_round]).reshape(rounds, f, REPLICATES, f, REPLICATES),
            (np.asarray(m) / (sizes[:, None] * sizes)).reshape(f, groups, f, groups),
        )
        for block, m in between.items()
    }
