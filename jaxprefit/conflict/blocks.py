"""The probe's Gram matrices as the blocks of a report: all measures of a block and pair of families, and verdicts."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from jaxprefit import gram, significance
from jaxprefit.conflict import measures, noise
from jaxprefit.conflict.inner_products import expected as expected_gram
from jaxprefit.conflict.probe import Grams
from jaxprefit.conflict.results import (
    BlockMeasures,
    Blocks,
    Groupings,
    IntervalEstimate,
    Matrix,
    PairReport,
    Preconditioned,
    Verdict,
)
from jaxprefit.significance import holm

KINDS = ("query", "key", "value", "attention_output", "intermediate", "output")

Scope = Literal["population", "rows drawn"]
POPULATION: Scope = "population"
ROWS_DRAWN: Scope = "rows drawn"
"""What a block's intervals and verdict speak of."""

T = TypeVar("T")


def pairs(
    blocks: Mapping[str, Grams],
    families: Sequence[str],
    preconditioned: Mapping[str, Grams] | None = None,
    repeated: Sequence[str] = (),
) -> tuple[PairReport, ...]:
    """Each pair of families with its blocks under every grouping, from the probe's finest blocks; and the same by layer
    and in all between preconditioned gradients, where given.

    `repeated` are the families of which rows were drawn more than once: their batches share noise, so that intervals
    and verdicts are of the gradient on the rows drawn (`scope`), not of that on the population.
    """
    reports = []
    for i, j in itertools.combinations(range(len(families)), 2):
        scope: Scope = ROWS_DRAWN if {families[i], families[j]} & set(repeated) else POPULATION
        adam = groupings(preconditioned, i, j, ("whole", "layer"), scope) if preconditioned else None
        plain = groupings(blocks, i, j, ("whole", "layer", "kind", "module"), scope)
        reports.append(
            PairReport(
                families=(families[i], families[j]),
                blocks=Groupings(**plain),
                preconditioned=Preconditioned(**adam) if adam else None,
            )
        )
    return tuple(reports)


def groupings(blocks: Mapping[str, Grams], i: int, j: int, names: Sequence[str], scope: Scope) -> dict[str, Blocks]:
    """Grouping -> block -> its measures for families i and j, verdicts adjusted over the blocks of the grouping.

    `contribution` is <E g_i, E g_j> over the product of the whole gradients' norms: contributions of disjoint blocks
    add up to the corrected cosine of all of them together.
    """
    scale = _norms(gram.regroup(blocks, gram.GROUPINGS["whole"])["whole"], i, j)
    by_grouping = {}
    for name in names:
        entries = {}
        for block, grams in gram.regroup(blocks, gram.GROUPINGS[name]).items():
            inner = noise.inner(grams.groups, i, j)
            entries[block] = dataclasses.replace(
                describe(grams, i, j),
                contribution=number(inner.value / scale),
                contribution_interval=interval(inner.low / scale, inner.high / scale),
                scope=scope,
            )
        by_grouping[name] = verdicts(ordered(entries))
    return by_grouping


def describe(grams: Grams, i: int = 0, j: int = 1) -> BlockMeasures:
    """Families i and j in one block. `verdicts` and `groupings` add what depends on the other blocks.

    Raw measures are of single batches, mean over rounds, with their noise in; `within` is the reference level.
    """
    rounds, k = grams.rounds.astype(np.float64), grams.groups.astype(np.float64)
    single = measures.batch_grams(rounds)[..., (i, j), :][..., :, (i, j)]  # [N, R, 2, 2]
    cosines = measures.cosine(single)[..., 0, 1]
    raw = cosines.mean(1)
    levels = [noise.noise_level(rounds, k, f) for f in (i, j)]
    first_snr, second_snr = (interval(x.snr.low, x.snr.high) for x in levels)
    corrected = noise.corrected_cosine(k, i, j)
    expected = expected_gram(k)[np.ix_((i, j), (i, j))]
    expected = expected if np.isfinite(corrected.value) else np.full((2, 2), np.nan)
    p = float(noise.p_conflict(k, i, j))
    decide = noise.needed(k, i, j, grams.batches)
    sought = noise.needed(k, i, j, grams.batches, cosine=noise.SOUGHT).sign
    share = None
    if grams.absolute is not None:
        share = measures.conflicting_share(k[i, :, j, :].mean(), grams.absolute[i, :, j, :].mean())
    return BlockMeasures(
        batches=grams.batches,
        cosine=number(raw.mean()),
        cosine_interval=interval(*significance.bootstrap_mean(raw)),
        cosine_within=interval(*(measures.cosine_within(rounds)[:, f].mean() for f in (i, j))),
        corrected_cosine=number(corrected.value),
        corrected_interval=interval(corrected.low, corrected.high),
        near_refusal=bool(noise.near_refusal(k, i, j)),
        p_conflict=number(p, 9),
        share_negative=number(measures.share_below(cosines)),
        undefined=int(np.sum(~np.isfinite(cosines))),
        norm_ratio=number(_ratio(*np.sqrt(np.einsum("nrff->f", single)))),
        magnitude_similarity=number(measures.magnitude_similarity(single)[..., 0, 1].mean()),
        curvature_bound=number(measures.curvature_bound(single)[..., 0, 1].mean()),
        condition_number=number(np.median(measures.condition_number(single))),
        dominance=interval(*measures.dominance(single).mean((0, 1))),
        corrected_magnitude_similarity=number(measures.magnitude_similarity(expected)[0, 1]),
        corrected_curvature_bound=number(measures.curvature_bound(expected)[0, 1]),
        corrected_condition_number=number(measures.condition_number(expected)),
        conflicting_share=number(share),
        snr=interval(levels[0].snr.value, levels[1].snr.value),
        snr_interval=(first_snr, second_snr),
        noise_scale=interval(levels[0].noise_scale, levels[1].noise_scale),
        batches_for_sign=number(decide.sign),
        batches_for_norms=number(decide.norms),
        batches_for_sought=number(sought),
    )


def verdicts(blocks: Mapping[str, BlockMeasures]) -> Blocks:
    """The same blocks with `p_holm` [conflict, agreement] and `verdict`, adjusted over these blocks (Holm, 1979).

    'conflict' or 'agreement' where the two-sided test says so at ALPHA, else 'undecided': where no block has any
    relation, the chance that some verdict stands is at most ALPHA, whichever its sign. The `p_holm` of the sign that
    the estimate does not have is 1.
    """
    one_sided = {name: b.p_conflict for name, b in blocks.items()}
    adjusted = holm({name: None if p is None else 2 * min(p, 1 - p) for name, p in one_sided.items()})
    return {name: _judged(block, adjusted[name]) for name, block in blocks.items()}


def _judged(block: BlockMeasures, adjusted: float | None) -> BlockMeasures:
    """A block with its verdict, from its two-sided p-value adjusted over all blocks."""
    p = block.p_conflict
    if p is None or adjusted is None:
        return dataclasses.replace(block, p_holm=(None, None), verdict="undecided")
    p_holm = number(adjusted if p < 0.5 else 1.0, 9), number(adjusted if p > 0.5 else 1.0, 9)
    sign: Verdict = "conflict" if p < 0.5 else "agreement"
    return dataclasses.replace(block, p_holm=p_holm, verdict=sign if adjusted < noise.ALPHA else "undecided")


def transfer_matrix(k: np.ndarray, scale: np.ndarray | None = None) -> Matrix:
    """[i][j]: `noise.transfer` of a step on i to j; None on the diagonal, which is 1."""
    families = len(k)
    s = np.ones(families) if scale is None else scale

    def entry(i: int, j: int) -> IntervalEstimate | None:
        if i == j:
            return None
        found = noise.transfer(k.astype(np.float64), i, j, (float(s[i]), float(s[j])))
        return IntervalEstimate(value=number(found.value), interval=interval(found.low, found.high))

    return tuple(tuple(entry(i, j) for j in range(families)) for i in range(families))


def sign_known(block: BlockMeasures) -> bool:
    """Whether the noise-corrected cosine has a sign: it was not refused, and verdict and interval agree on it."""
    low, high = block.corrected_interval
    return block.verdict != "undecided" and low is not None and high is not None and low * high > 0


def ordered(blocks: Mapping[str, T]) -> dict[str, T]:
    """Embeddings first, then layers by number, adapters last."""

    def key(name: str) -> tuple:
        part, _, rest = name.partition("/")
        layer = part.removeprefix("layer_").partition("-")[0]
        position = KINDS.index(rest or part) if (rest or part) in KINDS else len(KINDS)
        first = int(layer) if layer.isdigit() else -1
        return (name.startswith("lora"), not name.startswith("embeddings"), first, position, name)

    return {name: blocks[name] for name in sorted(blocks, key=key)}


def number(x: Any, digits: int = 6) -> float | None:
    """A number of a result file, None where undefined."""
    return round(float(x), digits) if x is not None and np.isfinite(x) else None


def interval(low: Any, high: Any, digits: int = 6) -> tuple[float | None, float | None]:
    """Two numbers of a result file, each None where undefined."""
    return number(low, digits), number(high, digits)


def _norms(whole: Grams, i: int, j: int) -> float:
    """Product of the norms of E g_i and E g_j; NaN where either is not resolved."""
    if not np.isfinite(noise.corrected_cosine(whole.groups, i, j).value):
        return float("nan")
    squares = np.diag(expected_gram(whole.groups))
    return float(np.sqrt(squares[i] * squares[j]))


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b > 0 else float("nan")
