"""Encoders and tokenizers in and out of Hugging Face's format. Nothing is ever unpickled.

A directory holds `config.json`, `model.safetensors` and `tokenizer.json` (or `vocab.txt`). Keys may carry the
`bert.` / `distilbert.` prefix, tensors may be float16, bfloat16 or float32; in memory everything is float32.
"""

import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprefit.encoder import EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.parameter_names import names_in_files, transposed, tree_shapes
from jaxprefit.paths import user_path

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
_LARGEST_JSON = 2**24  # bytes of a config.json
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An encoder as read from disk."""

    config: EncoderConfig
    params: dict  # the backbone tree, float32 NumPy
    tokenizer: tokenizers.Tokenizer


def load_pretrained(path: str | os.PathLike) -> Pretrained:
    """Reads a Hugging Face directory, or a hub name such as 'sentence-transformers/all-MiniLM-L6-v2'.

    Raises UserError naming every missing, surplus and misshapen tensor at once, or the file that cannot be read.
    """
    folder = _resolve(path)
    config = read_config(folder / "config.json")
    tokenizer = read_tokenizer(folder)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:  # its embedding would be read from beyond the table, as NaN
        raise UserError(
            f"{folder}: the tokenizer has id {largest}, but config.json says vocab_size {config.vocab_size}"
        )
    return Pretrained(config, _read_weights(folder, config), tokenizer)


def save_pretrained(
    path: str | os.PathLike, config: EncoderConfig, params: dict, tokenizer: tokenizers.Tokenizer
) -> None:
    """Writes `config.json`, `model.safetensors` and `tokenizer.json`; all of them or none."""
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
        safetensors.numpy.save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
        (whole / "config.json").write_text(json.dumps(_hf_config(config), indent=2) + "\n")
        tokenizer.save(str(whole / "tokenizer.json"))
        os.replace(whole, path)


def read_config(file: pathlib.Path) -> EncoderConfig:
    """EncoderConfig from a Hugging Face `config.json`. Raises UserError naming what does not fit."""
    c = _read_json(file)
    kind = c.get("model_type", "bert")
    if not isinstance(kind, str) or kind not in _SIZES:
        raise UserError(f"{file}: model_type is {json.dumps(kind)}; supported are {', '.join(_SIZES)}")
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


def read_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a directory, with the file's own padding and truncation switched off."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        file = folder / "vocab.txt"
    if not file.is_file():
        raise UserError(f"{folder} holds neither tokenizer.json nor vocab.txt; add one of them")
    try:
        if file.name == "tokenizer.json":
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        else:
            settings = folder / "tokenizer_config.json"
            lower = _read_json(settings).get("do_lower_case", True) if settings.is_file() else True
            tokenizer = tokenizers.Tokenizer.from_str(
                tokenizers.BertWordPieceTokenizer(str(file), lowercase=lower).to_str()
            )
    except UserError:
        raise
    except Exception as e:  # the library raises bare Exception
        raise UserError(f"{file}: not a readable tokenizer ({_one_line(e)})") from e
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _resolve(path: str | os.PathLike) -> pathlib.Path:
    folder = user_path(path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the directory that holds config.json and model.safetensors")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise UserError(f"{_one_line(path)}: no such directory, and not a hub name of the form owner/name")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{path}: no such directory; to fetch it from the hub install the extra: pip install 'jaxprefit[hub]'"
        ) from None
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(path), allow_patterns=wanted))
    except Exception as e:  # many kinds: offline, unknown name, no permission
        raise UserError(f"{path}: no such directory, and the hub did not give it ({_one_line(e)})") from e


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
        raise UserError(f"{file}: not a readable safetensors file ({_one_line(e)}); fetch it again") from e
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
            if value.shape != shapes[path]:
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


def _hf_config(config: EncoderConfig) -> dict:
    act = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation]
    common = {"vocab_size": config.vocab_size, "max_position_embeddings": config.max_positions, "pad_token_id": 0}
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


def _read_json(file: pathlib.Path) -> dict:
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise UserError(f"{file}: larger than {_LARGEST_JSON >> 20} MiB; fetch the file again")
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{file}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}: not JSON ({_one_line(e)})") from e
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object")
    return content


def _one_line(e: object) -> str:
    return " ".join(str(e).split())[:200]
