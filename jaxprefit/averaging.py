"""Models between models: averages of weights that were trained from the same start."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxprefit.errors import UserError
from jaxprefit.loading import Model
from jaxprefit.strategies import Strategy


def averaged(models: Sequence[Model], shares: Sequence[float] | None = None) -> Model:
    """The mean of the models' backbones, entry by entry and without adapters: a "model soup" (Wortsman et al., 2022,
    arXiv 2203.05482).

    `shares` are the weights of the mean, all alike by default. Of a start encoder and what was trained from it this is
    WiSE-FT (Wortsman et al., 2022, arXiv 2109.01903): part of what training made the encoder forget comes back.

    Raises UserError for backbones of different shapes.
    """
    shares = [1 / len(models)] * len(models) if shares is None else list(shares)
    first = models[0]
    if any(m.config != first.config for m in models):
        raise UserError("only encoders of one shape can be averaged; take those of one start encoder")

    def mean(*leaves: np.ndarray) -> np.ndarray:
        return np.asarray(sum(share * leaf for share, leaf in zip(shares, leaves, strict=True)), np.float32)

    backbone = jax.tree.map(mean, *(m.backbone for m in models))
    strategy = Strategy("averaged", (("backbone", ()),))
    return Model(first.config, {"backbone": backbone}, first.tokenizer, strategy, {"strategy": "averaged"})
