"""Every aggregator by the property that defines it, on random gradients of 2 to 4 families, and in golden numbers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import surgery_reference as reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxprefit.surgery import METHODS
from jaxprefit.surgery.balancing import balance

FAMILIES = st.integers(2, 4)
SEED = st.integers(0, 2**31)
LEARNED = ("uncertainty", "famo", "gradnorm")


@functools.cache
def compiled(name: str) -> Callable[..., Any]:
    return jax.jit(METHODS[name].weights)


def weights(name: str, vectors: np.ndarray, state: Any = None, losses: np.ndarray = reference.LOSSES) -> np.ndarray:
    f = len(vectors)
    gram = jnp.asarray(vectors @ vectors.T, jnp.float32)
    state = METHODS[name].init(f) if state is None else state
    return np.asarray(compiled(name)(gram, jnp.asarray(losses[:f], jnp.float32), state)[0], np.float64)


def gradients(families: int, seed: int, least: float = 0.02) -> np.ndarray:
    """[F, 6] of norms from 0.1 to 10 and any cosines; no gradient is nearly a combination of the others."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(families, 6)) + rng.choice([0, 1]) * rng.normal(size=6)
    g[0] -= rng.choice([0, 1]) * g[1]
    g = g / np.linalg.norm(g, axis=1, keepdims=True)
    assume(np.linalg.eigvalsh(g @ g.T)[0] > least)
    return g * 10 ** rng.uniform(-1, 1, (families, 1))


def property_of(examples: int = 40) -> Callable:
    def wrap(test: Callable) -> Callable:
        return settings(max_examples=examples, deadline=None)(given(families=FAMILIES, seed=SEED)(test))

    return wrap


def cosines(d: np.ndarray, g: np.ndarray) -> np.ndarray:
    return g @ d / np.linalg.norm(g, axis=1) / np.linalg.norm(d)


@property_of()
def test_mgda_is_the_smallest_point_of_the_hull(families: int, seed: int) -> None:
    g = gradients(families, seed)
    w = weights("mgda", g)
    d = w @ g
    assert (w >= 0).all() and w.sum() == pytest.approx(1, abs=1e-6)
    assert (g @ d >= d @ d - 1e-5 * np.linalg.norm(g, axis=1) * np.linalg.norm(g, axis=1).max()).all()


@property_of()
def test_cagrad_has_the_best_worst_case_in_its_ball(families: int, seed: int) -> None:
    g = gradients(families, seed)
    d, mean = weights("cagrad", g) @ g, g.mean(0)
    radius = 0.5 * np.linalg.norm(mean)
    assert np.linalg.norm(d - mean) <= radius * (1 + 1e-5)
    others = np.random.default_rng(seed).normal(size=(500, 6))
    others = mean + radius * others / np.linalg.norm(others, axis=1, keepdims=True)
    near = d + 0.05 * (others - mean)
    near = mean + (near - mean) * np.minimum(1, radius / np.linalg.norm(near - mean, axis=1, keepdims=True))
    best = max((others @ g.T).min(1).max(), (near @ g.T).min(1).max())
    assert (g @ d).min() >= best - 1e-4 * np.linalg.norm(d) * np.linalg.norm(g, axis=1).max()


@property_of()
def test_upgrad_harms_nobody_and_is_the_sum_without_conflict(families: int, seed: int) -> None:
    g = gradients(families, seed)
    assert (cosines(weights("upgrad", g) @ g, g) >= -1e-5).all()
    agreeing = np.abs(g)
    np.testing.assert_allclose(weights("upgrad", agreeing), np.ones(families), atol=1e-5)
    if families == 2:
        np.testing.assert_allclose(weights("upgrad", g), weights("pcgrad", g), rtol=1e-4)


@property_of()
def test_imtl_g_and_config_are_at_one_angle_to_all(families: int, seed: int) -> None:
    g = gradients(families, seed)
    w = weights("imtl_g", g)
    assert np.abs(w).sum() == pytest.approx(1, abs=1e-5)
    config = weights("config", g) @ g
    for d in (w @ g, config):
        c = cosines(d, g)
        assert (c > 0).all() and np.ptp(c) < 1e-3 * c.mean()
    along = (g @ config).sum() / np.linalg.norm(config)
    assert np.linalg.norm(config) == pytest.approx(along, rel=1e-3)


@property_of()
def test_nash_bargains_to_equal_gains(families: int, seed: int) -> None:
    g = gradients(families, seed)
    w = weights("nash_mtl", g)
    assert (w > 0).all()
    np.testing.assert_allclose(w * (g @ g.T @ w), np.ones(families), atol=2e-3)


@property_of()
def test_aligned_gradients_have_equal_singular_values(families: int, seed: int) -> None:
    g = gradients(families, seed)
    b = np.asarray(jax.jit(balance)(jnp.asarray(g @ g.T, jnp.float32)), np.float64)
    least = np.linalg.svd(g, compute_uv=False).min()
    np.testing.assert_allclose(np.linalg.svd(b @ g, compute_uv=False), np.full(families, least), rtol=2e-2)
    np.testing.assert_allclose(weights("aligned_mtl", g), b.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.5, 0.99])
def test_aligned_mtl_is_the_svds_at_every_ratio_of_lengths(cosine: float) -> None:
    lengths = []
    for ratio in 10.0 ** -np.arange(0, 6.25, 0.25):
        g = np.asarray([[1.0, 0.0], [ratio * cosine, ratio * np.sqrt(1 - cosine**2)]])
        expected = reference.direction("aligned_mtl", g)  # in float64
        d = weights("aligned_mtl", g) @ g
        assert np.linalg.norm(d - expected) < 1e-5 * np.linalg.norm(expected)
        lengths.append(np.linalg.norm(d))
    # Continuous: a ratio smaller by 10^(1/4) never changes the step's length by much more than that.
    steps = np.asarray(lengths[1:]) / lengths[:-1]
    assert (steps > 0.3).all() and (steps < 2).all()


@property_of(20)
def test_aligned_mtl_is_the_svds_for_gradients_of_any_lengths(families: int, seed: int) -> None:
    g = gradients(families, seed) * 10.0 ** np.random.default_rng(seed).uniform(-5, 0, (families, 1))
    expected = reference.direction("aligned_mtl", g)
    assert np.linalg.norm(weights("aligned_mtl", g) @ g - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("families, rank", [(3, 2), (4, 2), (5, 2), (5, 4)])
def test_aligned_mtl_leaves_out_what_is_not_in_the_gradients_span(families: int, rank: int) -> None:
    rng = np.random.default_rng(0)
    g = rng.normal(size=(families, rank)) @ rng.normal(size=(rank, 8))
    u, s, v = np.linalg.svd(g, full_matrices=False)
    expected = (s[rank - 1] * u[:, :rank] @ v[:rank]).sum(0)
    np.testing.assert_allclose(weights("aligned_mtl", g) @ g, expected, atol=1e-4 * np.abs(g).max())


@settings(max_examples=40, deadline=None)
@given(seed=SEED, target=st.floats(-0.9, 0.9))
def test_gradvac_reaches_its_target(seed: int, target: float) -> None:
    g = gradients(2, seed)
    state = {"targets": jnp.asarray([[0, target], [-1, 0]], jnp.float32)}  # the second gradient stays
    vaccinated = weights("gradvac", g, state) @ g - g[1]
    before = float(g[0] @ g[1] / np.linalg.norm(g[0]) / np.linalg.norm(g[1]))
    assert cosines(vaccinated, g[1:])[0] == pytest.approx(max(before, target), abs=1e-4)
    gram, losses = jnp.asarray(g @ g.T, jnp.float32), jnp.ones(2)
    _, after = compiled("gradvac")(gram, losses, state)
    assert after["targets"][0, 1] == pytest.approx(0.99 * target + 0.01 * before, abs=1e-5)


@property_of(20)
def test_gradvac_starts_as_pcgrad(families: int, seed: int) -> None:
    g = gradients(families, seed)
    np.testing.assert_allclose(weights("gradvac", g) @ g, reference.projected(g), atol=1e-3 * np.abs(g).max())


def learn(name: str, losses: list[list[float]], gram: np.ndarray) -> tuple[np.ndarray, dict]:
    """The weights and the state after steps with these losses."""
    state = METHODS[name].init(len(gram))
    for now in losses:
        w, state = compiled(name)(jnp.asarray(gram, jnp.float32), jnp.asarray(now, jnp.float32), state)
    return np.asarray(w), state


def test_uncertainty_learns_the_losses_scale() -> None:
    w, state = learn("uncertainty", [[4.0, 0.25]] * 1200, np.eye(2))
    np.testing.assert_allclose(state["log_variance"], np.log([4.0, 0.25]), atol=1e-3)
    np.testing.assert_allclose(w, [1 / 8, 2], rtol=1e-3)


def test_famo_turns_to_the_family_that_falls_slower() -> None:
    w, state = learn("famo", [[2.0, 2.0], [1.0, 1.9]], np.eye(2))
    assert state["logits"][0] < 0 < state["logits"][1]
    z = np.exp(state["logits"]) / np.exp(state["logits"]).sum()
    np.testing.assert_allclose(w, (z / [1.0, 1.9]) / (z / [1.0, 1.9]).sum(), rtol=1e-5)


@pytest.mark.parametrize("families", [2, 3])
def test_famo_is_the_papers_algorithm_over_sixty_steps(families: int) -> None:
    rng = np.random.default_rng(families)
    rates = np.asarray([3e-2, 1e-3, 1e-2])[:families]  # the first family's loss falls fastest
    losses = np.exp(-np.arange(60)[:, None] * rates + 0.1 * rng.normal(size=(60, families)))
    weights, logits = reference.famo(losses)
    state = METHODS["famo"].init(families)
    for t, now in enumerate(losses):
        w, state = compiled("famo")(jnp.eye(families), jnp.asarray(now, jnp.float32), state)
        np.testing.assert_allclose(w, weights[t], rtol=1e-4)
        np.testing.assert_allclose(state["logits"], logits[t], atol=1e-4)
    assert np.ptp(state["logits"]) > 0.05, "a plain descent at this rate would hardly have moved"


def test_gradnorm_lowers_a_large_gradient_and_helps_who_lags() -> None:
    _, large = learn("gradnorm", [[1.0, 1.0]], np.diag([9.0, 1.0]))
    assert large["logits"][0] < large["logits"][1]
    w, lagging = learn("gradnorm", [[1.0, 1.0]] + [[1.0, 0.5]] * 300, np.eye(2))
    assert lagging["logits"][0] > lagging["logits"][1] and w.sum() == pytest.approx(2, abs=1e-5)
    pull = np.asarray([4 / 3, 2 / 3]) ** 1.5  # the fixed mean of weighted norms is 1
    assert abs(w[0] - pull[0]) < 0.1


# Scales, zeros, parallel and opposite gradients


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=60, deadline=None)
@given(seed=SEED, exponents=st.lists(st.one_of(st.none(), st.integers(-19, 18)), min_size=2, max_size=3),
       dim=st.integers(1, 3), losses=st.sampled_from([0.0, 1e-30, 1.0, 1e30]))  # fmt: skip
def test_weights_are_always_finite(name: str, seed: int, exponents: list[int | None], dim: int, losses: float) -> None:
    scales = np.asarray([0.0 if e is None else 10.0**e for e in exponents])
    vectors = np.random.default_rng(seed).integers(-2, 3, (len(exponents), dim)) / 2 * scales[:, None]
    f = len(vectors)
    state: Any = METHODS[name].init(f)
    gram = jnp.asarray(vectors @ vectors.T, jnp.float32)
    for _ in range(2):
        w, state = compiled(name)(gram, jnp.asarray([losses, 1.0, 2.0][:f], jnp.float32), state)
        assert np.isfinite(w).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["upgrad", "config", "imtl_g", "nash_mtl", "aligned_mtl", "cagrad", "mgda"])
def test_a_common_scale_changes_no_direction(name: str) -> None:
    g = np.random.default_rng(1).normal(size=(3, 6))
    d = weights(name, g) @ g
    for scale in (1e-6, 1e6):
        other = weights(name, scale * g) @ g
        np.testing.assert_allclose(other / np.linalg.norm(other), d / np.linalg.norm(d), atol=1e-4)


# Gradients of one length


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].reads_gram and n != "gradnorm"])
def test_two_gradients_of_one_norm_give_the_direction_of_the_sum_and_others_do_not(name: str) -> None:
    for cosine in (-0.9, -0.5, 0.0, 0.5, 0.9):
        g = np.asarray([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
        d = weights(name, g) @ g
        np.testing.assert_allclose(d / np.linalg.norm(d), g.sum(0) / np.linalg.norm(g.sum(0)), atol=1e-3)
    g = np.asarray([[1.0, 0.0], [-1.5, 1.5]])  # what clipping each of them takes away
    d = weights(name, g) @ g
    assert cosines(d, g.sum(0)[None])[0] < 0.99


# Golden numbers: weights, then the learned numbers where there are any

GRAMS = [
    np.asarray([[4.0, -1.0], [-1.0, 1.0]]),
    np.asarray([[4.0, -1.0, 0.6], [-1.0, 1.0, -0.8], [0.6, -0.8, 2.0]]),
]
GOLDEN = {
    "sum": ([1, 1], [1, 1, 1]),
    "uncertainty": (
        [0.335160, 0.610701, 0.404258, -0.204866],
        [0.335160, 0.610701, 0.5, 0.404258, -0.204866, 0],
    ),
    "gradnorm": (
        [1.099668, 0.900332, 0.181436, 0.018564],
        [1.172082, 0.959619, 0.868299, 0.183457, 0.022441, -0.105898],
    ),
    "famo": (
        [0.311780, 0.688220, 0.296167, -0.298317],
        [0.206182, 0.454808, 0.339009, 0.296509, -0.298670, 0.100630],
    ),
    "pcgrad": ([1.25, 2], [1.25, 2.8, 1.425]),
    "gradvac": ([1.206481, 2.353553], [1.206481, 3.391601, 2.276491]),
    "upgrad": ([1.25, 2], [1.265622, 2.984314, 1.487373]),
    "mgda": ([0.285714, 0.714286], [0.149225, 0.569767, 0.281008]),
    "cagrad": ([0.5, 0.933013], [0.333333, 0.690794, 0.333333]),
    "imtl_g": ([0.333333, 0.666667], [0.173140, 0.549602, 0.277257]),
    "config": ([0.75, 1.5], [0.593390, 1.883612, 0.950224]),
    "nash_mtl": ([0.707107, 1.414214], [0.706094, 2.052899, 1.074615]),
    "aligned_mtl": ([0.618419, 1.115533], [0.491801, 1.221201, 0.733963]),
}


@pytest.mark.parametrize("which", [0, 1], ids=["2x2", "3x3"])
@pytest.mark.parametrize("name", METHODS)
def test_golden_numbers(name: str, which: int) -> None:
    gram, golden = GRAMS[which], GOLDEN[name][which]
    g, f = reference.vectors_of(gram), len(gram)
    state: Any = {k: jnp.asarray(v, jnp.float32) for k, v in reference.state(name, f).items()} or ()
    w, after = compiled(name)(jnp.asarray(gram, jnp.float32), jnp.asarray(reference.LOSSES[:f], jnp.float32), state)
    found = [*w, *after["log_variance" if name == "uncertainty" else "logits"]] if name in LEARNED else w
    if name in LEARNED:
        expected = np.concatenate(reference.learned(name, g))
    else:
        expected = np.linalg.solve(g.T, reference.direction(name, g))
    np.testing.assert_allclose(expected, golden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, golden, rtol=1e-4, atol=1e-5)
