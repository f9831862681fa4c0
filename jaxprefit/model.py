"""Loading for use: a run's workdir, one of its steps, or a Hugging Face directory, on any machine."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict

from jaxprefit.checkpoints import reader
from jaxprefit.encoder import lora
from jaxprefit.encoder.huggingface import Pretrained, load_pretrained, save_pretrained
from jaxprefit.encoder.parameter_names import tree_shapes
from jaxprefit.encoder.sentence_settings import MEAN_OF_TOKENS, SentenceSettings
from jaxprefit.encoder.tokenization import batches_by_length, encode_text
from jaxprefit.encoder.transformer import POOLINGS, Encoder, EncoderConfig
from jaxprefit.errors import UserError, one_line
from jaxprefit.runtime.paths import user_path
from jaxprefit.strategies import Strategy, make, trainable_and_total

SHORTEST_SHARE = 16  # texts are padded to at least this part of the encoder's positions
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Vectors of B texts, float32 NumPy: `tokens` [B, L, D], zero at padding, `sentence` [B, D]; `mask` [B, L] bool.

    L is the number of tokens of the longest text.
    """

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
    sentence: SentenceSettings = MEAN_OF_TOKENS

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

    def encode(
        self,
        texts: Iterable[str],
        adapter: str | None = None,
        max_length: int | None = None,
        *,
        batch_size: int = 32,
        normalize: bool | None = None,
        tokens: bool = True,
    ) -> Encoded:
        """Vectors of `texts` in their order, through the adapter of that name, or through the bare backbone.

        A model without any adapter (naive, individual, a plain encoder) takes only adapter=None. Texts longer than
        `max_length` tokens are cut; None is what the encoder takes. `normalize` scales `sentence` to length 1; None
        does as the encoder's own files say. Texts are sorted by length and encoded `batch_size` at a time in few padded
        shapes, so that at most eight programs are compiled. `tokens=False` leaves `tokens` empty, [B, 0, D]: for many
        texts it is the token vectors that fill the memory.

        Raises UserError for what is no text, by its number, and for a setting that does not fit.
        """
        rows = [encode_text(self.tokenizer, t, self._longest(max_length)) for t in checked_texts(texts)]
        if type(batch_size) is not int or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}; give a whole number from 1 up")
        lone = len(rows) == 1
        padded = functools.partial(padded_length, positions=self.config.max_positions, step=4 if lone else 2)
        variables, apply = self._placed(adapter), _vectors(self.config, self.sentence.pooling)
        sizes = np.asarray([len(row) for row in rows], int)
        mask = np.arange(sizes.max(initial=0)) < sizes[:, None]
        length = mask.shape[1] if tokens else 0
        out = np.zeros((len(rows), length, self.config.hidden_size), np.float32)
        sentence = np.zeros((len(rows), self.config.hidden_size), np.float32)
        for numbers, ids, real in batches_by_length(rows, 1 if lone else batch_size, padded):
            hidden, pooled = apply(variables, ids, real)
            sentence[numbers] = np.asarray(pooled)[: len(numbers)]
            for number, vectors in zip(numbers, np.asarray(hidden) if tokens else ()):
                out[number, : sizes[number]] = vectors[: sizes[number]]
        if self.sentence.normalize if normalize is None else normalize:
            sentence /= np.maximum(np.linalg.norm(sentence, axis=1, keepdims=True), 1e-12)
        return Encoded(out, mask, sentence)

    def _longest(self, max_length: int | None) -> int:
        most = self.config.max_positions
        if max_length is None:
            return min(most, self.sentence.max_length or most)
        if isinstance(max_length, bool) or not isinstance(max_length, int | np.integer) or not 4 <= max_length <= most:
            raise UserError(f"max_length is {max_length!r}; this encoder takes 4 to {most} tokens")
        return int(max_length)

    @functools.cached_property
    def _on_device(self) -> dict[str | None, dict]:
        return {}

    def _placed(self, adapter: str | None) -> dict:
        """`variables` on the device, put there once; an adapter is merged, so that one program serves all."""
        chosen = self.variables(adapter)
        if adapter not in self._on_device:
            backbone = jax.tree.map(jnp.asarray, chosen["params"]) if adapter is None else self._placed(None)["params"]
            if adapter is not None:
                backbone = jax.tree.map(jnp.asarray, lora.merge(backbone, chosen["lora"]))
            self._on_device[adapter] = {"params": backbone}
        return self._on_device[adapter]

    def variables(self, adapter: str | None) -> dict:
        """The variables that `Encoder.apply` takes, with the adapter of that name."""
        if adapter is None:
            return {"params": self.backbone}
        if not isinstance(adapter, str) or adapter not in self.adapters:
            there = ", ".join(self.adapters) or "none"
            raise UserError(
                f"no adapter '{adapter}' in this model (adapters: {there}); adapter=None is the bare backbone"
            )
        return {"params": self.backbone, "lora": self.adapters[adapter]}

    def export(self, path: str | os.PathLike, adapter: str | None = None) -> None:
        """Writes a Hugging Face directory, with the adapter merged into the weights where one is named."""
        chosen = self.variables(adapter)
        backbone = lora.merge(chosen["params"], chosen["lora"]) if adapter else chosen["params"]
        save_pretrained(path, self.config, backbone, self.tokenizer, self.sentence)

    @property
    def pretrained(self) -> Pretrained:
        """The bare encoder, as `load_pretrained` gives it."""
        return Pretrained(self.config, self.backbone, self.tokenizer, self.sentence)


def checked_texts(texts: Iterable[str]) -> list[str]:
    """`texts` as a list. Raises UserError where they are no list of strings, with the first wrong one's number."""
    if isinstance(texts, str):
        raise UserError("encode() takes a list of texts; give one text as [text]")
    unordered = isinstance(texts, bytes | Mapping | set | frozenset) or not isinstance(texts, Iterable)
    if unordered or getattr(texts, "ndim", 1) != 1:  # a table would give the names of its columns
        shape = f" of shape {texts.shape}" if hasattr(texts, "shape") else ""
        raise UserError(f"encode() takes a list of texts, not {type(texts).__name__}{shape}")
    listed = list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            advice = "decode it first" if isinstance(text, bytes) else "give a string, or leave it out"
            raise UserError(
                f"texts[{number}] is {type(text).__name__} ({one_line(repr(text))[:40]}), not a text; {advice}"
            )
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"texts[{number}] holds half of a surrogate pair, which is no character; read it as UTF-8")
    return [str(text) for text in listed]  # of NumPy's own kind of string too


def padded_length(longest: int, positions: int, step: int) -> int:
    """The least of positions, positions / step, positions / step^2, ... from `longest` and a SHORTEST_SHARE up."""
    length = positions
    least = max(longest, -(-positions // SHORTEST_SHARE))
    while least <= (shorter := -(-length // step)) < length:
        length = shorter
    return length


@functools.cache
def _vectors(config: EncoderConfig, pooling: str) -> Callable[[Mapping, Any, Any], tuple[jax.Array, jax.Array]]:
    """Jitted (variables, ids [B, L], mask [B, L]) -> float32 (hidden [B, L, D], vectors of the texts [B, D]).

    Compiled once a process and shape, for all models and adapters.
    """

    def apply(variables: Mapping, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = cast(jax.Array, Encoder(config).apply(variables, ids, mask))
        return hidden.astype(jnp.float32), POOLINGS[pooling](hidden, mask)

    return jax.jit(apply)


def load(path: str | os.PathLike) -> Model:
    """A model from a run's workdir (its newest step), a step's folder, a Hugging Face directory or a hub name.

    Logs trainable and total parameter counts of a run. Raises UserError where nothing can be loaded.
    """
    place = user_path(path)
    folder = reader.find(place)
    if folder is None:
        known = ("config.json", "modules.json", "adapter_config.json")
        if place.is_dir() and not any((place / name).is_file() for name in known):
            raise UserError(f"{path} is neither a run (it has no checkpoints/) nor an encoder (it has no config.json)")
        weights = place / "model.safetensors"
        if weights.with_name("summary.json").is_file() and not weights.is_file():
            raise UserError(f"{path} is a run without its checkpoints/; copy that folder back, or train again")
        start = load_pretrained(path)
        return Model(start.config, {"backbone": start.params}, start.tokenizer, make("none", ()), {}, start.sentence)
    saved = reader.read(folder)
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


def averaged(models: Sequence[Model], shares: Sequence[float] | None = None) -> Model:
    """The mean of the models' backbones, entry by entry and without adapters: a "model soup" (Wortsman et al., 2022,
    arXiv 2203.05482).

    `shares` are the weights of the mean, all alike by default. Of a start encoder and what was trained from it this is
    WiSE-FT (Wortsman et al., 2022, arXiv 2109.01903): part of what training made the encoder forget comes back.

    Raises UserError for encoders of different shapes, and for another number of shares than of models.
    """
    shares = [1 / len(models)] * len(models) if shares is None else shares
    if len(shares) != len(models):
        raise UserError(f"{len(shares)} shares for {len(models)} models; give each its own")
    first = models[0]
    if any(_shape(m.config) != _shape(first.config) for m in models):
        raise UserError("only encoders of one shape can be averaged; take those of one start encoder")

    def mean(*leaves: np.ndarray) -> np.ndarray:
        return np.asarray(sum(share * leaf for share, leaf in zip(shares, leaves, strict=True)), np.float32)

    backbone = jax.tree.map(mean, *(m.backbone for m in models))
    strategy = Strategy("averaged", (("backbone", ()),))
    return Model(
        first.config, {"backbone": backbone}, first.tokenizer, strategy, {"strategy": "averaged"}, first.sentence
    )


def _shape(config: EncoderConfig) -> EncoderConfig:
    return dataclasses.replace(config, dtype="float32", hidden_dropout=0.0)  # these may differ
