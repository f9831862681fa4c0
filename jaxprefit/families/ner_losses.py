"""The losses of the NER family, on word vectors of any layout.

words [..., D] unit vectors, concepts [K, D] unit vectors, labels [...] int32 (place among the K, OUTSIDE, or IGNORE and
DROPPED, which are no words here), annotated [..., K] bool. Each gives (loss, metrics). The metric `accuracy` is over
words inside entities: the right concept scores highest among the annotated ones, and above "no entity".
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxprefit.encoder.transformer import unit

IGNORE = -1  # not a first sub-word
OUTSIDE = -2  # a word outside any entity
DROPPED = -3  # an entity word whose concept found no place in the batch

NEVER = -1e30  # a logit that is not there; finite, so that no product with a zero gradient is NaN

Result = tuple[jax.Array, dict[str, jax.Array]]


def sigmoid_loss(
    head: Mapping, words: jax.Array, concepts: jax.Array, labels: jax.Array, annotated: jax.Array
) -> Result:
    """Binary cross-entropy of scaled word . concept products, summed over annotated concepts, mean over words.

    As NuNER (arXiv 2402.15343), with the learned scale and bias of SigLIP (arXiv 2303.15343). "No entity" is every
    concept below one half: a word outside any entity is a negative of all that its source annotates.
    """
    logits = jnp.exp(head["log_scale"]) * (words @ concepts.T) + head["bias"]
    targets = jax.nn.one_hot(labels, concepts.shape[0])  # a negative label is no concept
    losses = jnp.where(annotated, optax.sigmoid_binary_cross_entropy(logits, targets), 0.0).sum(-1)
    return _mean_over_words(losses, labels), _metrics(logits, labels, annotated, 0.0)


def softmax_loss(
    head: Mapping, words: jax.Array, concepts: jax.Array, labels: jax.Array, annotated: jax.Array
) -> Result:
    """Cross-entropy of each word over its annotated concepts and "no entity", mean over words.

    "No entity" is a learned vector `head['outside']` [D]: the right answer of every word outside any entity, and a
    rival in every word inside. A type that a source does not annotate is no rival there.
    """
    scale = jnp.exp(head["log_scale"])
    outside = scale * (words @ unit(head["outside"]))
    logits = jnp.where(annotated, scale * (words @ concepts.T), NEVER)
    right = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    total = jnp.logaddexp(jax.nn.logsumexp(logits, -1), outside)
    losses = total - jnp.where(labels == OUTSIDE, outside, right)
    return _mean_over_words(losses, labels), _metrics(logits, labels, annotated, outside)


def distill_loss(head: Mapping, hidden: jax.Array, teacher: jax.Array, real: jax.Array) -> Result:
    """1 - cosine of projected token vectors and a teacher's, mean over real tokens.

    hidden [..., D]; teacher [..., T] unit vectors; real [...] bool.
    """
    projected = unit(hidden @ head["projection"]["kernel"] + head["projection"]["bias"])
    cosine = jnp.where(real, (projected * teacher).sum(-1), 0.0).sum() / jnp.maximum(real.sum(), 1)
    return jnp.where(real.any(), 1.0 - cosine, 0.0), {"cosine": cosine}


def is_word(labels: jax.Array) -> jax.Array:
    """Which of `labels` [...] are of words that the loss is about."""
    return (labels >= 0) | (labels == OUTSIDE)


def _mean_over_words(losses: jax.Array, labels: jax.Array) -> jax.Array:
    words = is_word(labels)
    return jnp.where(words, losses, 0.0).sum() / jnp.maximum(words.sum(), 1)


def _metrics(
    logits: jax.Array, labels: jax.Array, annotated: jax.Array, no_entity: jax.Array | float
) -> dict[str, jax.Array]:
    scores = jnp.where(annotated, logits, -jnp.inf)
    entity = labels >= 0
    correct = entity & (scores.argmax(-1) == labels) & (scores.max(-1) > no_entity)
    return {
        "accuracy": correct.sum() / jnp.maximum(entity.sum(), 1),
        "dropped": (labels == DROPPED).sum(),
    }
