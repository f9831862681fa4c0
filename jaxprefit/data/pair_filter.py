"""The consistency filter for text pairs, as in E5 (Wang et al., 2022, arXiv 2212.03533).

A pair is kept where its b is among the k nearest to its a, compared with a sample of other pairs' b. What a model
trained on the noisy pairs does not find again is more likely noise than signal.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

Vectors = Callable[[list[str]], np.ndarray]
"""n texts -> [n, D] vectors, of any length."""


class Pairs(Protocol):
    """Random access to records with fields a and b, such as `builders.Prepared`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, str]: ...


def consistent(
    pairs: Pairs,
    vectors: Vectors,
    top_k: int,
    sample: int,
    seed: int,
    block: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """[len(pairs)] bool: b ranks among the `top_k` by cosine with a, among itself and `sample` other pairs' b.

    One sample, drawn by `seed`, serves all pairs. Texts are encoded `block` pairs at a time, so that memory holds the
    vectors of the sample and of one block.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:sample])
    texts = [pairs[int(i)]["b"] for i in chosen]
    others = np.concatenate([_unit(vectors(texts[i : i + block])) for i in range(0, len(texts), block)])
    kept = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), block):
        rows = [pairs[i] for i in range(start, min(start + block, len(pairs)))]
        a, b = ([row[side] for row in rows] for side in ("a", "b"))
        ranks = partner_ranks(_unit(vectors(a)), _unit(vectors(b)), others, _same(b, texts))
        kept[start : start + len(rows)] = ranks <= top_k
        progress(start + len(rows))
    return kept


def partner_ranks(a: np.ndarray, b: np.ndarray, others: np.ndarray, same: np.ndarray) -> np.ndarray:
    """[n] ranks from 1 of b_i [n, D] by product with a_i [n, D], among itself and the `others` [m, D].

    `same` [n, m]: where an other is the same text as b_i, so that it does not count against it.
    """
    own = np.einsum("nd,nd->n", a, b)
    return 1 + ((a @ others.T > own[:, None]) & ~same).sum(1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _same(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    return np.asarray(texts, object)[:, None] == np.asarray(others, object)
