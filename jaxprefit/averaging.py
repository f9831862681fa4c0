"""Models between models: averages of weights that were trained from the same start."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.strategies import Strategy


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
