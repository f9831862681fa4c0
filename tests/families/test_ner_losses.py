"""The losses of the NER family against a few lines of NumPy in float64, their gradients against central differences."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprefit.families.ner_losses import DROPPED, IGNORE, OUTSIDE, distill_loss, sigmoid_loss, softmax_loss

LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def sigmoid_by_numpy(head: dict, words: np.ndarray, concepts: np.ndarray, labels: Any, annotated: Any) -> float:
    losses = []
    for at in np.argwhere((labels >= 0) | (labels == OUTSIDE)):
        logits = np.exp(head["log_scale"]) * concepts @ words[tuple(at)] + head["bias"]
        p = 1 / (1 + np.exp(-logits))
        terms = np.where(np.arange(len(p)) == labels[tuple(at)], -np.log(p), -np.log(1 - p))
        losses.append(terms[annotated[tuple(at)]].sum())
    return float(np.mean(losses))


def softmax_by_numpy(head: dict, words: np.ndarray, concepts: np.ndarray, labels: Any, annotated: Any) -> float:
    losses = []
    for at in np.argwhere((labels >= 0) | (labels == OUTSIDE)):
        rivals = [*np.flatnonzero(annotated[tuple(at)]), OUTSIDE]
        vectors = np.stack([unit_rows(head["outside"]) if c == OUTSIDE else concepts[c] for c in rivals])
        p = np.exp(np.exp(head["log_scale"]) * vectors @ words[tuple(at)])
        losses.append(-np.log(p[rivals.index(labels[tuple(at)])] / p.sum()))
    return float(np.mean(losses))


def distill_by_numpy(head: dict, hidden: np.ndarray, teacher: np.ndarray, real: np.ndarray) -> float:
    found = unit_rows(hidden @ head["projection"]["kernel"] + head["projection"]["bias"])
    return float(np.mean([1 - found[i] @ teacher[i] for i in np.argwhere(real).T[0]]))


BY_NUMPY = {"sigmoid": sigmoid_by_numpy, "softmax": softmax_by_numpy}


def case(seed: int = 0) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(head, words [3, 5, 6], concepts [4, 6], labels [3, 5], annotated [3, 5, 4]), float64."""
    rng = np.random.default_rng(seed)
    head = {"log_scale": np.asarray(1.1), "bias": np.asarray(-0.7), "outside": rng.normal(size=6)}
    labels = [[IGNORE, 0, IGNORE, OUTSIDE, IGNORE], [DROPPED, 2, 1, OUTSIDE, OUTSIDE], [IGNORE, OUTSIDE, 3, 3, IGNORE]]
    by_row = np.asarray([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool)
    words, concepts = unit_rows(rng.normal(size=(3, 5, 6))), unit_rows(rng.normal(size=(4, 6)))
    return head, words, concepts, np.asarray(labels), np.repeat(by_row[:, None], 5, axis=1)


@functools.cache
def compiled(loss: Callable) -> Callable:
    return jax.jit(jax.value_and_grad(lambda *inputs: loss(*inputs)[0], (0, 1, 2)))


def value_and_slopes(loss: Callable, *inputs: Any) -> tuple[float, list[np.ndarray]]:
    """Loss, and its gradients in the first three of `inputs`, as a flat list."""
    inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if x.dtype == np.float64 else jnp.asarray(x), inputs)
    value, slopes = compiled(loss)(*inputs)
    return float(value), [np.asarray(s) for s in jax.tree.leaves(slopes)]


def central_differences(loss: Callable, *inputs: Any) -> list[np.ndarray]:
    """Gradients of `loss` in the first three of `inputs` (float64), as a flat list."""
    leaves, tree = jax.tree.flatten(inputs[:3])
    leaves = [np.array(leaf) for leaf in leaves]
    out = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slope in zip(leaves, out):
        for i in np.ndindex(leaf.shape):
            old, ends = leaf[i].copy(), []
            for moved in (old + 1e-5, old - 1e-5):
                leaf[i] = moved
                ends.append(loss(*jax.tree.unflatten(tree, leaves), *inputs[3:]))
            leaf[i] = old
            slope[i] = (ends[0] - ends[1]) / 2e-5
    return out


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 10])
def test_loss_and_gradients_equal_numpy(name: str, seed: int) -> None:
    value, slopes = value_and_slopes(LOSSES[name], *case(seed))
    np.testing.assert_allclose(value, BY_NUMPY[name](*case(seed)), rtol=1e-5)
    for found, wanted in zip(slopes, central_differences(BY_NUMPY[name], *case(seed)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def distill_case() -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    head = {"projection": {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=4)}}
    return head, rng.normal(size=(5, 6)), unit_rows(rng.normal(size=(5, 4))), np.asarray([1, 0, 1, 1, 0], bool)


def test_distill_loss_and_gradients_equal_numpy() -> None:
    value, slopes = value_and_slopes(distill_loss, *distill_case())
    np.testing.assert_allclose(value, distill_by_numpy(*distill_case()), rtol=1e-5)
    for found, wanted in zip(slopes, central_differences(distill_by_numpy, *distill_case()), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_distill_reads_nothing_at_padding() -> None:
    head, hidden, teacher, real = distill_case()
    wild = [np.where(real[:, None], x, 77.0) for x in (hidden, teacher)]
    value, slopes = value_and_slopes(distill_loss, head, hidden, teacher, real)
    other, other_slopes = value_and_slopes(distill_loss, head, *wild, real)
    assert value == other
    for a, b in zip(slopes, other_slopes):
        np.testing.assert_array_equal(a, b)
    assert value_and_slopes(distill_loss, head, hidden, teacher, np.zeros(5, bool))[0] == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_a_type_that_a_source_does_not_annotate_contributes_nothing(name: str) -> None:
    head, words, concepts, labels, annotated = case()
    words, labels, annotated = words[:2], labels[:2], annotated[:2]  # nobody here annotates the last concept
    moved = np.concatenate([concepts[:3], unit_rows(np.ones((1, 6)))])
    value, slopes = value_and_slopes(LOSSES[name], head, words, concepts, labels, annotated)
    other, other_slopes = value_and_slopes(LOSSES[name], head, words, moved, labels, annotated)
    assert value == other
    for a, b in zip(slopes, other_slopes):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(slopes[-1][3], 0.0)
    assert np.abs(slopes[-1][:3]).min() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_only_words_contribute(name: str) -> None:
    """Neither later sub-words, nor words whose concept was dropped."""
    head, words, concepts, labels, annotated = case()
    word = (labels >= 0) | (labels == OUTSIDE)
    value, slopes = value_and_slopes(LOSSES[name], head, words, concepts, labels, annotated)
    wild = np.where(word[..., None], words, unit_rows(np.ones(6)))
    assert value == value_and_slopes(LOSSES[name], head, wild, concepts, labels, annotated)[0]
    slope = slopes[-2]
    np.testing.assert_array_equal(slope[~word], 0.0)
    assert (np.abs(slope[word]).sum(-1) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_words_has_loss_zero(name: str) -> None:
    head, words, concepts, labels, annotated = case()
    for nothing in (annotated, np.zeros_like(annotated)):
        value, slopes = value_and_slopes(LOSSES[name], head, words, concepts, np.full_like(labels, IGNORE), nothing)
        assert value == 0.0 and all((s == 0).all() for s in slopes)


@pytest.mark.parametrize("name", LOSSES)
def test_accuracy_is_over_words_inside_entities(name: str) -> None:
    head = {"log_scale": np.float32(2.0), "bias": np.float32(-1.0), "outside": np.asarray([0, 0, 0, 1.0])}
    # Right; wrong; right but below "no entity"; right since the better one is not annotated; outside; no place.
    words = np.asarray(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0.1, 0, 0, 0.7], [0.5, 0, 0.8, 0], [0, 0, 1, 0], [0, 1, 0, 0]], np.float32
    )
    labels = np.asarray([0, 0, 0, 0, OUTSIDE, DROPPED])
    annotated = np.asarray([[True, True, False]] * 6)
    _, metrics = LOSSES[name](head, words, jnp.eye(4)[:3], labels, annotated)
    assert metrics["accuracy"] == 0.5 and metrics["dropped"] == 1


def test_no_entity_is_learned_from_words_outside() -> None:
    """Under softmax its vector moves toward words outside and away from words inside."""
    head, words, concepts, labels, annotated = case()
    for label, sign in ((OUTSIDE, 1), (3, -1)):
        only = np.full_like(labels, IGNORE)
        only[2, 2] = label
        _, slopes = value_and_slopes(softmax_loss, head, words, concepts, only, annotated)
        outside = slopes[sorted(head).index("outside")]
        assert sign * -outside @ words[2, 2] > 0
