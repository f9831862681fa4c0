"""The probe: Gram matrices at fixed parameters, from fresh batches, with replicates of every family."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprefit.errors import UserError
from jaxprefit.gram import Flat, absolute, by_tensor, gram

Gradient = Callable[[str, Any], Flat]
"""(family, batch) -> that family's gradient by slash-joined path. A family may as well be one data set of a family."""

View = Callable[[Flat], Flat]
"""A linear map of a gradient whose Gram matrices are wanted beside the plain ones', such as `preconditioned.view` or
`tangent.view`. It has to take the parameters of single modules alone, too."""

REPLICATES = 2
GROUPS = 12
CHECKED = 2
"""Rounds in which the families' texts are compared: with fewer, a small source could give equal ones by chance."""


class Grams(NamedTuple):
    """What `conflict.measures` and `conflict.noise` take, for one block or summed over several."""

    rounds: np.ndarray  # [N, F, R, F, R]: M[n, i, a, j, b] = <i's batch a, j's batch b> in round n
    groups: np.ndarray  # [F, G, F, G]: the same of the means of G groups of batches
    absolute: np.ndarray | None = None  # [F, G, F, G]: of their entries' absolute values

    def __add__(self, other: "Grams") -> "Grams":  # type: ignore[override]
        """Gram matrices of two blocks taken as one."""
        both = None if self.absolute is None or other.absolute is None else self.absolute + other.absolute
        return Grams(self.rounds + other.rounds, self.groups + other.groups, both)

    @property
    def batches(self) -> int:
        """Number of batches of each family, over all rounds."""
        return self.rounds.shape[0] * self.rounds.shape[2]


def mix(grams: Grams, weights: np.ndarray) -> Grams:
    """Gram matrices of mixtures: of families, out of those of their data sets. weights [families, data sets].

    Of the absolute values nothing can be said.
    """
    rounds = np.einsum("pf,nfagb,qg->npaqb", weights, grams.rounds, weights)
    return Grams(rounds, np.einsum("pf,fkgl,qg->pkql", weights, grams.groups, weights))


def probe(
    gradient: Gradient,
    streams: Mapping[str, Iterator[Any]],
    shared: Sequence[str],
    rounds: int,
    on_round: Callable[[int], Any] = lambda _: None,
    views: Mapping[str, View] | None = None,
) -> dict[str, dict[str, Grams]]:
    """'gradient', and each of `views` -> block (one tensor, such as 'layer_3/query/kernel') -> its Grams.

    Each of `rounds`, at least 2 and for good intervals 24, draws R = 2 disjoint batches of every family from `streams`
    and takes their gradients at the same parameters. `shared` are the paths compared: those that several families may
    touch. Memory: G = 12 gradients per family (or as many as batches, if fewer). Raises UserError where two streams
    give the same texts batch by batch: their noise would be shared, which looks like agreement.
    """
    names, groups = list(streams), min(GROUPS, rounds * REPLICATES)
    every: dict[str, View] = {"gradient": lambda g: g, **(views or {})}
    compare = jax.jit(lambda grads: gram(grads, by_tensor))
    add = jax.jit(lambda a, b: jax.tree.map(jax.numpy.add, a, b), donate_argnums=0)
    per_round: dict[str, list[dict[str, np.ndarray]]] = {view: [] for view in every}
    sums: dict[tuple[str, int], dict[str, jax.Array]] = {}
    texts: dict[str, list[set[bytes]]] = {name: [] for name in names}
    for number in range(rounds):
        grads = []
        drawn = {name: [next(streams[name]) for _ in range(REPLICATES)] for name in names}
        if number < CHECKED:
            for name in names:
                texts[name] += [_texts(batch) for batch in drawn[name]]
        if number == CHECKED - 1:
            check_independent(texts)
        for name in names:
            for batch, content in enumerate(drawn[name], number * REPLICATES):
                g = {path: x for path, x in gradient(name, content).items() if path in set(shared)}
                grads.append(g)
                key = name, batch % groups
                sums[key] = add(sums[key], g) if key in sums else jax.tree.map(jax.numpy.copy, g)
        for view, of in every.items():
            per_round[view].append(_host(compare([of(g) for g in grads])))
        on_round(number + 1)
    # Groups may hold one batch more or less than others.
    sizes = np.asarray([len(range(k, rounds * REPLICATES, groups)) for _ in names for k in range(groups)])
    means = [sums[name, k] for name in names for k in range(groups)]
    f = len(names)
    found: dict[str, dict[str, Grams]] = {view: {} for view in every}
    for part in _modules(shared):
        # Module by module: a view of all means at once would take their memory again.
        for view, of in every.items():
            seen = [of({path: g[path] for path in part}) for g in means]
            between, sizeless = _host(gram(seen, by_tensor)), _host(gram([absolute(g) for g in seen], by_tensor))
            for block, m in between.items():
                every_round = np.stack([r[block] for r in per_round[view]])
                found[view][block] = Grams(
                    every_round.reshape(rounds, f, REPLICATES, f, REPLICATES),
                    *((x / (sizes[:, None] * sizes)).reshape(f, groups, f, groups) for x in (m, sizeless[block])),
                )
    return found


def check_independent(texts: Mapping[str, Sequence[set[bytes]]]) -> None:
    """Raises UserError where two families hold mostly the same texts in batches of one number, but not of others.

    `texts` are those of the first batches, two or more, by family. That families draw from one small source by
    themselves is no error: then batches of other numbers have as many texts in common.
    """
    for (a, first), (b, second) in itertools.combinations(texts.items(), 2):
        together = apart = 0.0
        for (k, one), (m, two) in itertools.product(enumerate(first), enumerate(second)):
            common = len(one & two)
            together, apart = together + (k == m) * common, apart + (k != m) * common / (len(second) - 1)
        if together - apart > sum(min(map(len, both)) for both in zip(first, second)) / 2:
            raise UserError(
                f"families '{a}' and '{b}' are probed on the same texts, batch by batch: they would share their noise,"
                " which looks like agreement; draw each family's batches by themselves"
            )


def _texts(batch: Any) -> set[bytes]:
    """A batch's texts by their token ids (a masked text is another); a batch without `input_ids` is one text."""
    content = getattr(batch, "batch", batch)
    if not (isinstance(content, Mapping) and {"input_ids", "segments"} <= content.keys()):
        return {b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(content))}
    ids, segments = np.asarray(content["input_ids"]), np.asarray(content["segments"])
    return {row[of == s].tobytes() for row, of in zip(ids, segments) for s in np.unique(of[of > 0])}


def _modules(paths: Sequence[str]) -> list[list[str]]:
    modules: dict[str, list[str]] = {}
    for path in paths:
        modules.setdefault(path.rpartition("/")[0], []).append(path)
    return list(modules.values())


def _host(blocks: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {block: np.asarray(m) for block, m in blocks.items()}
