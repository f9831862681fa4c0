"""Estimates from noisy gradients keep what they promise, on simulated gradients with a known truth.

48 rounds of 2 batches, as the configurations for real data probe; expected gradients and noise in 20,000 dimensions.
"""

import numpy as np
import pytest
from helpers import simulated

from jaxprefit.conflict import measures, noise
from jaxprefit.conflict.inner_products import expected, products

ROUNDS, SIMULATIONS = 48, 400
COSINES = (-0.6, -0.3, 0.0, 0.3, 0.6)
STRONG = (1.0, 0.3, 0.1)


def reported_and_covered(k: np.ndarray, truth: float) -> tuple[float, float]:
    found = noise.corrected_cosine(k, 0, 1)
    known = np.isfinite(found.value)
    inside = (found.low <= truth) & (truth <= found.high)
    return float(known.mean()), float(inside[known].mean()) if known.any() else float("nan")


@pytest.mark.parametrize("snr", STRONG)
@pytest.mark.parametrize("truth", COSINES)
def test_interval_covers_the_truth(truth: float, snr: float) -> None:
    k = simulated.groups(truth, snr, ROUNDS, SIMULATIONS, seed=round(100 * snr + 10 * truth + 50))
    reported, covered = reported_and_covered(k, truth)
    assert reported == 1.0
    assert 0.92 <= covered <= 0.98, covered


@pytest.mark.parametrize("truth", COSINES)
@pytest.mark.parametrize(("snr", "rounds"), [(0.02, 48), (0.03, 24), (0.06, 6)])
def test_interval_covers_where_only_some_are_reported(truth: float, snr: float, rounds: int) -> None:
    # The norms that look large enough to report are those whose noise enlarged them: the interval has to bear that.
    k = simulated.groups(truth, snr, rounds, 4 * SIMULATIONS, seed=round(100 * snr + 10 * truth + 90))
    reported, covered = reported_and_covered(k, truth)
    assert 0.1 < reported < 0.99
    assert 0.92 <= covered <= 0.995, covered  # here it may be wide, never narrow


@pytest.mark.parametrize("truth", COSINES)
@pytest.mark.parametrize("snr", [0.003, 0.01])
def test_too_weak_a_signal_is_refused(truth: float, snr: float) -> None:
    reported, _ = reported_and_covered(simulated.groups(truth, snr, ROUNDS, SIMULATIONS, seed=1), truth)
    assert reported <= 0.05


def test_pure_noise_is_refused_and_decides_nothing() -> None:
    k = simulated.groups(0.0, 1e-6, ROUNDS, 2000, seed=2)
    assert reported_and_covered(k, 0.0)[0] <= 0.01
    assert np.mean(noise.p_conflict(k, 0, 1) < noise.ALPHA) <= 0.06


@pytest.mark.parametrize("snr", [*STRONG, 0.03])
def test_false_alarms_of_the_one_sided_test(snr: float) -> None:
    p = noise.p_conflict(simulated.groups(0.0, snr, ROUNDS, 6000, seed=3), 0, 1)
    assert np.mean(p < noise.ALPHA) <= 0.06
    assert np.mean(p > 1 - noise.ALPHA) <= 0.06, "nor does it see agreement where there is none"


def test_the_test_finds_conflict() -> None:
    for snr, power in ((1.0, 1.0), (0.1, 1.0), (0.03, 0.8)):
        assert np.mean(noise.p_conflict(simulated.groups(-0.3, snr, ROUNDS, 400, seed=4), 0, 1) < noise.ALPHA) >= power
        assert np.mean(noise.p_conflict(simulated.groups(0.3, snr, ROUNDS, 400, seed=4), 0, 1) < noise.ALPHA) == 0


def test_raw_cosine_hides_what_the_corrected_one_finds() -> None:
    rng = np.random.default_rng(5)
    full = simulated.grams(-0.3, 0.3, 2 * ROUNDS, 20, rng).reshape(20, 2, ROUNDS, 2, 2, ROUNDS, 2)
    raw = [measures.cosine(measures.batch_grams(np.einsum("fnagnb->nfagb", m)))[..., 0, 1].mean() for m in full]
    np.testing.assert_allclose(raw, -0.025, atol=0.004)
    assert np.mean(raw) == pytest.approx(-0.3 * 0.3**2 / (1 + 0.3**2), abs=0.001)
    corrected = noise.corrected_cosine(simulated.groups(-0.3, 0.3, ROUNDS, SIMULATIONS, seed=6), 0, 1)
    np.testing.assert_allclose(corrected.value, -0.3, atol=0.05)


def test_drawn_gram_matrices_are_those_of_vectors() -> None:
    """The shortcut, in one cell, against gradients of 20,000 entries: same means, spreads and intervals."""
    simulations, rounds, snr = 40, 6, 0.1
    rng = np.random.default_rng(7)
    ks = []
    for _ in range(simulations):
        vectors = rng.standard_normal((2, 2 * rounds, simulated.DIMENSIONS), np.float32)
        vectors /= np.float32(snr * np.sqrt(simulated.DIMENSIONS))
        vectors[..., :2] += simulated.expected(-0.6)[:, None]
        flat = vectors.reshape(24, -1)  # 12 batches a family: each is a group
        ks.append((flat @ flat.T).reshape(2, 12, 2, 12))
    found = noise.corrected_cosine(np.stack(ks), 0, 1)
    drawn = noise.corrected_cosine(simulated.groups(-0.6, snr, rounds, 2000, seed=8), 0, 1)
    error = drawn.value.std() / np.sqrt(simulations)
    assert abs(found.value.mean() - drawn.value.mean()) < 4 * error
    assert found.value.std() == pytest.approx(drawn.value.std(), rel=0.4)
    width, usual = found.high - found.low, drawn.high - drawn.low
    assert abs(width.mean() - usual.mean()) < 4 * usual.std() / np.sqrt(simulations)


def test_errors_are_as_stated() -> None:
    p = products(simulated.groups(-0.3, 0.1, ROUNDS, 2000, seed=9), 0, 1)
    np.testing.assert_allclose(p.mean.mean(0), [-0.3, 1, 1], atol=0.003)
    stated = p.errors.sum(-3).mean(0)
    np.testing.assert_allclose(stated, np.cov(p.mean.T), atol=0.12 * stated.max())


def test_few_noise_directions_and_heavy_tails_keep_the_level() -> None:
    """Real noise is neither isotropic nor Gaussian: 200 dimensions, and batches whose noise differs in size."""
    rng = np.random.default_rng(10)
    draws = []
    for _ in range(300):
        batches = rng.normal(size=(ROUNDS, 2, 2, 200)) * np.sqrt(3 / rng.chisquare(5, (ROUNDS, 2, 2, 1)))
        batches /= 0.3 * np.sqrt(200)
        batches[..., :2] += simulated.expected(-0.3)[:, None]
        draws.append(simulated.from_batches(batches).groups)
    reported, covered = reported_and_covered(np.stack(draws), -0.3)
    assert reported > 0.98 and 0.92 <= covered <= 0.99, (reported, covered)


def test_signal_to_noise_and_noise_scale() -> None:
    # |Eg| = 1 and 2, signal-to-noise 0.3 in a batch
    level = [
        noise.noise_level(g.rounds, g.groups, 1)
        for g in (simulated.from_batches(simulated.batches(-0.3, 0.3, seed)) for seed in range(20))
    ]
    assert np.mean([x.norm for x in level]) == pytest.approx(2, rel=0.03)
    assert np.mean([x.noise for x in level]) == pytest.approx(2 / 0.3, rel=0.03)
    assert np.mean([x.snr.value for x in level]) == pytest.approx(0.3, rel=0.05)
    assert np.mean([x.noise_scale for x in level]) == pytest.approx(1 / 0.3**2, rel=0.1)
    assert np.mean([x.snr.low <= 0.3 <= x.snr.high for x in level]) >= 0.85
    weak = simulated.from_batches(simulated.batches(-0.3, 0.01, 0))
    found = noise.noise_level(weak.rounds, weak.groups, 0)
    assert np.isnan([found.norm, found.snr.value, found.noise_scale]).all()
    assert found.snr.low == 0 and 0 < found.snr.high < 0.2, "the bound stands"


def test_batches_needed_are_enough() -> None:
    """Probes of as many batches as another one asks for find the sign as often as promised."""
    snr = 0.04
    truth = noise.needed(simulated.groups(-0.3, snr, 96, 400, seed=12), 0, 1, 192, cosine=-0.3)
    enough = int(np.ceil(np.median(truth.sign) / 2))
    assert 8 < enough < 48
    power = np.mean(noise.p_conflict(simulated.groups(-0.3, snr, enough, 2000, seed=13), 0, 1) < noise.ALPHA)
    assert 0.7 < power < 0.92
    assert np.isnan(noise.needed(simulated.groups(-0.3, 1e-4, 12, 1, seed=14), 0, 1, 24, cosine=0.1).sign).all()


def test_transfer_is_what_a_step_on_one_does_to_the_other() -> None:
    k = simulated.groups(-0.6, 0.3, ROUNDS, SIMULATIONS, seed=15)
    found = noise.transfer(k, 0, 1, scale=(2.0, 1.0))
    assert 0.92 <= np.mean((found.low <= -1.2) & (found.high >= -1.2)) <= 0.98
    weak = noise.transfer(simulated.groups(-0.6, 0.005, ROUNDS, SIMULATIONS, seed=16), 0, 1)
    assert np.isnan(weak.value).mean() >= 0.95


def test_estimates_take_other_units_and_orders() -> None:
    k = simulated.groups(0.3, 0.1, 24, 3, seed=17)
    size = np.asarray([1e-8, 1e8])[:, None, None, None] * np.asarray([1e-8, 1e8])[:, None]
    for found, wanted in zip(noise.corrected_cosine(k * size, 0, 1), noise.corrected_cosine(k, 0, 1)):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    swapped = noise.corrected_cosine(k[:, ::-1][..., ::-1, :], 0, 1)
    np.testing.assert_allclose(np.stack(swapped), np.stack(noise.corrected_cosine(k, 0, 1)), rtol=1e-9)
    np.testing.assert_allclose(expected(k)[:, 0, 1], k[:, 0, :, 1].mean((1, 2)))


def test_zero_gradients_are_undefined() -> None:
    k = simulated.groups(0.3, 1.0, 24, 1, seed=18)
    k[:, 1] = k[..., 1, :] = 0.0
    assert np.isnan(np.stack(noise.corrected_cosine(k, 0, 1))).all()
    assert np.isnan(np.stack(noise.transfer(k, 0, 1))).all()
    assert np.isnan(noise.p_conflict(k, 0, 1)).all()
    with pytest.raises(ValueError, match="groups"):
        products(k[..., :3][:, :, :3], 0, 1)
