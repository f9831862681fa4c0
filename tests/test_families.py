"""The families: their batches, heads and losses, against a few lines of NumPy and golden numbers."""

import json
from collections.abc import Sequence
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
from jaxprefit.families import ClassificationFamily, Family, useful_tokens
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


ALL = jnp.ones(4, bool)


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
    loss, _ = info_nce(jnp.asarray(a), jnp.asarray(b), keys(*a_key), keys(*b_key), ALL, temperature)
    wanted = info_nce_by_numpy(a.astype(np.float64), b.astype(np.float64), list(a_key), list(b_key), temperature)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", KEYS)
def test_info_nce_is_symmetric_and_its_gradient_finite(case: str) -> None:
    a, b = jnp.asarray(unit_rows(0, 4, 8)), jnp.asarray(unit_rows(1, 4, 8))
    a_key, b_key = (keys(*k) for k in KEYS[case])

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return info_nce(a, b, a_key, b_key, ALL, 0.05)[0]

    np.testing.assert_allclose(loss(a, b), info_nce(b, a, b_key, a_key, ALL, 0.05)[0], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.grad(loss, (0, 1))(a, b))


@pytest.mark.parametrize(
    "case, pair", [("equal a", (0, 1)), ("equal b", (0, 2)), ("a is another's b", (0, 2)), ("all differ", None)]
)
def test_a_copy_of_a_text_is_no_negative_of_it(case: str, pair: tuple[int, int] | None) -> None:
    """Moving only the similarity of such a pair leaves the loss as it is; of any other pair it does not."""
    a_key, b_key = (keys(*k) for k in KEYS[case])
    rows, columns = jnp.eye(4), jnp.asarray(unit_rows(2, 4, 4))  # a_i . b_j is entry (j, i) of columns
    slope = jax.grad(lambda b: info_nce(rows, b, a_key, b_key, ALL, 0.5)[0])(columns).T
    masked = {(i, j) for i in range(4) for j in range(4) if slope[i, j] == 0}
    both = {pair, pair[::-1]} if pair and case != "a is another's b" else {pair} if pair else set()
    assert masked == both


def test_info_nce_accuracy_is_of_the_best_match() -> None:
    a = jnp.eye(4)
    b = a[jnp.asarray([0, 1, 3, 2])]
    _, accuracy = info_nce(a, b, *(keys(*k) for k in KEYS["all differ"]), ALL, 0.1)
    assert accuracy == 0.5
    _, accuracy = info_nce(a, a, *(keys(*k) for k in KEYS["all differ"]), ALL, 0.1)
    assert accuracy == 1.0


def test_what_is_no_pair_changes_nothing() -> None:
    a, b = unit_rows(0, 6, 8), unit_rows(1, 6, 8)
    a_key, b_key = keys(1, 2, 3, 4, 0, 0), keys(5, 6, 7, 8, 0, 0)

    def loss(x: jax.Array, n: int) -> jax.Array:
        return info_nce(x, jnp.asarray(b[:n]), a_key[:n], b_key[:n], jnp.arange(n) < 4, 0.1)[0]

    six, slope = jax.value_and_grad(loss)(jnp.asarray(a), 6)
    four, wanted = jax.value_and_grad(loss)(jnp.asarray(a[:4]), 4)
    np.testing.assert_allclose(six, four, rtol=1e-6)
    np.testing.assert_allclose(slope[:4], wanted, atol=1e-6)
    np.testing.assert_array_equal(slope[4:], 0)


TC = ClassificationFamily(TOKENIZER, 10, 0.1)


def collated(family: Family, examples: Sequence[dict], layout: Layout) -> dict[str, np.ndarray]:
    placed, batch = collate(family, examples, layout)
    assert placed == list(range(len(examples)))
    return batch


def test_tc_batch_from_records() -> None:
    records = [{"a": "the cat", "b": "hello world"}, {"a": "hello world", "b": "the cat sat on the cat sat on the cat"}]
    batch = collated(TC, [TC.encode_record(r, "any") for r in records], Layout(3, 12, 2))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        **{k: ((3, 12), "int32") for k in ("input_ids", "segments")},
        **{f"{side}_{what}": ((3,), "int32") for side in "ab" for what in ("slot", "key")},
        "valid": ((3,), "bool"),
    }
    # The first two texts share a row, and the third fits there too; the long one has its own.
    assert [VOCABULARY[i] for i in batch["input_ids"][0][:5]] == ["[CLS]", "the", "cat", "[SEP]", "[CLS]"]
    assert batch["segments"].tolist() == [[1] * 4 + [2] * 4 + [0] * 4, [1] * 4 + [0] * 8, [1] * 10 + [0] * 2]
    assert VOCABULARY[batch["input_ids"][2, 9]] == "[SEP]"
    assert batch["a_slot"].tolist()[:2] == [0, 2] and batch["b_slot"].tolist()[:2] == [1, 4]
    assert batch["valid"].tolist() == [True, True, False]
    assert batch["a_key"][1] == batch["b_key"][0] and batch["a_key"][0] != batch["b_key"][1]
    assert (batch["a_key"] >= 0).all()
    assert useful_tokens(batch) == 4 + 4 + 4 + 10


def test_tc_keys_tell_long_texts_apart_where_their_ids_do_not() -> None:
    one, two = ({"a": "the cat " * 9 + end, "b": "x"} for end in ("on", "sat"))
    first, second = TC.encode_record(one, ""), TC.encode_record(two, "")
    np.testing.assert_array_equal(first["texts"][0], second["texts"][0])
    assert first["keys"][0] != second["keys"][0]


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


@pytest.mark.parametrize("layout", [Layout(6, 10, 2), Layout(1, 64, 8)], ids=["apart", "packed"])
def test_golden_loss_and_gradient(layout: Layout, start: Pretrained) -> None:
    """The same whether each text has a row to itself or all stand in one."""
    table = strategies.make("task_primary", ("ner", "tc"))
    adapter = lora.init_lora(lora.LoraSpec(last_layers=1, rank=2), start.config, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x if x.ndim == 0 else jnp.asarray(noise("lora", x.shape)) / 8, adapter)
    flat = flatten_dict({"backbone": start.params, "lora": {"tc": adapter}}, sep="/")
    batch = collated(TC, [TC.encode_record(r, "any") for r in PAIRS], layout)
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
