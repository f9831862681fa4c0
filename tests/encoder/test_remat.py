"""Rematerialisation changes the memory of a gradient and nothing else; half precision stays within the encoder."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run

from experiments.common import assembly, family_data
from jaxprefit.encoder.lora import LoraSpec, init_lora
from jaxprefit.encoder.transformer import REMAT, Encoder, EncoderConfig, init_backbone
from jaxprefit.runtime.sharding import put_batch
from jaxprefit.training import train_step

CONFIG = EncoderConfig(97, 32, 8, 4, 128, 64, hidden_dropout=0.1)
OPTIONS = {
    "xla_backend_optimization_level": 0,  # to compile quickly; buffers are the same
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",  # by default the CPU's order is for parallelism
}
BATCH = (16, 64)


@functools.cache
def variables() -> dict[str, Any]:
    adapter = init_lora(LoraSpec(2, rank=2), CONFIG, jax.random.key(1))
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)  # a factor that starts at zero would hide the other
    return {"params": jax.jit(functools.partial(init_backbone, CONFIG))(jax.random.key(0)), "lora": adapter}


@functools.cache
def compiled(remat: str) -> Any:
    """variables -> gradients of a loss with dropout."""
    ids = jax.random.randint(jax.random.key(2), BATCH, 5, 97)
    segments = jnp.ones(BATCH, jnp.int32).at[:, 40:].set(2)

    def loss(v: Any) -> jax.Array:
        hidden: Any = Encoder(CONFIG, remat).apply(
            v, ids, segments, lora_dropout=0.1, deterministic=False, rngs={"dropout": jax.random.key(3)}
        )
        return jnp.square(hidden[:, ::7]).mean() + hidden[:, 0, :5].sum()

    return jax.jit(jax.grad(loss), compiler_options=OPTIONS).lower(variables()).compile()


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_gradients_are_the_same_with_dropout_and_adapter(remat: str) -> None:
    found, wanted = (jax.tree_util.tree_leaves_with_path(compiled(r)(variables())) for r in (remat, "none"))
    for (path, a), (_, b) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3), err_msg=str(path))


def test_less_is_kept_in_memory() -> None:
    temporary = {r: compiled(r).memory_analysis().temp_size_in_bytes for r in REMAT}
    assert temporary["full"] < 0.7 * temporary["none"], temporary
    assert temporary["full"] < temporary["dots"] < temporary["none"], temporary


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of those within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_in_half_precision_weights_moments_losses_softmax_and_gram_are_float32(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    cache = tmp_path_factory.getbasetemp() / "cache"
    config = run.config(cache, {"model.dtype": "bfloat16", "run.remat": "dots", "data.ner.loss": "softmax"})
    config.data.mlm.sources = ("generated:text?rows=100",)
    parts = assembly.make_run(config, tmp_path / "run")
    state, tx = assembly.fresh_state(parts)
    streams = family_data.streams(parts.data, parts.setup.families, config, 0)
    batches = {name: put_batch(parts.mesh, next(stream).batch) for name, stream in streams.items()}
    for stream in streams.values():
        stream.close()
    step: Any = assembly.make_step(parts, tx, config)
    after, metrics = jax.eval_shape(step, state, batches)
    floats = [x for x in jax.tree.leaves((state, after, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert {"loss/ner", "loss/tc", "loss/mlm", "gram/layer_0"} <= metrics.keys()
    for name, batch in batches.items():
        evaluate = jax.make_jaxpr(train_step.make_eval(parts.setup, name))(state.params, batch)
        inputs: dict[str, set[Any]] = {}
        for equation in equations(evaluate.jaxpr):
            inputs.setdefault(equation.primitive.name, set()).update(v.aval.dtype for v in equation.invars)
        assert inputs["exp"] == inputs["log"] == {jnp.dtype("float32")}, f"{name}: of softmax and losses"
        assert jnp.dtype("bfloat16") in inputs["dot_general"], "the encoder does compute in half precision"
