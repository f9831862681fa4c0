"""The families: their batches, heads and losses, against a few lines of NumPy and golden numbers."""

import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden.formula import noise, weights
from golden.model_files import tokenizer, write_model
from helpers.paths import GOLDEN_FILES

from jaxprefit import strategies
from jaxprefit.data.packing import Layout
from jaxprefit.encoder import lora
from jaxprefit.encoder.huggingface import Pretrained, load_pretrained
from jaxprefit.encoder.transformer import Encoder, unit
from jaxprefit.families import ClassificationFamily, Family
from jaxprefit.families.mixture import collate
from jaxprefit.training import train_step

TOKENIZER = tokenizer()


def unit_rows(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_unit_scales_rows_to_length_one_and_leaves_zero() -> None:
    found = unit(jnp.asarray([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()


# The losses and batches of TC are tested in test_tc.py.

TC = ClassificationFamily(TOKENIZER, 10, 0.1)


def collated(family: Family, examples: Sequence[dict], layout: Layout) -> dict[str, np.ndarray]:
    placed, batch = collate(family, examples, layout)
    assert placed == list(range(len(examples)))
    return batch


# Heads, and one step of each family, on the golden encoder.

CONFIG = json.loads((GOLDEN_FILES / "encoder.json").read_text())["cases"]["bert"]["config"]
CONFIG["num_hidden_layers"] = 2


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return load_pretrained(write_model(tmp_path_factory.mktemp("bert"), CONFIG, weights(CONFIG)))


def test_tc_has_no_head(start: Pretrained) -> None:
    assert TC.init_head(jax.random.key(0), start) == {}


PAIRS = [
    {"a": "the cat sat", "b": "hello world"},
    {"a": "cafe 12", "b": "the café"},
    {"a": "world , hello !", "b": "on"},
]
BLOCKS = ("backbone/embeddings", "backbone/layer_0", "backbone/layer_1", "lora")

# Written down when the losses agreed with NumPy (above) and `entry` with central differences; a change of these numbers
# is a change of what the families learn. `norms`: of the gradients in each block of BLOCKS.
GOLDEN = {"loss": 1.162660, "norms": [1.290456, 2.141235, 1.268490, 2.960739], "entry": -0.01148108}


@pytest.mark.parametrize("layout", [Layout(6, 10, 2), Layout(1, 64, 8)], ids=["apart", "packed"])
def test_golden_loss_and_gradient(layout: Layout, start: Pretrained) -> None:
    """The same whether each text has a row to itself or all stand in one."""
    table = strategies.make("task_primary", ("ner", "tc"))
    adapter = lora.init_lora(lora.LoraSpec(last_layers=1, rank=2), start.config, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x if x.ndim == 0 else jnp.asarray(noise("lora", x.shape)) / 8, adapter)
    flat = flatten_dict({"backbone": start.params, "lora": {"tc": adapter}}, sep="/")
    batch = collated(TC, [TC.encode_record(r, "any") for r in PAIRS], layout)
    setup = train_step.Setup(Encoder(start.config), {"tc": TC}, table, {})
    loss, metrics, grads = jax.jit(lambda f, b: train_step.family_gradients(setup, "tc", f, b, None))(flat, batch)
    norms = [
        float(np.sqrt(sum(float(jnp.vdot(g, g)) for path, g in grads.items() if path.startswith(block))))
        for block in BLOCKS
    ]
    entry = grads["backbone/layer_1/value/kernel"][3, 4]
    found = {"loss": float(loss), "norms": norms, "entry": float(entry)}
    assert 0 <= metrics["accuracy"] <= 1
    for key, wanted in GOLDEN.items():
        np.testing.assert_allclose(found[key], wanted, rtol=2e-4, atol=1e-7, err_msg=f"{key}: {found}")
