"""Methods that weigh by the losses and learn their weights beside the model: FAMO by Adam, the others by plain descent.

The papers multiply losses. Here, as for every other method, the weights scale the gradients of the shared parameters
only: what one family trains alone stays as it is, and Adam would undo a scale there. Losses are those before
`loss_weight`. Uncertainty weighting and FAMO do not look at the Gram matrix, so their scopes are the same.

A loss that is not finite never enters what is learned: the aggregator leaves the state of that step as it was. The run
ends there (`run.nonfinite=stop`), or goes on without the step (`skip`).
"""

import jax
import jax.numpy as jnp

from jaxprefit.surgery.base import correlation

RATE = 0.025  # of the descent; in FAMO of Adam, as in the authors' code
FAMO_DECAY = 1e-3  # gamma in the paper's equation 9
ADAM = 0.9, 0.999, 1e-8  # decay of the mean and of the square, epsilon
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
    """Even weights of the log losses, no loss seen yet, and Adam's moments and counts at 0."""
    return {name: jnp.zeros(families) for name in ("logits", "previous", "mean", "square", "count")}


def famo(gram: jax.Array, losses: jax.Array, state: dict) -> tuple[jax.Array, dict]:
    """w_i proportional to z_i / L_i with sum 1, z = softmax(logits): a descent of sum_i z_i log L_i. A family whose
    log loss has fallen more than the others' since the step before gets a smaller logit.

    FAMO, Liu et al., 2023, arXiv 2306.03792, algorithm 1 with Adam on the logits, as in the authors' code. One thing
    differs: they take the loss of the same batch after the step, a second forward pass; here it is the next batch's.
    The difference between two batches then moves the logits too: from step to step it nearly cancels, and Adam, which
    divides by the slope's size, makes it the larger part of each single step.
    """
    now, previous = jnp.clip(losses, *_RANGE), state["previous"]
    seen = previous > 0
    fallen = jnp.where(seen, jnp.log(jnp.where(seen, previous, 1.0)) - jnp.log(now), 0.0)
    z = jax.nn.softmax(state["logits"])
    slope = z * (fallen - z @ fallen) + FAMO_DECAY * state["logits"]
    learned = {name: state[name] for name in ("logits", "mean", "square", "count")}
    learned = jax.tree.map(lambda new, old: jnp.where(seen, new, old), _adam(learned, slope), learned)
    return jax.nn.softmax(learned["logits"] - jnp.log(now)), {**learned, "previous": now}


def _adam(state: dict, slope: jax.Array) -> dict:
    """One step of Adam (arXiv 1412.6980) on the logits. A family counts its own steps, as it may be absent in some."""
    b1, b2, eps = ADAM
    count = state["count"] + 1
    mean, square = b1 * state["mean"] + (1 - b1) * slope, b2 * state["square"] + (1 - b2) * slope**2
    step = mean / (1 - b1**count) / (jnp.sqrt(square / (1 - b2**count)) + eps)
    return {"logits": state["logits"] - RATE * step, "mean": mean, "square": square, "count": count}


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
