"""ONNX Runtime against JAX: graphs, adapters of a run, heads, the split pair, int8."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.bundles import CASES, bundle

from jaxprefit.encoder import lora
from jaxprefit.errors import UserError
from jaxprefit.export import parity
from jaxprefit.export.parity import compare, sample_texts

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from jaxprefit.export import int8, onnx, onnx_graph  # noqa: E402 (needs the packages above)


@pytest.mark.parametrize(
    ("case", "pooling", "normalize"), [*((case, "mean", False) for case in CASES), ("bert", "cls", True)]
)
def test_graph_gives_the_vectors_of_jax(case: str, pooling: str, normalize: bool, tmp_path: Path) -> None:
    made = bundle(tmp_path, case, pooling=pooling, normalize=normalize)
    onnx.write(tmp_path, made, split=True)
    opened = [onnx.open_onnxruntime(tmp_path, made), onnx.open_split(tmp_path, made)]
    readings = compare(made, opened, sample_texts(made, 12))
    assert len(readings) == 2 * 4
    for r in readings:
        assert max(r.tokens, r.sentences) < 1e-5
        assert r.alone < 1e-5
        if r.adapter:
            assert r.effect is not None
            assert r.effect > 0.1
            assert r.effect == pytest.approx(r.effect_in_jax, abs=1e-5)
    assert {r.adapter for r in readings if r.logits is not None} == {"ner", "tc"}
    assert all(r.logits < 1e-5 for r in readings if r.logits is not None)


def test_one_session_switches_adapters_back_and_forth(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    onnx.write(tmp_path, made)
    opened, expect = onnx.open_onnxruntime(tmp_path, made), parity.reference(made)
    ids, mask = np.arange(20, dtype=np.int32).reshape(2, 10), np.ones((2, 10), bool)
    for variant in (None, "ner", "tc", "ner", None, "odd"):
        np.testing.assert_allclose(opened.vectors(ids, mask, variant)[0], expect(ids, mask, variant)[0], atol=1e-5)


def test_an_adapter_file_fits_whatever_its_rank(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    onnx.write(tmp_path, made)
    padded = onnx_graph.adapter_inputs(lora.pad(made.adapters["ner"], 11))
    onnx.write_adapter(tmp_path / "padded.onnx_adapter", padded)
    session = onnx.session(tmp_path / "encoder.onnx")
    ids, mask = np.arange(8, dtype=np.int32)[None], np.ones((1, 8), bool)
    active = onnx.active(tmp_path / "padded.onnx_adapter")
    tokens, _ = session.run(None, onnx.feed(ids, mask), active[0])
    np.testing.assert_allclose(tokens, parity.reference(made)(ids, mask, "ner")[0], atol=1e-5)


def test_stacked_adapters_run_one_text_through_all_of_them(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    made = dataclasses.replace(made, adapters={n: made.adapters[n] for n in ("ner", "tc")}, heads={})
    onnx.write(tmp_path, made, split=True)
    ids, mask = np.arange(8, dtype=np.int32)[None], np.ones((1, 8), bool)
    (hidden,) = onnx.session(tmp_path / "trunk.onnx").run(None, onnx.feed(ids, mask))
    # Ranks padded to the largest; a map that an adapter lacks is a zero matrix.
    inputs = [onnx_graph.adapter_inputs(lora.pad(a, 8)) for a in made.adapters.values()]
    zeros = {name: np.zeros_like(array) for given in inputs for name, array in given.items()}
    stacked = {name: np.stack([(zeros | given)[name] for given in inputs]) for name in zeros}
    upper = onnx.session(tmp_path / "top.onnx")
    feed = {"hidden": hidden, "attention_mask": mask.astype(np.int64), **stacked}
    tokens, sentences = upper.run(None, feed)
    expect = parity.reference(made)
    for row, name in enumerate(made.adapters):
        expected = expect(ids, mask, name)
        np.testing.assert_allclose(tokens[row], expected[0][0], atol=1e-5)
        np.testing.assert_allclose(sentences[row], expected[1][0], atol=1e-5)


def test_an_adapter_of_another_place_is_refused_by_the_runtime(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    made = dataclasses.replace(made, adapters={"tc": made.adapters["tc"]}, heads={})
    onnx.write(tmp_path, made)
    onnx.write_adapter(tmp_path / "other.onnx_adapter", onnx_graph.adapter_inputs(bundle(tmp_path).adapters["odd"]))
    ids, mask = np.arange(8, dtype=np.int32)[None], np.ones((1, 8), bool)
    active = onnx.active(tmp_path / "other.onnx_adapter")
    with pytest.raises(Exception, match="layer_0"):
        onnx.session(tmp_path / "encoder.onnx").run(None, onnx.feed(ids, mask), active[0])


def test_a_graph_without_adapters_takes_later_ones_on_every_map(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    onnx.write(tmp_path / "bare", dataclasses.replace(made, adapters={}, heads={}))
    onnx.write_adapter(tmp_path / "odd.onnx_adapter", onnx_graph.adapter_inputs(made.adapters["odd"]))
    ids, mask = np.arange(8, dtype=np.int32)[None], np.ones((1, 8), bool)
    active = onnx.active(tmp_path / "odd.onnx_adapter")
    tokens, _ = onnx.session(tmp_path / "bare" / "encoder.onnx").run(None, onnx.feed(ids, mask), active[0])
    np.testing.assert_allclose(tokens, parity.reference(made)(ids, mask, "odd")[0], atol=1e-5)


@pytest.mark.parametrize(
    ("case", "bits", "activations"),
    [("bert", 8, False), ("bert", 8, True), ("bert", 4, False), ("distilbert", 4, True)],
)
def test_int8_is_near_and_no_text_depends_on_its_batch(case: str, bits: int, activations: bool, tmp_path: Path) -> None:
    made = bundle(tmp_path, case)
    onnx.write(tmp_path / "int8", made, {"table_bits": bits, "activations": activations})
    readings = compare(made, [onnx.open_onnxruntime(tmp_path / "int8", made)], sample_texts(made, 16))
    assert all(r.cosine_least > parity.LEAST_COSINE for r in readings)
    assert all(r.sentences > 1e-4 for r in readings)  # it is quantised
    assert all(r.alone < 1e-5 for r in readings)


def test_int8_table_and_matrices_take_a_quarter_and_an_eighth(tmp_path: Path) -> None:
    import onnx as package

    made = bundle(tmp_path)
    kernels = sum(np.size(made.backbone[f"layer_{i}"][m]["kernel"]) for i in range(3) for m in onnx_graph.LINEAR_MAPS)
    table = made.backbone["embeddings"]["word"]["embedding"]
    for bits in (8, 4):
        onnx.write(tmp_path / str(bits), made, {"table_bits": bits})
        tensors = package.load(tmp_path / str(bits) / "encoder.onnx").graph.initializer
        kinds = package.TensorProto
        sizes = {k: sum(np.prod(t.dims) for t in tensors if t.data_type == k) for k in (kinds.INT8, kinds.UINT8)}
        zeros = sum(
            np.shape(made.backbone[f"layer_{i}"][m]["bias"])[0] for i in range(3) for m in onnx_graph.LINEAR_MAPS
        )
        assert sizes[kinds.INT8] == kernels + zeros + (table.size if bits == 8 else 0)
        assert sizes[kinds.UINT8] == (table.size // 2 + 2 if bits == 4 else 0)  # 2: the mask and the shift


def test_quantised_values_are_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    array = (rng.normal(size=(50, 64)) * rng.uniform(0.01, 10, (50, 1))).astype(np.float32)
    array[7] = 0
    codes, scales = int8.quantized(array, 1)
    assert np.all(np.abs(codes * scales - array) <= scales * 0.5001)
    packed, steps = int8.packed(array)
    both = np.concatenate([packed & 15, packed >> 4], 1).astype(np.float32) - 8
    back = (both.reshape(50, 2, 32) * steps[..., None].astype(np.float32)).reshape(50, 64)
    # float16 keeps 11 bits of a step, so the outermost of 7 may lie 7 * 2^-11 steps further off.
    step = np.repeat(steps.astype(np.float32), 32, 1)
    assert np.all(np.abs(back - array) <= step * (0.5 + 7 * 2**-10))


def test_what_an_int8_table_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match="table_bits is 3"):
        int8.Int8(3)
    with pytest.raises(UserError, match="odd"):
        int8.packed(np.ones((4, 7), np.float32))
