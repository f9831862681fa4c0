"""Masked language modelling: which words are masked and how, the packed batch, the loss against NumPy."""

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxprefit.data import synthetic
from jaxprefit.data.packing import Layout
from jaxprefit.data.wordpiece import SPECIAL, train_wordpiece
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.families import MlmFamily
from jaxprefit.families.mixture import collate
from jaxprefit.families.mlm import inclusion

TEXTS = [record["text"] for record in synthetic.text_records(400, seed=5)]
TOKENIZER = train_wordpiece(TEXTS, 300)  # so small that many words have several pieces
MASK = TOKENIZER.token_to_id("[MASK]")
SETTINGS = {"max_length": 32, "mask_share": 0.15, "masking": "uniform"}


class Source(list):
    """Rows as `Prepared` gives them."""


def make(texts: list[str] | None = None, tokenizer: Any = TOKENIZER, **changes: Any) -> MlmFamily:
    return MlmFamily.create({**SETTINGS, **changes}, [Source({"text": t} for t in texts or [])], tokenizer)  # type: ignore[list-item]


def draws(family: MlmFamily, texts: list[str], times: int = 1, seed: int = 0) -> list[tuple[dict, dict]]:
    """(encoded, drawn) for each text, so many times over."""
    encoded = [family.encode_record({"text": t}, "any") for t in texts]
    rng = np.random.default_rng(seed)
    return [(e, family.draw(e, rng)) for _ in range(times) for e in encoded]


def spans(words: np.ndarray) -> list[np.ndarray]:
    """The places of each word's tokens."""
    return [np.flatnonzero(words == w) for w in np.unique(words[words >= 0])]


# What is masked


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_the_share_of_predicted_tokens_is_the_one_asked_for(share: float) -> None:
    drawn = draws(make(mask_share=share, max_length=200), TEXTS, 5)
    tokens = sum((e["words"] >= 0).sum() for e, _ in drawn)
    predicted = sum(len(d["positions"]) for _, d in drawn)
    # The number of a text varies by about a word's length around its mean.
    assert abs(predicted - share * tokens) < 5 * 1.5 * math.sqrt(len(drawn))


@pytest.mark.parametrize("share", [0.15, 0.4])
@pytest.mark.parametrize("sizes", [(1,) * 8 + (2, 6), (6, 6, 1, 1), (5,), (1,) * 9 + (3,)])
def test_a_words_length_plays_no_part(share: float, sizes: tuple[int, ...]) -> None:
    family, rng, times = make(mask_share=share), np.random.default_rng(0), 20_000
    words = np.repeat(np.arange(len(sizes)), sizes)
    chosen, tokens = np.zeros(len(sizes)), []
    for _ in range(times):
        drawn = family._choose(words, np.ones(len(sizes)), rng)
        chosen[drawn] += 1
        tokens.append(np.asarray(sizes)[drawn].sum())
    # Each word is drawn with probability `share`, exactly; five standard errors.
    assert np.abs(chosen / times - share).max() < 5 * math.sqrt(share * (1 - share) / times)
    assert abs(np.mean(tokens) - share * sum(sizes)) < 5 * np.std(tokens) / math.sqrt(times)


def test_a_words_length_plays_no_part_in_real_batches() -> None:
    """Short texts, in which words of five tokens and more used to be masked a third as often as words of one."""
    tokens: Counter[int] = Counter()
    predicted: Counter[int] = Counter()
    short = [" ".join(t.split()[:5]) for t in TEXTS]
    for encoded, drawn in draws(make(), short, 10):
        for at in spans(encoded["words"]):
            tokens[min(len(at), 3)] += 1
            predicted[min(len(at), 3)] += bool(np.isin(at[0], drawn["positions"]))
    assert min(tokens.values()) > 2000
    for size, n in tokens.items():
        assert abs(predicted[size] / n - 0.15) < 5 * math.sqrt(0.15 * 0.85 / n), size


def test_inclusion_is_in_proportion_to_the_weights_up_to_certainty() -> None:
    weights, sizes = np.asarray([1.0, 2.0, 4.0, 1.0, 30.0]), np.asarray([1, 3, 1, 2, 2])
    p = inclusion(weights, sizes, 0.4)
    # 3.6 tokens: both of the last word, and 1.6 over weights times sizes of 13 for the rest.
    np.testing.assert_allclose(p, [*(weights[:4] * 1.6 / 13), 1.0])
    family, rng, counts = make(mask_share=0.4), np.random.default_rng(1), np.zeros(5)
    for _ in range(20_000):
        counts[family._choose(np.repeat(np.arange(5), sizes), weights, rng)] += 1
    assert np.abs(counts / 20_000 - p).max() < 5 * 0.5 / math.sqrt(20_000)


def test_words_are_whole_and_all_of_one_fate_but_random_tokens() -> None:
    fates: Counter[str] = Counter()
    several = 0
    for encoded, drawn in draws(make(max_length=200), TEXTS, 5):
        ids, seen = encoded["texts"][0], drawn["texts"][0]
        chosen = np.isin(np.arange(len(ids)), drawn["positions"])
        np.testing.assert_array_equal(drawn["targets"], ids[drawn["positions"]])
        np.testing.assert_array_equal(seen[~chosen], ids[~chosen])
        for at in spans(encoded["words"]):
            assert chosen[at].all() or not chosen[at].any()
            several += len(at) > 1 and chosen[at].all()
            if chosen[at[0]]:
                masked = seen[at] == MASK
                assert masked.all() or not masked.any()
                fates["masked" if masked.all() else "kept" if (seen[at] == ids[at]).all() else "random"] += 1
    assert several > 500
    total = sum(fates.values())
    for fate, share in {"masked": 0.8, "random": 0.1, "kept": 0.1}.items():
        assert abs(fates[fate] / total - share) < 5 * math.sqrt(share * (1 - share) / total), fates


def test_special_tokens_are_neither_predicted_nor_drawn() -> None:
    texts = ["\u2603 before [SEP] and [MASK] after \u2603", "\u2603"]
    special = {TOKENIZER.token_to_id(t) for t in SPECIAL}
    random: set[int] = set()
    for encoded, drawn in draws(make(mask_share=0.9), [*TEXTS[:50], *texts], 20):
        assert not special & set(drawn["targets"].tolist())
        assert not special & set(encoded["texts"][0][encoded["words"] >= 0].tolist())
        changed = drawn["texts"][0][drawn["positions"]]
        random |= set(changed[changed != MASK].tolist())
    assert not special & random and len(random) > 250  # any ordinary token may be drawn
    assert not len(draws(make(), ["\u2603"])[0][1]["positions"])


def test_masks_depend_on_the_generator_alone_and_are_drawn_anew() -> None:
    family = make()
    first, again, other = (draws(family, TEXTS[:20], seed=s) for s in (1, 1, 2))
    for (_, a), (_, b) in zip(first, again):
        np.testing.assert_array_equal(a["texts"][0], b["texts"][0])
    assert any(a["positions"].tolist() != b["positions"].tolist() for (_, a), (_, b) in zip(first, other))


def test_a_long_text_gives_windows_between_words_from_all_of_it() -> None:
    text = " ".join(TEXTS[:12])
    family = make(mask_share=0.0001, max_length=20)
    encoded = family.encode_record({"text": text}, "any")
    ids, words = encoded["texts"][0], encoded["words"]
    assert len(ids) > 100
    begins = {int(at[0]) for at in spans(words)}
    seen: Counter[int] = Counter()
    for seed in range(600):
        window, inside = family._window(ids, words, np.random.default_rng(seed))
        assert len(window) <= 20 and window[0] == ids[0] and window[-1] == ids[-1]
        first = next(i for i in begins if words[i] == inside[1])
        np.testing.assert_array_equal(window[1:-1], ids[first : first + len(window) - 2])
        after = first + len(window) - 2
        assert after in begins or after == len(ids) - 1
        seen.update(range(first, after))
    assert set(seen) == set(range(1, len(ids) - 1))


@pytest.mark.parametrize(("opening", "closing"), [((), ()), (("[CLS]",), ()), (("[CLS]",), ("[SEP]", "[MASK]"))])
def test_windows_keep_what_opens_and_closes_a_text_and_nothing_else(
    opening: tuple[str, ...], closing: tuple[str, ...]
) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(make().tokenizer.to_str())
    known = [(t, tokenizer.token_to_id(t)) for t in {*opening, *closing}]
    single = " ".join((*opening, "$A", *closing))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single, f"{single} $B", known)
    family = dataclasses.replace(make(max_length=20), tokenizer=tokenizer)
    encoded = family.encode_record({"text": " ".join(TEXTS[:4])}, "any")
    ids, words = encoded["texts"][0], encoded["words"]
    text = ids[len(opening) : len(ids) - len(closing)].tolist()
    seen = set()
    for seed in range(600):
        window = family._window(ids, words, np.random.default_rng(seed))[0].tolist()
        assert window[: len(opening)] == [tokenizer.token_to_id(t) for t in opening]
        assert window[len(window) - len(closing) :] == [tokenizer.token_to_id(t) for t in closing]
        inner = window[len(opening) : len(window) - len(closing)]
        at = find(text, inner)
        assert len(window) <= 20 and inner == text[at : at + len(inner)]
        seen |= {at, at + len(inner)}
    assert {0, len(text)} <= seen  # the first token and the last one may be seen


def find(text: list[int], part: list[int]) -> int:
    """Where `part` begins in `text`."""
    return next(i for i in range(len(text)) if text[i : i + len(part)] == part)


def test_a_word_longer_than_the_window_is_cut() -> None:
    family = make(max_length=8)
    ((encoded, drawn),) = draws(family, ["xqzwvkjxqzwvkjxqzwvkj"])
    assert len(encoded["texts"][0]) > 10 and len(drawn["texts"][0]) == 8


def test_tfidf_prefers_words_that_are_rare_elsewhere() -> None:
    texts = ["the cat sat on the mat and the dog", *["the dog and the cat on the road"] * 30, "a zebra and the cat"]
    tokenizer = train_wordpiece(texts * 2, 300)
    family = make(texts, tokenizer, masking="tfidf", mask_share=0.3)
    again = make(texts, tokenizer, masking="tfidf", mask_share=0.3)
    assert family.idf == again.idf
    counts = {True: Counter[str](), False: Counter[str]()}
    uniform = make(texts, tokenizer, mask_share=0.3)
    for weighted, f in ((True, family), (False, uniform)):
        for _, drawn in draws(f, texts[-1:], 2000):
            counts[weighted].update(tokenizer.decode([i]) for i in drawn["targets"])
    assert counts[True]["zebra"] > 1.5 * counts[True]["the"]
    assert abs(counts[False]["zebra"] - counts[False]["the"]) < 200
    total = sum(counts[True].values()), sum(counts[False].values())
    assert abs(total[0] - total[1]) < 200  # the share stays


def test_tfidf_knows_repeated_and_unseen_words() -> None:
    tokenizer = train_wordpiece(["cat dog emu the"] * 3, 100)
    family = make(["the cat", "the dog"], tokenizer, masking="tfidf")
    encoded = family.encode_record({"text": "the cat cat emu"}, "any")
    the, cat, emu = 1.0, math.log(3 / 2) + 1, math.log(3) + 1
    np.testing.assert_allclose(encoded["weights"], [the, 2 * cat, 2 * cat, emu])


def test_a_tokenizer_without_mask_is_a_user_error() -> None:
    tokenizer = train_wordpiece(["a b"], 100)
    held = tokenizer.to_str().replace("[MASK]", "[GONE]")
    with pytest.raises(UserError, match="no \\[MASK\\] token"):
        make(tokenizer=type(tokenizer).from_str(held))


# The batch


def test_batch_from_packed_texts() -> None:
    family = make(mask_share=0.3, max_length=64)
    examples = [d for _, d in draws(family, TEXTS[:40])]
    placed, batch = collate(family, examples, Layout.of(4, 64))
    places = family.places(64)
    assert places == 24
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "input_ids": ((4, 64), "int32"),
        "segments": ((4, 64), "int32"),
        "positions": ((4, places), "int32"),
        "targets": ((4, places), "int32"),
        "valid": ((4, places), "bool"),
    }
    assert batch["valid"].sum() == sum(len(examples[i]["positions"]) for i in placed)
    row, place = np.nonzero(batch["valid"])
    at, targets = batch["positions"][row, place], batch["targets"][row, place]
    assert len({*zip(row.tolist(), at.tolist())}) == len(at) and (batch["segments"][row, at] > 0).all()
    # The unmasked text comes back where the targets are put in, and nowhere else is a mask.
    restored = batch["input_ids"].copy()
    restored[row, at] = targets
    assert (batch["input_ids"] == MASK).sum() > len(at) / 2 and not (restored == MASK).any()
    whole = {tuple(family.encode_record({"text": t}, "any")["texts"][0].tolist()) for t in TEXTS[:40]}
    for r, s in {*zip(*(part.tolist() for part in np.nonzero(batch["segments"])))}:
        of_text = batch["segments"][r] == batch["segments"][r, s]
        assert tuple(restored[r][of_text].tolist()) in whole


def test_surplus_predictions_are_dropped() -> None:
    family = make(mask_share=0.15, max_length=16)
    greedy = dataclasses.replace(family, mask_share=0.9)
    examples = [d for _, d in draws(greedy, TEXTS[:20])]
    _, batch = collate(family, examples, Layout.of(2, 32))
    assert batch["valid"].shape == (2, 8) and batch["valid"].all()
    assert make(mask_share=0.99).places(32) == 32


def test_full_rows_seldom_have_a_surplus() -> None:
    family = make()
    examples = [d for _, d in draws(family, TEXTS, 2)]
    placed, batch = collate(family, examples, Layout.of(40, 128))
    wanted = sum(len(examples[i]["positions"]) for i in placed)
    assert batch["valid"].sum() > 0.995 * wanted


# The loss


class FakeEncode:
    """Given hidden states and a table stand for the encoder."""

    def __init__(self, hidden: Any, table: Any) -> None:
        self.hidden, self.word_embedding = hidden, table

    def __call__(self, input_ids: Any, segments: Any, fold: Any = 0) -> Any:
        return self.hidden


def loss_by_numpy(head: dict, hidden: np.ndarray, table: np.ndarray, batch: dict) -> tuple[float, float]:
    losses, right = [], []
    for row, place in zip(*np.nonzero(batch["valid"])):
        x = hidden[row, batch["positions"][row, place]] @ head["dense"]["kernel"] + head["dense"]["bias"]
        x = np.asarray([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
        x = (x - x.mean()) / math.sqrt(x.var() + 1e-12) * head["norm"]["scale"] + head["norm"]["bias"]
        scores = table @ x + head["bias"]
        target = batch["targets"][row, place]
        losses.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target])
        right.append(scores.argmax() == target)
    return float(np.mean(losses)), float(np.mean(right))


def case() -> tuple[dict, np.ndarray, np.ndarray, dict]:
    """A head, hidden states [2, 6, 4], a word table [9, 4], and a batch with an unused place."""
    rng = np.random.default_rng(3)
    head = {
        "dense": {"kernel": rng.normal(size=(4, 4)), "bias": rng.normal(size=4)},
        "norm": {"scale": rng.normal(size=4), "bias": rng.normal(size=4)},
        "bias": rng.normal(size=9),
    }
    batch = {
        "input_ids": np.zeros((2, 6), np.int32),
        "segments": np.ones((2, 6), np.int32),
        "positions": np.asarray([[1, 3, 5], [2, 0, 0]]),
        "targets": np.asarray([[4, 8, 4], [0, 0, 0]]),
        "valid": np.asarray([[True, True, True], [True, False, False]]),
    }
    return head, rng.normal(size=(2, 6, 4)), rng.normal(size=(9, 4)), batch


def as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def test_loss_and_gradient_equal_numpy() -> None:
    head, hidden, table, batch = case()

    def loss(trees: Any) -> Any:
        return make().loss(trees[0], FakeEncode(*trees[1:]), jax.tree.map(jnp.asarray, batch))

    trees = as_float32((head, hidden, table))
    (found, metrics), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(trees)
    wanted, accuracy = loss_by_numpy(head, hidden, table, batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found.dtype == jnp.float32 and float(metrics["accuracy"]) == pytest.approx(accuracy)
    # Every gradient against central differences of the reference.
    leaves = {"kernel": head["dense"]["kernel"], "scale": head["norm"]["scale"], "hidden": hidden, "table": table}
    leaves |= {"bias": head["bias"], "dense bias": head["dense"]["bias"], "norm bias": head["norm"]["bias"]}
    of = {"kernel": slopes[0]["dense"]["kernel"], "scale": slopes[0]["norm"]["scale"], "hidden": slopes[1]}
    of |= {"table": slopes[2], "bias": slopes[0]["bias"], "dense bias": slopes[0]["dense"]["bias"]}
    of |= {"norm bias": slopes[0]["norm"]["bias"]}
    for name, leaf in leaves.items():
        for index in np.ndindex(leaf.shape):
            before, step = leaf[index], 1e-5
            leaf[index] = before + step
            above = loss_by_numpy(head, hidden, table, batch)[0]
            leaf[index] = before - step
            below = loss_by_numpy(head, hidden, table, batch)[0]
            leaf[index] = before
            np.testing.assert_allclose(of[name][index], (above - below) / (2 * step), atol=2e-5, err_msg=name)


def test_a_batch_without_predictions_has_loss_zero() -> None:
    head, hidden, table, batch = case()
    batch["valid"][:] = False
    trees = as_float32((head, hidden, table))
    found, slopes = jax.jit(jax.value_and_grad(lambda t: make().loss(t[0], FakeEncode(*t[1:]), batch)[0]))(trees)
    assert found == 0.0 and all((np.asarray(s) == 0).all() for s in jax.tree.leaves(slopes))


def test_half_precision_scores_and_loss_are_float32() -> None:
    head, hidden, table, batch = case()
    encode = FakeEncode(jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(table, jnp.float32))
    found, _ = jax.jit(lambda head: make().loss(head, encode, jax.tree.map(jnp.asarray, batch)))(as_float32(head))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss_by_numpy(head, hidden, table, batch)[0], rtol=0.05)


def test_head_starts_small_and_fits_the_encoder() -> None:
    config = EncoderConfig(vocab_size=400, hidden_size=64, num_layers=1, num_heads=2, intermediate_size=64)
    start = Pretrained(config, {}, TOKENIZER)
    head = make().init_head(jax.random.key(1), start)
    assert head["bias"].shape == (400,)  # the table may have more rows than the tokenizer
    assert 0.015 < float(head["dense"]["kernel"].std()) < 0.025
    other = make().init_head(jax.random.key(2), start)
    assert not np.array_equal(head["dense"]["kernel"], other["dense"]["kernel"])
