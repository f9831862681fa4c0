"""Gradient caching changes memory and nothing else; negatives come from all devices."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden.model_files import tokenizer
from helpers.paths import ROOT

from jaxprefit import strategies
from jaxprefit.data.packing import Layout, pack
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, init_backbone, pool_segments
from jaxprefit.families import FAMILIES, ClassificationFamily
from jaxprefit.families.tc_supervised import LabelledFamily
from jaxprefit.families.text_vectors import text_vectors
from jaxprefit.runtime.sharding import make_mesh, put_batch, put_state
from jaxprefit.training import train_step

CONFIG = EncoderConfig(
    vocab_size=97, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, max_positions=32, hidden_dropout=0.1
)
CONTRASTIVE = ClassificationFamily(tokenizer(), 16, 0.05, dims=(8,), negatives=True)
SUPERVISED = LabelledFamily(tokenizer(), 16, 0, {"x": ("0", "1"), "y": ("0", "1", "2")})
ROWS = 16
QUICK = {"xla_backend_optimization_level": 0}  # to compile; buffers are the same
STRATEGY = strategies.make("individual_tc", FAMILIES)


def setup(family: Any, chunk_rows: int) -> train_step.Setup:
    return train_step.Setup(Encoder(CONFIG), {"tc": dataclasses.replace(family, chunk_rows=chunk_rows)}, STRATEGY, {})


def batch(family: Any, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Random texts, packed until the rows are full."""
    rng, layout = np.random.default_rng(0), Layout(rows, 32, 2)
    examples = []
    for i in range(rows):
        n = 2 + i % 2 if family is CONTRASTIVE else 1
        texts = tuple(rng.integers(5, 97, rng.integers(8, 17)).astype(np.int32) for _ in range(n))
        which = i % 2
        keys = tuple(int(k) for k in rng.integers(0, 99, n))
        examples.append({"texts": texts, "keys": keys, "set": which, "label": 2 * which + int(rng.integers(2 + which))})
    placed, packing = pack([[len(t) for t in e["texts"]] for e in examples], layout)
    return family.collate([examples[k] for k in placed], packing)


@functools.cache
def flat() -> dict[str, jax.Array]:
    """Parameters by path; larger than fresh ones, so that texts differ."""
    backbone = jax.jit(functools.partial(init_backbone, CONFIG))(jax.random.key(0))
    return {path: 4 * x for path, x in train_step.flatten_dict({"backbone": backbone}, sep="/").items()}


def gradients(family: Any, chunk_rows: int) -> Any:
    """Jitted (flat, batch) -> (loss, metrics, gradients), without dropout."""
    made = setup(family, chunk_rows)
    return jax.jit(lambda f, b: train_step.family_gradients(made, "tc", f, b, None), compiler_options=QUICK)


@functools.cache
def compiled(rows: int, chunk_rows: int) -> Any:
    """The same of the contrastive family, compiled for a number of rows."""
    return gradients(CONTRASTIVE, chunk_rows).lower(flat(), batch(CONTRASTIVE, rows)).compile()


def assert_same_gradients(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """To 1e-5 of each tensor's norm. Attention does not depend on the keys' bias: its gradient is rounding alone."""
    whole = np.sqrt(sum(np.sum(np.square(g)) for g in wanted.values()))
    assert found.keys() == wanted.keys() and whole > 0.1
    for path, g in wanted.items():
        scale = whole if path.endswith("key/bias") else np.linalg.norm(g)
        error = np.linalg.norm(found[path] - g)
        assert error <= 1e-5 * scale, f"{path}: {error / scale:.1e}"


def test_loss_and_gradients_are_those_of_the_whole_batch() -> None:
    parameters, rows = flat(), batch(CONTRASTIVE)
    assert rows["valid"].sum() > ROWS / 2 and rows["c_valid"].any() and (rows["segments"] == 0).any()
    loss, metrics, wanted = compiled(ROWS, 0)(parameters, rows)
    cached_loss, cached_metrics, found = compiled(ROWS, 4)(parameters, rows)
    np.testing.assert_allclose(cached_loss, loss, rtol=1e-6)
    assert cached_metrics == metrics
    assert_same_gradients(found, wanted)


def test_the_supervised_loss_can_be_cached_as_well() -> None:
    kernel = 0.1 * jax.random.normal(jax.random.key(1), (32, 5))
    parameters = {**flat(), "head/tc/kernel": kernel, "head/tc/bias": jnp.zeros(5)}
    rows = batch(SUPERVISED)
    whole, cached = (train_step.make_eval(setup(SUPERVISED, n), "tc")(parameters, rows) for n in (0, 8))
    np.testing.assert_allclose(cached["loss"], whole["loss"], rtol=1e-6)
    assert cached["accuracy"] == whole["accuracy"] and rows["valid"].sum() == ROWS


def test_each_chunk_has_dropout_of_its_own_and_the_same_when_encoded_again() -> None:
    """Against the chunks one by one, whose activations are kept, not computed again."""
    parameters, rows, chunks = flat(), batch(CONTRASTIVE), 4
    rows["input_ids"][:], rows["segments"][:] = rows["input_ids"][0], rows["segments"][0]  # all rows alike
    weights = jax.random.normal(jax.random.key(3), (2 * ROWS, 32))

    def cached(encode: Any, ids: jax.Array, segments: jax.Array) -> jax.Array:
        return text_vectors(encode, ids, segments, 2, ROWS // chunks)

    def one_by_one(encode: Any, ids: jax.Array, segments: jax.Array) -> jax.Array:
        parts = [
            pool_segments(encode(ids[i::chunks], segments[i::chunks], fold=i), segments[i::chunks], 2)
            for i in range(chunks)
        ]
        return jnp.stack(parts).reshape(chunks, ROWS // chunks, 2, 32).swapaxes(0, 1).reshape(-1, 32)

    def run(method: Any) -> Any:
        def loss(f: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            def vectors(_: Any, encode: Any, b: Any) -> jax.Array:
                return method(encode, b["input_ids"], b["segments"])

            out = train_step.apply_family(setup(CONTRASTIVE, 0), "tc", f, rows, vectors, jax.random.key(7))
            return (out * weights).sum(), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(parameters)

    (_, out), found = run(cached)
    (_, wanted_out), wanted = run(one_by_one)
    np.testing.assert_allclose(out, wanted_out, atol=1e-5)
    assert_same_gradients(found, wanted)
    first_texts = np.asarray(out).reshape(ROWS, 2, 32)[:, 0]
    assert len(np.unique(first_texts.round(3), axis=0)) == ROWS, "no two rows share their dropout"


def test_memory_does_not_grow_with_the_batch() -> None:
    def temporary_bytes(rows: int, chunk_rows: int) -> int:
        return compiled(rows, chunk_rows).memory_analysis().temp_size_in_bytes

    small, whole, cached = temporary_bytes(ROWS, 0), temporary_bytes(16 * ROWS, 0), temporary_bytes(16 * ROWS, ROWS)
    assert whole > 12 * small, "16 times the rows, not in chunks"
    assert cached < 3 * small, "16 times the rows: what grows are vectors and the similarity matrix"


def on_eight_devices() -> dict[str, Any]:
    """What the process of eight devices reports: losses, and gradients as errors against one device."""
    plain = dataclasses.replace(CONTRASTIVE, dims=(), negatives=False)
    parameters, rows = flat(), batch(CONTRASTIVE)
    out: dict[str, Any] = {"devices": jax.device_count()}
    one, eight = make_mesh(1), make_mesh(8)
    loss, _, wanted = gradients(plain, 0)(put_state(one, parameters), put_batch(one, rows))
    out["loss of one device"] = float(loss)
    for chunk_rows in (0, 8):
        loss, _, found = gradients(plain, chunk_rows)(put_state(eight, parameters), put_batch(eight, rows))
        assert_same_gradients(jax.device_get(found), jax.device_get(wanted))
        out[f"loss in chunks of {chunk_rows}"] = float(loss)
    # What it would be if each device saw only its own pairs.
    evaluate = train_step.make_eval(setup(plain, 0), "tc")
    block = np.arange(len(rows["valid"])) // (len(rows["valid"]) // 8)
    losses = []
    for device in range(8):
        own = rows["valid"] & (block == device)
        if own.any():
            losses.append(float(evaluate(parameters, {**rows, "valid": own})["loss"]))
    out["loss per device"] = float(np.mean(losses))
    return out


def test_negatives_come_from_all_devices() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    code = "import json, conftest, test_gradient_caching as t; print(json.dumps(t.on_eight_devices()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests",
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'tests/families'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("devices") == 8
    one, alone = found.pop("loss of one device"), found.pop("loss per device")
    np.testing.assert_allclose(list(found.values()), one, rtol=1e-5)
    assert len(found) == 2 and alone < one - 0.5, "fewer negatives, so an easier task"
