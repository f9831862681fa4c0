"""Measures with known answers: pure functions of Gram matrices, and what Gram matrices are."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit import significance
from jaxprefit.conflict import measures
from jaxprefit.gram import GROUPINGS, absolute, by_tensor, gram, kind_of, layer_of, module_of, regroup

ACROSS = np.asarray([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]])  # opposite, three times larger, orthogonal


def gram_of(rows: np.ndarray) -> np.ndarray:
    return rows @ rows.T


def test_measures_by_hand() -> None:
    m = gram_of(ACROSS)
    np.testing.assert_allclose(measures.cosine(m), [[1, -1, 0], [-1, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(measures.magnitude_similarity(m)[0], [1, 0.6, 0.8])
    np.testing.assert_allclose(measures.dominance(m), [1 / 6, 3 / 6, 2 / 6])
    assert measures.share_below(measures.cosine(m)[np.triu_indices(3, 1)]) == pytest.approx(1 / 3)


def test_curvature_bound_by_hand() -> None:
    # cos 0.6, |g_i - g_j|^2 = 0.8, |g_i + g_j|^2 = 3.2
    m = gram_of(np.asarray([[1.0, 0.0], [0.6, 0.8]]))
    np.testing.assert_allclose(measures.curvature_bound(m), [[0, 0.64 / 4], [0.64 / 4, 0]], atol=1e-12)
    assert np.isnan(measures.curvature_bound(gram_of(np.asarray([[1.0], [-1.0]])))[0, 1])


def test_condition_number_by_hand() -> None:
    assert measures.condition_number(np.diag([1.0, 9.0])) == pytest.approx(3)
    assert measures.condition_number(gram_of(ACROSS)) == np.inf, "three gradients in two dimensions"
    assert np.isnan(measures.condition_number(np.asarray([[1.0, 2.0], [2.0, 1.0]]))), "no Gram matrix"
    assert np.isnan(measures.condition_number(np.zeros((2, 2))))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5), st.sampled_from([1e-6, 1.0, 1e6]))
def test_measures_agree_with_the_vectors(seed: int, families: int, scale: float) -> None:
    rows = np.random.default_rng(seed).normal(size=(families, 12)) * scale
    m, size = gram_of(rows), np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(measures.cosine(m), (rows / size[:, None]) @ (rows / size[:, None]).T, atol=1e-9)
    singular = np.linalg.svd(rows, compute_uv=False)
    np.testing.assert_allclose(measures.condition_number(m), singular[0] / singular[-1], rtol=1e-5)
    np.testing.assert_allclose(measures.dominance(m).sum(), 1)
    g, h = rows[:2]
    bound = (1 - measures.cosine(m)[0, 1] ** 2) * np.sum((g - h) ** 2) / np.sum((g + h) ** 2)
    np.testing.assert_allclose(measures.curvature_bound(m)[0, 1], bound, rtol=1e-6)
    product = g * h
    share = np.abs(product[product < 0]).sum() / np.abs(product).sum()
    found = measures.conflicting_share(m[0, 1], np.abs(g) @ np.abs(h))
    np.testing.assert_allclose(found, share, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_directions_do_not_depend_on_sizes(seed: int, a: float, b: float) -> None:
    rows = np.random.default_rng(seed).normal(size=(2, 8))
    m, scaled = gram_of(rows), gram_of(rows * [[a], [b]])
    np.testing.assert_allclose(measures.cosine(scaled), measures.cosine(m), atol=1e-9)
    similarity = measures.magnitude_similarity(gram_of(rows * [[a], [a]]))
    np.testing.assert_allclose(similarity, measures.magnitude_similarity(m), atol=1e-9)
    assert 0 < similarity[0, 1] <= 1


def test_a_zero_gradient_is_undefined() -> None:
    m = gram_of(np.asarray([[1.0, 0], [0, 0]]))
    for found in (measures.cosine(m)[0, 1], measures.share_below(measures.cosine(m)[0, 1:])):
        assert np.isnan(found)
    assert measures.condition_number(m) == np.inf
    np.testing.assert_allclose(measures.dominance(m), [1, 0])
    assert np.isnan(measures.dominance(np.zeros((2, 2)))).all()
    assert np.isnan(measures.conflicting_share(np.asarray(0.0), np.asarray(0.0)))


def test_conflict_scores_rank_blocks() -> None:
    opposed, alike, weak = (np.asarray([[1.0, c], [c, 1.0]]) for c in (-0.5, 0.5, -0.05))
    blocks = {
        "never": np.stack([alike] * 4),
        "zero": np.zeros((4, 2, 2)),
        "always": np.stack([opposed, opposed, weak, weak]),
        "once": np.stack([opposed, alike, alike, alike]),
    }
    assert list(measures.conflict_scores(blocks)) == ["always", "once", "never", "zero"]
    scores = measures.conflict_scores(blocks, -0.1)
    assert (scores["always"], scores["once"], scores["never"]) == (0.5, 0.25, 0.0)
    assert np.isnan(scores["zero"])


def test_batches_of_a_round() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3, 2, 7))  # [N, F, R, D]
    rounds = np.einsum("nfad,ngbd->nfagb", rows, rows)
    found = measures.batch_grams(rounds)
    assert found.shape == (5, 2, 3, 3)
    np.testing.assert_allclose(found[4, 1], gram_of(rows[4, :, 1]))
    within = measures.cosine_within(rounds)
    pair = rows[2, 1]
    expected = pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
    np.testing.assert_allclose(within[2, 1], expected)


def test_bootstrap_interval_holds_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=40)
    low, high = significance.bootstrap_mean(values)
    assert low < values.mean() < high and 0.3 < high - low < 0.9
    assert np.isnan(significance.bootstrap_mean(np.asarray([1.0, np.nan]))).all()


# Gram matrices


def test_groupings_from_one_measurement() -> None:
    paths = ["embeddings/word/embedding", "layer_0/query/kernel", "layer_0/query/bias", "layer_0/output_norm/scale"]
    rng = np.random.default_rng(0)
    flats = [{f"backbone/{p}": jnp.asarray(rng.normal(size=6), jnp.float32) for p in paths} for _ in range(3)]
    fine = gram(flats, by_tensor)
    assert set(fine) == set(paths)
    names = {name: list(regroup(fine, rename)) for name, rename in GROUPINGS.items()}
    assert names["whole"] == ["whole"]
    assert names["layer"] == ["embeddings", "layer_0"]
    assert names["kind"] == ["embeddings", "query", "norm"]
    assert names["module"] == ["embeddings/word", "layer_0/query", "layer_0/output_norm"]
    assert names["tensor"] == paths
    whole = np.stack([np.concatenate([np.ravel(x) for x in flat.values()]) for flat in flats])
    np.testing.assert_allclose(regroup(fine, GROUPINGS["whole"])["whole"], whole @ whole.T, rtol=1e-5, atol=1e-5)


def test_names_of_blocks() -> None:
    assert module_of("layer_0/query") == "layer_0/query", "a module stays one"
    assert kind_of("layer_3/query/kernel") == kind_of("layer_3/query") == "query"
    assert layer_of("lora/shared/layer_3/query/a") == "lora/shared" and kind_of("lora/shared/layer_3/query/a") == "lora"


@pytest.mark.parametrize("count", [3, 20])
def test_many_gradients_as_few(count: int) -> None:
    rows = np.random.default_rng(0).normal(size=(count, 50)).astype(np.float32)
    flats = [{"backbone/layer_0/query/kernel": jnp.asarray(r.reshape(5, 10))} for r in rows]
    found = gram(flats, by_tensor)["layer_0/query/kernel"]
    np.testing.assert_allclose(found, rows.astype(np.float64) @ rows.T, rtol=1e-5, atol=1e-5)
    sizes = gram([absolute(f) for f in flats], by_tensor)["layer_0/query/kernel"]
    np.testing.assert_allclose(sizes, np.abs(rows).astype(np.float64) @ np.abs(rows).T, rtol=1e-5)


@pytest.mark.parametrize("given", [jnp.ones((4,)), {"backbone/x": jnp.ones(3)}, [jnp.ones(3), jnp.ones(3)], []])
def test_what_is_no_sequence_of_gradients_is_refused(given: object) -> None:
    with pytest.raises(TypeError, match="gram"):
        gram(given, by_tensor)  # type: ignore[arg-type]


EIGHT = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxprefit.gram import by_layer, gram
assert jax.device_count() == 8
mesh = Mesh(np.asarray(jax.devices()).reshape(8), ("data",))
rng = np.random.default_rng(0)
shapes = {"backbone/embeddings/word/embedding": ((4096, 16), P("data")),
          "backbone/layer_0/query/kernel": ((64, 256), P(None, "data")),
          "backbone/layer_0/query/bias": ((256,), P())}
for count in (3, 12):
    host = [{k: rng.normal(size=s).astype(np.float32) for k, (s, _) in shapes.items()} for _ in range(count)]
    spread = [{k: jax.device_put(x, NamedSharding(mesh, shapes[k][1])) for k, x in g.items()} for g in host]
    single = [{k: jax.device_put(x, jax.devices()[0]) for k, x in g.items()} for g in host]
    assert len(spread[0]["backbone/embeddings/word/embedding"].addressable_shards) == 8
    eight = jax.jit(lambda g: gram(g, by_layer))(spread)
    one = jax.jit(lambda g: gram(g, by_layer))(single)
    for block in one:
        a, b = np.asarray(eight[block]), np.asarray(one[block])
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), block
print("equal")
"""


def test_sharded_gradients_have_the_gram_matrix_of_whole_ones() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    root = ROOT
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr
