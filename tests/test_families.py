"""The families: their batches, heads and losses, against a few lines of NumPy and golden numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden.formula import noise, weights
from golden.model_files import VOCABULARY, tokenizer, write_model

from jaxprefit import lora, strategies, train
from jaxprefit.data.mixture import collate
from jaxprefit.data.packing import Layout
from jaxprefit.encoder import Encoder
from jaxprefit.families import FAMILIES, ClassificationFamily, useful_tokens
from jaxprefit.families.classification import info_nce, unit
from jaxprefit.pretrained import Pretrained, load_pretrained

TOKENIZER = tokenizer()


def unit_rows(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_unit_scales_rows_to_length_one_and_leaves_zero() -> None:
    found = unit(jnp.asarray([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()


# TC: symmetric InfoNCE


def info_nce_by_numpy(a: np.ndarray, b: np.ndarray, a_key: list[int], b_key: list[int], t: float) -> float:
    """Cross-entropy of every text's own partner among all partners that may count, both ways round."""
    n, losses = len(a), []
    for i in range(n):
        rows = [
            j for j in range(n) if j == i or not (a_key[i] == a_key[j] or b_key[i] == b_key[j] or a_key[i] == b_key[j])
        ]
        columns = [
            j for j in range(n) if j == i or not (a_key[i] == a_key[j] or b_key[i] == b_key[j] or b_key[i] == a_key[j])
        ]
        own = a[i] @ b[i] / t
        losses.append(np.log(sum(np.exp(a[i] @ b[j] / t) for j in rows)) - own)
        losses.append(np.log(sum(np.exp(b[i] @ a[j] / t) for j in columns)) - own)
    return float(np.mean(losses))


def keys(*values: int) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


KEYS = {
    "all differ": ((1, 2, 3, 4), (5, 6, 7, 8)),
    "equal a": ((1, 1, 3, 4), (5, 6, 7, 8)),
    "equal b": ((1, 2, 3, 4), (5, 6, 5, 8)),
    "a is another's b": ((1, 2, 3, 4), (5, 6, 1, 8)),
    "a is its own b": ((1, 2, 3, 4), (1, 6, 7, 8)),
    "a pair twice, turned round": ((1, 5, 3, 4), (5, 1, 7, 8)),
    "all equal": ((1, 1, 1, 1), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("case", KEYS)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_equals_numpy(case: str, temperature: float) -> None:
    a, b = unit_rows(0, 4, 8), unit_rows(1, 4, 8)
    a_key, b_key = KEYS[case]
    loss, _ = info_nce(jnp.asarray(a), jnp.asarray(b), keys(*a_key), keys(*b_key), temperature)
    wanted = info_nce_by_numpy(a.astype(np.float64), b.astype(np.float64), list(a_key), list(b_key), temperature)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", KEYS)
def test_info_nce_is_symmetric_and_its_gradient_finite(case: str) -> None:
    a, b = jnp.asarray(unit_rows(0, 4, 8)), jnp.asarray(unit_rows(1, 4, 8))
    a_key, b_key = (keys(*k) for k in KEYS[case])

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return info_nce(a, b, a_key, b_key, 0.05)[0]

    np.testing.assert_allclose(loss(a, b), info_nce(b, a, b_key, a_key, 0.05)[0], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.grad(loss, (0, 1))(a, b))


@pytest.mark.parametrize(
    "case, pair", [("equal a", (0, 1)), ("equal b", (0, 2)), ("a is another's b", (0, 2)), ("all differ", None)]
)
def test_a_copy_of_a_text_is_no_negative_of_it(case: str, pair: tuple[int, int] | None) -> None:
    """Moving only the similarity of such a pair leaves the loss as it is; of any other pair it does not."""
    a_key, b_key = (keys(*k) for k in KEYS[case])
    rows, columns = jnp.eye(4), jnp.asarray(unit_rows(2, 4, 4))  # a_i . b_j is entry (j, i) of columns
    slope = jax.grad(lambda b: info_nce(rows, b, a_key, b_key, 0.5)[0])(columns).T
    masked = {(i, j) for i in range(4) for j in range(4) if slope[i, j] == 0}
    both = {pair, pair[::-1]} if pair and case != "a is another's b" else {pair} if pair else set()
    assert masked == both


def test_info_nce_accuracy_is_of_the_best_match() -> None:
    a = jnp.eye(4)
    b = a[jnp.asarray([0, 1, 3, 2])]
    _, accuracy = info_nce(a, b, *(keys(*k) for k in KEYS["all differ"]), 0.1)
    assert accuracy == 0.5
    _, accuracy = info_nce(a, a, *(keys(*k) for k in KEYS["all differ"]), 0.1)
    assert accuracy == 1.0


TC = ClassificationFamily(TOKENIZER, 10, 0.1)


def test_tc_batch_from_records() -> None:
    records = [{"a": "the cat", "b": "hello world"}, {"a": "hello world", "b": "the cat sat on the cat sat on the cat"}]
    batch = TC.collate([TC.encode_record(r, "any") for r in records])
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        **{f"{side}_ids": ((2, 10), "int32") for side in "ab"},
        **{f"{side}_mask": ((2, 10), "bool") for side in "ab"},
        **{f"{side}_key": ((2,), "int32") for side in "ab"},
    }
    assert [VOCABULARY[i] for i in batch["a_ids"][0][:4]] == ["[CLS]", "the", "cat", "[SEP]"]
    assert batch["a_mask"].sum(1).tolist() == [4, 4] and batch["b_mask"].sum(1).tolist() == [4, 10]
    assert VOCABULARY[batch["b_ids"][1, 9]] == "[SEP]"
    assert batch["a_key"][1] == batch["b_key"][0] and batch["a_key"][0] != batch["b_key"][1]
    assert (batch["a_key"] >= 0).all()
    assert useful_tokens(batch) == 4 + 4 + 4 + 10


def test_tc_keys_tell_long_texts_apart_where_their_ids_do_not() -> None:
    one, two = ({"a": "the cat " * 9 + end, "b": "x"} for end in ("on", "sat"))
    first, second = TC.encode_record(one, ""), TC.encode_record(two, "")
    np.testing.assert_array_equal(first["a_ids"], second["a_ids"])
    assert first["a_key"] != second["a_key"]


# Heads, and one step of each family, on the golden encoder.

CONFIG = json.loads(Path(__file__).with_name("golden").joinpath("encoder.json").read_text())["cases"]["bert"]["config"]
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


def test_golden_loss_and_gradient(start: Pretrained) -> None:
    table = strategies.make("task_primary", FAMILIES)
    adapter = lora.init_lora(lora.LoraSpec(last_layers=1, rank=2), start.config, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x if x.ndim == 0 else jnp.asarray(noise("lora", x.shape)) / 8, adapter)
    flat = flatten_dict({"backbone": start.params, "lora": {"tc": adapter}}, sep="/")
    _, batch = collate(TC, [TC.encode_record(r, "any") for r in PAIRS], Layout(3, 20, 2))
    setup = train.Setup(Encoder(start.config), {"tc": TC}, table, {})
    loss, metrics, grads = jax.jit(lambda f, b: train.family_gradients(setup, "tc", f, b, None))(flat, batch)
    norms = [
        float(np.sqrt(sum(float(jnp.vdot(g, g)) for path, g in grads.items() if path.startswith(block))))
        for block in BLOCKS
    ]
    entry = grads["backbone/layer_1/value/kernel"][3, 4]
    found = {"loss": float(loss), "norms": norms, "entry": float(entry)}
    assert 0 <= metrics["accuracy"] <= 1
    for key, wanted in GOLDEN.items():
        np.testing.assert_allclose(found[key], wanted, rtol=2e-4, atol=1e-7, err_msg=f"{key}: {found}")
