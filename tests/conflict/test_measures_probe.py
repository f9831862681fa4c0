"""The probe against NumPy, its views, and what is said of a block."""

import dataclasses
import json
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit.conflict.blocks import describe, transfer_matrix, verdicts
from jaxprefit.conflict.inner_products import expected
from jaxprefit.conflict.noise import corrected_cosine, near_refusal, p_conflict
from jaxprefit.conflict.probe import GROUPS, Grams, check_independent, mix, probe
from jaxprefit.data.packing import Layout, pack
from jaxprefit.errors import UserError
from jaxprefit.gram import GROUPINGS, regroup
from jaxprefit.runtime.results import to_json

TENSORS = {
    "layer_0/query/kernel": "backbone/layer_0/query/kernel",
    "layer_0/query/bias": "backbone/layer_0/query/bias",
    "layer_1/key/kernel": "backbone/layer_1/key/kernel",
}
SIGNS = {"ner": 1.0, "tc": -0.5, "mlm": 2.0}


def toy_gradient(name: str, batch: np.ndarray) -> dict:
    """Two shared modules and one parameter of the family's own, all a function of the batch."""
    return {
        "backbone/layer_0/query/kernel": jnp.asarray(SIGNS[name] * batch[:4].reshape(2, 2)),
        "backbone/layer_0/query/bias": jnp.asarray(batch[4:6] ** 2),
        "backbone/layer_1/key/kernel": jnp.asarray(batch[6:].reshape(1, -1) + SIGNS[name]),
        f"head/{name}/kernel": jnp.full((3,), 1e3),
    }


def stream(seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.normal(size=9).astype(np.float32)


def streams(families: int = 2) -> dict[str, Iterator[np.ndarray]]:
    return {name: stream(seed) for seed, name in enumerate(list(SIGNS)[:families])}


@pytest.mark.parametrize(("rounds", "families"), [(2, 2), (7, 3), (11, 2)])
def test_probe_equals_numpy(rounds: int, families: int) -> None:
    seen: list[int] = []
    double = {"double": lambda g: {path: 2 * x for path, x in g.items()}}
    found = probe(toy_gradient, streams(families), list(TENSORS.values()), rounds, seen.append, double)
    assert seen == list(range(1, rounds + 1))
    drawn = streams(families)
    batches = [[[toy_gradient(n, next(s)) for _ in "ab"] for n, s in drawn.items()] for _ in range(rounds)]
    assert set(found["gradient"]) == set(found["double"]) == set(TENSORS)
    for block, path in TENSORS.items():
        rows = np.asarray([[[np.ravel(g[path]) for g in pair] for pair in one] for one in batches], np.float64)
        wanted = simulated.from_batches(rows)
        assert wanted.groups.shape[1] == min(GROUPS, 2 * rounds)
        for part, expect in wanted._asdict().items():
            np.testing.assert_allclose(getattr(found["gradient"][block], part), expect, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(getattr(found["double"][block], part), 4 * expect, rtol=1e-4, atol=4e-4)
        assert found["gradient"][block].batches == 2 * rounds


def test_the_two_batches_of_a_round_differ() -> None:
    shared = ["backbone/layer_0/query/kernel"]

    def counting(name: str, batch: int) -> dict:
        return {shared[0]: jnp.full((1, 1), float(batch))}

    found = probe(counting, {"a": iter(range(1, 9)), "b": iter(range(11, 19))}, shared, 4)["gradient"]
    norms = np.sqrt(np.einsum("nfrfr->nfr", found["layer_0/query/kernel"].rounds))
    np.testing.assert_allclose(norms[:, 0], [[1, 2], [3, 4], [5, 6], [7, 8]], rtol=1e-6)
    np.testing.assert_allclose(norms[:, 1], [[11, 12], [13, 14], [15, 16], [17, 18]], rtol=1e-6)


def test_coarser_blocks_are_sums() -> None:
    one, two = (simulated.from_batches(simulated.batches(-0.3, 1.0, seed, dimensions=9)) for seed in (0, 1))
    both = np.concatenate([simulated.batches(-0.3, 1.0, seed, dimensions=9) for seed in (0, 1)], -1)
    found = regroup({"layer_0/query/kernel": one, "layer_1/key/kernel": two}, GROUPINGS["whole"])["whole"]
    for part, expect in simulated.from_batches(both)._asdict().items():
        np.testing.assert_allclose(getattr(found, part), expect, rtol=1e-9, atol=1e-12)
    assert (one + Grams(two.rounds, two.groups)).absolute is None


def test_families_out_of_their_data_sets() -> None:
    batches = np.random.default_rng(0).normal(size=(6, 3, 2, 20))  # data sets: two of one family, one of another
    weights = np.asarray([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    found = mix(simulated.from_batches(batches), weights)
    wanted = simulated.from_batches(np.einsum("pf,nfad->npad", weights, batches))
    np.testing.assert_allclose(found.rounds, wanted.rounds, atol=1e-12)
    np.testing.assert_allclose(found.groups, wanted.groups, atol=1e-12)
    assert found.absolute is None


# What is said of a block


def test_described_conflict() -> None:
    found = describe(simulated.from_batches(simulated.batches(-0.6, 0.5, 0)))
    assert found.batches == 48
    assert found.corrected_cosine == pytest.approx(-0.6, abs=0.1)
    low, high = found.corrected_interval
    assert low < -0.6 < high < -0.4
    assert found.cosine == pytest.approx(-0.6 * 0.2, abs=0.03)
    assert found.cosine_within == pytest.approx([0.2, 0.2], abs=0.03)
    assert found.norm_ratio == pytest.approx(0.5, rel=0.05)
    assert found.magnitude_similarity == pytest.approx(0.8, abs=0.03)
    assert found.corrected_magnitude_similarity == pytest.approx(0.8, abs=0.05)
    assert found.dominance == pytest.approx([1 / 3, 2 / 3], abs=0.02)
    assert found.corrected_condition_number > found.condition_number > 1
    assert found.snr == pytest.approx([0.5, 0.5], abs=0.05)
    assert found.noise_scale == pytest.approx([4, 4], rel=0.2)
    assert found.conflicting_share > 0.5
    assert found.share_negative > 0.95 and found.undefined == 0 and found.p_conflict < 1e-6


def test_verdicts_are_adjusted_over_blocks() -> None:
    blocks = {f"layer_{n}": simulated.block(p_conflict=p) for n, p in enumerate((0.001, 0.02, 0.04, 0.5, 0.9999, None))}
    found = verdicts(blocks)
    assert [b.verdict for b in found.values()] == ["conflict", *["undecided"] * 3, "agreement", "undecided"]
    # Two-sided: of five blocks the second smallest of these is third, so that three are left.
    assert found["layer_1"].p_holm == (pytest.approx(2 * 3 * 0.02), 1.0)
    assert found["layer_4"].p_holm == (1.0, pytest.approx(2 * 5 * 0.0001))
    assert found["layer_5"].p_holm == (None, None)
    alone = verdicts({"whole": blocks["layer_1"]})
    assert alone["whole"].verdict == "conflict", "one block needs no adjustment for others"
    assert verdicts({"whole": blocks["layer_2"]})["whole"].verdict == "undecided", "either sign would do"


@pytest.mark.parametrize("blocks", [1, 7])
def test_without_any_relation_a_grouping_has_a_verdict_in_one_case_of_twenty(blocks: int) -> None:
    """Of either sign, at most: by p-values as they are under the null, and by a probe's."""
    rng, number, blank = np.random.default_rng(0), 4_000, simulated.block()
    error = 3 * np.sqrt(0.05 * 0.95 / number)
    uniform = rng.uniform(size=(number, blocks))
    k = simulated.groups(0.0, 1.0, 6, number * blocks, seed=0)
    for p in (uniform, p_conflict(k, 0, 1).reshape(number, blocks)):
        tested = [[dataclasses.replace(blank, p_conflict=float(x)) for x in row] for row in p]
        found = [verdicts({f"b{i}": b for i, b in enumerate(row)}) for row in tested]
        rate = np.mean([any(b.verdict != "undecided" for b in f.values()) for f in found])
        assert rate < 0.05 + error
    assert rate > 0.02, "and not by deciding nothing"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), correlation=st.sampled_from([0.3, 0.6]))
def test_noise_that_two_families_share_batch_by_batch_looks_like_agreement(seed: int, correlation: float) -> None:
    """Why a probe on the same texts is refused: a true cosine of -0.1 comes out above it by far, each time."""
    apart = simulated.batches(-0.1, 0.3, seed, dimensions=1000, rounds=6)
    mean = np.zeros((2, 1000))
    mean[:, :2] = simulated.expected(-0.1) * np.asarray([[1.0], [2.0]])
    noise = apart - mean[:, None]
    shared = np.sqrt(correlation) * noise[:, :1] + np.sqrt(1 - correlation) * noise
    inner = [expected(simulated.from_batches(mean[:, None] + e).groups)[0, 1] for e in (noise, shared)]
    assert inner[1] > 0 > -0.2, "the true inner product"
    assert inner[1] > inner[0] + 0.3


def packed(texts: list[list[int]], rows: int = 2) -> dict[str, np.ndarray]:
    """A batch of texts, as a family's `collate` packs it."""
    layout = Layout.of(rows, 16)
    placed, packing = pack([[len(t)] for t in texts], layout)
    assert len(placed) == len(texts)
    return {"input_ids": packing.lay([np.asarray(t) for t in texts]), "segments": packing.segments()}


def texts_of(number: int, rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(5, 1000, rng.integers(2, 7)).tolist() for _ in range(number)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), same=st.sampled_from(["order", "packing", "most"]))
def test_families_on_the_same_texts_batch_by_batch_are_refused(seed: int, same: str) -> None:
    rng = np.random.default_rng(seed)
    first = [texts_of(4, rng) for _ in range(4)]
    second = {
        "order": first,
        "packing": [t[::-1] for t in first],
        "most": [[*t[:3], *texts_of(1, rng)] for t in first],
    }[same]
    batches = {"ner": iter([packed(t) for t in first]), "tc": iter([packed(t, 3) for t in second])}
    with pytest.raises(UserError, match="'ner' and 'tc' are probed on the same texts"):
        probe(lambda name, batch: {}, batches, list(TENSORS.values()), 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(8, 60))
def test_families_that_draw_by_themselves_from_one_source_are_not_refused(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [{str(i).encode() for i in rng.permutation(rows)[:8]} for _ in range(8)]
    check_independent({"mlm": drawn[:4], "tc": drawn[4:]})


def test_near_refusal_is_where_norms_are_hardly_resolved() -> None:
    """Of a signal that half of the probes refuse the others are marked; of a strong one, none."""
    faint, clear = (simulated.groups(-0.5, snr, 6, 400, seed=1) for snr in (0.05, 1.0))
    refused = ~np.isfinite(corrected_cosine(faint, 0, 1).value)
    assert 0.2 < refused.mean() < 0.95
    marked = near_refusal(faint, 0, 1)
    assert not (marked & refused).any() and marked[~refused].mean() > 0.6
    assert not near_refusal(clear, 0, 1).any()


def test_verdict_tells_conflict_from_nothing() -> None:
    def verdict(truth: float, snr: float, seed: int) -> str:
        block = describe(simulated.from_batches(simulated.batches(truth, snr, seed)))
        return verdicts({"whole": block})["whole"].verdict

    assert [verdict(-0.3, 1.0, s) for s in range(5)] == ["conflict"] * 5
    assert [verdict(0.3, 1.0, s) for s in range(5)] == ["agreement"] * 5
    assert [verdict(-0.3, 0.01, s) for s in range(10)].count("undecided") >= 7


def test_zero_gradients_are_undefined_not_unrelated() -> None:
    batches = simulated.batches(-0.3, 1.0, 0, dimensions=20)
    batches[:, 1] = 0.0
    found = describe(simulated.from_batches(batches))
    for key in ("cosine", "corrected_cosine", "share_negative", "norm_ratio", "conflicting_share", "p_conflict"):
        assert getattr(found, key) is None, key
    assert found.cosine_interval == found.corrected_interval == (None, None)
    assert found.cosine_within[0] is not None and found.cosine_within[1] is None
    assert found.undefined == 48 and verdicts({"x": found})["x"].verdict == "undecided"
    assert describe(simulated.from_batches(batches[:, ::-1])).norm_ratio == 0.0
    one = simulated.batches(-0.3, 1.0, 0, dimensions=20)
    one[0, 1, 0] = 0.0
    assert describe(simulated.from_batches(one)).undefined == 1, "counted, and the others stand"


def test_transfer_matrix() -> None:
    # |Eg| = 1 and 2, cosine -0.6: <g_0, g_1> = -1.2
    k = simulated.from_batches(simulated.batches(-0.6, 2.0, 0)).groups
    found = transfer_matrix(k)
    assert found[0][0] is None and found[1][1] is None
    assert found[0][1].value == pytest.approx(-1.2 / 4, abs=0.02)
    assert found[1][0].value == pytest.approx(-1.2, abs=0.05)
    low, high = found[1][0].interval
    assert low < found[1][0].value < high
    scaled = transfer_matrix(k, 1 / np.sqrt(np.diag(expected(k))))
    assert scaled[0][1].value == pytest.approx(scaled[1][0].value, rel=0.01), "steps of one length: the cosine"
    assert scaled[0][1].value == pytest.approx(-0.6, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rounds=st.integers(2, 9),
    snr=st.sampled_from([0.01, 1.0, 100.0]),
    scale=st.sampled_from([0.0, 1e-15, 1.0, 1e15]),
    zero_round=st.booleans(),
)
def test_described_blocks_are_json_without_nan(
    seed: int, rounds: int, snr: float, scale: float, zero_round: bool
) -> None:
    batches = simulated.batches(0.0, snr, seed, dimensions=10, rounds=rounds) * np.asarray([1.0, scale])[:, None, None]
    if zero_round:
        batches[0, 0] = 0.0
    grams = Grams(*(x.astype(np.float32) for x in simulated.from_batches(batches)))
    found = verdicts({"x": describe(grams)})["x"]
    json.dumps(to_json(found), allow_nan=False)
    assert found.verdict in ("conflict", "agreement", "undecided")
    low, high = found.corrected_interval
    assert low is None or high is None or -1 <= low <= high <= 1
