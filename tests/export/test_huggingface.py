"""Exports for transformers and sentence-transformers against JAX, and what their files say."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from golden.model_files import SENTENCES, tokenizer
from helpers.bundles import bundle

from jaxprefit.encoder.huggingface import load_pretrained
from jaxprefit.encoder.lora import merge
from jaxprefit.export import huggingface, sentence_transformers
from jaxprefit.export.parity import compare, same_ids, sample_texts


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_merged_models_load_again(case: str, tmp_path: Path) -> None:
    made = bundle(tmp_path, case)
    huggingface.write(tmp_path / "out", made, merged=True)
    for name in made.adapters:
        back = load_pretrained(tmp_path / "out" / "merged" / name)
        assert back.config == made.config
        jax.tree.map(
            np.testing.assert_array_equal,
            back.params,
            jax.tree.map(np.asarray, merge(made.backbone, made.adapters[name])),
        )
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "out").params, made.backbone)


def test_adapters_are_merged_on_request_only(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    huggingface.write(tmp_path / "out", made)
    assert not (tmp_path / "out" / "merged").exists()


@pytest.mark.parametrize("case", ["bert", "bert_tanh", "distilbert"])
def test_transformers_gives_the_vectors_and_ids_of_jax(case: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    made = bundle(tmp_path, case)
    huggingface.write(tmp_path / "out", made, merged=True)
    opened, texts = huggingface.open_transformers(tmp_path / "out", made), sample_texts(made, 12)
    readings = compare(made, [opened], texts)
    assert len(readings) == 4
    assert max(max(r.tokens, r.sentences) for r in readings) < 1e-5
    assert same_ids(made, opened, [*texts, *SENTENCES])


def test_a_cased_tokenizer_stays_cased_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    made = dataclasses.replace(bundle(tmp_path), tokenizer=tokenizer(lower=False))
    huggingface.write(tmp_path / "out", made)
    assert same_ids(made, huggingface.open_transformers(tmp_path / "out", made), SENTENCES)


@pytest.mark.parametrize(
    ("case", "pooling", "normalize"), [("bert", "mean", False), ("bert", "cls", True), ("distilbert", "mean", True)]
)
def test_sentence_transformers_gives_the_vectors_of_jax(
    case: str, pooling: str, normalize: bool, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    prompts = {"query": "the ", "document": "cat "}
    made = bundle(tmp_path, case, pooling=pooling, normalize=normalize, prompts=prompts)
    sentence_transformers.write(tmp_path / "out", made, merged=True)
    opened, texts = sentence_transformers.open_sentence_transformers(tmp_path / "out", made), sample_texts(made, 12)
    assert max(max(r.tokens, r.sentences) for r in compare(made, [opened], texts)) < 1e-5
    assert same_ids(made, opened, texts)  # the last one is longer than max_length
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.prompts == prompts
    np.testing.assert_allclose(model.encode_query(["cat sat"]), model.encode(["the cat sat"], prompt=""), atol=1e-6)


def test_modules_and_settings_of_sentence_transformers(tmp_path: Path) -> None:
    made = bundle(tmp_path, normalize=True)
    sentence_transformers.write(tmp_path / "out", made)

    def read(name: str) -> object:
        return json.loads((tmp_path / "out" / name).read_text())

    assert [(m["path"], m["type"].split(".")[-1]) for m in read("modules.json")] == [
        ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
    ]  # fmt: skip
    assert read("1_Pooling/config.json") == {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    assert read("sentence_bert_config.json")["max_seq_length"] == 24
