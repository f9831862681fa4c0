"""What the item `meta` of a checkpoint must hold, so that what is read from a file is never taken on trust."""

import dataclasses
import re
from typing import Any

from jaxprefit.encoder.huggingface import too_large
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.surgery import METHODS

_TYPES: dict[str, type] = {
    "step": int,
    "items": list,
    "config": dict,
    "encoder": dict,
    "strategy": str,
    "touch_table": list,
    "families": dict,
    "data": dict,
    "tokenizer": str,
}
_CHOICES = {
    "activation": ("gelu", "gelu_tanh"),
    "dtype": ("float32", "bfloat16", "float16"),
    "architecture": ("bert", "distilbert"),
}
_ITEM = re.compile(r"backbone|(lora|head)\.[A-Za-z0-9_]+")  # the name of a folder, never a path


def complete(config: dict[str, Any]) -> None:
    """Adds to the config of an older run what it did without having a setting for it."""
    optimizer = config.get("optimizer")
    if "aggregator" in config and isinstance(optimizer, dict):
        method = METHODS.get(config["aggregator"])
        config.setdefault("aggregator_decay", 0.0)
        # What 'auto' does is what was done where no Gram matrix is read; surgery was done on clipped gradients.
        optimizer.setdefault("clip", "families" if method and method.reads_gram else "auto")


def problem(meta: dict[str, Any]) -> str:
    """What is wrong with the content, in a few words; '' where nothing is."""
    for key, kind in _TYPES.items():
        if type(meta.get(key)) is not kind:
            return f"{key} is not given as {kind.__name__}"
    if bad := [item for item in meta["items"] if not (isinstance(item, str) and _ITEM.fullmatch(item))]:
        return f"items has {str(bad[0])[:100]!r}"
    if "backbone" not in meta["items"]:
        return "items has no backbone"
    for row in meta["touch_table"]:
        match row:
            case [str(), list() as families] if all(isinstance(f, str) for f in families):
                continue
        return f"touch_table has {str(row)[:100]!r}"
    return _encoder_problem(meta["encoder"])


def _encoder_problem(found: dict[str, Any]) -> str:
    fields = {f.name: type(f.default) for f in dataclasses.fields(EncoderConfig)}
    if unknown := found.keys() - fields.keys():
        return f"encoder has '{min(unknown)[:100]}'"
    found = dataclasses.asdict(EncoderConfig()) | found
    for key, value in found.items():
        if type(value) is not fields[key] and not (fields[key] is float and type(value) is int):
            return f"encoder.{key} is {str(value)[:100]!r}"
    sizes = {key: found[key] for key, kind in fields.items() if kind is int}
    if small := [key for key, size in sizes.items() if size < (key != "type_vocab_size")]:
        return f"encoder.{small[0]} is {sizes[small[0]]}"
    if large := too_large(sizes):
        return f"encoder.{large[0]} is {sizes[large[0]]}"
    if other := [key for key, known in _CHOICES.items() if found[key] not in known]:
        return f"encoder.{other[0]} is {found[other[0]][:100]!r}"
    if not (0 <= found["hidden_dropout"] < 1 and 0 <= found["norm_eps"] < 1):
        return f"encoder.hidden_dropout is {found['hidden_dropout']}, encoder.norm_eps {found['norm_eps']}"
    if found["hidden_size"] % found["num_heads"]:
        return f"encoder.hidden_size is {found['hidden_size']}, of {found['num_heads']} heads"
    return ""
