"""The encoder and tokenizer that a run starts from."""

import dataclasses
import os
import pathlib

import jax
import tokenizers
from ml_collections import ConfigDict

from jaxprefit.data import synthetic
from jaxprefit.data.wordpiece import train_wordpiece
from jaxprefit.encoder.huggingface import Pretrained, load_pretrained
from jaxprefit.encoder.tokenizer_files import read_tokenizer
from jaxprefit.encoder.transformer import EncoderConfig, init_backbone
from jaxprefit.errors import UserError
from jaxprefit.runtime.paths import user_path


def start_encoder(config: ConfigDict, cache: pathlib.Path) -> Pretrained:
    """The encoder that a run starts from: model.path, or a random one with the tokenizer of model.vocab_path or with a
    WordPiece vocabulary of generated text."""
    arithmetic = {"dtype": config.model.dtype, "hidden_dropout": config.model.hidden_dropout}
    if config.model.dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype is '{config.model.dtype}'; use float32 or bfloat16")
    if config.model.path:
        start = load_pretrained(config.model.path)
        return dataclasses.replace(start, config=dataclasses.replace(start.config, **arithmetic))
    m = config.model
    if m.hidden % m.heads:
        raise UserError(f"model.hidden is {m.hidden}; it must be a multiple of model.heads, {m.heads}")
    tokenizer = start_tokenizer(config, cache)
    size = max(tokenizer.get_vocab().values()) + 1
    encoder = EncoderConfig(size, m.hidden, m.layers, m.heads, m.intermediate, m.max_positions, **arithmetic)
    return Pretrained(encoder, init_backbone(encoder, jax.random.key(config.seed)), tokenizer)


def start_tokenizer(config: ConfigDict, cache: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of `start_encoder`."""
    if config.model.path:
        return load_pretrained(config.model.path).tokenizer
    if config.model.vocab_path:
        return read_tokenizer(user_path(config.model.vocab_path))
    return generated_tokenizer(config.model.vocab, cache)


def generated_tokenizer(vocab: int, cache: pathlib.Path) -> tokenizers.Tokenizer:
    """A lower-casing WordPiece tokenizer trained on generated text; kept in the cache, so that all runs share one."""
    file = cache / f"generated_wordpiece_{vocab}.json"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        train_wordpiece(synthetic.corpus(20_000, seed=0), vocab).save(str(temporary))
        os.replace(temporary, file)
    return tokenizers.Tokenizer.from_file(str(file))
