"""Significance tests by known cases, and against brute force where there is none."""

import itertools
import random

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2

from jaxprefit import significance as sig
from jaxprefit.downstream.evaluate import tc_scores
from jaxprefit.errors import UserError

TAGS = st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])
SENTENCES = st.lists(
    st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(TAGS, min_size=n, max_size=n)] * 2)),
    min_size=1,
    max_size=5,
)


def well_formed(tags: list[str]) -> list[str]:
    return [t.replace("I-", "B-") if before[2:] != t[2:] else t for before, t in zip(["O", *tags], tags)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200)
@given(SENTENCES)
def test_f1_of_summed_counts_is_the_strict_span_score(pairs: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = [well_formed(g) for g, _ in pairs], [p for _, p in pairs]
    counts = sig.span_counts(gold, predicted)
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    assert sig.f1(counts.sum(0)) == pytest.approx(seqeval.metrics.f1_score(gold, predicted, **strict))


def test_spans_by_hand() -> None:
    assert sig.spans(["B-a", "I-a", "B-a", "O", "I-a", "B-b", "I-a"]) == {(0, 2, "a"), (2, 3, "a"), (5, 6, "b")}
    counts = sig.span_counts([["B-a", "O", "B-b"], ["O"]], [["B-a", "B-a", "O"], ["B-a"]])
    np.testing.assert_array_equal(counts, [[1, 1, 1], [0, 1, 0]])
    assert sig.f1(np.zeros(3)) == 0.0


def test_accuracy_of_summed_counts() -> None:
    gold, predicted = list("aabb"), list("abbb")
    counts = sig.label_counts(gold, predicted)
    assert sig.accuracy(counts.sum(0)) == tc_scores(gold, predicted)["accuracy"] == 0.75


def test_bootstrap_interval_of_an_accuracy_is_the_binomial_one() -> None:
    """Against a system that is always wrong the difference is the accuracy itself."""
    right = np.zeros((400, 2), int)
    right[:300, 0], right[300:, 1] = 1, 1
    wrong = np.tile([0, 1], (400, 1))
    found = sig.paired_bootstrap(right, wrong)
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.difference == 0.75
    assert found.low == pytest.approx(0.75 - spread, abs=0.01) and found.high == pytest.approx(0.75 + spread, abs=0.01)
    assert found.p_value == pytest.approx(2 / 10_001)


def test_bootstrap_is_paired_and_counts_spans() -> None:
    rng = np.random.default_rng(0)
    first = np.stack([rng.integers(0, 4, 200), rng.integers(0, 2, 200), rng.integers(0, 2, 200)], 1)
    same = sig.paired_bootstrap(first, first)
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    worse = first + [0, 1, 0]  # one false positive more in every sentence
    found = sig.paired_bootstrap(first, worse)
    assert found.difference == pytest.approx(sig.f1(first.sum(0)) - sig.f1(worse.sum(0)))
    # Far apart as a pair, although the two scores' own intervals are wide.
    assert 0 < found.low < found.difference < found.high and found.p_value < 0.001
    turned = sig.paired_bootstrap(worse, first)
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_bootstrap_over_seeds_scores_each_seed_then_averages() -> None:
    rng = np.random.default_rng(1)
    seeds = rng.integers(0, 3, (3, 50, 3))
    other = rng.integers(0, 3, (2, 50, 3))
    found = sig.paired_bootstrap(seeds, other, draws=200)
    expected = np.mean([sig.f1(s.sum(0)) for s in seeds]) - np.mean([sig.f1(s.sum(0)) for s in other])
    assert found.difference == pytest.approx(expected)
    with pytest.raises(UserError, match="not scored on the same sentences"):
        sig.paired_bootstrap(seeds, other[:, 1:])


def test_mcnemar_is_a_sign_test_on_the_texts_that_differ() -> None:
    a = np.asarray([True] * 8 + [False] * 1 + [True] * 50 + [False] * 7)
    b = np.asarray([False] * 8 + [True] * 1 + [True] * 50 + [False] * 7)
    assert sig.mcnemar(a, b) == pytest.approx(2 * (1 + 9) / 2**9)  # 8 against 1
    assert sig.mcnemar(a, b) == sig.mcnemar(b, a)
    assert sig.mcnemar(a, a) == 1.0


def test_wilcoxon_over_tasks_against_all_signs() -> None:
    first, second = [0.9, 0.8, 0.75, 0.6, 0.5, 0.91], [0.8, 0.79, 0.72, 0.64, 0.3, 0.79]
    difference = np.subtract(first, second)
    ranks = scipy.stats.rankdata(np.abs(difference))
    positive = ranks[difference > 0].sum()
    sums = [sum(r for r, s in zip(ranks, signs) if s) for signs in itertools.product([0, 1], repeat=6)]
    as_far = np.mean([abs(s - 10.5) >= abs(positive - 10.5) for s in sums])
    assert sig.wilcoxon(first, second) == pytest.approx(as_far)
    assert sig.wilcoxon(first, first) == 1.0


def test_holm_by_hand() -> None:
    found = sig.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"b": 0.04, "c": 0.09, "a": 0.09, "d": 0.5})
    assert [*found] == ["a", "b", "c", "d"] and sig.holm({"only": 0.9, "most": 0.8}) == {"only": 1.0, "most": 1.0}


def test_violation_by_hand() -> None:
    assert sig.violation([2, 3, 4], [1, 2, 3]) == 0.0 and sig.violation([1, 2, 3], [2, 3, 4]) == 1.0
    assert sig.violation([1, 2], [1, 2]) == 0.5
    # Quantiles 0 and 4 against 1 and 1: smaller by 1 over the lower half, larger by 3 over the upper.
    assert sig.violation([0, 4], [1]) == pytest.approx(1 / (1 + 9))
    # Samples of unlike size: 0 0 3 3 3 3 against 1 1 1 2 2 2 in sixths.
    assert sig.violation([0, 3, 3], [1, 2]) == pytest.approx(2 / (2 + 4 + 3))


def test_almost_stochastic_order() -> None:
    rng = random.Random(0)
    low = [rng.gauss(0.0, 1.0) for _ in range(20)]
    assert sig.almost_stochastic_order([x + 5 for x in low], low) == 0.0
    assert sig.almost_stochastic_order(low, [x + 5 for x in low]) == 1.0
    other = [rng.gauss(0.0, 1.0) for _ in range(20)]
    assert all((sig.almost_stochastic_order(*pair) or 0) > sig.ASO_BOUND for pair in ((low, other), (other, low)))
    # The bound lies above the observed ratio, and further for a stricter confidence.
    bounds = [sig.almost_stochastic_order(other, low, confidence) for confidence in (0.5, 0.8, 0.95)]
    assert bounds == sorted(bounds) and bounds[0] == pytest.approx(sig.violation(other, low))


def test_few_seeds_cannot_decide_almost_stochastic_order() -> None:
    assert sig.almost_stochastic_order([1.0, 2.0, 3.0, 4.0], np.arange(20)) is None
    assert sig.almost_stochastic_order(np.arange(20), [1.0, 2.0, 3.0, 4.0]) is None
    assert sig.almost_stochastic_order(np.arange(5) + 10.0, np.arange(5)) == 0.0


# The mean of differences


def differences(
    rng: np.random.Generator, tasks: int, first: int, second: int, spread: float, seed: float
) -> np.ndarray:
    """[T, P, S] of true mean zero: tasks differ by `spread`, seeds of pre-finetuning by `seed`, cells by 1."""
    parts = spread * rng.normal(size=(tasks, 1, 1)) + seed * rng.normal(size=(1, first, 1))
    return parts + rng.normal(size=(tasks, first, second))


@pytest.mark.parametrize(
    ("tasks", "first", "second", "seed", "exact"),
    [(9, 1, 3, 0.0, True), (12, 1, 3, 0.0, True), (4, 1, 3, 0.0, True), (9, 3, 1, 0.6, False), (9, 5, 1, 0.6, False)],
)
def test_interval_of_a_mean_covers_it(tasks: int, first: int, second: int, seed: float, exact: bool) -> None:
    """Nominal 95 %: exact of one source of variation, at least that of two, whose common noise counts in both."""
    rng, number = np.random.default_rng(0), 2_000
    held = 0
    for _ in range(number):
        low, high = sig.mean_difference(differences(rng, tasks, first, second, 1.8, seed).mean(2))["interval"]
        held += low <= 0 <= high
    error = 3 * np.sqrt(0.95 * 0.05 / number)
    assert held / number > 0.95 - error
    assert not exact or held / number < 0.95 + error


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), number=st.integers(2, 20), margin=st.floats(-2, 2))
def test_mean_of_one_source_is_the_paired_t_test(seed: int, number: int, margin: float) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, number))
    expected = scipy.stats.ttest_1samp(first - second, margin)
    bounds = expected.confidence_interval(0.95)
    d = first - second
    for shape in ((number,), (number, 1), (1, number)):  # the other source, if any, has but one
        found = sig.mean_difference(d.reshape(shape), margin)
        assert found["interval"] == pytest.approx([bounds.low, bounds.high])
        assert found["p_value"] == pytest.approx(expected.pvalue, rel=1e-6)


def test_interval_of_two_sources_holds_each_one_s() -> None:
    d = differences(np.random.default_rng(1), 9, 3, 1, 1.8, 0.6)[..., 0]
    halves = []
    for means in (d.mean(1), d.mean(0)):
        bounds = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
        halves.append((bounds.high - bounds.low) / 2)
    found = sig.mean_difference(d)
    assert found["interval"][1] - found["difference"] == pytest.approx(np.hypot(*halves))
    touching = sig.mean_difference(d, level=1 - found["p_value"])["interval"]
    assert min(map(abs, touching)) == pytest.approx(0, abs=1e-6)


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert sig.holm({"a": 0.01, "b": None, "c": 0.04}) == pytest.approx({"a": 0.02, "b": None, "c": 0.04})


# Sentences and seeds drawn anew


def null_side(rng: np.random.Generator, difficulty: np.ndarray, deviation: float) -> np.ndarray:
    """[3, N, 2] counts of three seeds of a system whose accuracy differs between seeds by `deviation` points."""
    density = np.exp(-(0.8**2) / (2 * 3.25)) / np.sqrt(2 * np.pi * 3.25)  # of a text's score at the boundary
    shift = deviation / 100 / density * rng.normal(size=(3, 1))
    right = difficulty + shift + rng.normal(size=(3, len(difficulty))) > 0
    return np.stack([right, ~right], -1).astype(int)


@pytest.mark.parametrize("deviation", [0.0, 0.5, 1.0])
def test_systems_that_differ_by_seed_alone_are_rarely_told_apart(deviation: float) -> None:
    rng, number = np.random.default_rng(0), 120
    false = 0
    for seed in range(number):
        difficulty = rng.normal(0.8, 1.5, 1_000)
        sides = [null_side(rng, difficulty, deviation) for _ in range(2)]
        false += sig.paired_bootstrap(sides[0], sides[1], draws=200, seed=seed).p_value < 0.05
    assert false / number < 0.05 + 2 * np.sqrt(0.05 * 0.95 / number)


def test_seeds_of_pre_finetuning_are_those_drawn() -> None:
    """Three encoders with three fine-tunings each: the spread between encoders counts, with two degrees of freedom."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0.8, 1.5, 1_000)
    one = np.stack([null_side(rng, difficulty + shift, 0.0) for shift in (-0.3, 0.0, 0.3)])  # [P, S, N, 2]
    other = np.stack([null_side(rng, difficulty, 0.0) for _ in range(1)])
    nested = sig.paired_bootstrap(one, other, draws=1000)
    flat = sig.paired_bootstrap(one.reshape(9, 1_000, 2), other[0], draws=1000)
    assert nested.difference == pytest.approx(flat.difference)
    assert nested.high - nested.low > 1.5 * (flat.high - flat.low)
