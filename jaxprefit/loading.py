"""Loading for use: a run's workdir, one of its steps, or a Hugging Face directory, on any machine."""

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence

import jax
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict

from jaxprefit import checkpoints, lora
from jaxprefit.data.encode import encode_text, pad_ids
from jaxprefit.encoder import Encoder, EncoderConfig, mean_pool
from jaxprefit.errors import UserError
from jaxprefit.parameter_names import tree_shapes
from jaxprefit.paths import user_path
from jaxprefit.pretrained import Pretrained, load_pretrained, save_pretrained
from jaxprefit.strategies import Strategy, make, trainable_and_total

_log = logging.getLogger(__name__)


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
    params: dict  # {'backbone': ..., 'lora': {adapter: ...}, 'head': {family: ...}} as float32 NumPy
    tokenizer: tokenizers.Tokenizer
    strategy: Strategy
    meta: dict  # of the checkpoint; empty for a Hugging Face directory

    @property
    def backbone(self) -> dict:
        """The encoder's own tree."""
        return self.params["backbone"]

    @property
    def heads(self) -> dict[str, dict]:
        """Pre-finetuning heads by family."""
        return self.params.get("head", {})

    @property
    def adapters(self) -> dict[str, dict]:
        """LoRA trees by the family they serve; empty for a plain encoder. A shared adapter serves every family."""
        named = {f: self.strategy.adapter_of(f) for f in self.strategy.families}
        return {f: self.params["lora"][a] for f, a in named.items() if a is not None}

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
        if not 4 <= max_length <= self.config.max_positions:
            raise UserError(f"max_length is {max_length}; this encoder takes 4 to {self.config.max_positions} tokens")
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
            raise UserError(
                f"no adapter '{adapter}' in this model (adapters: {there}); adapter=None is the bare backbone"
            )
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

    Logs trainable and total parameter counts of a run. Raises UserError where nothing can be loaded.
    """
    place = user_path(path)
    folder = checkpoints.find(place)
    if folder is None:
        if place.is_dir() and not (place / "config.json").is_file():
            raise UserError(f"{path} is neither a run (it has no checkpoints/) nor an encoder (it has no config.json)")
        weights = place / "model.safetensors"
        if weights.with_name("summary.json").is_file() and not weights.is_file():
            raise UserError(f"{path} is a run without its checkpoints/; copy that folder back, or train again")
        start = load_pretrained(path)
        return Model(start.config, {"backbone": start.params}, start.tokenizer, make("none", ()), {})
    saved = checkpoints.read(folder)
    strategy = Strategy(saved.meta["strategy"], tuple((group, tuple(f)) for group, f in saved.meta["touch_table"]))
    config = EncoderConfig(**saved.meta["encoder"])
    if wrong := unfit(config, strategy, saved.params):
        raise UserError(f"{folder}: the parameter {wrong} does not fit the item meta; copy the checkpoint again, whole")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(saved.tokenizer)
    except Exception as e:  # the library raises bare Exception
        raise UserError(f"{folder}: its tokenizer cannot be read; copy the checkpoint again, whole") from e
    trainable, total = trainable_and_total(strategy.counts(saved.params))
    at = f"strategy {strategy.name}, step {saved.meta['step']}"
    _log.info(f"{folder}: {at}, {trainable:,} of {total:,} parameters trainable")
    return Model(config, saved.params, tokenizer, strategy, saved.meta)


def unfit(config: EncoderConfig, strategy: Strategy, params: dict) -> str:
    """The first parameter that is missing, surplus or of another shape than `config` and `strategy` say; '' if none."""
    found = {path: np.shape(leaf) for path, leaf in flatten_dict(params["backbone"], sep="/").items()}
    wanted = tree_shapes(config)
    if wrong := [p for p in found.keys() | wanted.keys() if found.get(p) != wanted.get(p)]:
        return f"backbone/{min(wrong)}"
    if lacking := {*strategy.adapters} - {*params.get("lora", {})}:
        return f"lora/{min(lacking)}"
    for path in flatten_dict(params, sep="/"):
        try:
            strategy.group_of(path)
        except KeyError:
            return path
    return ""
