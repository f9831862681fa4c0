"""The TC family: its losses and their gradients against a few lines of NumPy, its batches, its settings."""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.model_files import VOCABULARY, tokenizer
from helpers import run
from hypothesis import given
from hypothesis import strategies as st

import jaxprefit
from experiments.common import assembly, prefinetuning
from jaxprefit.data.builders import Prepared, Source, prepare
from jaxprefit.data.packing import Layout, pack
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES, ClassificationFamily, useful_tokens
from jaxprefit.families.info_nce import Texts, clipped_scale, info_nce, truncated_info_nce
from jaxprefit.families.tc_supervised import LabelledFamily, labelled_loss

TOKENIZER = tokenizer()
N, D = 4, 6


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def numeric_slope(function: Any, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function of `x` (float64)."""
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * step
            ends.append(function(moved))
        slope[i] = (ends[0] - ends[1]) / (2 * step)
    return slope


# Symmetric InfoNCE

KEYS = {
    "all differ": ((1, 2, 3, 4), (5, 6, 7, 8)),
    "equal a": ((1, 1, 3, 4), (5, 6, 7, 8)),
    "equal b": ((1, 2, 3, 4), (5, 6, 5, 8)),
    "a is another's b": ((1, 2, 3, 4), (5, 6, 1, 8)),
    "a is its own b": ((1, 2, 3, 4), (1, 6, 7, 8)),
    "a pair twice, turned round": ((1, 5, 3, 4), (5, 1, 7, 8)),
    "all equal": ((1, 1, 1, 1), (1, 1, 1, 1)),
}
C_KEYS = (9, 6, 4, 10)  # the second is the second pair's b, the third the last pair's a


def by_numpy(
    abc: np.ndarray, keys: Any, there: list[int], hard: list[int], scale: float, dims: tuple[int, ...]
) -> float:
    """Cross-entropy of each text's own partner among all that may count, both ways round, for each number of
    dimensions. abc [3, N, D]; `there` are the pairs of the batch, `hard` those with a hard negative."""
    a_key, b_key, c_key = keys

    def copy(i: int, j: int) -> bool:
        return i != j and (a_key[i] == a_key[j] or b_key[i] == b_key[j] or a_key[i] == b_key[j])

    means = []
    for d in (abc.shape[2], *dims):
        a, b, c = abc[:, :, :d] / np.linalg.norm(abc[:, :, :d], axis=2, keepdims=True)
        losses = []
        for i in there:
            right = [b[j] for j in there if not copy(i, j)] + [
                c[j] for j in hard if c_key[j] not in (a_key[i], b_key[i])
            ]
            left = [a[j] for j in there if not copy(j, i)]
            losses.append(np.log(np.exp(scale * np.asarray(right) @ a[i]).sum()) - scale * a[i] @ b[i])
            losses.append(np.log(np.exp(scale * np.asarray(left) @ b[i]).sum()) - scale * a[i] @ b[i])
        means.append(np.mean(losses))
    return float(np.mean(means))


def texts(vectors: Any, keys: Any, there: list[int]) -> Texts:
    return Texts(vectors, jnp.asarray(keys, jnp.int32), jnp.asarray([i in there for i in range(N)]))


def our_loss(abc: jax.Array, scale: Any, case: str, there: list[int], hard: list[int], dims: tuple[int, ...]) -> Any:
    a, b = (texts(abc[k], KEYS[case][k], there) for k in (0, 1))
    return truncated_info_nce(a, b, scale, texts(abc[2], C_KEYS, hard) if hard else None, dims)[0]


OPTIONS = {
    "plain": ([0, 1, 2, 3], [], ()),
    "a slot without a pair": ([0, 2, 3], [], ()),
    "hard negatives": ([0, 1, 2, 3], [0, 1, 2, 3], ()),
    "some hard negatives": ([0, 1, 3], [0, 3], ()),
    "truncated": ([0, 1, 2, 3], [], (2, 4)),
    "all": ([0, 1, 3], [1, 3], (3,)),
}


@pytest.mark.parametrize(
    ("case", "option"),
    [*((case, "plain") for case in KEYS), *(("all differ", option) for option in list(OPTIONS)[1:])],
)
def test_loss_and_gradient_equal_numpy(case: str, option: str) -> None:
    there, hard, dims = OPTIONS[option]
    abc, scale, keys = normal(0, 3, N, D), 3.0, (*KEYS[case], C_KEYS)
    loss, (slope, scale_slope) = jax.value_and_grad(our_loss, (0, 1))(jnp.asarray(abc), scale, case, there, hard, dims)
    np.testing.assert_allclose(loss, by_numpy(abc, keys, there, hard, scale, dims), rtol=1e-5, atol=1e-6)
    wanted = numeric_slope(lambda x: by_numpy(x, keys, there, hard, scale, dims), abc)
    np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-6)
    wanted = numeric_slope(lambda x: by_numpy(abc, keys, there, hard, float(x), dims), np.asarray(scale))
    np.testing.assert_allclose(scale_slope, wanted, rtol=1e-4, atol=1e-6)


def test_a_slot_without_a_pair_may_hold_anything() -> None:
    abc, three = jnp.asarray(normal(0, 3, N, D)).at[:, 3].set(0.0), [0, 1, 2]
    loss, slope = jax.value_and_grad(our_loss)(abc, 20.0, "all differ", three, three, (2,))
    assert np.isfinite(slope).all() and (slope[:, 3] == 0).all()
    assert our_loss(abc.at[:, 3].set(7.0), 20.0, "all differ", three, three, (2,)) == loss
    nothing, slope = jax.value_and_grad(our_loss)(abc, 20.0, "all differ", [], [], ())
    assert nothing == 0.0 and (slope == 0).all()


def test_accuracy_is_of_the_best_match_among_all_candidates() -> None:
    eye, turned = jnp.eye(N), jnp.eye(N)[jnp.asarray([0, 1, 3, 2])]
    a, b = (texts(x, k, [0, 1, 2, 3]) for x, k in zip((eye, turned), KEYS["all differ"]))
    assert info_nce(a, b, 10.0)[1] == 0.5
    assert info_nce(a, a._replace(key=b.key), 10.0)[1] == 1.0
    close = Texts(2 * eye, jnp.asarray(C_KEYS), jnp.asarray([True, False, False, False]))
    nearly = b._replace(vectors=turned + 0.1)
    assert info_nce(a, nearly, 10.0)[1] == 0.5 and info_nce(a, nearly, 10.0, close)[1] == 0.25


@pytest.mark.parametrize("option", ["plain", "a slot without a pair", "hard negatives", "some hard negatives"])
@pytest.mark.parametrize("case", KEYS)
def test_accuracy_is_of_the_pairs_that_have_a_negative(case: str, option: str) -> None:
    (there, hard, _), (a_key, b_key) = OPTIONS[option], KEYS[case]
    abc = normal(5, 3, N, D)
    a, b, c = abc / np.linalg.norm(abc, axis=2, keepdims=True)
    right = []
    for i in there:
        negatives = [
            b[j] for j in there if j != i and a_key[i] not in (a_key[j], b_key[j]) and b_key[i] != b_key[j]
        ] + [c[j] for j in hard if C_KEYS[j] not in (a_key[i], b_key[i])]
        if negatives:
            right.append(a[i] @ b[i] > max(a[i] @ n for n in negatives))
    ours = [texts(jnp.asarray(abc[k]), KEYS[case][k], there) for k in (0, 1)]
    found = info_nce(*ours, 3.0, texts(jnp.asarray(abc[2]), C_KEYS, hard) if hard else None)[1]
    np.testing.assert_allclose(found, np.mean(right) if right else np.nan)


def test_without_any_negative_the_loss_and_its_slope_are_0_and_the_accuracy_is_undefined() -> None:
    for case, there in (("all equal", [0, 1, 2, 3]), ("all differ", [2]), ("all differ", [])):
        abc = jnp.asarray(normal(0, 3, N, D))
        loss, slope = jax.value_and_grad(our_loss)(abc, 20.0, case, there, [], ())
        assert loss == 0 and (slope == 0).all()
        assert np.isnan(info_nce(*(texts(abc[k], KEYS[case][k], there) for k in (0, 1)), 20.0)[1])


def test_learned_scale_stops_at_the_bound_and_can_come_back() -> None:
    assert clipped_scale(jnp.log(50.0)) == pytest.approx(50.0) and clipped_scale(jnp.asarray(9.0)) == 100.0
    slope = jax.grad(lambda x, sign: sign * clipped_scale(x))
    assert slope(jnp.log(50.0), -1.0) == pytest.approx(-50.0)
    assert slope(jnp.asarray(9.0), -1.0) == 0.0, "descent would go on upwards"
    assert slope(jnp.asarray(9.0), 1.0) == 100.0, "descent comes back"


# Batches of pairs

RECORDS = [
    {"a": "the cat", "b": "hello world", "negative": "hello cat"},
    {"a": "hello world", "b": "the cat sat on the cat sat on the cat", "negative": ""},
]


def packed(family: Any, records: list[dict], layout: Layout, source: str = "any") -> dict[str, np.ndarray]:
    examples = [family.encode_record(r, source) for r in records]
    placed, packing = pack([[len(t) for t in e["texts"]] for e in examples], layout)
    assert placed == [*range(len(records))]
    return family.collate(examples, packing)


def words(batch: dict[str, np.ndarray], slot: int, per_row: int) -> str:
    """The text that stands at a slot."""
    row, segment = divmod(slot, per_row)
    return " ".join(VOCABULARY[i] for i in batch["input_ids"][row][batch["segments"][row] == segment + 1])


def test_batch_of_pairs() -> None:
    batch = packed(ClassificationFamily(TOKENIZER, 10, 0.1), RECORDS, Layout(2, 16, 4))
    names = ("a_slot", "b_slot", "a_key", "b_key")
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        **{name: ((2, 16), "int32") for name in ("input_ids", "segments")},
        **{name: ((4,), "int32") for name in names},
        "valid": ((4,), "bool"),
    }
    assert batch["valid"].tolist() == [True, True, False, False]
    assert [words(batch, batch[f"{s}_slot"][0], 4) for s in "ab"] == ["[CLS] the cat [SEP]", "[CLS] hello world [SEP]"]
    assert words(batch, batch["b_slot"][1], 4) == "[CLS] the cat sat on the cat sat on [SEP]"
    assert batch["a_key"][1] == batch["b_key"][0] != batch["a_key"][0] and (batch["a_key"] >= 0).all()
    assert useful_tokens(batch) == 4 + 4 + 4 + 10


def test_batch_with_hard_negatives_and_prefixes() -> None:
    family = ClassificationFamily(TOKENIZER, 10, 0.1, prefixes=("on ", "sat "), negatives=True)
    batch = packed(family, RECORDS, Layout(2, 32, 4))
    assert batch["c_valid"].tolist() == [True, False, False, False]
    assert [words(batch, batch[f"{s}_slot"][0], 4) for s in "abc"] == [
        "[CLS] on the cat [SEP]", "[CLS] sat hello world [SEP]", "[CLS] sat hello cat [SEP]"
    ]  # fmt: skip
    assert batch["a_key"][1] == batch["b_key"][0], "the prefix does not make two texts of one"


WORDS = ["the", "The", "THE", "cat", "Cat", "café", "cafe", "sat", "on", "☃", "  ", "hello,", "hello ,"]


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=2, max_size=6),
    prefixes=st.sampled_from([("", ""), ("on ", "on "), ("on the ", "sat "), ("", "sat "), ("on", "")]),
    max_length=st.integers(4, 12),
)
def test_keys_are_equal_just_where_the_encoder_sees_the_same(
    texts: list[str], prefixes: tuple[str, str], max_length: int
) -> None:
    """Of one side: texts that are the same ids as cut, the prefix included. Against the tokenizer's own truncation."""
    cutting = tokenizer()
    cutting.enable_truncation(max_length)
    family = ClassificationFamily(TOKENIZER, max_length, 0.1, prefixes=prefixes, negatives=True)
    keys = [family.encode_record({"a": t, "b": t, "negative": t}, "")["keys"] for t in texts]
    for side, prefix in enumerate((*prefixes, prefixes[1])):
        seen = [cutting.encode(prefix + t).ids for t in texts]
        for i, j in itertools.combinations(range(len(texts)), 2):
            assert (keys[i][side] == keys[j][side]) == (seen[i] == seen[j])
    assert all(key[1] == key[2] for key in keys), "a hard negative is a text of b's side"
    for text, (a, b, _) in zip(texts, keys):
        if len(TOKENIZER.encode("".join(prefixes) + text).ids) <= max_length and prefixes[0] != "on":
            assert a == b, "an uncut text is the same on both sides, whatever is put before it"


def test_texts_that_are_equal_once_cut_are_no_negatives_of_each_other() -> None:
    long = "the cat sat on " * 9
    records = [{"a": f"{long} {end}", "b": b} for end, b in (("hello", "Café ONE"), ("world", "cafe one"))]
    batch = packed(ClassificationFamily(TOKENIZER, 10, 0.1), records, Layout(4, 10, 2))
    assert batch["a_key"][0] == batch["a_key"][1] != batch["b_key"][0] == batch["b_key"][1]


def source(folder: Path, name: str, kind: str, rows: list[dict], **columns: str) -> Prepared:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = str(folder / f"{name}.jsonl")
    return prepare(Source(name, kind, path, columns=tuple(columns.items())), folder / "cache")


def test_hard_negatives_come_only_from_a_mapped_column(tmp_path: Path) -> None:
    config = run.config(tmp_path).data.tc.to_dict()
    rows = [*RECORDS, {"a": "x", "b": "y", "negative": None}]
    mapped = source(tmp_path, "mapped", "pairs", rows, negative="negative")
    plain = source(tmp_path, "plain", "pairs", rows)
    assert [mapped[i]["negative"] for i in range(3)] == ["hello cat", "", ""] and "negative" not in plain[0]
    assert not ClassificationFamily.create(config, [plain], TOKENIZER).negatives
    family = ClassificationFamily.create(config, [plain, mapped], TOKENIZER)
    assert family.negatives and [len(family.encode_record(mapped[i], "")["texts"]) for i in (0, 1)] == [3, 2]
    with pytest.raises(UserError, match=r"odd.jsonl:1: 'negative' is of type int, not text; give a string"):
        source(tmp_path, "odd", "pairs", [{**RECORDS[0], "negative": 3}], negative="negative")
    with pytest.raises(UserError, match=r"short.jsonl:1: no column 'negative'"):
        source(tmp_path, "short", "pairs", [{"a": "x", "b": "y"}], negative="negative")


# Supervised: labelled sets with a head each


def test_supervised_loss_and_gradient_equal_numpy() -> None:
    sizes, which, label = np.asarray([2, 3]), np.asarray([0, 1, 1, 0]), np.asarray([1, 4, 2, 0])
    x, kernel, bias = normal(1, N, D), normal(2, D, 5), normal(3, 5)

    def wanted(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> float:
        losses = []
        for i in (0, 1, 2):  # the last slot is empty
            own = slice(0, 2) if which[i] == 0 else slice(2, 5)
            logits = x[i] @ kernel[:, own] + bias[own]
            right = x[i] @ kernel[:, label[i]] + bias[label[i]]
            losses.append((np.log(np.exp(logits).sum()) - right) / np.log(sizes[which[i]]))
        return float(np.mean(losses))

    def ours(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        valid = jnp.asarray([True, True, True, False])
        return labelled_loss({"kernel": kernel, "bias": bias}, x, jnp.asarray(which), jnp.asarray(label), valid, sizes)[
            0
        ]

    loss, slopes = jax.value_and_grad(ours, (0, 1, 2))(*map(jnp.asarray, (x, kernel, bias)))
    np.testing.assert_allclose(loss, wanted(x, kernel, bias), rtol=1e-5)
    np.testing.assert_allclose(slopes[0], numeric_slope(lambda v: wanted(v, kernel, bias), x), atol=1e-5)
    np.testing.assert_allclose(slopes[1], numeric_slope(lambda v: wanted(x, v, bias), kernel), atol=1e-5)
    np.testing.assert_allclose(slopes[2], numeric_slope(lambda v: wanted(x, kernel, v), bias), atol=1e-5)


def test_supervised_loss_is_1_where_nothing_is_known_and_accuracy_stays_in_the_set() -> None:
    sizes, which = np.asarray([2, 50]), jnp.asarray([0, 1])
    head = {"kernel": jnp.zeros((D, 52)), "bias": jnp.zeros(52)}
    args = jnp.ones((2, D)), which, jnp.asarray([1, 30]), jnp.ones(2, bool), sizes
    assert labelled_loss(head, *args)[0] == pytest.approx(1.0)
    # Set 0's class 1 scores best in its own set, though class 40 of set 1 scores higher.
    head["bias"] = head["bias"].at[1].set(1.0).at[40].set(5.0)
    assert labelled_loss(head, *args)[1]["accuracy"] == 0.5


def test_batch_of_mixed_labelled_sets(tmp_path: Path) -> None:
    config = run.config(tmp_path).data.tc.to_dict()
    moods = [{"text": "the cat", "label": x} for x in ("sad", "glad")]
    topics = [{"text": "hello world", "label": x} for x in ("b", "a", "c")]
    sets = [source(tmp_path, n, "labelled", rows) for n, rows in (("moods", moods), ("topics", topics))]
    family = LabelledFamily.create(config, sets, TOKENIZER)
    assert family.describe() == {"sets": {"moods": ["glad", "sad"], "topics": ["a", "b", "c"]}}
    examples = [family.encode_record(topics[2], "topics"), family.encode_record(moods[0], "moods")]
    _, packing = pack([[4], [4]], Layout(1, 16, 4))
    batch = family.collate(examples, packing)
    assert batch["set"].tolist() == [1, 0, 0, 0] and batch["label"].tolist() == [4, 1, 0, 0]
    assert batch["valid"].tolist() == [True, True, False, False] and batch["slot"].tolist() == [0, 1, 0, 0]
    one = source(tmp_path, "one", "labelled", moods[:1])
    with pytest.raises(UserError, match="labelled source 'one' has one class, 'sad'"):
        LabelledFamily.create(config, [*sets, one], TOKENIZER)


# Settings and whole runs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


SETTINGS = {
    "unknown objective": ({"data.tc.objective": "supervise"}, "data.tc.objective is 'supervise'; use contrastive"),
    "dims of the whole": ({"data.tc.dims": (8, 32)}, "data.tc.dims has 32; each must be below the encoder's 32"),
    "dims twice": ({"data.tc.dims": (8, 8)}, "data.tc.dims is (8, 8); it must hold different whole numbers"),
    "no dims": ({"data.tc.dims": (0,)}, "data.tc.dims is (0,)"),
    "chunks that do not fit": ({"data.tc.chunk_rows": 3}, "data.tc.chunk_rows is 3; it must divide data.tc.rows, 8"),
    "negative chunks": ({"data.tc.chunk_rows": -8}, "data.tc.chunk_rows is -8; it must be at least 0"),
    "learned from too cold": (
        {"data.tc.learn_temperature": True, "data.tc.temperature": 0.001},
        "data.tc.temperature is 0.001; to be learned it must start at 0.01",
    ),
    "pairs as labelled sets": ({"data.tc.objective": "supervised"}, "'pairs' records where 'labelled' records are"),
    "filter that keeps all": ({"filter.top_k": 5, "filter.sample": 5}, "filter.sample is 5; it must exceed"),
}


@pytest.mark.parametrize(("changes", "message"), SETTINGS.values(), ids=SETTINGS)
def test_setting_is_refused(changes: dict, message: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        assembly.make_run(run.config(cache, {"strategy": "individual_tc", **changes}), tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)


def metrics(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_run_with_every_contrastive_option(cache: Path, tmp_path: Path) -> None:
    rows = [{"a": f"question {i}", "b": f"answer {i}", "n": f"answer to {i}" if i % 2 else ""} for i in range(200)]
    (tmp_path / "triples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    changes = {
        "data.tc.sources": (f"{tmp_path / 'triples.jsonl'}?negative=n", "generated:pairs?rows=300&seed=2"),
        **{"data.tc.learn_temperature": True, "data.tc.dims": (8, 16), "data.tc.chunk_rows": 4},
        **{"data.tc.prefix_a": "query: ", "strategy": "individual_tc", "data.held_out": 0},
    }
    prefinetuning.run(run.config(cache, changes), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert lines[0]["temperature/tc"] == pytest.approx(0.05)
    assert lines[-1]["temperature/tc"] != pytest.approx(0.05, rel=1e-5), "it is learned"


def test_a_run_without_a_negative_says_so_once_and_has_no_accuracy(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The texts differ in what is cut alone, so that each batch is of one pair many times."""
    long = "where is the next town " * 9
    rows = [{"a": f"{long} {i}", "b": f"{long} {i}"} for i in range(200)]
    (tmp_path / "alike.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    changes = {"data.tc.sources": (str(tmp_path / "alike.jsonl"),), "strategy": "individual_tc"}
    summary = prefinetuning.run(run.config(cache, {**changes, "data.ner.sources": ()}), tmp_path / "run")
    told = capsys.readouterr().err
    assert told.count("no pair of the batch of tc has a negative") == 1 and "step 1:" in told
    (batches,) = {summary["held_out"]["tc"][k]["batches"] for k in ("start", "end")}
    assert told.count(f"{batches} of {batches} held-out batches of tc have no pair with a negative") == 1
    assert all("accuracy" not in scores for scores in summary["held_out"]["tc"].values())
    assert [(line["loss/tc"], line["accuracy/tc"]) for line in metrics(tmp_path / "run")] == [(0.0, None)] * 3
    cuts = summary["data"]["tc"]["sources"]
    assert [c["cuts"]["cut_texts"] / c["cuts"]["texts"] for c in cuts.values()] == [1.0]


def test_held_out_means_are_over_batches_that_say_something() -> None:
    nan = float("nan")
    results = [{"loss": 0.0, "accuracy": nan}, {"loss": 2.0, "accuracy": 0.25}, {"loss": 3.0, "accuracy": 0.75}]
    assert assembly.mean_scores(results) == ({"loss": 2.5, "accuracy": 0.5, "batches": 2}, 1)
    assert assembly.mean_scores(results[:1] * 2) == ({"loss": 0.0, "batches": 2}, 2)
    assert assembly.mean_scores([{"loss": 1.0}, {"loss": 2.0}]) == ({"loss": 1.5, "batches": 2}, 0)
    means, _ = assembly.mean_scores([{"loss": nan, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.5}])
    assert np.isnan(means["loss"]), "a loss that is not finite is not left out"


def test_triples_need_room_for_three_texts(cache: Path, tmp_path: Path) -> None:
    rows = [{"a": f"question {i}", "b": f"answer {i}", "n": f"no {i}"} for i in range(60)]
    (tmp_path / "triples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    changes = {
        "data.tc.sources": (f"{tmp_path / 'triples.jsonl'}?negative=n",),
        **{"data.tc.rows": 2, "data.tc.max_length": 32, "strategy": "individual_tc", "data.ner.sources": ()},
    }
    with pytest.raises(UserError, match=r"data.tc.rows is 2, row_length 32 and max_length 32: .* room for 2 texts"):
        prefinetuning.run(run.config(cache, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "refused before anything is written"
    assert assembly.make_run(run.config(cache, {**changes, "data.tc.rows": 3}), tmp_path / "run")


def test_run_on_labelled_sets(cache: Path, tmp_path: Path) -> None:
    sources = "generated:labelled?rows=300&seed=3", "generated:labelled?rows=200&seed=4&held_out=1"
    changes = {"data.tc.objective": "supervised", "data.tc.sources": sources, "strategy": "individual_tc"}
    config = run.config(cache, {**changes, "data.tc.chunk_rows": 2, "data.held_out": 0})
    assert FAMILIES["tc"].of(config.data.tc) is LabelledFamily
    prefinetuning.run(config, tmp_path / "run")
    first = metrics(tmp_path / "run")[0]
    assert first["loss/tc"] == pytest.approx(1.0, abs=0.1), "by the logarithm of the number of classes"
    assert 0 <= first["accuracy/tc"] <= 1
    model = jaxprefit.load(tmp_path / "run")
    classes = sum(len(labels) for labels in model.meta["families"]["tc"]["sets"].values())
    assert model.heads["tc"]["kernel"].shape == (32, classes)
