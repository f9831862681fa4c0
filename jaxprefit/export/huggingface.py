"""Export for `transformers`: the backbone, and on request one merged model per adapter.

    AutoModel.from_pretrained(DIR)               # the bare backbone
    AutoModel.from_pretrained(DIR/merged/NAME)   # an adapter merged into the weights

Heads lie beside, in heads.json and heads.safetensors.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from jaxprefit.encoder.huggingface import load_pretrained, save_pretrained
from jaxprefit.encoder.sentence_settings import SentenceSettings
from jaxprefit.encoder.tokenization import encode_text
from jaxprefit.export.bundle import Bundle, write_heads
from jaxprefit.export.parity import Opened, Vectors, reference


def write(folder: pathlib.Path, bundle: Bundle, merged: bool = False) -> None:
    """Writes the backbone to `folder`, and with `merged` each adapter's model to `folder`/merged/NAME."""
    write_encoder(folder, bundle, None)
    write_heads(folder, bundle.heads)
    for name in bundle.adapters if merged else ():
        write_encoder(folder / "merged" / name, bundle, name)


def write_encoder(folder: pathlib.Path, bundle: Bundle, adapter: str | None) -> None:
    """Writes one model with its tokenizer: config.json, model.safetensors, tokenizer.json, tokenizer_config.json; also
    how a text's vector is made, where that is not the mean of all tokens that the encoder takes."""
    longest = bundle.max_length if bundle.max_length < bundle.config.max_positions else None
    sentence = SentenceSettings(bundle.pooling, bundle.normalize, longest)
    save_pretrained(folder, bundle.config, bundle.merged(adapter), bundle.tokenizer, sentence)


def folders(folder: pathlib.Path, bundle: Bundle) -> dict[str | None, pathlib.Path]:
    """The folder of each model that was written: None for the bare backbone, the adapter's name for a merged one."""
    places = {name: folder / "merged" / name for name in bundle.adapters}
    return {None: folder, **{name: place for name, place in places.items() if place.is_dir()}}


def open_here(folder: pathlib.Path, bundle: Bundle) -> Opened:
    """The export read back by jaxprefit itself, which needs no other library."""
    models = {name: load_pretrained(place) for name, place in folders(folder, bundle).items()}
    runs = {
        name: reference(dataclasses.replace(bundle, backbone=model.params, adapters={}))
        for name, model in models.items()
    }

    def vectors(ids: np.ndarray, mask: np.ndarray, adapter: str | None) -> Vectors:
        return runs[adapter](ids, mask, None)

    def ids_of(text: str) -> list[int]:
        return encode_text(models[None].tokenizer, text, bundle.max_length).tolist()

    return Opened("jaxprefit", tuple(models), vectors, ids_of)


def open_transformers(folder: pathlib.Path, bundle: Bundle) -> Opened:
    """The export opened by transformers. Raises ImportError where that is not installed."""
    import torch
    import transformers

    places = folders(folder, bundle)
    models = {name: torch_model(place, bundle.config.architecture) for name, place in places.items()}

    def vectors(ids: np.ndarray, mask: np.ndarray, adapter: str | None) -> Vectors:
        with torch.no_grad():
            hidden = models[adapter](**torch_batch(ids, mask)).last_hidden_state.numpy()
        return hidden, bundle.sentences(hidden, mask)

    return Opened(
        f"transformers {transformers.__version__}", tuple(models), vectors, ids_by_transformers(folder, bundle)
    )


def ids_by_transformers(folder: pathlib.Path, bundle: Bundle) -> Callable[[str], list[int]]:
    """`Opened.ids` by the tokenizer that transformers makes of the export."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text, truncation=True, max_length=bundle.max_length)["input_ids"]


def torch_model(folder: pathlib.Path, architecture: str):
    """The transformers model of a folder, without the pooler that would otherwise be made up at random."""
    import transformers

    options = {"add_pooling_layer": False} if architecture == "bert" else {}
    return transformers.AutoModel.from_pretrained(folder, **options).eval()


def torch_batch(ids: np.ndarray, mask: np.ndarray) -> dict:
    """Keyword arguments of a transformers model for ids and mask [B, L]."""
    import torch

    return {"input_ids": torch.tensor(ids.astype(np.int64)), "attention_mask": torch.tensor(mask.astype(np.int64))}
