"""Sum and PCGrad against the published procedure on vectors, and aggregators by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.surgery_reference import projected
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit import surgery
from jaxprefit.errors import UserError
from jaxprefit.surgery import METHODS, weighted_sum
from jaxprefit.surgery.projection import pcgrad


def gram_of(vectors: np.ndarray) -> jax.Array:
    return jnp.asarray(vectors, jnp.float32) @ jnp.asarray(vectors, jnp.float32).T


def two_vectors(seed: int, cosine: float, ratio: float, dim: int = 50) -> np.ndarray:
    """Two vectors of this cosine, the second `ratio` times as long."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, 2)))
    return np.stack([q[:, 0], ratio * (cosine * q[:, 0] + np.sqrt(1 - cosine**2) * q[:, 1])])


@pytest.mark.parametrize("families", [2, 3])
def test_sum_gives_every_family_weight_one(families: int) -> None:
    w = weighted_sum(gram_of(np.random.default_rng(0).normal(size=(families, 5))))
    np.testing.assert_array_equal(w, np.ones(families))


@pytest.mark.parametrize("families", [2, 3, 4])
def test_pcgrad_is_the_published_procedure(families: int) -> None:
    for seed in range(30):
        vectors = np.random.default_rng(seed).normal(size=(families, 6))
        found = np.asarray(pcgrad(gram_of(vectors))) @ vectors
        np.testing.assert_allclose(found, projected(vectors), rtol=1e-4, atol=1e-4)


def test_pcgrad_by_hand() -> None:
    # g1 = (1, 0) loses its part along g2 = (-1, 1) and becomes (1/2, 1/2); g2 becomes (0, 1).
    vectors = np.asarray([[1.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(np.asarray(pcgrad(gram_of(vectors))) @ vectors, [0.5, 1.5], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(-0.999, 0.999), st.sampled_from([0.1, 0.5, 1.0, 3.0, 10.0]))
def test_pcgrad_conflicts_with_neither_of_two_families(seed: int, cosine: float, ratio: float) -> None:
    vectors = two_vectors(seed, cosine, ratio)
    found = np.asarray(pcgrad(gram_of(vectors)), np.float64) @ vectors
    np.testing.assert_allclose(found, projected(vectors), atol=1e-4 * max(1, ratio))
    assert (vectors @ found >= -1e-5 * max(1.0, ratio**2)).all()


@pytest.mark.parametrize("cosine", [0.0, 0.2, 1.0])
def test_pcgrad_changes_nothing_without_conflict(cosine: float) -> None:
    vectors = np.asarray([[1.0, 0.0], [2 * cosine, 2 * np.sqrt(1 - cosine**2)]])
    np.testing.assert_array_equal(pcgrad(gram_of(vectors)), [1.0, 1.0])


def test_pcgrad_of_opposite_gradients_cancels() -> None:
    vectors = np.asarray([[1.0, 0.0], [-4.0, 0.0]])
    np.testing.assert_allclose(np.asarray(pcgrad(gram_of(vectors))) @ vectors, [0.0, 0.0], atol=1e-6)


def test_pcgrad_leaves_one_family_alone_where_the_other_is_zero() -> None:
    np.testing.assert_array_equal(pcgrad(jnp.diag(jnp.asarray([4.0, 0.0]))), [1.0, 1.0])


def test_aggregators_are_found_by_name() -> None:
    gram = {"layer_0": gram_of(two_vectors(0, -0.5, 2.0))}
    for name, plain in (("sum", weighted_sum), ("pcgrad", pcgrad)):
        weights, state = surgery.get(name)({"whole": gram["layer_0"]}, jnp.ones(2), (), [0, 1])
        np.testing.assert_allclose(weights["whole"], plain(gram["layer_0"]), rtol=1e-6)
        assert state == ()


@pytest.mark.parametrize(
    "name, hint",
    [("pcgard", "did you mean 'pcgrad'?"), ("sums", "did you mean 'sum'?"), ("xyz", f"known: {', '.join(METHODS)}")],
)
def test_an_unknown_aggregator_is_one_line_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        surgery.get(name)
    assert str(error.value) == f"aggregator '{name}' is unknown; {hint}"
