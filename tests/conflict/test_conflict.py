"""Gram matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprefit.gram import by_layer, by_module, gram, regroup

SHAPES = {
    "backbone/embeddings/word/embedding": (5, 3),
    "backbone/layer_0/query/kernel": (3, 4),
    "backbone/layer_0/query/bias": (4,),
    "backbone/layer_0/output/kernel": (4, 3),
    "backbone/layer_10/query/kernel": (3, 4),
}


def gradients(seed: int, count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{p: rng.normal(size=s).astype(np.float32) for p, s in SHAPES.items()} for _ in range(count)]


def on_device(flats: list[dict[str, np.ndarray]]) -> list[dict]:
    return [{p: jnp.asarray(g) for p, g in flat.items()} for flat in flats]


def by_numpy(flats: list[dict[str, np.ndarray]], paths: list[str]) -> np.ndarray:
    """The Gram matrix over these paths, from the definition, in float64."""
    rows = np.stack([np.concatenate([flat[p].ravel() for p in paths]) for flat in flats]).astype(np.float64)
    return rows @ rows.T


# Gram matrices


def test_gram_holds_the_inner_products_of_each_block() -> None:
    flats = gradients(0, 3)
    blocks = gram(on_device(flats), by_layer)
    assert set(blocks) == {"embeddings", "layer_0", "layer_10"}
    for block, m in blocks.items():
        paths = [p for p in SHAPES if p.split("/")[1] == block]
        np.testing.assert_allclose(m, by_numpy(flats, paths), rtol=1e-5, atol=1e-5)


def test_finest_blocks_add_up_to_layers() -> None:
    grads = on_device(gradients(1, 2))
    fine, coarse = gram(grads, by_module), gram(grads, by_layer)
    assert set(fine) == {"embeddings/word", "layer_0/query", "layer_0/output", "layer_10/query"}
    added = regroup(fine, lambda block: block.split("/")[0])
    assert set(added) == set(coarse)
    for block in coarse:
        np.testing.assert_allclose(added[block], coarse[block], rtol=1e-6)


def test_a_summed_gradient_has_no_gram_matrix() -> None:
    (summed,) = on_device(gradients(0, 1))
    with pytest.raises(TypeError, match="at least two separate gradients"):
        gram(summed, by_layer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least two separate gradients"):
        gram([summed], by_layer)


def test_only_parameters_in_all_gradients_count() -> None:
    flats = gradients(2, 2)
    flats[0]["lora/ner/layer_0/query/a"] = np.full((2, 2), 1e3, np.float32)
    del flats[1]["backbone/layer_0/output/kernel"]
    blocks = gram(on_device(flats), by_layer)
    assert set(blocks) == {"embeddings", "layer_0", "layer_10"}
    paths = ["backbone/layer_0/query/kernel", "backbone/layer_0/query/bias"]
    np.testing.assert_allclose(blocks["layer_0"], by_numpy(flats, paths), rtol=1e-5)


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    # In bfloat16 a running sum of ones stops at 256.
    ones = {"backbone/layer_0/query/kernel": jnp.ones((100, 100), jnp.bfloat16)}
    m = gram([ones, ones], by_layer)["layer_0"]
    assert m.dtype == jnp.float32
    np.testing.assert_array_equal(m, 10_000.0)


def test_blocks_are_named_after_layers_and_modules() -> None:
    path = "backbone/layer_3/query/kernel"
    assert (by_layer(path), by_module(path)) == ("layer_3", "layer_3/query")
    assert by_layer("backbone/embeddings/norm/scale") == "embeddings"
    assert by_layer("lora/shared/layer_3/query/a") == "lora/shared"
