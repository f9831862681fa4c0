"""Encoders and tokenizers in and out of Hugging Face's format. Nothing is ever unpickled.

A directory holds `config.json`, `model.safetensors` and `tokenizer.json` (or `vocab.txt`). Keys may carry the
`bert.` / `distilbert.` prefix, tensors may be float16, bfloat16 or float32; in memory everything is float32. Files of
sentence-transformers beside them say how a text's vector is made of its tokens' (`sentence_settings`).
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprefit.encoder import sentence_settings, tokenizer_files
from jaxprefit.encoder.parameter_names import names_in_files, transposed, tree_shapes
from jaxprefit.encoder.sentence_settings import (
    MEAN_OF_TOKENS,
    SentenceSettings,
    read_sentence_settings,
    transformer_folder,
    write_sentence_settings,
)
from jaxprefit.encoder.tokenizer_files import read_tokenizer, special_tokens, written_settings
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.errors import UserError, one_line
from jaxprefit.runtime.files import read_given_json
from jaxprefit.runtime.paths import user_path

_log = logging.getLogger(__name__)

# Tensors a file may hold beside the encoder: the pooler, heads of the pre-training, a buffer of old versions.
_BESIDE = re.compile(r"^(pooler\.|cls\.|classifier\.|pre_classifier\.|vocab_|qa_outputs\.|embeddings\.position_ids$)")
_COMMON_SIZES = {"vocab_size": "vocab_size", "max_positions": "max_position_embeddings"}
_SIZES = {
    "bert": {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
    },
    "distilbert": {
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
}
# A damaged file must not keep the machine busy with a million layers.
_LARGEST = {"vocab_size": 2**24, "max_positions": 2**20, "num_layers": 1000}
_LARGEST_SIZE = 2**16  # of all others
# Settings of another arithmetic than the encoder's, and the values under which they change nothing.
_OFF: tuple[Any, ...] = (None, False, [], {})
_REFUSED = {
    "is_decoder": "tokens would see only those before them",
    "is_encoder_decoder": "only encoders are supported",
    "add_cross_attention": "only encoders are supported",
    "pruned_heads": "some layers have fewer heads",
    "quantization_config": "weights must be float16, bfloat16 or float32",
    "auto_map": "the encoder has code of its own, which is not run",
}
_CLASSES = {"bert": "Bert", "distilbert": "DistilBert"}  # how names of transformers' classes begin
# Of names that had none when they became known.
_OWNERS = {"bert-": "google-bert", "distilbert-": "distilbert", "all-": "sentence-transformers"}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An encoder as read from disk."""

    config: EncoderConfig
    params: dict  # the backbone tree, float32 NumPy
    tokenizer: tokenizers.Tokenizer
    sentence: SentenceSettings = MEAN_OF_TOKENS


def load_pretrained(path: str | os.PathLike) -> Pretrained:
    """Reads a Hugging Face directory, or a hub name such as 'sentence-transformers/all-MiniLM-L6-v2'.

    Logs how it makes a text's vector where that is not the mean of the tokens. Raises UserError naming every missing,
    surplus and misshapen tensor at once, the file that cannot be read, or the setting that cannot be followed.
    """
    whole = _resolve(path)
    folder = transformer_folder(whole)
    config = read_config(folder / "config.json")
    tokenizer = read_tokenizer(folder)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:  # its embedding would be read from beyond the table, as NaN
        raise UserError(
            f"{folder}: the tokenizer has id {largest}, but config.json says vocab_size {config.vocab_size}"
        )
    sentence = read_sentence_settings(whole, tokenizer)
    _tell(whole, sentence)
    return Pretrained(config, _read_weights(folder, config), tokenizer, sentence)


def save_pretrained(
    path: str | os.PathLike,
    config: EncoderConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    sentence: SentenceSettings = MEAN_OF_TOKENS,
) -> None:
    """Writes what transformers reads, and where `sentence` is not the default what sentence-transformers does; all of
    the files or none."""
    path = user_path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty directory; choose another path to export to")
    path.parent.mkdir(parents=True, exist_ok=True)
    names = names_in_files(config)
    tensors = {
        names[p]: np.ascontiguousarray(transposed(p, np.asarray(leaf, np.float32)))
        for p, leaf in flatten_dict(params, sep="/").items()
    }
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as work:
        whole = pathlib.Path(work) / "whole"
        whole.mkdir()
        contents = {
            "config.json": _hf_config(config) | {"pad_token_id": _pad_id(tokenizer)},
            "tokenizer_config.json": written_settings(tokenizer, config),
        }
        for name, content in contents.items():
            (whole / name).write_text(json.dumps(content, indent=2) + "\n")
        tokenizer.save(str(whole / "tokenizer.json"))
        write_sentence_settings(whole, sentence, config.hidden_size)
        weights = whole / "model.safetensors"
        safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
        shutil.copymode(whole / "config.json", weights)  # the library lets only the owner read it
        os.replace(whole, path)


def read_config(file: pathlib.Path) -> EncoderConfig:
    """EncoderConfig from a Hugging Face `config.json`. Raises UserError naming what does not fit."""
    c = read_given_json(file)
    kind = c.get("model_type", "bert")
    if not isinstance(kind, str) or kind not in _SIZES:
        raise UserError(f"{file}: model_type is {json.dumps(kind)}; supported are {', '.join(_SIZES)}")
    for name, reason in _REFUSED.items():
        if c.get(name) not in _OFF:
            raise UserError(f"{file}: {name} is {one_line(json.dumps(c[name]))}, which is not supported: {reason}")
    classes = c.get("architectures") or []
    if not isinstance(classes, list) or not all(str(name).startswith(_CLASSES[kind]) for name in classes):
        raise UserError(
            f"{file}: architectures is {one_line(json.dumps(classes))}; of {kind} there is only {_CLASSES[kind]}..."
        )
    theirs = {**_COMMON_SIZES, **_SIZES[kind]}
    sizes: dict[str, Any] = {ours: c.get(key) for ours, key in theirs.items()}
    sizes["type_vocab_size"] = c.get("type_vocab_size", 2) if kind == "bert" else 0
    wrong = [theirs.get(k, k) for k, v in sizes.items() if type(v) is not int or v < (k != "type_vocab_size")]
    if wrong:
        raise UserError(f"{file}: {', '.join(wrong)} must be given as positive integers")
    if large := [theirs.get(k, k) for k in too_large(sizes)]:
        raise UserError(f"{file}: {', '.join(large)} cannot be so large; fetch the file again")
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise UserError(f"{file}: hidden size {sizes['hidden_size']} is not divisible by {sizes['num_heads']} heads")
    activation = c.get("hidden_act" if kind == "bert" else "activation", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise UserError(f"{file}: activation {json.dumps(activation)}; supported are {', '.join(_ACTIVATIONS)}")
    if c.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{file}: position_embedding_type must be 'absolute'; relative positions are not supported")
    eps = c.get("layer_norm_eps", 1e-12) if kind == "bert" else 1e-12
    dropout = c.get("hidden_dropout_prob" if kind == "bert" else "dropout", 0.1)
    for name, value in (("layer_norm_eps", eps), ("dropout", dropout)):
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{file}: {name} is {json.dumps(value)}; it must be a number in [0, 1)")
    return EncoderConfig(
        **sizes, norm_eps=eps, activation=_ACTIVATIONS[activation], hidden_dropout=float(dropout), architecture=kind
    )


def too_large(sizes: Mapping[str, int]) -> list[str]:
    """Those sizes of an EncoderConfig that no encoder has."""
    return [name for name, size in sizes.items() if size > _LARGEST.get(name, _LARGEST_SIZE)]


def _resolve(path: str | os.PathLike) -> pathlib.Path:
    folder = user_path(path)
    if folder.is_dir():
        if (folder / "checkpoints").is_dir() or any((p / "meta").is_dir() for p in (folder, *folder.glob("[0-9]*"))):
            raise UserError(
                f"{folder} is a run, not an encoder; export it first: jaxprefit.load({str(folder)!r}).export(FOLDER)"
            )
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds an adapter of PEFT; merge it into its encoder first (merge_and_unload)")
        return folder
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the directory that holds config.json and model.safetensors")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        owner = next((o for begin, o in _OWNERS.items() if str(path).startswith(begin)), "")
        hint = f"; on the hub it is {owner}/{path}" if owner else ""
        raise UserError(f"{one_line(path)}: no such directory, and not a hub name of the form owner/name{hint}")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{path}: no such directory; to fetch it from the hub install the extra: pip install 'jaxprefit[hub]'"
        ) from None
    wanted = ["config.json", "model.safetensors", *tokenizer_files.FILES, *sentence_settings.FILES]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(path), allow_patterns=wanted))
    except Exception as e:  # many kinds: offline, unknown name, no permission
        raise UserError(f"{path}: no such directory, and the hub did not give it ({one_line(e)})") from e


def _read_weights(folder: pathlib.Path, config: EncoderConfig) -> dict:
    file = folder / "model.safetensors"
    if not file.is_file():
        if (folder / "model.safetensors.index.json").is_file():
            raise UserError(f"{folder} holds a sharded checkpoint; save it as one model.safetensors file first")
        if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt")):
            raise UserError(
                f"{folder} holds only pickled weights, which are never loaded; "
                "convert them first: AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)"
            )
        raise UserError(f"{file}: no such file")
    try:
        # The 'flax' reader knows bfloat16, NumPy does not; device_get brings the arrays back to the host.
        with safetensors.safe_open(file, "flax") as f:
            raw = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except Exception as e:
        raise UserError(f"{file}: not a readable safetensors file ({one_line(e)}); fetch it again") from e
    found = {}
    for key, tensor in raw.items():
        key = re.sub(rf"^{config.architecture}\.", "", key)
        key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))
        if not _BESIDE.match(key):
            found[key] = tensor
    names, shapes = names_in_files(config), tree_shapes(config)
    missing = sorted(set(names.values()) - set(found))
    surplus = sorted(set(found) - set(names.values()))
    wrong = []
    flat = {}
    for path, key in names.items():
        if key in found:
            value = transposed(path, np.asarray(jax.device_get(found[key]), np.float32))
            flat[path] = value
            if not jnp.issubdtype(found[key].dtype, jnp.floating):
                wrong.append(f"{key} of {found[key].dtype} (weights must be float16, bfloat16 or float32)")
            elif value.shape != shapes[path]:
                here, want = found[key].shape, transposed(path, np.empty(shapes[path], bool)).shape
                wrong.append(f"{key} {tuple(here)} (config.json says {tuple(want)})")
    if not all(np.isfinite(v).all() for v in flat.values()):
        raise UserError(f"{file} holds a weight that is not finite; fetch it again")
    problems = [
        f"{what}: {', '.join(keys)}" for what, keys in
        (("missing", missing), ("surplus", surplus), ("misshapen", wrong)) if keys
    ]  # fmt: skip
    if problems:
        raise UserError(f"{file} does not fit its config.json; {'; '.join(problems)}")
    return unflatten_dict(flat, sep="/")


def _tell(folder: pathlib.Path, sentence: SentenceSettings) -> None:
    """Logs what of a directory's own use is followed by some programs, or by none."""
    if sentence.pooling != "mean":
        _log.warning(
            f"{folder}: its vector of a text is {sentence.pooling}-pooled; encode() and downstream.mode=mteb follow "
            "that, training and all else take the mean of the tokens"
        )
    if prompt := sentence_settings.default_prompt(folder):
        _log.warning(f"{folder}: its default prompt {prompt!r} is not put before texts; put it there yourself")


def _pad_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    pad = special_tokens(tokenizer).get("pad_token")
    return None if pad is None else tokenizer.token_to_id(pad)


def _hf_config(config: EncoderConfig) -> dict:
    act = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation]
    common = {"vocab_size": config.vocab_size, "max_position_embeddings": config.max_positions}
    if config.architecture == "distilbert":
        return common | {
            "architectures": ["DistilBertModel"], "model_type": "distilbert", "dim": config.hidden_size,
            "n_layers": config.num_layers, "n_heads": config.num_heads, "hidden_dim": config.intermediate_size,
            "activation": act, "dropout": config.hidden_dropout, "attention_dropout": 0.0,
        }  # fmt: skip
    return common | {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size, "hidden_act": act, "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.norm_eps, "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
