"""Small things to export: golden encoders with adapters that move their vectors, and heads."""

import json
from pathlib import Path

import jax
import numpy as np
from golden.formula import weights
from golden.model_files import write_model

from helpers.paths import GOLDEN_FILES
from jaxprefit.encoder import lora
from jaxprefit.encoder.huggingface import load_pretrained
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.export import Bundle, FittedHead

CASES = json.loads((GOLDEN_FILES / "encoder.json").read_text())["cases"]
LABELS = ("plain", 'with "quotes"', "with `marks` | and\nlines")


def adapter(config: EncoderConfig, seed: int, **spec: object) -> dict:
    """A LoRA tree with no zero in it, as if trained."""
    tree = lora.init_lora(lora.LoraSpec(**spec), config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) if np.any(x) else rng.normal(0, 0.1, x.shape).astype(np.float32), tree)


def mixed(config: EncoderConfig) -> dict:
    """An adapter of other ranks, scales and maps in each layer."""
    first = adapter(config, 3, layers=(0,), targets=("query", "output"), rank=3, alpha=1.0)
    return first | adapter(config, 4, layers=(2,), targets=("attention_output", "intermediate", "value"), rank=5)


def bundle(folder: Path, case: str = "bert", **changes: object) -> Bundle:
    """The golden encoder `case`, of three layers, with adapters ner, tc and odd, and heads for the first two."""
    model = load_pretrained(
        write_model(folder / f"golden_{case}", CASES[case]["config"], weights(CASES[case]["config"]))
    )
    rng = np.random.default_rng(5)

    def head(kind: str, labels: tuple[str, ...], pooling: str) -> FittedHead:
        kernel = rng.normal(size=(model.config.hidden_size, len(labels))).astype(np.float32)
        return FittedHead(kind, labels, kernel, rng.normal(size=len(labels)).astype(np.float32), pooling)

    adapters = {
        "ner": adapter(model.config, 1, last_layers=2, rank=8),
        "tc": adapter(model.config, 2, last_layers=1, rank=4, targets=("query", "output")),
        "odd": mixed(model.config),
    }
    heads = {"ner": head("ner", ("O", "B-x", "I-x"), "none"), "tc": head("tc", LABELS, "mean")}
    fields: dict = {"adapters": adapters, "heads": heads, "max_length": 24}
    return Bundle(config=model.config, backbone=model.params, tokenizer=model.tokenizer, **(fields | changes))
