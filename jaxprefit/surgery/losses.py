"""Methods that weigh by the losses and learn their weights beside the model, by gradient descent.

The papers multiply losses. Here, as for every other method, the weights scale the clipped gradients of the shared
parameters only: what one family trains alone stays as it is, and Adam would undo a scale there. Losses are those before
`loss_weight`. Uncertainty weighting and FAMO do not look at the Gram matrix, so their scopes are the same.
"""

import jax
import jax.numpy as jnp

from jaxprefit.surgery.base import correlation

RATE = 0.025  # of the descent, as in FAMO
FAMO_DECAY = 1e-3
GRADNORM_ALPHA = 1.5  # how strongly a family that lags behind is helped
_RANGE = (1e-8, 1e8)  # of a loss, for its logarithm and ratio


def init_uncertainty(families: int) -> dict[str, jax.Array]:
    """Variances of 1."""
    return {"log_variance": jnp.zeros(families)}


def uncertainty(gram: jax.Array, losses: jax.Array, state: dict) -> tuple[jax.Array, dict]:
    """w_i = exp(-s_i) / 2, where s descends on sum_i (exp(-s_i) L_i + s_i) / 2, whose minimum is s_i = log L_i.

    Kendall, Gal and Cipolla, 2018, arXiv 1705.07115. The slope is cut at 1, against a first loss far from 1.
    """
    s = state["log_variance"]
    precision = jnp.exp(-s)
    slope = (1 - precision * jnp.clip(losses, *_RANGE)) / 2
    return precision / 2, {"log_variance": s - RATE * jnp.clip(slope, -1.0, 1.0)}


def init_famo(families: int) -> dict[str, jax.Array]:
    """Even weights of the log losses, and no loss seen yet."""
    return {"logits": jnp.zeros(families), "previous": jnp.zeros(families)}


def famo(gram: jax.Array, losses: jax.Array, state: dict) -> tuple[jax.Array, dict]:
    """w_i proportional to z_i / L_i with sum 1, z = softmax(logits): a descent of sum_i z_i log L_i. A family whose
    log loss has fallen more than the others' since the step before gets a smaller logit.

    FAMO, Liu et al., 2023, arXiv 2306.03792. They take the loss of the same batch after the step, a second forward
    pass; here it is the next batch's, so that logits also follow the noise of batches.
    """
    now, previous = jnp.clip(losses, *_RANGE), state["previous"]
    fallen = jnp.where(previous > 0, jnp.log(jnp.where(previous > 0, previous, 1.0)) - jnp.log(now), 0.0)
    z = jax.nn.softmax(state["logits"])
    slope = z * (fallen - z @ fallen) + FAMO_DECAY * state["logits"]
    logits = state["logits"] - RATE * slope
    return jax.nn.softmax(logits - jnp.log(now)), {"logits": logits, "previous": now}


def init_gradnorm(families: int) -> dict[str, jax.Array]:
    """Weights of 1, and no loss seen yet."""
    return {"logits": jnp.zeros(families), "first": jnp.zeros(families)}


def gradnorm(gram: jax.Array, losses: jax.Array, state: dict) -> tuple[jax.Array, dict]:
    """w = F softmax(logits), which descends on sum_i | w_i |g_i| - mean_j(w_j |g_j|) r_i^alpha |, the mean held fixed;
    r_i is the share of the first loss that is left, relative to the families' mean.

    Chen et al., 2018, arXiv 1711.02257; the softmax stands for their renormalisation and keeps weights positive.
    """
    norms, _, alive = correlation(gram)
    norms = jnp.where(alive, norms, 0.0)
    norms = norms / jnp.maximum(norms.max(), 1e-30)
    now = jnp.clip(losses, *_RANGE)
    first = jnp.where(state["first"] > 0, state["first"], now)
    left = now / first
    pull = (left / left.mean()) ** GRADNORM_ALPHA

    def weights(logits: jax.Array) -> jax.Array:
        return len(gram) * jax.nn.softmax(logits)

    def distance(logits: jax.Array) -> jax.Array:
        weighted = weights(logits) * norms
        return jnp.abs(weighted - jax.lax.stop_gradient(weighted.mean() * pull)).sum()

    logits = state["logits"] - RATE * jax.grad(distance)(state["logits"])
    return weights(state["logits"]), {"logits": logits, "first": first}
