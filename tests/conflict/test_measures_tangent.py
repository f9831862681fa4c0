"""Adapters' gradients without their gauge."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprefit.conflict import lora_gauge
from jaxprefit.gram import by_module, gram

MODULE = "lora/shared/layer_0/query"
SCALE, IN, OUT, RANK = 2.0, 9, 7, 3


def adapter(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{MODULE}/a": a, f"{MODULE}/b": b, f"{MODULE}/scale": np.asarray(SCALE)}


def by_factors(dense: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict:
    """The gradients of the factors out of that of the kernel."""
    parts = {f"{MODULE}/a": SCALE * dense @ b.T, f"{MODULE}/b": SCALE * a.T @ dense}
    return {path: jnp.asarray(x, jnp.float32) for path, x in parts.items()}


def projected(dense: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """On the tangent space at a b, from the definition."""
    u, v = a @ np.linalg.pinv(a), np.linalg.pinv(b) @ b
    return u @ dense + dense @ v - u @ dense @ v


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(IN, RANK)), rng.normal(size=(RANK, OUT)), list(rng.normal(size=(2, IN, OUT))), rng


def test_gram_matrix_is_that_of_projected_dense_gradients(case: tuple) -> None:
    a, b, dense, _ = case
    view, directions = lora_gauge.view(adapter(a, b))
    found = gram([view(by_factors(g, a, b)) for g in dense], by_module)[MODULE]
    rows = np.stack([projected(g, a, b).ravel() for g in dense])
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-4)
    assert directions == {MODULE: (0, 2 * RANK)}


def test_any_gauge_gives_the_same_and_raw_factors_do_not(case: tuple) -> None:
    a, b, dense, rng = case

    def cosine(gradients: list) -> float:
        m = np.asarray(gram(gradients, by_module)[MODULE])
        return float(m[0, 1] / np.sqrt(m[0, 0] * m[1, 1]))

    found, raw = [], []
    for _ in range(5):
        r = rng.normal(size=(RANK, RANK)) + 2 * np.eye(RANK)
        other, inverse = a @ r, np.linalg.solve(r, b)
        view, _ = lora_gauge.view(adapter(other, inverse))
        gradients = [by_factors(g, other, inverse) for g in dense]
        found.append(cosine([view(g) for g in gradients]))
        raw.append(cosine(gradients))
    np.testing.assert_allclose(found, found[0], atol=1e-4)
    assert np.ptp(raw) > 0.01


def test_a_fresh_adapter_has_undefined_directions_not_zeros(case: tuple) -> None:
    a, b, dense, _ = case
    view, directions = lora_gauge.view(adapter(a, 0 * b))
    seen = view(by_factors(dense[0], a, 0 * b))
    assert set(seen) == {f"{MODULE}/b"}, "no step on a changes the map: a has no direction, and no zero"
    assert directions[MODULE] == (RANK, 2 * RANK)
    view, directions = lora_gauge.view(adapter(0 * a, 0 * b))
    assert view(by_factors(dense[0], 0 * a, 0 * b)) == {} and directions[MODULE].undefined == 2 * RANK


def test_a_padded_adapter_counts_what_it_lacks(case: tuple) -> None:
    a, b, dense, _ = case
    wide, tall = np.pad(a, ((0, 0), (0, 2))), np.pad(b, ((0, 2), (0, 0)))
    view, directions = lora_gauge.view(adapter(wide, tall))
    found = gram([view(by_factors(g, wide, tall)) for g in dense], by_module)[MODULE]
    plain, _ = lora_gauge.view(adapter(a, b))
    np.testing.assert_allclose(found, gram([plain(by_factors(g, a, b)) for g in dense], by_module)[MODULE], rtol=1e-4)
    assert directions[MODULE] == (4, 2 * (RANK + 2))
    assert lora_gauge.undefined({**directions, "other": lora_gauge.Directions(1, 6)}) == (5, 16)


def test_what_is_no_adapter_passes_as_it_is(case: tuple) -> None:
    a, b, *_ = case
    view, _ = lora_gauge.view(adapter(a, b))
    kernel = {"backbone/layer_0/query/kernel": jnp.ones((2, 2))}
    assert view(kernel)["backbone/layer_0/query/kernel"].tolist() == [[1, 1], [1, 1]]
