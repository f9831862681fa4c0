"""The families: their batches, heads and losses, against a few lines of NumPy and golden numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden.formula import noise, weights
from golden.model_files import VOCABULARY, tokenizer, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit import lora, strategies, train
from jaxprefit.data.builders import Source, prepare
from jaxprefit.encoder import Encoder
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES, ClassificationFamily, NerFamily, useful_tokens
from jaxprefit.families.classification import info_nce, unit
from jaxprefit.families.ner import IGNORE, OUTSIDE, concept_loss, concept_name
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


# NER: concepts


@pytest.mark.parametrize(
    "label, name",
    [
        ("PER", "person"),
        ("MISC", "miscellaneous name"),
        ("GPE", "country or city"),
        ("city_of_event", "city of event"),
        ("Simple_chemical", "simple chemical"),
        ("OtherPER", "other person"),
        ("MusicalGRP", "musical group"),
        ("RATINGS_AVERAGE", "ratings average"),
        ("Medication/Vaccine", "medication vaccine"),
        ("Gene_or_gene_product", "gene or gene product"),
        ("date-time", "date time"),
        ("perfume", "perfume"),
    ],
)
def test_concepts_have_readable_names(label: str, name: str) -> None:
    assert concept_name(label) == name


def concept_loss_by_numpy(head: dict, words: np.ndarray, labels: np.ndarray, annotated: np.ndarray) -> float:
    concepts = head["concepts"] @ head["projection"]["kernel"]
    concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)
    total, count = 0.0, 0
    for row, positions in enumerate(labels):
        for position, label in enumerate(positions):
            if label == IGNORE:
                continue
            count += 1
            for c in np.flatnonzero(annotated[row]):
                logit = np.exp(head["log_scale"]) * words[row, position] @ concepts[c] + head["bias"]
                p = 1 / (1 + np.exp(-logit))
                total -= np.log(p if c == label else 1 - p)
    return total / count


def ner_case(seed: int = 0) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """A head of 4 concepts, word vectors [3, 5, 6], labels, and the concepts annotated in each row."""
    head = {
        "concepts": unit_rows(seed, 4, 6),
        "projection": {"kernel": np.random.default_rng(seed + 1).normal(size=(6, 6)).astype(np.float32)},
        "log_scale": np.float32(1.1),
        "bias": np.float32(-0.7),
    }
    labels = np.asarray(
        [[IGNORE, 0, IGNORE, OUTSIDE, IGNORE], [IGNORE, 2, 1, OUTSIDE, OUTSIDE], [IGNORE, OUTSIDE, 3, 3, IGNORE]]
    )
    annotated = np.asarray([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool)
    return head, unit_rows(seed + 2, 3, 5, 6), labels, annotated


def as_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_concept_loss_equals_numpy(seed: int) -> None:
    head, words, labels, annotated = ner_case(seed)
    loss, _ = concept_loss(head, jnp.asarray(words), jnp.asarray(labels), jnp.asarray(annotated))
    wanted = concept_loss_by_numpy(as_float64(head), words.astype(np.float64), labels, annotated)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def ner_value_and_slopes(head: dict, words: np.ndarray, labels: np.ndarray, annotated: np.ndarray) -> tuple:
    """Loss, and its gradients with respect to the head and the words."""
    return jax.value_and_grad(lambda h, w: concept_loss(h, w, jnp.asarray(labels), jnp.asarray(annotated))[0], (0, 1))(
        jax.tree.map(jnp.asarray, head), jnp.asarray(words)
    )


def test_a_type_that_a_source_does_not_annotate_contributes_nothing() -> None:
    head, words, labels, annotated = ner_case()
    words, labels, annotated = words[:2], labels[:2], annotated[:2]  # nobody here annotates the last concept
    moved = {**head, "concepts": np.concatenate([head["concepts"][:3], -5 * unit_rows(99, 1, 6)])}
    (loss, (slope, word_slope)) = ner_value_and_slopes(head, words, labels, annotated)
    (other, (other_slope, other_word_slope)) = ner_value_and_slopes(moved, words, labels, annotated)
    assert loss == other
    np.testing.assert_array_equal(word_slope, other_word_slope)
    np.testing.assert_array_equal(slope["projection"]["kernel"], other_slope["projection"]["kernel"])
    np.testing.assert_array_equal(slope["concepts"][3], 0.0)
    assert np.abs(slope["concepts"][:3]).min() > 0


def test_only_first_sub_words_contribute() -> None:
    head, words, labels, annotated = ner_case()
    changed = np.where((labels == IGNORE)[..., None], unit_rows(50, *words.shape), words)
    (loss, (_, slope)) = ner_value_and_slopes(head, words, labels, annotated)
    (other, _) = ner_value_and_slopes(head, changed, labels, annotated)
    assert loss == other
    np.testing.assert_array_equal(np.asarray(slope)[labels == IGNORE], 0.0)
    assert (np.abs(np.asarray(slope)[labels != IGNORE]).sum(-1) > 0).all()


def test_a_batch_without_words_has_loss_zero() -> None:
    head, words, labels, annotated = ner_case()
    (loss, slopes) = ner_value_and_slopes(head, words, np.full_like(labels, IGNORE), annotated)
    assert loss == 0.0
    assert all((np.asarray(s) == 0).all() for s in jax.tree.leaves(slopes))


def test_ner_accuracy_is_over_words_inside_entities() -> None:
    head = {
        "concepts": np.eye(3, dtype=np.float32),
        "projection": {"kernel": np.eye(3, dtype=np.float32)},
        "log_scale": np.float32(2.0),
        "bias": np.float32(-1.0),
    }
    # Right; wrong; right but below one half; right since the better one is not annotated; outside.
    words = np.asarray([[[1, 0, 0], [0, 1, 0], [0.1, 0, 0], [0.5, 0, 0.8], [0, 0, 1]]], np.float32)
    labels, annotated = np.asarray([[0, 0, 0, 0, OUTSIDE]]), np.asarray([[True, True, False]])
    _, metrics = concept_loss(head, jnp.asarray(words), jnp.asarray(labels), jnp.asarray(annotated))
    assert metrics["accuracy"] == 0.5


def prepared_ner(folder: Path, name: str, rows: Sequence[dict]) -> Any:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return prepare(Source(name=name, kind="ner", path=str(folder / f"{name}.jsonl")), folder / "cache")


NEWS = [{"tokens": ["Hello", "isn't", "café"], "tags": ["B-PER", "I-PER", "B-LOC"]}]
BIOLOGY = [{"tokens": ["the", "cat", "sat"], "tags": ["O", "B-Cell_line", "O"]}]


@pytest.fixture(scope="module")
def ner(tmp_path_factory: pytest.TempPathFactory) -> NerFamily:
    folder = tmp_path_factory.mktemp("ner")
    sources = [prepared_ner(folder, "news", NEWS), prepared_ner(folder, "biology", BIOLOGY)]
    return NerFamily.create({"max_length": 10}, sources, TOKENIZER)


def test_ner_concepts_come_from_all_sources(ner: NerFamily) -> None:
    assert ner.concepts == ("cell line", "location", "person")
    assert ner.describe() == {"concepts": ["cell line", "location", "person"]}
    np.testing.assert_array_equal(ner.annotated["news"], [False, True, True])
    np.testing.assert_array_equal(ner.annotated["biology"], [True, False, False])


def test_a_source_without_entities_is_a_user_error(tmp_path: Path) -> None:
    empty = prepared_ner(tmp_path, "empty", [{"tokens": ["the"], "tags": ["O"]}])
    with pytest.raises(UserError, match="'empty' has no entity"):
        NerFamily.create({"max_length": 10}, [empty], TOKENIZER)


def test_ner_batch_from_records(ner: NerFamily) -> None:
    batch = ner.collate([ner.encode_record(NEWS[0], "news"), ner.encode_record(BIOLOGY[0], "biology")])
    assert [VOCABULARY[i] for i in batch["input_ids"][0]] == [
        "[CLS]",
        "hello",
        "i",
        "##s",
        "##n",
        "'",
        "t",
        "cafe",
        "[SEP]",
        "[PAD]",
    ]
    i, o, person, location, cell = IGNORE, OUTSIDE, 2, 1, 0
    np.testing.assert_array_equal(
        batch["labels"], [[i, person, person, i, i, i, i, location, i, i], [i, o, cell, o, i, i, i, i, i, i]]
    )
    np.testing.assert_array_equal(batch["mask"].sum(1), [9, 5])
    np.testing.assert_array_equal(batch["annotated"], [[0, 1, 1], [1, 0, 0]])
    assert useful_tokens(batch) == 14


def test_ner_labels_past_the_maximum_length_are_left_out(ner: NerFamily) -> None:
    record = {"tokens": ["isn't", "café", "cat"], "tags": ["B-LOC", "B-PER", "B-LOC"]}
    short = NerFamily(ner.tokenizer, 8, ner.concepts, ner.annotated)
    example = short.encode_record(record, "news")
    assert [VOCABULARY[i] for i in example["ids"]] == ["[CLS]", "i", "##s", "##n", "'", "t", "cafe", "[SEP]"]
    np.testing.assert_array_equal(example["labels"], [IGNORE, 1, *[IGNORE] * 4, 2, IGNORE])


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6), inside=st.integers(0, 5))
def test_every_word_within_reach_has_a_label(ner: NerFamily, words: list[str], inside: int) -> None:
    long = NerFamily(ner.tokenizer, 200, ner.concepts, ner.annotated)
    tags = ["B-PER" if k == inside else "O" for k in range(len(words))]
    example = long.encode_record({"tokens": words, "tags": tags}, "news")
    found = example["labels"][example["labels"] != IGNORE]
    np.testing.assert_array_equal(found, [2 if k == inside else OUTSIDE for k in range(len(words))])


# Heads, and one step of each family, on the golden encoder.

CONFIG = json.loads(Path(__file__).with_name("golden").joinpath("encoder.json").read_text())["cases"]["bert"]["config"]
CONFIG["num_hidden_layers"] = 2


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return load_pretrained(write_model(tmp_path_factory.mktemp("bert"), CONFIG, weights(CONFIG)))


def test_ner_head_starts_from_centred_unit_concept_vectors(ner: NerFamily, start: Pretrained) -> None:
    head = ner.init_head(jax.random.key(0), start)
    rows = [TOKENIZER.encode(name).ids for name in ner.concepts]
    ids = np.asarray([row + [0] * (15 - len(row)) for row in rows])
    hidden = np.asarray(jax.jit(Encoder(start.config).apply)({"params": start.params}, ids, ids > 0))
    means = np.stack([h[: len(row)].mean(0) for h, row in zip(hidden, rows)])
    wanted = means - means.mean(0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(head["concepts"], wanted, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(head["concepts"], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(head["projection"]["kernel"], np.eye(32))
    assert float(np.exp(head["log_scale"])) == pytest.approx(20.0) and head["bias"] == -10.0
    other = ner.init_head(jax.random.key(7), start)
    jax.tree.map(np.testing.assert_array_equal, head, other)


def test_tc_has_no_head(start: Pretrained) -> None:
    assert TC.init_head(jax.random.key(0), start) == {}


PAIRS = [
    {"a": "the cat sat", "b": "hello world"},
    {"a": "cafe 12", "b": "the café"},
    {"a": "world , hello !", "b": "on"},
]
BLOCKS = ("backbone/embeddings", "backbone/layer_0", "backbone/layer_1", "lora")

# Written down when the losses agreed with NumPy (above) and `entry` with central differences; a change of these numbers
# is a change of what the families learn. `norms`: of the gradients in each block of BLOCKS, then of the head.
GOLDEN = {
    "ner": {"loss": 6.250385, "norms": [3.279734, 5.313139, 6.263227, 14.39534, 4.732942], "entry": 0.02959048},
    "tc": {"loss": 1.162660, "norms": [1.290456, 2.141235, 1.268490, 2.960739, 0.0], "entry": -0.01148108},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_loss_and_gradient(name: str, ner: NerFamily, start: Pretrained) -> None:
    family = {"ner": ner, "tc": TC}[name]
    table = strategies.make("task_primary", FAMILIES, NerFamily.constants)
    adapter = lora.init_lora(lora.LoraSpec(last_layers=1, rank=2), start.config, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x if x.ndim == 0 else jnp.asarray(noise("lora", x.shape)) / 8, adapter)
    head = {name: family.init_head(jax.random.key(0), start)}
    flat = flatten_dict({"backbone": start.params, "lora": {name: adapter}, "head": head}, sep="/")
    examples = (
        [ner.encode_record(NEWS[0], "news"), ner.encode_record(BIOLOGY[0], "biology")]
        if name == "ner"
        else [TC.encode_record(r, "any") for r in PAIRS]
    )
    setup = train.Setup(Encoder(start.config), {name: family}, table, {})
    loss, metrics, grads = jax.jit(lambda f, b: train.family_gradients(setup, name, f, b, None))(
        flat, family.collate(examples)
    )
    norms = [
        float(np.sqrt(sum(float(jnp.vdot(g, g)) for path, g in grads.items() if path.startswith(block))))
        for block in (*BLOCKS, "head")
    ]
    entry = grads["backbone/layer_1/value/kernel"][3, 4]
    found = {"loss": float(loss), "norms": norms, "entry": float(entry)}
    assert "head/ner/concepts" not in grads and 0 <= metrics["accuracy"] <= 1
    for key, wanted in GOLDEN[name].items():
        np.testing.assert_allclose(found[key], wanted, rtol=2e-4, atol=1e-7, err_msg=f"{key}: {found}")
