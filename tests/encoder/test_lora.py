"""LoRA trees: the identities that make an adapter an adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit.encoder import lora
from jaxprefit.encoder.transformer import LINEAR_MAPS, Encoder, EncoderConfig, init_backbone
from jaxprefit.errors import UserError

CONFIG = EncoderConfig(vocab_size=50, hidden_size=16, num_layers=3, num_heads=2, intermediate_size=32, max_positions=12)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 7)))
MASK = jnp.asarray([[1] * 7, [1] * 4 + [0] * 3])


@pytest.fixture(scope="module")
def backbone():
    return init_backbone(CONFIG, jax.random.key(0))


def run(backbone, adapter=None, **kwargs):
    variables = {"params": backbone} | ({"lora": adapter} if adapter is not None else {})
    return Encoder(CONFIG).apply(variables, IDS, MASK, **kwargs)


def trained(spec, seed=1):
    """An adapter whose b is no longer zero."""
    tree = lora.init_lora(spec, CONFIG, jax.random.key(seed))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape) if x.ndim else x, tree)


def test_an_adapter_at_init_equals_the_base_exactly(backbone):
    adapter = lora.init_lora(lora.LoraSpec(last_layers=3), CONFIG, jax.random.key(1))
    assert (run(backbone, adapter) == run(backbone)).all()


def test_named_layers_go_before_the_last_ones():
    spec = lora.LoraSpec(last_layers=9, layers=(2, 0), targets=("key", "output"), rank=3)
    adapter = lora.init_lora(spec, CONFIG, jax.random.key(1))
    assert sorted(adapter) == ["layer_0", "layer_2"] and {*adapter["layer_0"]} == {"key", "output"}
    assert lora.count(adapter) == lora.size(spec, CONFIG) == 2 * 3 * ((16 + 16) + (32 + 16))
    assert lora.size(lora.LoraSpec(last_layers=2), CONFIG) == lora.count(trained(lora.LoraSpec(last_layers=2)))


def test_an_adapter_on_named_layers_merges_and_pads(backbone):
    adapter = trained(lora.LoraSpec(layers=(0, 2), rank=2))
    unmerged = run(backbone, adapter)
    np.testing.assert_allclose(run(lora.merge(backbone, adapter)), unmerged, atol=1e-5)
    np.testing.assert_allclose(run(backbone, lora.pad(adapter, 5)), unmerged, atol=1e-6)
    # Layers named alike start alike, whichever others there are.
    alone = lora.init_lora(lora.LoraSpec(layers=(2,)), CONFIG, jax.random.key(1))
    last = lora.init_lora(lora.LoraSpec(last_layers=1), CONFIG, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, alone, last)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    st.integers(1, 3),
    st.sets(st.sampled_from(LINEAR_MAPS), min_size=1),
    st.integers(1, 8),
    st.floats(0.5, 32),
)
def test_merged_equals_unmerged(last_layers, targets, rank, alpha):
    backbone = init_backbone(CONFIG, jax.random.key(0))
    adapter = trained(lora.LoraSpec(last_layers, tuple(sorted(targets)), rank, alpha))
    unmerged = run(backbone, adapter)
    np.testing.assert_allclose(run(lora.merge(backbone, adapter)), unmerged, atol=1e-5)
    assert (unmerged != run(backbone)).any(), "the adapter has no effect"


def test_merging_leaves_the_backbone_alone(backbone):
    before = jax.tree.map(np.array, backbone)
    lora.merge(backbone, trained(lora.LoraSpec()))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, backbone))


def test_padding_to_a_larger_rank_changes_nothing(backbone):
    # scale 1: a larger one makes this tiny network amplify the rounding of another summation order
    adapter = trained(lora.LoraSpec(rank=3, alpha=3.0))
    padded = lora.pad(adapter, 8)
    for layer, maps in adapter.items():
        for name, m in maps.items():
            wide = padded[layer][name]
            a, b, c, d = (np.asarray(x, np.float64) for x in (m["a"], m["b"], wide["a"], wide["b"]))
            np.testing.assert_allclose(c @ d, a @ b, rtol=1e-14)
            assert wide["scale"] == m["scale"]
    assert padded["layer_2"]["query"]["a"].shape == (16, 8)
    np.testing.assert_allclose(run(backbone, padded), run(backbone, adapter), atol=1e-6)
    with pytest.raises(ValueError, match="larger than 2"):
        lora.pad(adapter, 2)


def test_padded_adapters_swap_without_recompiling(backbone):
    apply = jax.jit(lambda adapter: Encoder(CONFIG).apply({"params": backbone, "lora": adapter}, IDS, MASK))
    for spec in (lora.LoraSpec(rank=2, alpha=1.0), lora.LoraSpec(rank=5, alpha=7.0)):
        apply(lora.pad(trained(spec), 8))
    assert apply._cache_size() == 1


def test_an_adapter_sits_on_the_last_layers_and_is_counted():
    tree = lora.init_lora(lora.LoraSpec(2, ("query", "output"), rank=4), CONFIG, jax.random.key(0))
    assert sorted(tree) == ["layer_1", "layer_2"]
    assert {name: m["a"].shape for name, m in tree["layer_2"].items()} == {"query": (16, 4), "output": (32, 4)}
    assert lora.count(tree) == 2 * (16 * 4 + 4 * 16 + 32 * 4 + 4 * 16)


def test_dropout_acts_on_the_low_rank_path_only(backbone):
    fresh, adapter = lora.init_lora(lora.LoraSpec(), CONFIG, jax.random.key(0)), trained(lora.LoraSpec())
    noisy = {"lora_dropout": 0.5, "deterministic": False, "rngs": {"dropout": jax.random.key(3)}}
    assert (run(backbone, fresh, **noisy) == run(backbone)).all()
    assert np.abs(np.asarray(run(backbone, adapter, **noisy)) - run(backbone, adapter)).max() > 1e-4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (lora.LoraSpec(rank=0), "lora.rank is 0"),
        (lora.LoraSpec(rank=17), "lora.rank is 17; .* 16 at most"),
        (lora.LoraSpec(last_layers=4), "lora.last_layers is 4"),
        (lora.LoraSpec(last_layers=0), "lora.last_layers is 0"),
        (lora.LoraSpec(layers=(0, 3)), r"lora.layers is \(0, 3\).* 0 to 2"),
        (lora.LoraSpec(layers=(1, 1)), "each once"),
        (lora.LoraSpec(targets=("quary",)), "quary"),
        (lora.LoraSpec(targets=()), "lora.targets"),
        (lora.LoraSpec(dropout=1.0), "lora.dropout"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(spec, says):
    with pytest.raises(UserError, match=says):
        lora.init_lora(spec, CONFIG, jax.random.key(0))
