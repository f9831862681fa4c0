"""Downstream tasks: scores by known cases, and fine-tuning in its three modes on a tiny random encoder."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden.model_files import tokenizer
from hypothesis import given
from hypothesis import strategies as st

from jaxprefit import lora, optim, strategies, surgery, train
from jaxprefit.data.builders import Prepared, Source, prepare
from jaxprefit.downstream.evaluate import ill_formed, ner_scores, tc_scores
from jaxprefit.downstream.finetune import (
    MODES,
    FinetuneConfig,
    TaskData,
    _predict_all,
    finetune,
    score,
    start_params,
    subset,
)
from jaxprefit.downstream.tasks import IGNORE, TASKS, LabellingTask, TaggingTask, check_labels
from jaxprefit.encoder import Encoder, EncoderConfig, init_backbone
from jaxprefit.errors import UserError
from jaxprefit.loading import Model
from jaxprefit.sharding import make_mesh

TOKENIZER = tokenizer()
FAMILIES = ("ner", "tc")

# Scores


def test_strict_and_lenient_ner_scores_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O"]]
    exact = {"f1": 1.0, "precision": 1.0, "recall": 1.0, "f1_lenient": 1.0, "ill_formed": 0.0}
    assert ner_scores(gold, gold) == exact
    repaired = ner_scores(gold, [["I-PER", "I-PER", "O"]])
    assert repaired == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "f1_lenient": 1.0, "ill_formed": 1.0}


def test_ner_scores_count_whole_spans_over_all_sentences() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "B-LOC"]]  # one too short, one right, one too many, one right
    found = ner_scores(gold, predicted)
    assert found["precision"] == pytest.approx(2 / 4) and found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == found["f1_lenient"] == pytest.approx(4 / 7)


def test_a_wrong_type_is_wrong_and_an_adjacent_span_is_its_own() -> None:
    assert ner_scores([["B-PER", "B-PER"]], [["B-PER", "I-PER"]])["f1"] == 0.0
    assert ner_scores([["B-PER", "O"]], [["B-LOC", "O"]])["f1"] == 0.0
    assert ner_scores([["B-a-b", "I-a-b"]], [["B-a-b", "I-a-b"]])["f1"] == 1.0


@pytest.mark.filterwarnings("error")
def test_ner_scores_without_any_span_are_zero() -> None:
    assert ner_scores([["B-PER", "O"]], [["O", "O"]])["f1"] == 0.0
    assert ner_scores([["O", "O"]], [["B-PER", "O"]])["f1"] == 0.0
    assert ner_scores([["O", "O"]], [["O", "O"]])["f1"] == 0.0


@pytest.mark.parametrize(
    "tags, expected",
    [
        (["O", "B-X", "I-X", "I-X"], False),
        (["B-X", "B-X", "O"], False),
        (["I-X"], True),
        (["O", "I-X"], True),
        (["B-X", "I-Y"], True),
        (["B-X", "O", "I-X"], True),
        ([], False),
    ],
)
def test_ill_formed_tags(tags: list[str], expected: bool) -> None:
    assert ill_formed(tags) is expected


def test_ill_formed_share_is_of_sentences() -> None:
    assert ner_scores([["O"]] * 4, [["O"], ["I-X"], ["B-X"], ["O"]])["ill_formed"] == 0.25


def test_tc_scores_by_hand() -> None:
    found = tc_scores(["a", "a", "a", "b"], ["a", "a", "b", "b"])
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 * 1 * (2 / 3) / (1 + 2 / 3) + 2 * 0.5 * 1 / 1.5) / 2)
    # A label that is only predicted takes no part in the mean; one never predicted counts as 0.
    assert tc_scores(["a", "a", "b"], ["a", "c", "a"])["macro_f1"] == pytest.approx(0.5 / 2)


# Rows


@given(rows=st.integers(1, 500), fractions=st.lists(st.floats(0.001, 1.0), min_size=2, max_size=4))
def test_subsets_are_nested_over_fractions(rows: int, fractions: list[float]) -> None:
    chosen = [subset(rows, f).tolist() for f in sorted(fractions)]
    for smaller, larger in itertools.pairwise(chosen):
        assert larger[: len(smaller)] == smaller
    for f, indices in zip(sorted(fractions), chosen):
        assert len(indices) == max(1, round(rows * f)) == len(set(indices))
        assert set(indices) <= set(range(rows))
    assert sorted(subset(rows, 1.0)) == list(range(rows))


def prepared(folder: Path, name: str, kind: str, rows: Sequence[dict]) -> Prepared:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return prepare(Source(name=name, kind=kind, path=str(folder / f"{name}.jsonl")), folder / "cache")


def test_labels_never_seen_in_training_are_named(tmp_path: Path) -> None:
    known = prepared(tmp_path, "known", "labelled", [{"text": "x", "label": c} for c in "ab"])
    more = prepared(tmp_path, "more", "labelled", [{"text": "x", "label": c} for c in "abcdefgh"])
    check_labels("mine", more, known)
    with pytest.raises(UserError) as error:
        check_labels("mine", known, more)
    assert "task 'mine': the test rows have labels never seen in training: c, d, e, f, g ...;" in str(error.value)
    people = prepared(tmp_path, "people", "ner", [{"tokens": ["x"], "tags": ["B-PER"]}])
    places = prepared(tmp_path, "places", "ner", [{"tokens": ["x", "y"], "tags": ["B-PER", "B-LOC"]}])
    with pytest.raises(UserError, match="entity types never seen in training: LOC;"):
        check_labels("mine", people, places)


def test_an_unknown_mode_is_named() -> None:
    good = {"mode": "full", "steps": 1, "batch_size": 1, "fraction": 1.0}
    good |= {"lora_lr": 1e-3, "head_lr": 1e-3, "backbone_lr": 1e-3}
    FinetuneConfig(**good).validate()
    with pytest.raises(UserError, match="choose from adapter, probe, full"):
        FinetuneConfig(**(good | {"mode": "adaptor"})).validate()


# An easy task of each kind: which of the words below occur.

FILLERS = ["the", "sat", "on", "a", "1", ","]


def tagged(rng: random.Random, length: int = 8) -> dict:
    tokens, tags = [], []
    while len(tokens) < length:
        words, labels = rng.choice(
            [(["cat"], ["B-animal"]), (["hello", "world"], ["B-greeting", "I-greeting"])]
            + [([rng.choice(FILLERS)], ["O"])] * 3
        )
        tokens += words
        tags += labels
    return {"tokens": tokens, "tags": tags}


def labelled(rng: random.Random) -> dict:
    label, word = rng.choice([("animal", "cat"), ("greeting", "hello"), ("place", "cafe")])
    words = [rng.choice(FILLERS) for _ in range(rng.randint(2, 5))]
    words.insert(rng.randint(0, len(words)), word)
    return {"text": " ".join(words), "label": label}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskData]:
    made = {}
    for family, write in (("ner", tagged), ("tc", labelled)):
        folder, rng = tmp_path_factory.mktemp(family), random.Random(0)
        kind = TASKS[family].kind
        train_rows = prepared(folder, "train", kind, [write(rng) for _ in range(100)])
        test_rows = prepared(folder, "test", kind, [write(rng) for _ in range(70)])
        task = TASKS[family].create({"max_length": 32}, [train_rows], TOKENIZER)
        made[family] = TaskData(f"easy/{family}", family, task, train_rows, test_rows)
    return made


CONFIG = EncoderConfig(97, hidden_size=32, num_layers=1, num_heads=4, intermediate_size=64, max_positions=64)
SPEC = lora.LoraSpec(last_layers=1, rank=4)


@pytest.fixture(scope="module")
def model() -> Model:
    """A random encoder with one adapter per family that does change it."""
    adapters = {}
    for i, family in enumerate(FAMILIES):
        tree = lora.init_lora(SPEC, CONFIG, jax.random.key(i))
        adapters[family] = jax.tree.map(lambda x, i=i: 0.1 * x if x.ndim == 0 else x + 0.1 * (i + 1), tree)
    # Larger than init_backbone's own, so that layers matter.
    backbone = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, init_backbone(CONFIG, jax.random.key(5)))
    params = jax.tree.map(np.asarray, {"backbone": backbone, "lora": adapters, "head": {}})
    return Model(CONFIG, params, TOKENIZER, strategies.make("task_primary", FAMILIES), {})


@pytest.fixture(scope="module")
def plain(model: Model) -> Model:
    return Model(CONFIG, {"backbone": model.backbone}, TOKENIZER, strategies.make("none", ()), {})


def test_tagging_labels_are_iob2_over_all_types(tasks: dict[str, TaskData]) -> None:
    task = tasks["ner"].task
    assert task.labels == ("O", "B-animal", "I-animal", "B-greeting", "I-greeting")
    example = task.encode_record({"tokens": ["hello", "isn't", "cat"], "tags": ["O", "B-greeting", "B-animal"]}, "")
    np.testing.assert_array_equal(example["labels"], [IGNORE, 0, 3, *[IGNORE] * 4, 1, IGNORE])
    assert example["first"] == [1, 2, 7]
    assert tasks["tc"].task.labels == ("animal", "greeting", "place")


APPLY = jax.jit(Encoder(CONFIG).apply)


def outputs(params: dict, ids: np.ndarray) -> np.ndarray:
    variables = {"params": params["backbone"]}
    if "lora" in params:
        variables["lora"] = params["lora"]["task"]
    return np.asarray(APPLY(variables, ids, ids > 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_mode_starts_from_the_familys_adapter(family: str, model: Model, tasks: dict[str, TaskData]) -> None:
    ids = np.random.default_rng(0).integers(5, 97, (2, 8))
    start = {mode: start_params(model, tasks[family], SPEC, mode, jax.random.key(0)) for mode in MODES}
    hidden = {mode: outputs(params, ids) for mode, params in start.items()}
    bare = outputs({"backbone": model.backbone}, ids)
    assert np.abs(hidden["adapter"] - bare).max() > 0.01
    for mode in ("probe", "full"):
        assert "lora" not in start[mode]
        np.testing.assert_allclose(hidden[mode], hidden["adapter"], atol=1e-4)
    assert start["adapter"]["backbone"] is model.backbone
    jax.tree.map(np.testing.assert_array_equal, start["adapter"]["lora"]["task"], model.adapters[family])


def test_a_plain_encoder_gets_a_fresh_adapter_of_the_given_shape(plain: Model, tasks: dict[str, TaskData]) -> None:
    start = {mode: start_params(plain, tasks["ner"], SPEC, mode, jax.random.key(0)) for mode in MODES}
    assert set(start["probe"]) == set(start["full"]) == {"backbone", "head"}
    fresh = start["adapter"]["lora"]["task"]
    assert set(fresh) == {"layer_0"} and fresh["layer_0"]["query"]["a"].shape == (32, 4)
    assert all((np.asarray(m["b"]) == 0).all() for m in fresh["layer_0"].values())
    heads = [params["head"]["task"]["kernel"] for params in start.values()]
    assert heads[0].shape == (32, 5)
    for other in heads[1:]:
        np.testing.assert_array_equal(heads[0], other)


def config(mode: str, steps: int = 60) -> FinetuneConfig:
    return FinetuneConfig(mode, steps, 16, 1.0, lora_lr=1e-2, head_lr=5e-2, backbone_lr=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_finetuning_learns_an_easy_task(mode: str, family: str, model: Model, tasks: dict[str, TaskData]) -> None:
    before = jax.tree.map(np.copy, model.params)
    seen: list[int] = []
    scores = finetune(model, tasks[family], SPEC, config(mode), 0, seen.append)
    assert seen == list(range(1, 61))
    assert all(0.0 <= value <= 1.0 for value in scores.values())
    # Chance: hardly a span by guessing; a third of the texts.
    main = scores["f1" if family == "ner" else "accuracy"]
    assert main > (0.8 if mode != "probe" else 0.6), scores
    jax.tree.map(np.testing.assert_array_equal, model.params, before)  # the next task starts from the same model


# What each mode trains: everything else stays as it is, bit by bit.
TRAINED = {"adapter": ("lora/", "head/"), "probe": ("head/",), "full": ("backbone/", "head/")}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_moves_only_what_it_trains(mode: str, model: Model, tasks: dict[str, TaskData]) -> None:
    data = tasks["tc"]
    params = start_params(model, data, SPEC, mode, jax.random.key(0))
    before = {path: np.array(p) for path, p in flatten_dict(params, sep="/").items()}
    optimizer = optim.OptimizerConfig(steps=5, warmup_steps=0)
    tx = optim.make_optimizer(MODES[mode], flatten_dict(params, sep="/"), optimizer)
    setup = train.Setup(Encoder(CONFIG), {"task": data.task}, MODES[mode], {})
    step = train.make_step(setup, tx, optimizer, surgery.weighted_sum, make_mesh(1), jax.random.key(0))
    state = jax.tree.map(jnp.array, train.init_state(params, tx))
    batch = data.task.collate([data.task.encode_record(data.train[i], "") for i in range(8)])
    for _ in range(3):
        state, _ = step(state, {"task": batch})
    for path, p in state.params.items():
        if not path.startswith(TRAINED[mode]) or (path.startswith("lora/") and path.endswith("/scale")):
            np.testing.assert_array_equal(p, before[path], err_msg=path)
        elif path.endswith(("/kernel", "/embedding", "/a", "/b")):
            assert not np.array_equal(p, before[path]), path


# Predictions


def predictor(model: Model, task: TaggingTask | LabellingTask) -> tuple[dict, train.Setup]:
    """Parameters with a head of large random weights, so that predictions differ."""
    shape = (CONFIG.hidden_size, len(task.labels))
    head = {"kernel": np.random.default_rng(1).normal(size=shape).astype(np.float32), "bias": np.zeros(shape[1])}
    flat = flatten_dict({"backbone": model.backbone, "head": {"task": head}}, sep="/")
    return flat, train.Setup(Encoder(CONFIG), {"task": task}, MODES["probe"], {})


@pytest.mark.parametrize("family", FAMILIES)
def test_batching_changes_neither_order_nor_predictions(family: str, plain: Model, tasks: dict[str, TaskData]) -> None:
    rng = random.Random(3)
    task = tasks[family].task
    rows = [tagged(rng, rng.randint(1, 40)) for _ in range(20)]
    if family == "tc":
        rows = [{"text": " ".join(r["tokens"]), "label": "place"} for r in rows]
    examples = [task.encode_record(r, "") for r in rows]
    flat, setup = predictor(plain, task)
    logits = jax.jit(lambda batch: train.apply_family(setup, "task", flat, batch, task.logits))
    together = _predict_all(logits, task, examples, batch_size=8)
    singly = [np.asarray(logits(task.collate([e])))[0] for e in examples]
    if family == "ner":
        together, singly = ([p[e["first"]] for p, e in zip(found, examples)] for found in (together, singly))
    assert len(together) == 20
    for i, (found, wanted) in enumerate(zip(together, singly)):
        np.testing.assert_allclose(found, wanted, atol=1e-3)
        others = [np.abs(w - found).max() for j, w in enumerate(singly) if j != i and w.shape == found.shape]
        assert min(others, default=1.0) > 0.01, "rows must differ for their order to be seen"


def test_words_past_the_maximum_length_are_predicted_outside(plain: Model, tmp_path: Path) -> None:
    long = {"tokens": ["cat"] * 40, "tags": ["B-animal"] * 40}
    rows = prepared(tmp_path, "long", "ner", [long])
    task = TaggingTask(TOKENIZER, 12, ("O", "B-animal", "I-animal"))
    flat, setup = predictor(plain, task)
    flat |= {"head/task/kernel": np.zeros((32, 3), np.float32), "head/task/bias": np.asarray([0.0, 1.0, 0.0])}
    found = score(setup, flat, TaskData("long", "ner", task, rows, rows))
    assert found["precision"] == 1.0 and found["recall"] == pytest.approx(10 / 40)


def test_a_single_word_longer_than_a_batch_row_is_scored(plain: Model, tmp_path: Path) -> None:
    rows = prepared(tmp_path, "wide", "ner", [{"tokens": ["x" * 50, "cat"], "tags": ["B-animal", "O"]}])
    task = TaggingTask(TOKENIZER, 4, ("O", "B-animal", "I-animal"))
    flat, setup = predictor(plain, task)
    assert 0.0 <= score(setup, flat, TaskData("wide", "ner", task, rows, rows))["f1"] <= 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_ignored_positions_are_outside_the_loss(family: str, tasks: dict[str, TaskData]) -> None:
    task = tasks[family].task
    size = (2, 4, len(task.labels)) if family == "ner" else (2, len(task.labels))
    logits = np.random.default_rng(0).normal(size=size).astype(np.float32)
    labels = np.asarray([[IGNORE, 1, 0, IGNORE], [IGNORE, 2, IGNORE, IGNORE]] if family == "ner" else [0, 2])

    class Fixed(type(task)):  # type: ignore[misc]
        def logits(self, head, encode, batch):  # type: ignore[no-untyped-def]
            return head

    fixed = Fixed(task.tokenizer, task.max_length, task.labels)
    loss, _ = fixed.loss(jnp.asarray(logits), None, {"labels": labels})
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = [(*at, int(labels[at])) for at in zip(*np.nonzero(labels != IGNORE))]
    np.testing.assert_allclose(loss, -np.mean([log_p[at] for at in counted]), rtol=1e-5)
