"""Loading and saving Hugging Face directories."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from golden.formula import Tensors, noise, weights
from golden.model_files import SENTENCES, prefixed, tokenizer, write_model, write_vocabulary
from helpers.paths import GOLDEN_FILES
from safetensors.numpy import load_file

from jaxprefit.encoder.huggingface import load_pretrained, save_pretrained
from jaxprefit.errors import UserError

GOLDEN = GOLDEN_FILES
CASES = json.loads((GOLDEN / "encoder.json").read_text())["cases"]
TOKENS = json.loads((GOLDEN / "tokens.json").read_text())
ARCHITECTURES = ("bert", "distilbert")

BERT_NAMES = """
embeddings.word_embeddings.weight
embeddings.position_embeddings.weight
embeddings.token_type_embeddings.weight
embeddings.LayerNorm.weight
embeddings.LayerNorm.bias
encoder.layer.0.attention.self.query.weight
encoder.layer.0.attention.self.query.bias
encoder.layer.0.attention.self.key.weight
encoder.layer.0.attention.self.key.bias
encoder.layer.0.attention.self.value.weight
encoder.layer.0.attention.self.value.bias
encoder.layer.0.attention.output.dense.weight
encoder.layer.0.attention.output.dense.bias
encoder.layer.0.attention.output.LayerNorm.weight
encoder.layer.0.attention.output.LayerNorm.bias
encoder.layer.0.intermediate.dense.weight
encoder.layer.0.intermediate.dense.bias
encoder.layer.0.output.dense.weight
encoder.layer.0.output.dense.bias
encoder.layer.0.output.LayerNorm.weight
encoder.layer.0.output.LayerNorm.bias
"""
DISTILBERT_NAMES = """
embeddings.word_embeddings.weight
embeddings.position_embeddings.weight
embeddings.LayerNorm.weight
embeddings.LayerNorm.bias
transformer.layer.0.attention.q_lin.weight
transformer.layer.0.attention.q_lin.bias
transformer.layer.0.attention.k_lin.weight
transformer.layer.0.attention.k_lin.bias
transformer.layer.0.attention.v_lin.weight
transformer.layer.0.attention.v_lin.bias
transformer.layer.0.attention.out_lin.weight
transformer.layer.0.attention.out_lin.bias
transformer.layer.0.sa_layer_norm.weight
transformer.layer.0.sa_layer_norm.bias
transformer.layer.0.ffn.lin1.weight
transformer.layer.0.ffn.lin1.bias
transformer.layer.0.ffn.lin2.weight
transformer.layer.0.ffn.lin2.bias
transformer.layer.0.output_layer_norm.weight
transformer.layer.0.output_layer_norm.bias
"""
NAMES = {"bert": set(BERT_NAMES.split()), "distilbert": set(DISTILBERT_NAMES.split())}


def one_layer(architecture: str) -> tuple[dict[str, Any], Tensors]:
    """config.json and tensors of a one-layer model."""
    layers = {"bert": "num_hidden_layers", "distilbert": "n_layers"}[architecture]
    config = CASES[architecture]["config"] | {layers: 1}
    return config, weights(config)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A sound directory of a one-layer BERT, to be damaged."""
    return write_model(tmp_path / "bert", *one_layer("bert"))


def refusal(path: Path) -> str:
    """The one-line message of the UserError that loading `path` raises."""
    with pytest.raises(UserError) as caught:
        load_pretrained(path)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def assert_same_params(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# Round trips


@pytest.mark.parametrize("name", CASES)
def test_load_save_load_gives_the_same_model(name: str, tmp_path: Path) -> None:
    config = CASES[name]["config"]
    first = load_pretrained(write_model(tmp_path / "given", config, weights(config)))
    save_pretrained(tmp_path / "once", first.config, first.params, first.tokenizer)
    second = load_pretrained(tmp_path / "once")
    assert second.config == first.config
    assert_same_params(second.params, first.params)
    assert second.tokenizer.to_str() == first.tokenizer.to_str()

    saved = load_file(tmp_path / "once" / "model.safetensors")
    assert saved.keys() == weights(config).keys()
    for key, tensor in weights(config).items():
        assert saved[key].dtype == np.float32
        assert saved[key].shape == tensor.shape
        assert saved[key].tobytes() == tensor.tobytes(), key

    save_pretrained(tmp_path / "twice", second.config, second.params, second.tokenizer)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_names_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    config, tensors = one_layer(architecture)
    model = load_pretrained(write_model(tmp_path / "given", config, tensors))
    save_pretrained(tmp_path / "saved", model.config, model.params, model.tokenizer)
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == NAMES[architecture]


@pytest.mark.parametrize("name", CASES)
def test_saved_config_is_the_given_one(name: str, tmp_path: Path) -> None:
    config = CASES[name]["config"]
    model = load_pretrained(write_model(tmp_path / "given", config, weights(config)))
    save_pretrained(tmp_path / "saved", model.config, model.params, model.tokenizer)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    names = {"model_type", "vocab_size", "max_position_embeddings"}
    names |= {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    names |= {"type_vocab_size", "layer_norm_eps"}  # BERT's
    names |= {"dim", "n_layers", "n_heads", "hidden_dim"}  # DistilBERT's
    expected = {key: value for key, value in config.items() if key in names}
    assert {key: saved.get(key) for key in expected} == expected
    act = "activation" if config["model_type"] == "distilbert" else "hidden_act"
    tanh = {"gelu_new", "gelu_pytorch_tanh"}
    assert saved[act] in (tanh if config[act] == "gelu_new" else {"gelu"})


def test_nothing_is_overwritten(bert: Path) -> None:
    model = load_pretrained(bert)
    before = {file.name: file.read_bytes() for file in bert.iterdir()}
    with pytest.raises(UserError):
        save_pretrained(bert, model.config, model.params, model.tokenizer)
    assert {file.name: file.read_bytes() for file in bert.iterdir()} == before
    assert list(bert.parent.iterdir()) == [bert]


# What a file may hold besides, or call otherwise


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_known_extras_of_bert_are_ignored(prefix: str, bert: Path) -> None:
    expected = load_pretrained(bert).params
    config, tensors = one_layer("bert")
    inner = {
        "pooler.dense.weight": noise("pooler.dense.weight", (32, 32)),
        "pooler.dense.bias": noise("pooler.dense.bias", (32,)),
        "embeddings.position_ids": np.arange(40)[None],
    }
    outer = {
        "cls.predictions.bias": np.zeros(97, np.float32),
        "cls.predictions.transform.LayerNorm.weight": np.ones(32, np.float32),
        "cls.seq_relationship.weight": np.ones((2, 32), np.float32),
    }
    write_model(bert, config, prefixed(tensors | inner, prefix) | outer)
    assert_same_params(load_pretrained(bert).params, expected)


def test_known_extras_of_distilbert_are_ignored(tmp_path: Path) -> None:
    config, tensors = one_layer("distilbert")
    expected = load_pretrained(write_model(tmp_path, config, tensors)).params
    head = {
        "vocab_transform.weight": np.ones((32, 32), np.float32),
        "vocab_layer_norm.bias": np.ones(32, np.float32),
        "vocab_projector.bias": np.ones(97, np.float32),
    }
    write_model(tmp_path, config, prefixed(tensors, "distilbert.") | head)
    assert_same_params(load_pretrained(tmp_path).params, expected)


def test_layer_norm_of_early_files_is_gamma_and_beta(bert: Path) -> None:
    expected = load_pretrained(bert).params
    config, tensors = one_layer("bert")

    def early(name: str) -> str:
        for new, old in (("weight", "gamma"), ("bias", "beta")):
            name = name.replace(f"LayerNorm.{new}", f"LayerNorm.{old}")
        return name

    write_model(bert, config, {early(name): tensor for name, tensor in tensors.items()})
    assert_same_params(load_pretrained(bert).params, expected)


def test_bfloat16_is_read_as_float32(bert: Path) -> None:
    config, tensors = one_layer("bert")
    halves = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    write_model(bert, config, {name: half.astype(np.float32) for name, half in halves.items()})
    expected = load_pretrained(bert).params
    write_model(bert, config, halves)
    assert_same_params(load_pretrained(bert).params, expected)


def test_config_may_hold_settings_unknown_here(bert: Path) -> None:
    expected = load_pretrained(bert)
    config = one_layer("bert")[0] | {"position_embedding_type": "absolute", "id2label": {"0": "A"}}
    (bert / "config.json").write_text(json.dumps(config))
    assert load_pretrained(bert).config == expected.config


# Tokenizers


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("vocabulary", [True, False])
def test_tokenizer_gives_the_ids_of_transformers(lower: bool, vocabulary: bool, bert: Path) -> None:
    tokenizer(lower).save(str(bert / "tokenizer.json"))
    if vocabulary:
        write_vocabulary(bert, lower)
    found = load_pretrained(bert).tokenizer
    ids = [found.encode(sentence).ids for sentence in SENTENCES]
    assert ids == TOKENS["lower" if lower else "cased"]


def test_vocabulary_encodes_pairs_and_offsets_as_tokenizer_json(bert: Path) -> None:
    expected = load_pretrained(bert).tokenizer.encode("the cat", "sat on café")
    write_vocabulary(bert, True)
    found = load_pretrained(bert).tokenizer.encode("the cat", "sat on café")
    assert (found.ids, found.type_ids) == (expected.ids, expected.type_ids)
    assert (found.offsets, found.special_tokens_mask) == (
        expected.offsets,
        expected.special_tokens_mask,
    )


def test_vocabulary_is_saved_as_tokenizer_json(bert: Path, tmp_path: Path) -> None:
    write_vocabulary(bert, False)
    model = load_pretrained(bert)
    save_pretrained(tmp_path / "saved", model.config, model.params, model.tokenizer)
    found = load_pretrained(tmp_path / "saved").tokenizer
    assert [found.encode(sentence).ids for sentence in SENTENCES] == TOKENS["cased"]


def test_missing_tokenizer(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(bert)


def test_corrupt_tokenizer(bert: Path) -> None:
    (bert / "tokenizer.json").write_text('{"version": "1.0", "model"')
    assert "tokenizer.json" in refusal(bert)


# Mistakes


def test_every_wrong_tensor_is_named_at_once(bert: Path) -> None:
    config, tensors = one_layer("bert")
    missing = "encoder.layer.0.intermediate.dense.bias"
    surplus = "encoder.layer.7.output.dense.weight"
    misshapen = "encoder.layer.0.attention.self.query.weight"
    del tensors[missing]
    tensors[surplus] = np.zeros((32, 64), np.float32)
    tensors[misshapen] = np.zeros((32, 31), np.float32)
    write_model(bert, config, tensors)
    message = refusal(bert)
    assert missing in message
    assert surplus in message
    assert misshapen in message
    assert "31" in message  # the shape found


def test_quantised_weights_are_refused(bert: Path) -> None:
    config, tensors = one_layer("bert")
    name = "encoder.layer.0.intermediate.dense.weight"
    write_model(bert, config, tensors | {name: tensors[name].astype(np.int8)})
    message = refusal(bert)
    assert name in message and "int8" in message


def test_transposed_tensor_is_misshapen(bert: Path) -> None:
    config, tensors = one_layer("bert")
    name = "encoder.layer.0.intermediate.dense.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    write_model(bert, config, tensors)
    assert name in refusal(bert)


class Payload:
    """Unpickled, it creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_pickled_weights_are_never_unpickled(bert: Path, tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    message = refusal(bert).lower()
    assert "pickle" in message
    assert "convert" in message
    assert not marker.exists()


def test_pickled_weights_beside_safetensors_are_ignored(bert: Path, tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    load_pretrained(bert)
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_file_is_named(file: str, bert: Path) -> None:
    (bert / file).unlink()
    assert file in refusal(bert)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    assert "nowhere" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("distilbert-base-cased", "distilbert/distilbert-base-cased"),
    ],
)
def test_an_old_name_of_the_hub_is_told_its_new_one(name: str, full: str) -> None:
    assert full in refusal(Path(name))


def test_an_adapter_of_peft_is_no_encoder(bert: Path) -> None:
    (bert / "adapter_config.json").write_text("{}")
    assert "merge" in refusal(bert)


def test_what_is_written_may_be_read_by_whom_the_umask_lets(bert: Path, tmp_path: Path) -> None:
    model = load_pretrained(bert)
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            save_pretrained(tmp_path / str(mask), model.config, model.params, model.tokenizer)
        finally:
            os.umask(before)
        modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / str(mask)).iterdir()}
        assert set(modes.values()) == {0o666 & ~mask}, modes


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"null", b"\xff\xfe\x00"])
def test_config_that_is_no_json_object(content: bytes, bert: Path) -> None:
    (bert / "config.json").write_bytes(content)
    assert "config.json" in refusal(bert)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gpt2"),
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("num_attention_heads", 5),
        ("hidden_size", "thirty-two"),
        ("num_hidden_layers", -1),
        ("is_decoder", True),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 8}),
        ("auto_map", {"AutoModel": "own_code.Model"}),
        ("architectures", ["RobertaModel"]),
        ("architectures", "BertModel"),
    ],
)
def test_config_that_is_not_supported(key: str, value: object, bert: Path) -> None:
    config = one_layer("bert")[0] | {key: value}
    (bert / "config.json").write_text(json.dumps(config))
    message = refusal(bert)
    assert key in message or str(value) in message


def test_settings_of_transformers_that_change_nothing_are_read_over(bert: Path) -> None:
    plain = load_pretrained(bert).config
    off = {"is_decoder": False, "add_cross_attention": False, "pruned_heads": {}, "architectures": ["BertForMaskedLM"]}
    (bert / "config.json").write_text(json.dumps(one_layer("bert")[0] | off))
    assert load_pretrained(bert).config == plain


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh"])
def test_names_of_the_tanh_gelu(activation: str, bert: Path) -> None:
    config = one_layer("bert")[0] | {"hidden_act": activation}
    (bert / "config.json").write_text(json.dumps(config))
    assert load_pretrained(bert).config.activation == "gelu_tanh"


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_safetensors(kept: int, bert: Path) -> None:
    file = bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "model.safetensors" in refusal(bert)


def test_file_that_is_no_safetensors(bert: Path) -> None:
    (bert / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors" in refusal(bert)
