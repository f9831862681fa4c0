"""The probe's Gram matrices as the blocks of a report: one entry a block and pair of families, as JSON."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprefit import gram
from jaxprefit.conflict import noise
from jaxprefit.conflict.describe import describe, number, verdicts
from jaxprefit.conflict.inner_products import expected
from jaxprefit.conflict.probe import Grams

KINDS = ("query", "key", "value", "attention_output", "intermediate", "output")


POPULATION, ROWS_DRAWN = "population", "rows drawn"
"""What a block's intervals and verdict speak of."""


def pairs(
    blocks: Mapping[str, Grams],
    families: Sequence[str],
    preconditioned: Mapping[str, Grams] | None = None,
    repeated: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Each pair of families with its blocks under every grouping, from the probe's finest blocks; and the same by layer
    and in all between preconditioned gradients, where given.

    `repeated` are the families of which rows were drawn more than once: their batches share noise, so that intervals
    and verdicts are of the gradient on the rows drawn (`scope`), not of that on the population.
    """
    out = []
    for i, j in itertools.combinations(range(len(families)), 2):
        pair = [families[i], families[j]]
        scope = ROWS_DRAWN if set(pair) & set(repeated) else POPULATION
        adam = groupings(preconditioned, i, j, ("whole", "layer"), scope) if preconditioned else None
        found = groupings(blocks, i, j, ("whole", "layer", "kind", "module"), scope)
        out.append({"families": pair, "blocks": found, "preconditioned": adam})
    return out


def groupings(
    blocks: Mapping[str, Grams], i: int, j: int, names: Sequence[str], scope: str
) -> dict[str, dict[str, Any]]:
    """Grouping -> block -> its measures for families i and j, verdicts adjusted over the blocks of the grouping.

    `contribution` is <E g_i, E g_j> over the product of the whole gradients' norms: contributions of disjoint blocks
    add up to the corrected cosine of all of them together.
    """
    scale = _norms(gram.regroup(blocks, gram.GROUPINGS["whole"])["whole"], i, j)
    out = {}
    for name in names:
        entries = {}
        for block, grams in gram.regroup(blocks, gram.GROUPINGS[name]).items():
            inner = noise.inner(grams.groups, i, j)
            share = {
                "contribution": number(inner.value / scale),
                "contribution_interval": [number(inner.low / scale), number(inner.high / scale)],
            }
            entries[block] = {**describe(grams, i, j), **share, "scope": scope}
        out[name] = verdicts(ordered(entries))
    return out


def known(block: Mapping[str, Any]) -> bool:
    """Whether the noise-corrected cosine has a sign: it was not refused, and verdict and interval agree on it."""
    low, high = block["corrected_interval"]
    return block["verdict"] != "undecided" and low is not None and high is not None and low * high > 0


def ordered(blocks: Mapping[str, Any]) -> dict[str, Any]:
    """Embeddings first, then layers by number, adapters last."""

    def key(name: str) -> tuple:
        part, _, rest = name.partition("/")
        layer = part.removeprefix("layer_").partition("-")[0]
        position = KINDS.index(rest or part) if (rest or part) in KINDS else len(KINDS)
        first = int(layer) if layer.isdigit() else -1
        return (name.startswith("lora"), not name.startswith("embeddings"), first, position, name)

    return {name: blocks[name] for name in sorted(blocks, key=key)}


def _norms(whole: Grams, i: int, j: int) -> float:
    """Product of the norms of E g_i and E g_j; NaN where either is not resolved."""
    if not np.isfinite(noise.corrected_cosine(whole.groups, i, j).value):
        return float("nan")
    squares = np.diag(expected(whole.groups))
    return float(np.sqrt(squares[i] * squares[j]))
