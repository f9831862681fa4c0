"""Downstream tasks: scores by known cases, and fine-tuning in its three modes on a tiny random encoder."""

import dataclasses
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

from experiments.benchmark.downstream import padded, plain
from jaxprefit import significance, strategies, surgery
from jaxprefit.data.builders import Prepared, Source, prepare
from jaxprefit.data.packing import Layout, packed
from jaxprefit.data.rows import Rows
from jaxprefit.downstream import batches, cells, finetune_step, mteb
from jaxprefit.downstream.evaluate import ill_formed, ner_scores, tc_scores
from jaxprefit.downstream.features import Features
from jaxprefit.downstream.finetune import (
    MODES,
    MTEB,
    FinetuneConfig,
    TaskData,
    finetune,
    frozen_layers,
    predict,
    start_params,
)
from jaxprefit.downstream.sampling import subset
from jaxprefit.downstream.tasks import IGNORE, TASKS, LabellingTask, TaggingTask, check_labels
from jaxprefit.encoder import lora
from jaxprefit.encoder.tokenization import pad_ids
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, init_backbone
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.runtime.sharding import make_mesh
from jaxprefit.training import optim, train_step

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
    assert subset(rows, 1.0, 7).tolist() == subset(rows, 1.0)[:7].tolist()


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
    with pytest.raises(UserError, match="choose from adapter, stacked, probe, full"):
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


CONFIG = EncoderConfig(97, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=64)
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
def plain_model(model: Model) -> Model:
    return Model(CONFIG, {"backbone": model.backbone}, TOKENIZER, strategies.make("none", ()), {})


def test_tagging_labels_are_iob2_over_all_types(tasks: dict[str, TaskData]) -> None:
    task = tasks["ner"].task
    assert task.labels == ("O", "B-animal", "I-animal", "B-greeting", "I-greeting")
    example = task.encode_record({"tokens": ["hello", "isn't", "cat"], "tags": ["O", "B-greeting", "B-animal"]})
    np.testing.assert_array_equal(example["labels"], [IGNORE, 0, 3, *[IGNORE] * 4, 1, IGNORE])
    assert example["first"].tolist() == [1, 2, 7] and example["words"] == 3
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
    for mode in ("stacked", "probe", "full"):
        assert ("lora" in start[mode]) == (mode == "stacked")
        np.testing.assert_allclose(hidden[mode], hidden["adapter"], atol=1e-4)
    assert start["adapter"]["backbone"] is model.backbone
    jax.tree.map(np.testing.assert_array_equal, start["adapter"]["lora"]["task"], model.adapters[family])


def test_a_plain_encoder_gets_a_fresh_adapter_of_the_given_shape(
    plain_model: Model, tasks: dict[str, TaskData]
) -> None:
    start = {mode: start_params(plain_model, tasks["ner"], SPEC, mode, jax.random.key(0)) for mode in MODES}
    assert set(start["probe"]) == set(start["full"]) == {"backbone", "head"}
    jax.tree.map(np.testing.assert_array_equal, start["stacked"], start["adapter"])
    fresh = start["adapter"]["lora"]["task"]
    assert set(fresh) == {"layer_1"} and fresh["layer_1"]["query"]["a"].shape == (32, 4)
    assert all((np.asarray(m["b"]) == 0).all() for m in fresh["layer_1"].values())
    heads = [params["head"]["task"]["kernel"] for params in start.values()]
    assert heads[0].shape == (32, 5)
    for other in heads[1:]:
        np.testing.assert_array_equal(heads[0], other)


def config(mode: str, steps: int = 60) -> FinetuneConfig:
    return FinetuneConfig(mode, steps, 16, 1.0, lora_lr=1e-2, head_lr=5e-2, backbone_lr=2e-3)


def test_mteb_classifies_texts_from_frozen_vectors(model: Model, tasks: dict[str, TaskData]) -> None:
    cfg = dataclasses.replace(config(MTEB), shots=8)
    found = mteb.classify(model, tasks["tc"], cfg, (0, 1), lambda _: None)
    cells_ = [cells.make(tasks["tc"], draw, found) for draw in (0, 1)]
    assert found.train_rows == 24 and not found.unseen
    assert all(cell.scores["accuracy"] > 0.6 for cell in cells_), cells_  # 0.33 by chance
    assert cells_[0].predictions != cells_[1].predictions
    text = tasks["tc"].test[0]
    (vector,) = mteb.text_vectors(model, tasks["tc"], [text])
    expected = model.encode([text["text"]], "tc", 32).sentence[0]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    with pytest.raises(UserError, match="leave downstream.ner empty"):
        mteb.classify(model, tasks["ner"], cfg, (0,), lambda _: None)
    # What the regression refuses is the reason of a failed cell.
    train = tasks["tc"].train
    one = Rows(train, [i for i in range(len(train)) if train[i]["label"] == text["label"]])
    found = mteb.classify(model, dataclasses.replace(tasks["tc"], train=one), cfg, (0,), lambda _: None)
    assert isinstance(found.predictions[0], UserError) and "class" in str(found.predictions[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_finetuning_learns_an_easy_task(mode: str, family: str, model: Model, tasks: dict[str, TaskData]) -> None:
    before = jax.tree.map(np.copy, model.params)
    seen: list[int] = []
    found = finetune(model, tasks[family], SPEC, config(mode), (0, 5), seen.append)
    assert seen == list(range(1, 61))
    made = {seed: cells.make(tasks[family], seed, found) for seed in (0, 5)}
    for cell in made.values():
        assert isinstance(cell, cells.Cell) and all(0.0 <= value <= 1.0 for value in cell.scores.values())
        # Chance: hardly a span by guessing; a third of the texts.
        main = cell.scores["f1" if family == "ner" else "accuracy"]
        assert main > (0.8 if mode != "probe" else 0.6), cell.scores
    jax.tree.map(np.testing.assert_array_equal, model.params, before)  # the next task starts from the same model


# What each mode trains: everything else stays as it is, bit by bit.
LORA = ("lora/", "head/")
TRAINED = {"adapter": LORA, "stacked": LORA, "probe": ("head/",), "full": ("backbone/", "head/")}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_moves_only_what_it_trains(mode: str, model: Model, tasks: dict[str, TaskData]) -> None:
    data = tasks["tc"]
    params = start_params(model, data, SPEC, mode, jax.random.key(0))
    before = {path: np.array(p) for path, p in flatten_dict(params, sep="/").items()}
    optimizer = optim.OptimizerConfig(steps=5, warmup_steps=0)
    tx = optim.make_optimizer(MODES[mode], flatten_dict(params, sep="/"), optimizer)
    setup = train_step.Setup(Encoder(CONFIG), {"task": data.task}, MODES[mode], {})
    step = train_step.make_step(setup, tx, optimizer, surgery.get("sum"), make_mesh(1), jax.random.key(0))
    state = jax.tree.map(jnp.array, train_step.init_state(params, tx))
    examples = [data.task.encode_record(data.train[i]) for i in range(8)]
    batch = data.task.collate(examples, padded(examples, 32))
    for _ in range(3):
        state, _ = step(state, {"task": batch})
    for path, p in state.params.items():
        if not path.startswith(TRAINED[mode]) or (path.startswith("lora/") and path.endswith("/scale")):
            np.testing.assert_array_equal(p, before[path], err_msg=path)
        elif path.endswith(("/kernel", "/embedding", "/a", "/b")):
            assert not np.array_equal(p, before[path]), path


# The frozen part once, packed batches, all seeds in one step


@pytest.mark.parametrize(("mode", "family"), [("adapter", "ner"), ("stacked", "ner"), ("full", "tc")])
def test_predictions_are_those_of_the_plain_loop(
    mode: str, family: str, model: Model, tasks: dict[str, TaskData]
) -> None:
    """Early in training, where texts are near the border between classes."""
    cfg = dataclasses.replace(config(mode, steps=4), fraction=0.5)
    found = finetune(model, tasks[family], SPEC, cfg, (3, 4))
    assert found.predictions[4] == plain(model, tasks[family], SPEC, cfg, 4)
    assert found.predictions[3] != found.predictions[4] and found.train_rows == 50


@pytest.mark.parametrize("mode", ["adapter", "probe"])
def test_losses_are_those_of_the_plain_loop(mode: str, model: Model, tasks: dict[str, TaskData]) -> None:
    data, cfg = tasks["ner"], config(mode)
    examples = [data.task.encode_record(data.train[i]) for i in range(40)]
    params = start_params(model, data, SPEC, mode, jax.random.key(0))
    layer = frozen_layers(params, mode, CONFIG.num_layers)
    assert layer == (1 if mode == "adapter" else 2)
    recipe = finetune_step.Recipe(CONFIG, layer, TaggingTask, MODES[mode], cfg.optimizer, 0.0)
    flat = finetune_step.trained_part(params, MODES[mode])
    assert flat["head/task/kernel"].shape == (32, 16) and not any(path.startswith("backbone") for path in flat)
    features = Features(CONFIG, params["backbone"], layer, [e["ids"] for e in examples], 64, limit=10**9)
    state, step = finetune_step.init(recipe, [flat, flat]), finetune_step.make_step(recipe)

    whole = flatten_dict(params, sep="/")
    tx = optim.make_optimizer(MODES[mode], whole, cfg.optimizer)
    setup = train_step.Setup(Encoder(CONFIG), {"task": data.task}, MODES[mode], {})
    reference = train_step.make_step(setup, tx, cfg.optimizer, surgery.get("sum"), make_mesh(1), jax.random.key(0))
    expected = jax.tree.map(jnp.array, train_step.init_state(params, tx))
    for texts in batches.epochs(40, 16, 4, seed=0):
        placed = batches.fit([texts, texts], [len(e["ids"]) for e in examples], 64)
        assert placed[0][1].layout.rows < 16
        parts = [finetune_step.collate(data.task, examples, features, *one) for one in placed]
        keys = jnp.stack([jax.random.key(0)] * 2)
        batch = jax.tree.map(lambda *x: np.stack(x), *parts)
        state, losses = step(params["backbone"], state, keys, batch)
        chosen = [examples[i] for i in texts]
        expected, metrics = reference(expected, {"task": data.task.collate(chosen, padded(chosen, 32))})
        np.testing.assert_allclose(losses, [metrics["loss/task"]] * 2, rtol=1e-5)
    kernel = np.asarray(state.params["head/task/kernel"])
    np.testing.assert_allclose(kernel[1, :, :5], expected.params["head/task/kernel"], atol=1e-4)
    assert (kernel[:, :, 5:] == 0).all()  # classes that only fill up the shape do not move
    assert (np.asarray(state.params["head/task/bias"])[:, 5:] == finetune_step.NO_CLASS).all()


def test_features_beyond_the_limit_are_computed_for_each_batch(model: Model, tasks: dict[str, TaskData]) -> None:
    examples = [tasks["tc"].task.encode_record(tasks["tc"].train[i]) for i in range(30)]
    ids = [e["ids"] for e in examples]
    size = sum(map(len, ids)) * 32 * 4
    kept = Features(CONFIG, model.backbone, 1, ids, 64, limit=size)
    anew = Features(CONFIG, model.backbone, 1, ids, 64, limit=size - 1)
    assert kept.hidden is not None and anew.hidden is None
    ((texts, packing),) = batches.fit([[3, 17, 29, 3]], [len(i) for i in ids], 64)
    where = packing.segments() > 0
    np.testing.assert_allclose(kept.lay(texts, packing)[where], np.asarray(anew.lay(texts, packing))[where], atol=1e-5)
    assert (kept.lay(texts, packing)[~where] == 0).all()


def test_a_seed_whose_loss_is_not_finite_is_a_failed_cell(model: Model, tasks: dict[str, TaskData]) -> None:
    broken = {"backbone": model.backbone, "lora": model.params["lora"], "head": {}}
    ill = dataclasses.replace(model, params=jax.tree.map(lambda x: x * np.nan, broken))
    found = finetune(ill, tasks["tc"], SPEC, config("probe", 2), (0,))
    cell = cells.make(tasks["tc"], 0, found)
    assert isinstance(cell, UserError) and "task 'easy/tc': the loss is nan after 2 steps" in str(cell)


def test_classes_that_the_chosen_rows_lack_are_named(model: Model, tasks: dict[str, TaskData]) -> None:
    cfg = dataclasses.replace(config("probe", 1), limit=1)
    found = finetune(model, tasks["tc"], SPEC, cfg, (0,))
    (row,) = subset(100, 1.0, 1)
    assert found.train_rows == 1
    assert {*found.unseen} == {"animal", "greeting", "place"} - {tasks["tc"].train[int(row)]["label"]}


@given(
    sizes=st.lists(st.integers(2, 64), min_size=1, max_size=80),
    picks=st.lists(st.integers(0, 10**6), min_size=1, max_size=40),
)
def test_every_text_of_a_batch_finds_a_place(sizes: list[int], picks: list[int]) -> None:
    texts = [p % len(sizes) for p in picks]
    placed = batches.fit([texts, texts[:1]], sizes, 64)
    assert {packing.layout for _, packing in placed} == {placed[0][1].layout}
    assert sorted(placed[0][0]) == sorted(texts) and placed[1][0] == texts[:1]
    for order, packing in placed:
        assert packing.size.tolist() == [sizes[i] for i in order]
        assert (np.bincount(packing.segments().ravel())[1:] > 0).all()
        assert (packing.segments() > 0).sum() == packing.size.sum()
    everything = list(packed(sizes, Layout.of(2, 64)))
    assert sorted(i for order, _ in everything for i in order) == [*range(len(sizes))]


def test_epochs_are_shuffled_passes() -> None:
    rows = [i for batch in batches.epochs(10, 4, 5, seed=1) for i in batch]
    assert sorted(rows[:10]) == sorted(rows[10:]) == [*range(10)] and rows[:10] != rows[10:]
    assert len(next(batches.epochs(3, 8, 1, seed=0))) == 8


# Predictions


def head_of_noise(task: TaggingTask | LabellingTask) -> dict[str, np.ndarray]:
    """A head of large random weights, so that predictions differ; one seed."""
    kernel = np.random.default_rng(1).normal(size=(CONFIG.hidden_size, len(task.labels))).astype(np.float32)
    return {"head/task/kernel": kernel[None], "head/task/bias": np.zeros((1, len(task.labels)), np.float32)}


def predicted(model: Model, data: TaskData, flat: dict[str, np.ndarray]) -> list[list[int]]:
    recipe = finetune_step.Recipe(
        CONFIG, CONFIG.num_layers, type(data.task), MODES["probe"], config("probe").optimizer, 0.0
    )
    (found,) = predict(recipe, model.backbone, flat, data, 64)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_stand_in_the_order_of_the_rows(family: str, plain_model: Model, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [tagged(rng, rng.randint(1, 40)) for _ in range(90)]
    if family == "tc":
        rows = [{"text": " ".join(r["tokens"]), "label": rng.choice("abc")} for r in rows]
    source = prepared(tmp_path, "rows", TASKS[family].kind, rows)
    task = TASKS[family].create({"max_length": 64}, [source], TOKENIZER)
    flat = head_of_noise(task)
    found = predicted(plain_model, TaskData("rows", family, task, source, source), flat)
    examples = [task.encode_record(row) for row in rows]
    ids, mask = pad_ids([e["ids"] for e in examples], 64)
    singly = []
    for hidden, real, example in zip(np.asarray(APPLY({"params": plain_model.backbone}, ids, mask)), mask, examples):
        vectors = hidden[example["first"]] if family == "ner" else hidden[real].mean(0, keepdims=True)
        singly.append((np.asarray(vectors) @ flat["head/task/kernel"][0]).argmax(-1).tolist())
    if family == "ner":
        singly = [one + [0] * (len(r["tags"]) - len(one)) for one, r in zip(singly, rows)]
    assert found == singly and len({tuple(one) for one in found}) > 1


def test_words_past_the_maximum_length_are_predicted_outside(plain_model: Model, tmp_path: Path) -> None:
    long = {"tokens": ["cat"] * 40, "tags": ["B-animal"] * 40}
    rows = prepared(tmp_path, "long", "ner", [long])
    task = TaggingTask(TOKENIZER, 12, ("O", "B-animal", "I-animal"))
    flat = {"head/task/kernel": np.zeros((1, 32, 3), np.float32), "head/task/bias": np.asarray([[0.0, 1.0, 0.0]])}
    assert predicted(plain_model, TaskData("long", "ner", task, rows, rows), flat) == [[1] * 10 + [0] * 30]


def test_a_single_word_longer_than_a_text_may_be_is_predicted(plain_model: Model, tmp_path: Path) -> None:
    rows = prepared(tmp_path, "wide", "ner", [{"tokens": ["x" * 50, "cat"], "tags": ["B-animal", "O"]}])
    task = TaggingTask(TOKENIZER, 4, ("O", "B-animal", "I-animal"))
    ((first, second),) = predicted(plain_model, TaskData("wide", "ner", task, rows, rows), head_of_noise(task))
    assert first in (0, 1, 2) and second == 0


def test_a_cell_is_written_and_read_and_its_scores_follow_from_its_predictions(
    model: Model, tasks: dict[str, TaskData], tmp_path: Path
) -> None:
    for family, data in tasks.items():
        cell = cells.make(data, 7, finetune(model, data, SPEC, config("probe", 3), (7,)))
        assert isinstance(cell, cells.Cell)
        cells.write(tmp_path / "cells" / family, cell)
        again = cells.read(tmp_path / "cells" / family)
        assert again == cell and cells.scores(data, again.predictions) == again.scores
        total = np.sum(again.counts, 0)
        score = significance.f1(total) if family == "ner" else significance.accuracy(total)
        assert score == pytest.approx(again.scores["f1" if family == "ner" else "accuracy"])
    (tmp_path / "cells" / "ner").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        cells.read(tmp_path / "cells" / "ner")


@pytest.mark.parametrize("family", FAMILIES)
def test_ignored_positions_are_outside_the_loss(family: str, tasks: dict[str, TaskData]) -> None:
    task = tasks[family].task
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 4, 32)).astype(np.float32)
    head = {"kernel": rng.normal(size=(32, len(task.labels))).astype(np.float32), "bias": np.zeros(len(task.labels))}
    segments = np.asarray([[1, 1, 2, 2], [1, 1, 1, 0]], np.int32)
    # Two texts in the first row, one in the second: its other place holds none.
    labels = np.asarray([[IGNORE, 1, 0, IGNORE], [IGNORE, 2, IGNORE, IGNORE]] if family == "ner" else [[0, 2], [1, -1]])
    loss = task.loss_of(head, jnp.asarray(hidden), {"segments": segments, "labels": labels})
    pooled = [[hidden[0, :2].mean(0), hidden[0, 2:].mean(0)], [hidden[1, :3].mean(0), np.zeros(32)]]
    vectors = hidden if family == "ner" else np.asarray(pooled)
    logits = vectors @ head["kernel"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = [(*at, int(labels[at])) for at in zip(*np.nonzero(labels != IGNORE))]
    np.testing.assert_allclose(loss, -np.mean([log_p[at] for at in counted]), rtol=1e-5)
