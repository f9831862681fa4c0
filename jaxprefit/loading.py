"""Loading for use: a run's workdir, one of its steps, or a Hugging Face directory, on any machine."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import tokenizers

from jaxprefit import checkpoints, lora
from jaxprefit.data.encode import encode_text, pad_ids
from jaxprefit.encoder import Encoder, EncoderConfig, mean_pool
from jaxprefit.errors import UserError
from jaxprefit.pretrained import Pretrained, load_pretrained, save_pretrained
from jaxprefit.strategies import Strategy, trainable_and_total


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Vectors of a batch of texts, float32 NumPy: `tokens` [B, L, D], `sentence` [B, D]; `mask` [B, L] bool."""

    tokens: np.ndarray
    mask: np.ndarray
    sentence: np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder with its adapters and heads."""

    config: EncoderConfig
    backbone: dict
    adapters: dict[str, dict]  # by family; empty for a plain encoder
    heads: dict[str, dict]
    tokenizer: tokenizers.Tokenizer
    meta: dict  # of the checkpoint; empty for a Hugging Face directory

    @functools.cached_property
    def _apply(self):
        return jax.jit(Encoder(self.config).apply)

    def encode(self, texts: Sequence[str], adapter: str | None = None, max_length: int = 128) -> Encoded:
        """Vectors of `texts` through the adapter of that name, or through the bare backbone.

        Texts longer than `max_length` tokens are cut. A model without any adapter (naive, individual, a plain
        encoder) takes only adapter=None. Raises UserError for an adapter that is not there.
        """
        if isinstance(texts, str) or not texts:
            raise UserError("encode() takes a non-empty list of texts")
        ids, mask = pad_ids(rows := [encode_text(self.tokenizer, t, max_length) for t in texts], max(map(len, rows)))
        hidden = self._apply(self.variables(adapter), ids, mask)
        pooled = mean_pool(hidden, jax.numpy.asarray(mask))
        return Encoded(np.asarray(hidden, np.float32), mask, np.asarray(pooled))

    def variables(self, adapter: str | None) -> dict:
        """The variables that `Encoder.apply` takes, with the adapter of that name."""
        if adapter is None:
            return {"params": self.backbone}
        if adapter not in self.adapters:
            there = ", ".join(self.adapters) or "none"
            raise UserError(f"no adapter '{adapter}' in this model (adapters: {there}); adapter=None is the bare backbone")
        return {"params": self.backbone, "lora": self.adapters[adapter]}

    def export(self, path: str | os.PathLike, adapter: str | None = None) -> None:
        """Writes a Hugging Face directory, with the adapter merged into the weights where one is named."""
        chosen = self.variables(adapter)
        backbone = lora.merge(chosen["params"], chosen["lora"]) if adapter else chosen["params"]
        save_pretrained(path, self.config, backbone, self.tokenizer)

    @property
    def pretrained(self) -> Pretrained:
        """The bare encoder, as `load_pretrained` gives it."""
        return Pretrained(self.config, self.backbone, self.tokenizer)


def load(path: str | os.PathLike) -> Model:
    """A model from a run's workdir (its newest step), a step's folder, a Hugging Face directory or a hub name.

    Prints trainable and total parameter counts of a run. Raises UserError where nothing can be loaded.
    """
    folder = checkpoints.find(pathlib.Path(path))
    if folder is None:
        start = load_pretrained(path)
        return Model(start.config, start.params, {}, {}, start.tokenizer, {})
    saved = checkpoints.read(folder)
    strategy = Strategy(saved.meta["strategy"], tuple((g, tuple(f)) for g, f in saved.meta["touch_table"]))
    tree = {"backbone": saved.backbone, "lora": saved.adapters, "head": saved.heads}
    trainable, total = trainable_and_total(strategy.counts(tree))
    print(f"{folder}: strategy {strategy.name}, step {saved.meta['step']}, {trainable:,} of {total:,} parameters trainable")
    adapters = saved.adapters
    if "shared" in adapters:  # one adapter that serves every family
        adapters = {f: adapters["shared"] for f in strategy.families}
    return Model(
        EncoderConfig(**saved.meta["encoder"]),
        saved.backbone,
        adapters,
        saved.heads,
        tokenizers.Tokenizer.from_str(saved.tokenizer),
        saved.meta,
    )
