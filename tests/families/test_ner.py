"""The NER family: batches from records, heads, concept sides, teacher, and steps that learn."""

import dataclasses
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden.formula import noise, weights
from golden.model_files import VOCABULARY, tokenizer, write_model
from helpers.paths import GOLDEN_FILES
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit import strategies
from jaxprefit.data.packing import Layout
from jaxprefit.encoder import lora
from jaxprefit.encoder.huggingface import Pretrained, load_pretrained
from jaxprefit.encoder.transformer import Encoder
from jaxprefit.errors import UserError
from jaxprefit.families import NerFamily, useful_tokens
from jaxprefit.families.concept_encoders import name_vectors
from jaxprefit.families.concepts import concept_name
from jaxprefit.families.mixture import collate
from jaxprefit.families.ner_distill import DistillFamily
from jaxprefit.families.ner_losses import DROPPED, IGNORE, OUTSIDE, sigmoid_loss, softmax_loss
from jaxprefit.families.teacher import load_teacher
from jaxprefit.training import optim, train_step

TOKENIZER = tokenizer()
LAYOUT = Layout(2, 16, 2)
SETTINGS = {"max_length": 10, "loss": "sigmoid", "concept_encoder": "frozen", "max_concepts": 64}
SETTINGS |= {"teacher": "", "teacher_cache": ""}
SOURCES: list[Any] = [
    SimpleNamespace(name="news", types=("LOC", "PER"), names={}),
    SimpleNamespace(name="biology", types=("Cell_line",), names={}),
]
NEWS = {"tokens": ["Hello", "isn't", "café"], "tags": ["B-PER", "I-PER", "B-LOC"]}
BIOLOGY = {"tokens": ["the", "cat", "sat"], "tags": ["O", "B-Cell_line", "O"]}
PERSON, LOCATION, CELL = 2, 1, 0


def made(**changes: Any) -> Any:
    chosen = {**SETTINGS, **changes}
    return NerFamily.of(chosen).create(chosen, SOURCES, TOKENIZER)


def batch_of(family: Any, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    return collate(family, [family.encode_record(NEWS, "news"), family.encode_record(BIOLOGY, "biology")], layout)[1]


@pytest.fixture(scope="module")
def ner() -> NerFamily:
    return made()


# Records and batches


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


def test_concepts_come_from_all_sources(ner: NerFamily) -> None:
    assert ner.vocabulary.names == ("cell line", "location", "person")
    assert ner.describe() == {
        "loss": "sigmoid",
        "concept_encoder": "frozen",
        "concepts": ["cell line", "location", "person"],
    }


def test_batch_from_records(ner: NerFamily) -> None:
    batch = batch_of(ner)
    text = " ".join(VOCABULARY[i] for i in batch["input_ids"][0])
    assert text == "[CLS] hello i ##s ##n ' t cafe [SEP] [CLS] the cat sat [SEP] [PAD] [PAD]"
    i, o = IGNORE, OUTSIDE
    np.testing.assert_array_equal(batch["labels"][0, :14], [i, PERSON, PERSON, *[i] * 4, LOCATION, i, i, o, CELL, o, i])
    np.testing.assert_array_equal(batch["segments"], [[1] * 9 + [2] * 5 + [0] * 2, [0] * 16])
    np.testing.assert_array_equal(batch["concepts"], [CELL, LOCATION, PERSON, 0])  # four: a multiple of the rows
    np.testing.assert_array_equal(batch["annotated"][0], [[0, 1, 1, 0], [1, 0, 0, 0]])
    assert not batch["annotated"][1].any() and (batch["labels"][1] == IGNORE).all()
    assert useful_tokens(batch) == 14
    assert {a.dtype.name for a in batch.values()} == {"int32", "bool"}


def test_labels_past_the_maximum_length_are_left_out(ner: NerFamily) -> None:
    record = {"tokens": ["isn't", "café", "cat"], "tags": ["B-LOC", "B-PER", "B-LOC"]}
    example = dataclasses.replace(ner, max_length=8).encode_record(record, "news")
    assert [VOCABULARY[i] for i in example["texts"][0]] == ["[CLS]", "i", "##s", "##n", "'", "t", "cafe", "[SEP]"]
    np.testing.assert_array_equal(example["labels"], [IGNORE, LOCATION, *[IGNORE] * 4, PERSON, IGNORE])


@settings(max_examples=60)
@given(words=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6), inside=st.integers(0, 5))
def test_every_word_within_reach_has_a_label(ner: NerFamily, words: list[str], inside: int) -> None:
    tags = ["B-PER" if k == inside else "O" for k in range(len(words))]
    example = dataclasses.replace(ner, max_length=200).encode_record({"tokens": words, "tags": tags}, "news")
    found = example["labels"][example["labels"] != IGNORE]
    np.testing.assert_array_equal(found, [PERSON if k == inside else OUTSIDE for k in range(len(words))])


def test_words_without_a_place_for_their_concept_are_left_out_and_counted() -> None:
    family = made(max_concepts=2)
    batch = batch_of(family, Layout(1, 16, 2))
    assert batch["concepts"].tolist() == [CELL, PERSON]  # the two words of a person come before the one of a location
    row = batch["labels"][0]
    assert row[[1, 2, 7, 11]].tolist() == [1, 1, DROPPED, 0]
    np.testing.assert_array_equal(batch["annotated"][0], [[0, 1], [1, 0]])


class Table:
    """An encoder of one table: a token's vector whatever stands around it."""

    def __init__(self, size: int = 6) -> None:
        self.vectors = jnp.asarray(np.random.default_rng(5).normal(size=(97, size)), jnp.float32)

    def __call__(self, input_ids: jax.Array, segments: jax.Array, fold: int = 0) -> jax.Array:
        return self.vectors[input_ids]


@pytest.mark.parametrize("loss, most", [("sigmoid", 12), ("softmax", 64)])
def test_the_gathered_loss_equals_the_dense_one(loss: str, most: int) -> None:
    """64 places hold all 40 concepts; 12 hold what this batch is about, so its loss is the dense one over those."""
    sources: list[Any] = [*SOURCES, SimpleNamespace(name="wide", types=tuple(f"t{i}" for i in range(37)), names={})]
    family = NerFamily.create({**SETTINGS, "loss": loss, "max_concepts": most}, sources, TOKENIZER)
    wide = family.encode_record({"tokens": ["the", "cat"], "tags": ["B-t7", "O"]}, "wide")
    examples = [family.encode_record(NEWS, "news"), wide, family.encode_record(BIOLOGY, "biology")]
    _, batch = collate(family, examples, LAYOUT)
    rng = np.random.default_rng(1)
    head = {
        "concepts": jnp.asarray(rng.normal(size=(40, 6)), jnp.float32),
        "projection": {"kernel": jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)},
        "log_scale": jnp.asarray(0.5),
        **({"bias": jnp.asarray(-0.3)} if loss == "sigmoid" else {"outside": jnp.asarray(rng.normal(size=6))}),
    }
    gathered, slopes = jax.jit(jax.value_and_grad(lambda h: family.loss(h, Table(), batch)[0]))(head)

    labels = np.concatenate([e["labels"] for e in examples])
    annotated = np.concatenate(
        [
            np.repeat(np.isin(np.arange(40), family.vocabulary.annotated[e["source"]])[None], len(e["labels"]), 0)
            for e in examples
        ]
    )
    annotated &= np.isin(np.arange(40), batch["concepts"])
    ids = np.concatenate([e["texts"][0] for e in examples])

    def dense(h: dict) -> jax.Array:
        def unit(x: jax.Array) -> jax.Array:
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        function = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}[loss]
        concepts = unit(h["concepts"] @ h["projection"]["kernel"])
        return function(h, unit(Table().vectors[ids]), concepts, labels, annotated)[0]

    wanted, wanted_slopes = jax.jit(jax.value_and_grad(dense))(head)
    np.testing.assert_allclose(gathered, wanted, rtol=1e-5)
    for found, should in zip(jax.tree.leaves(slopes), jax.tree.leaves(wanted_slopes), strict=True):
        np.testing.assert_allclose(found, should, rtol=1e-4, atol=1e-6)


# Heads and concept sides, on the golden encoder

CONFIG = json.loads((GOLDEN_FILES / "encoder.json").read_text())["cases"]["bert"]["config"]
CONFIG["num_hidden_layers"] = 2


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return load_pretrained(write_model(tmp_path_factory.mktemp("bert"), CONFIG, weights(CONFIG)))


def test_head_starts_from_centred_unit_concept_vectors(ner: NerFamily, start: Pretrained) -> None:
    head = ner.init_head(jax.random.key(0), start)
    rows = [TOKENIZER.encode(name).ids for name in ner.vocabulary.names]
    ids = np.asarray([row + [0] * (16 - len(row)) for row in rows])
    hidden = np.asarray(jax.jit(Encoder(start.config).apply)({"params": start.params}, ids, ids > 0))
    means = np.stack([h[: len(row)].mean(0) for h, row in zip(hidden, rows)])
    wanted = means - means.mean(0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(head["concepts"], wanted, atol=1e-4)
    np.testing.assert_array_equal(head["projection"]["kernel"], np.eye(32))
    assert float(np.exp(head["log_scale"])) == pytest.approx(20.0) and head["bias"] == -10.0
    jax.tree.map(np.testing.assert_array_equal, head, ner.init_head(jax.random.key(7), start))


def test_names_encoded_in_chunks_are_the_names_encoded_alone(
    start: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cat", "the cat sat on the world", "a", "hello world", "cafe", "on", "sat on"]
    together = name_vectors(start, names)
    monkeypatch.setattr("jaxprefit.families.concept_encoders.CHUNK", 3)
    np.testing.assert_allclose(name_vectors(start, names), together, atol=1e-5)
    np.testing.assert_allclose(name_vectors(start, names[1:2])[0], together[1], atol=1e-5)


# Written down when the loss agreed with NumPy (test_ner_losses.py) and `entry` with central differences; a change of
# these numbers is a change of what the family learns. `norms`: of the gradients in each of BLOCKS.
BLOCKS = ("backbone/embeddings", "backbone/layer_0", "backbone/layer_1", "lora", "head")
GOLDEN = {"loss": 6.250385, "norms": [3.279734, 5.313139, 6.263227, 14.39534, 4.732942], "entry": 0.02959048}


def test_golden_loss_and_gradient(ner: NerFamily, start: Pretrained) -> None:
    table = strategies.make("task_primary", ["ner", "tc"], ner.constants)
    adapter = lora.init_lora(lora.LoraSpec(last_layers=1, rank=2), start.config, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x if x.ndim == 0 else jnp.asarray(noise("lora", x.shape)) / 8, adapter)
    head = {"ner": ner.init_head(jax.random.key(0), start)}
    flat = flatten_dict({"backbone": start.params, "lora": {"ner": adapter}, "head": head}, sep="/")
    setup = train_step.Setup(Encoder(start.config), {"ner": ner}, table, {})
    loss, metrics, grads = jax.jit(lambda f, b: train_step.family_gradients(setup, "ner", f, b, None))(
        flat, batch_of(ner)
    )
    norms = [
        float(np.sqrt(sum(float(jnp.vdot(g, g)) for path, g in grads.items() if path.startswith(block))))
        for block in BLOCKS
    ]
    found = {"loss": float(loss), "norms": norms, "entry": float(grads["backbone/layer_1/value/kernel"][3, 4])}
    assert 0 <= metrics["accuracy"] <= 1 and metrics["dropped"] == 0
    for key, wanted in GOLDEN.items():
        np.testing.assert_allclose(found[key], wanted, rtol=2e-4, atol=1e-7, err_msg=f"{key}: {found}")
    assert "head/ner/concepts" not in grads


def test_a_trained_concept_encoder_starts_as_the_frozen_one_and_is_trained_as_a_backbone(
    ner: NerFamily, start: Pretrained
) -> None:
    family = made(concept_encoder="trained")
    head = family.init_head(jax.random.key(0), start)
    table = strategies.make("individual_ner", ["ner"], family.constants, family.encoders)
    setup = train_step.Setup(Encoder(start.config), {}, table, {})
    flat = flatten_dict({"backbone": start.params, "head": {"ner": head}}, sep="/")
    vectors = jax.jit(lambda f, b: train_step.apply_family(setup, "ner", f, b, family.side.vectors))(
        flat, batch_of(family)
    )
    vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[:3], ner.init_head(jax.random.key(0), start)["concepts"], atol=1e-4)
    rows = dict(table.table)
    assert rows["head/ner/encoder"] == rows["head/ner"] == ("ner",) and rows["head/ner/centre"] == ()
    assert {p for p in flat if table.group_of(p) == "head/ner/encoder"} == {
        f"head/ner/encoder/{path}" for path in flatten_dict(start.params, sep="/")
    }
    peaks = optim.OptimizerConfig(warmup_steps=0, backbone_lr=0.25)
    assert optim.schedule("head/ner/encoder", peaks)(0) == 0.25


def test_a_table_starts_as_the_frozen_vectors_and_is_trained(ner: NerFamily, start: Pretrained) -> None:
    table = made(concept_encoder="table")
    assert table.constants == () and ner.constants == ("head/ner/concepts",)
    np.testing.assert_array_equal(
        table.init_head(jax.random.key(0), start)["concepts"], ner.init_head(jax.random.key(0), start)["concepts"]
    )
    assert table.describe() != ner.describe()


# Distillation


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another width, with the tokenizer of TOKENIZER."""
    shape = {**CONFIG, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    return write_model(tmp_path_factory.mktemp("teacher"), shape, weights(shape))


def test_distill_batches_hold_the_teachers_vectors_of_each_text(teacher_folder: Path) -> None:
    family = made(loss="distill", teacher=str(teacher_folder))
    assert isinstance(family, DistillFamily) and isinstance(pickle.loads(pickle.dumps(family.teacher)).params, dict)
    batch = batch_of(family)
    assert set(batch) == {"input_ids", "segments", "teacher"} and batch["teacher"].shape == (2, 16, 16)
    teacher = load_pretrained(teacher_folder)
    for text in (1, 2):
        own = batch["segments"][0] == text
        ids = batch["input_ids"][0][own][None]
        encode = jax.jit(Encoder(teacher.config).apply)
        alone = np.asarray(encode({"params": teacher.params}, ids, np.ones_like(ids, bool)))[0]
        alone = alone / np.linalg.norm(alone, axis=1, keepdims=True)
        np.testing.assert_allclose(batch["teacher"][0][own], alone, atol=1e-5)


class Source(list):
    """Rows with what a prepared source has beside them."""

    def __init__(self, name: str, rows: list[dict]) -> None:
        super().__init__(rows)
        self.name, self.types, self.names, self.directory = name, (), {}, Path(f"{name}-0123")


def test_cached_vectors_of_a_teacher_are_those_computed_on_the_fly(teacher_folder: Path, tmp_path: Path) -> None:
    sources: list[Any] = [Source("news", [NEWS, NEWS]), Source("biology", [BIOLOGY])]
    chosen = {**SETTINGS, "loss": "distill", "teacher": str(teacher_folder)}
    family = DistillFamily.create({**chosen, "teacher_cache": str(tmp_path)}, sources, TOKENIZER)
    fresh = DistillFamily.create(chosen, sources, TOKENIZER)
    found, wanted = batch_of(family), batch_of(fresh)
    real = wanted["segments"] > 0
    np.testing.assert_allclose(found["teacher"][real], wanted["teacher"][real], atol=5e-4)
    assert family.describe() == fresh.describe()
    (folder,) = tmp_path.iterdir()
    before = (folder / "vectors.npy").stat().st_mtime_ns
    again = DistillFamily.create({**chosen, "teacher_cache": str(tmp_path)}, sources, TOKENIZER)
    assert [*tmp_path.iterdir()] == [folder] and (folder / "vectors.npy").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="lacks a text of the sources; delete it"):
        again.teacher.vectors(found["input_ids"] + 1, found["segments"])
    (folder / "keys.npy").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged .* delete it"):
        DistillFamily.create({**chosen, "teacher_cache": str(tmp_path)}, sources, TOKENIZER)


def test_distill_needs_no_entities(teacher_folder: Path) -> None:
    chosen = {**SETTINGS, "loss": "distill", "teacher": str(teacher_folder)}
    bare: list[Any] = [SimpleNamespace(name="bare", types=(), names={})]
    family = DistillFamily.create(chosen, bare, TOKENIZER)
    example = family.encode_record({"tokens": ["the", "cat"], "tags": ["O", "O"]}, "bare")
    assert [len(t) for t in example["texts"]] == [4]


def test_a_teachers_weights_are_known_by_their_hash_and_kept_nowhere(teacher_folder: Path, start: Pretrained) -> None:
    family = made(loss="distill", teacher=str(teacher_folder))
    head = family.init_head(jax.random.key(0), start)
    assert {p: x.shape for p, x in flatten_dict(head, sep="/").items()} == {
        "projection/kernel": (32, 16),
        "projection/bias": (16,),
    }
    mark = family.describe()["teacher"]
    assert mark == load_teacher(teacher_folder, TOKENIZER, 10).fingerprint
    params = jax.tree.map(lambda x: x + 1e-3, family.teacher.params)
    assert mark != dataclasses.replace(family.teacher, params=params).fingerprint


def test_a_teacher_with_another_tokenizer_is_refused(teacher_folder: Path, tmp_path: Path) -> None:
    vocab = {
        **TOKENIZER.get_vocab(),
        "[unused0]": TOKENIZER.get_vocab()["cat"],
        "cat": TOKENIZER.get_vocab()["[unused0]"],
    }
    other = tokenizer()
    other.model = type(other.model)(vocab, unk_token="[UNK]")
    refused = (
        f"the tokenizer of {teacher_folder} .97 entries. is not that of the start encoder, model.path .97 entries."
    )
    with pytest.raises(UserError, match=refused + "; 2 entries differ, as '.unused0.'"):
        load_teacher(teacher_folder, other, 10)
    with pytest.raises(UserError, match="splits text in another way"):
        load_teacher(teacher_folder, tokenizer(lower=False), 10)
    with pytest.raises(UserError, match="data.ner.max_length is 4000; the teacher"):
        load_teacher(teacher_folder, TOKENIZER, 4000)
    with pytest.raises(UserError, match="no such directory"):
        load_teacher(tmp_path / "missing", TOKENIZER, 10)


# Learning


@pytest.mark.parametrize("loss, side", [("sigmoid", "table"), ("softmax", "trained"), ("distill", "frozen")])
def test_the_loss_falls(loss: str, side: str, teacher_folder: Path) -> None:
    """By plain gradient descent on all that the family may touch; what it may not touch has no gradient."""
    start = load_pretrained(teacher_folder)
    family = made(loss=loss, concept_encoder=side, teacher=str(teacher_folder))
    table = strategies.make("individual_ner", ["ner"], family.constants, family.encoders)
    params = {"backbone": start.params, "head": {"ner": family.init_head(jax.random.key(0), start)}}
    before = flatten_dict(params, sep="/")
    setup, batch = train_step.Setup(Encoder(start.config), {"ner": family}, table, {}), batch_of(family)

    @jax.jit
    def descend(flat: dict) -> tuple[jax.Array, dict]:
        value, _, grads = train_step.family_gradients(setup, "ner", flat, batch, None)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values()))
        return value, {path: flat[path] - 0.1 * g / norm for path, g in grads.items()}

    flat, losses = before, []
    for _ in range(10):
        value, moved = descend(flat)
        flat, losses = {**flat, **moved}, [*losses, float(value)]
    assert losses[-1] < 0.7 * losses[0] and np.isfinite(losses).all(), losses
    assert {p for p in flat if p not in moved} == set(family.constants)
    for path in (p for p in moved if p.startswith("head/") and not p.endswith("key/bias")):  # attention ignores that
        assert np.abs(flat[path] - before[path]).max() > 0, path
