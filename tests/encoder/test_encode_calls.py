"""Model.encode: one vector a text, whatever else is in the list, in few programs; how a checkpoint wants them made."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from golden.formula import weights
from golden.model_files import SENTENCES, write_model
from helpers.paths import GOLDEN_FILES
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprefit
from jaxprefit import model as loading
from jaxprefit.encoder.transformer import Encoder, EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.model import Model, padded_length

CONFIG = json.loads((GOLDEN_FILES / "encoder.json").read_text())["cases"]["bert"]["config"]
POSITIONS, WIDTH = CONFIG["max_position_embeddings"], CONFIG["hidden_size"]
TEXTS = ["", "the cat", "a [SEP] , cat", "Hello world", "the cat sat on 中国 , hello world", "the " * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("encoder"), CONFIG, weights(CONFIG))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return jaxprefit.load(folder)


def hidden(model: Model, text: str, max_length: int = POSITIONS) -> np.ndarray:
    """Hidden states [n, D] of one text by a plain application of the encoder, without padding."""
    ids = model.tokenizer.encode(text).ids
    ids = ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]
    return np.asarray(
        applied(model.config)({"params": model.backbone}, np.asarray([ids]), np.ones((1, len(ids)), bool))
    )[0]


@functools.cache
def applied(config: EncoderConfig) -> Callable[..., Any]:
    return jax.jit(Encoder(config).apply)


@settings(max_examples=15)
@given(texts=st.lists(st.sampled_from(TEXTS), max_size=9), max_length=st.sampled_from([None, 5]))
def test_each_text_has_the_vectors_that_it_has_alone(model: Model, texts: list[str], max_length: int | None) -> None:
    out = model.encode(texts, max_length=max_length, batch_size=4)
    known = {t: hidden(model, t, max_length or POSITIONS) for t in {*texts}}
    alone = [known[t] for t in texts]
    longest = max(map(len, alone), default=0)
    assert out.tokens.shape == (len(texts), longest, WIDTH) and out.mask.shape == (len(texts), longest)
    assert out.tokens.dtype == out.sentence.dtype == np.float32 and out.sentence.shape == (len(texts), WIDTH)
    for i, expected in enumerate(alone):
        assert out.mask[i].sum() == len(expected) and out.mask[i, : len(expected)].all()
        np.testing.assert_allclose(out.tokens[i, : len(expected)], expected, atol=1e-5)
        assert not out.tokens[i, len(expected) :].any()
        np.testing.assert_allclose(out.sentence[i], expected.mean(0), atol=1e-5)
        if i == 0:
            np.testing.assert_allclose(model.encode(texts[:1], max_length=max_length).tokens[0], expected, atol=1e-5)


def test_any_number_and_length_of_texts_takes_eight_programs(model: Model) -> None:
    loading._vectors.cache_clear()
    again = dataclasses.replace(model)  # a second model of the same shape compiles nothing anew
    for n in range(1, POSITIONS):
        model.encode(["the " * n])
        again.encode(["the " * n] * (1 + n % 5), max_length=max(4, n), batch_size=4)
    assert loading._vectors(model.config, "mean")._cache_size() <= 8  # type: ignore[attr-defined]


@given(longest=st.integers(1, 512), positions=st.integers(1, 4096), step=st.sampled_from([2, 4]))
def test_padded_lengths_are_few_and_hold_the_text(longest: int, positions: int, step: int) -> None:
    longest = min(longest, positions)
    assert longest <= padded_length(longest, positions, step) <= positions
    lengths = {padded_length(n, positions, step) for n in range(1, positions + 1)}
    assert len(lengths) <= (5 if step == 2 else 3) and positions in lengths
    assert padded_length(longest, positions, step) == min(n for n in lengths if n >= longest)


def test_parameters_go_to_the_device_once(model: Model) -> None:
    assert model._placed(None) is model._placed(None)
    assert all(not isinstance(leaf, np.ndarray) for leaf in model._placed(None)["params"]["layer_0"]["query"].values())


def test_vectors_of_length_1_and_without_those_of_tokens(model: Model) -> None:
    plain = model.encode(SENTENCES)
    out = model.encode(SENTENCES, normalize=True, tokens=False)
    assert out.tokens.shape == (len(SENTENCES), 0, WIDTH) and out.mask.shape == plain.mask.shape
    np.testing.assert_allclose(np.linalg.norm(out.sentence, axis=1), 1, atol=1e-6)
    expected = plain.sentence / np.linalg.norm(plain.sentence, axis=1, keepdims=True)
    np.testing.assert_allclose(out.sentence, expected, atol=1e-6)


def test_the_default_is_all_that_the_encoder_takes(model: Model) -> None:
    assert model.encode(["the " * 500]).tokens.shape[1] == POSITIONS


class Column:
    """A column of a table, as pandas has it: it can be gone through, but has no truth value."""

    ndim, shape = 1, (2,)

    def __iter__(self) -> Any:
        return iter(["the cat", "a"])

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.array(["the cat", "a"]),
        lambda: np.array(["the cat", "a"], object),
        lambda: ("the cat", "a"),
        lambda: iter(["the cat", "a"]),
        Column,
    ],
)
def test_any_list_of_texts_is_taken(make: Callable[[], Any], model: Model) -> None:
    expected = model.encode(["the cat", "a"]).sentence
    np.testing.assert_array_equal(model.encode(make()).sentence, expected)


@pytest.mark.parametrize("empty", [[], (), np.array([], str)])
def test_no_texts_have_no_vectors(empty: Any, model: Model) -> None:
    out = model.encode(empty)
    assert (out.tokens.shape, out.mask.shape, out.sentence.shape) == ((0, 0, WIDTH), (0, 0), (0, WIDTH))


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        ("the cat", {}, r"give one text as \[text\]"),
        (b"the cat", {}, "bytes"),
        (None, {}, "NoneType"),
        (3, {}, "int"),
        ({"a": "b"}, {}, "dict"),
        ({"a", "b"}, {}, "set"),
        (np.array([["a", "b"]]), {}, r"\(1, 2\)"),
        (np.array("a"), {}, r"\(\)"),
        (["a", None], {}, r"texts\[1\] is NoneType"),
        (["a", "b", b"c"], {}, r"texts\[2\] is bytes.*decode"),
        (["a", float("nan")], {}, r"texts\[1\] is float \(nan\)"),
        ([["a"]], {}, r"texts\[0\] is list"),
        ([1], {}, r"texts\[0\] is int"),
        (["a", "\ud800"], {}, r"texts\[1\].*surrogate"),
        (["a"], {"max_length": 3}, f"max_length is 3; .* 4 to {POSITIONS}"),
        (["a"], {"max_length": POSITIONS + 1}, f"max_length is {POSITIONS + 1}"),
        (["a"], {"max_length": 8.0}, "max_length is 8.0"),
        (["a"], {"max_length": True}, "max_length is True"),
        (["a"], {"batch_size": 0}, "batch_size is 0"),
        (["a"], {"batch_size": "all"}, "batch_size is 'all'"),
        (["a"], {"adapter": ["ner"]}, "no adapter"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, options: dict[str, Any], says: str, model: Model) -> None:
    with pytest.raises(UserError, match=says) as error:
        model.encode(texts, **options)
    assert "\n" not in str(error.value)


# Files of sentence-transformers


def modules(folder: Path, *kinds: str, prefix: str = "sentence_transformers.models.", **files: Any) -> None:
    """A modules.json of these kinds in the folder, and JSON files by their names without '.json'."""
    entries = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": prefix + kind}
        for i, kind in enumerate(kinds)
    ]
    for path, content in {"modules": entries, **files}.items():
        file = folder / f"{path}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


POOLING = "1_Pooling/config"
CLS = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
OLD_MEAN = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_model(tmp_path / "own", CONFIG, weights(CONFIG))


@pytest.mark.parametrize("pooling", [CLS, {"embedding_dimension": WIDTH, "pooling_mode": "cls"}])
def test_cls_pooling_is_followed_and_said(pooling: dict, own: Path, caplog: pytest.LogCaptureFixture) -> None:
    modules(own, "Transformer", "Pooling", **{POOLING: pooling})
    with caplog.at_level(logging.WARNING, "jaxprefit"):
        model = jaxprefit.load(own)
    assert "cls-pooled" in caplog.text and str(own) in caplog.text
    out = model.encode(["the cat sat", "a"])
    np.testing.assert_allclose(out.sentence[0], hidden(model, "the cat sat")[0], atol=1e-5)
    np.testing.assert_allclose(out.sentence, out.tokens[:, 0], atol=1e-6)


def test_normalisation_and_longest_text_are_followed_and_exported(own: Path, tmp_path: Path) -> None:
    longest = {"max_seq_length": 6, "do_lower_case": True}  # as the tokenizer does
    modules(own, "Transformer", "Pooling", "Normalize", **{POOLING: CLS, "sentence_bert_config": longest})
    model = jaxprefit.load(own)
    model.export(tmp_path / "out")
    for one in (model, jaxprefit.load(tmp_path / "out")):
        out = one.encode(["the cat sat on the cat", "a"])
        assert out.tokens.shape[1] == 6
        expected = hidden(model, "the cat sat on the cat", 6)[0]
        np.testing.assert_allclose(out.sentence[0], expected / np.linalg.norm(expected), atol=1e-5)
        assert one.encode(["the cat sat on the cat"], max_length=8, normalize=False).tokens.shape[1] == 8


def test_mean_pooling_is_what_it_always_was(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    modules(own, "Transformer", "Pooling", **{POOLING: OLD_MEAN})
    out = jaxprefit.load(own).encode(["the cat"])
    assert not caplog.text
    np.testing.assert_allclose(out.sentence[0], out.tokens[0].mean(0), atol=1e-6)


def test_an_encoder_in_a_folder_of_its_own_is_found(own: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    own.rename(whole / "0_Transformer")
    modules(whole, "Transformer", "Pooling", **{POOLING: CLS})
    entries = json.loads((whole / "modules.json").read_text())
    (whole / "modules.json").write_text(json.dumps([entries[0] | {"path": "0_Transformer"}, *entries[1:]]))
    assert jaxprefit.load(whole).sentence.pooling == "cls"


def test_a_default_prompt_is_said(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    modules(own, "Transformer", "Pooling", **{POOLING: OLD_MEAN, "config_sentence_transformers": prompts})
    with caplog.at_level(logging.WARNING, "jaxprefit"):
        jaxprefit.load(own)
    assert "'query: '" in caplog.text


@pytest.mark.parametrize(
    ("kinds", "files", "says"),
    [
        (("Transformer", "Pooling", "Dense"), {POOLING: OLD_MEAN}, "Dense"),
        (("WordEmbeddings", "Pooling"), {POOLING: OLD_MEAN}, "Transformer"),
        (("Transformer", "Pooling"), {POOLING: {"pooling_mode_max_tokens": True}}, "max"),
        (("Transformer", "Pooling"), {POOLING: {"pooling_mode": "lasttoken"}}, "lasttoken"),
        (("Transformer", "Pooling"), {POOLING: CLS | {"pooling_mode_mean_tokens": True}}, "cls.*mean"),
        (("Transformer", "Pooling"), {POOLING: []}, "1_Pooling"),
        (("Transformer", "Pooling"), {}, "1_Pooling"),
        (
            ("Transformer", "Pooling"),
            {POOLING: CLS, "sentence_bert_config": {"max_seq_length": "all"}},
            "max_seq_length",
        ),
        (("Transformer",), {"modules": {"a": 1}}, "modules.json"),
        (("Transformer",), {"modules": [{"type": "x.Transformer", "path": "../.."}]}, "leads out"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(kinds: tuple, files: dict, says: str, own: Path) -> None:
    modules(own, *kinds, **files)
    with pytest.raises(UserError, match=says) as error:
        jaxprefit.load(own)
    assert str(own) in str(error.value) and "\n" not in str(error.value)


def test_lower_case_that_the_tokenizer_does_not_make_is_refused(own: Path) -> None:
    write_model(own, CONFIG, weights(CONFIG), lower=False)
    modules(own, "Transformer", sentence_bert_config={"max_seq_length": 16, "do_lower_case": True})
    with pytest.raises(UserError, match="do_lower_case"):
        jaxprefit.load(own)


@pytest.mark.parametrize(("pooling", "kinds"), [(CLS, ("Pooling", "Normalize")), (OLD_MEAN, ("Pooling",))])
def test_sentence_transformers_gives_the_vectors_of_an_export(
    pooling: dict, kinds: tuple[str, ...], own: Path, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules(own, "Transformer", *kinds, **{POOLING: pooling, "sentence_bert_config": {"max_seq_length": 16}})
    model = jaxprefit.load(own)
    model.export(tmp_path / "out")
    texts = [*filter(None, SENTENCES), "the cat " * 30]
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    np.testing.assert_allclose(model.encode(texts).sentence, theirs, atol=1e-5)
