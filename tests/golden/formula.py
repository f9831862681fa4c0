"""Weights as a formula of tensor name and shape, so that no weight file is stored.

Used by make_golden.py (which runs transformers on them) and by the tests (which run jaxprefit).
Every value is a multiple of 1/512 below 2, so float16 storage loses nothing.
"""

import math
import zlib

import numpy as np

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, np.ndarray]


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 1/128 in [-1, 1): splitmix64 of the flat index, seeded by the name."""
    count = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
    x = count * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(name.encode()))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(56)).astype(np.float32) / 128 - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this Hugging Face name (without a prefix such as 'bert.')."""
    values = noise(name, shape)
    if name.endswith(("LayerNorm.weight", "layer_norm.weight")):
        return 1 + values / 4
    sharp = ("embeddings.weight", "query.weight", "key.weight", "q_lin.weight", "k_lin.weight")
    return values / 2 if name.endswith(sharp) else values / 4


def shapes(config: dict) -> Shapes:
    """Every encoder tensor that transformers lists for this config.json, without the pooler."""
    return _distilbert(config) if config["model_type"] == "distilbert" else _bert(config)


def weights(config: dict) -> Tensors:
    return {name: weight(name, shape) for name, shape in shapes(config).items()}


def _bert(config: dict) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    found: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        **_pair("embeddings.LayerNorm", hidden),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            found |= _pair(f"{at}.attention.self.{name}", hidden, hidden)
        found |= _pair(f"{at}.attention.output.dense", hidden, hidden)
        found |= _pair(f"{at}.attention.output.LayerNorm", hidden)
        found |= _pair(f"{at}.intermediate.dense", inner, hidden)
        found |= _pair(f"{at}.output.dense", hidden, inner)
        found |= _pair(f"{at}.output.LayerNorm", hidden)
    return found


def _distilbert(config: dict) -> Shapes:
    hidden, inner = config["dim"], config["hidden_dim"]
    found: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        **_pair("embeddings.LayerNorm", hidden),
    }
    for i in range(config["n_layers"]):
        at = f"transformer.layer.{i}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            found |= _pair(f"{at}.attention.{name}", hidden, hidden)
        found |= _pair(f"{at}.sa_layer_norm", hidden)
        found |= _pair(f"{at}.ffn.lin1", inner, hidden)
        found |= _pair(f"{at}.ffn.lin2", hidden, inner)
        found |= _pair(f"{at}.output_layer_norm", hidden)
    return found


def _pair(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
