"""Packed rows: every text laid out once and whole, and the encoder sees each as if it stood alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprefit.data.packing import Layout, pack, packed
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, init_backbone, mean_pool, pool_segments

CONFIG = EncoderConfig(50, 16, 2, 2, 32, max_positions=12)


@given(
    sizes=st.lists(st.lists(st.integers(2, 20), min_size=1, max_size=3), max_size=30),
    rows=st.integers(1, 5),
    length=st.sampled_from([20, 32, 48]),
)
def test_texts_are_laid_out_whole_and_apart(sizes: list[list[int]], rows: int, length: int) -> None:
    layout = Layout.of(rows, length)
    placed, packing = pack(sizes, layout)
    texts = [n for i in placed for n in sizes[i]]
    assert placed == sorted(placed) and packing.size.tolist() == texts
    laid = packing.lay([np.full(n, t + 1) for t, n in enumerate(texts)])
    assert [(laid == t + 1).sum() for t in range(len(texts))] == texts, "no text overwrites another"
    segments = packing.segments()
    assert laid.shape == segments.shape == (rows, length)
    np.testing.assert_array_equal(segments > 0, laid > 0)
    assert segments.max(initial=0) <= layout.per_row and len(set(packing.slot.tolist())) == len(texts)
    for t in range(len(texts)):
        where = np.argwhere(laid == t + 1)
        assert set(where[:, 0]) == {packing.row[t]} and where[0, 1] == packing.offset[t]
        assert (segments[laid == t + 1] == packing.segment[t]).all()
    left_out = [sizes[i] for i in range(len(sizes)) if i not in placed]
    room = length - (segments > 0).sum(1)
    free = (segments.max(1, initial=0) < layout.per_row) & (room > 0)
    for example in left_out:  # nothing was left out that would still fit as its only text
        assert len(example) > 1 or not (free & (room >= example[0])).any()


@given(st.data(), st.integers(1, 5), st.sampled_from([20, 32, 48]), st.integers(4, 20))
def test_as_many_texts_as_there_is_room_for_fit_whatever_their_sizes(
    data: st.DataObject, rows: int, length: int, longest: int
) -> None:
    layout = Layout.of(rows, length)
    room = layout.room(longest)
    sizes = data.draw(st.lists(st.integers(1, longest), min_size=room, max_size=room))
    assert pack([sizes], layout)[0] == [0]
    assert pack([[longest] * (room + 1)], layout)[0] == []


def test_a_text_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="a text of 33 tokens fits no row of 32"):
        next(packed([4, 33], Layout.of(8, 32)))


def test_best_fit_fills_rows() -> None:
    sizes = np.random.default_rng(0).integers(5, 40, 400)
    layout = Layout.of(32, 64)
    taken = sizes[: np.searchsorted(np.cumsum(sizes), layout.tokens) + 1]
    _, packing = pack([[int(n)] for n in sorted(taken, reverse=True)], layout)
    assert packing.size.sum() / layout.tokens > 0.95


apply = jax.jit(Encoder(CONFIG).apply)


@pytest.fixture(scope="module")
def backbone() -> dict:
    return init_backbone(CONFIG, jax.random.key(0))


@given(sizes=st.lists(st.integers(2, 12), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_a_text_among_others_has_the_hidden_states_it_has_alone(backbone: dict, sizes: list[int], seed: int) -> None:
    layout = Layout(6, 24, 4)
    placed, packing = pack([[n] for n in sizes], layout)
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, 50, sizes[i]) for i in placed]
    segments = jnp.asarray(packing.segments())
    together = apply({"params": backbone}, packing.lay(texts), segments)
    pooled = pool_segments(together, segments, layout.per_row)
    alone, mask = np.zeros((9, 12), np.int32), np.zeros((9, 12), bool)
    for t, text in enumerate(texts):
        alone[t, : len(text)], mask[t, : len(text)] = text, True
    apart = apply({"params": backbone}, alone, mask)
    vectors = mean_pool(apart, jnp.asarray(mask))
    assert np.isfinite(together).all()
    for t, text in enumerate(texts):
        row, offset = packing.row[t], packing.offset[t]
        np.testing.assert_allclose(together[row, offset : offset + len(text)], apart[t, : len(text)], atol=2e-5)
        np.testing.assert_allclose(pooled[packing.slot[t]], vectors[t], atol=2e-5)
    empty = np.setdiff1d(np.arange(layout.slots), packing.slot)
    assert (np.asarray(pooled)[empty] == 0).all()
