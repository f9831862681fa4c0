"""Which rows of a task are trained on: a fraction, k shots, what is left beside development rows.

All by fixed seeds, so that they are the same for every encoder and fine-tuning seed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprefit.data.builders import Prepared
from jaxprefit.data.rows import Rows

MTEB_SEED = 42


def subset(rows: int, fraction: float, limit: int = 0) -> np.ndarray:
    """Indices of the training rows used: nested over fractions and limits, equal for every seed and strategy."""
    number = max(1, round(rows * fraction))
    return np.random.default_rng(0).permutation(rows)[: min(number, limit or number)]


def cut_development(train: Prepared) -> tuple[Rows, Rows]:
    """(training rows, a tenth for development), for a task without development rows of its own."""
    order = np.random.default_rng(1).permutation(len(train))
    cut = max(1, len(train) // 10)
    return Rows(train, np.sort(order[cut:])), Rows(train, np.sort(order[:cut]))


def shots(records: Sequence[Mapping[str, Any]], k: int) -> np.ndarray:
    """Indices of rows with k of every label; for tags, of sentences that hold K to 2K entities of every type.

    Greedy over a fixed order: a row is taken if it has something still below K and takes nothing above 2K (K for
    labels), as Few-NERD samples (Ding et al., 2021, `util/fewshotsampler.py`), with all types as the ways. A label or
    type may stay below K: where it is rarer, or its sentences hold too many entities of others.
    """
    found: Counter[str] = Counter()
    chosen = []
    for i in np.random.default_rng(0).permutation(len(records)).tolist():
        held, most = classes(records[i]), 2 * k if "tags" in records[i] else k
        if any(found[c] < k for c in held) and all(found[c] + n <= most for c, n in held.items()):
            found += held
            chosen.append(i)
    return np.asarray(chosen, int)


def classes(record: Mapping[str, Any]) -> Counter[str]:
    """Entities by type (IOB2: one a B-), or the one label."""
    if "tags" in record:
        return Counter(tag[2:] for tag in record["tags"] if tag.startswith("B-"))
    return Counter([record["label"]])


def mteb_draw(labels: Sequence[str], k: int, draw: int) -> np.ndarray:
    """Indices of the first k rows of each label in the order of MTEB's draw of that number, from 0.

    As its AbsTaskClassification: one list of indices, shuffled again for every draw with the same seed.
    """
    order = np.arange(len(labels))
    for _ in range(draw + 1):
        np.random.RandomState(MTEB_SEED).shuffle(order)
    found: Counter[str] = Counter()
    chosen = []
    for i in order.tolist():
        if found[labels[i]] < k:
            found[labels[i]] += 1
            chosen.append(i)
    return np.asarray(chosen, int)
