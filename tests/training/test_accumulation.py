"""Accumulated gradients are those of the large batch, whatever the micro-batches hold."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden.model_files import tokenizer

from jaxprefit import strategies, surgery
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, init_backbone
from jaxprefit.families import FAMILIES, MlmFamily, NerFamily
from jaxprefit.families.ner_distill import DistillFamily
from jaxprefit.runtime.sharding import make_mesh
from jaxprefit.training import optim, train_step

CONFIG = EncoderConfig(vocab_size=97, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=32)
ROWS, LENGTH, PARTS = 8, 12, 4
QUICK = {"xla_backend_optimization_level": 0}  # to compile
SOURCES: list[Any] = [SimpleNamespace(name="news", types=("LOC", "ORG", "PER", "DATE", "TIME"), names={})]


def ner(loss: str, side: str) -> NerFamily:
    settings = {"max_length": 10, "loss": loss, "concept_encoder": side, "max_concepts": 8}
    return NerFamily.create(settings, SOURCES, tokenizer())


def families() -> dict[str, Any]:
    teacher: Any = SimpleNamespace(config=CONFIG)
    mlm = MlmFamily(tokenizer(), 10, 0.15, 4, np.arange(5, 97), None)
    distill = DistillFamily(tokenizer(), 10, teacher)
    return {"sigmoid": ner("sigmoid", "table"), "softmax": ner("softmax", "trained"), "distill": distill, "mlm": mlm}


def batch(family: Any) -> dict[str, np.ndarray]:
    """A batch whose rows hold very different numbers of tokens, words and predictions; the last row holds none."""
    rng = np.random.default_rng(0)
    sizes = np.asarray([12, 1, 7, 3, 12, 2, 9, 0])
    segments = (np.arange(LENGTH) < sizes[:, None]).astype(np.int32)
    out = {"input_ids": np.where(segments, rng.integers(5, 97, segments.shape), 0).astype(np.int32)}
    out["segments"] = segments
    if isinstance(family, MlmFamily):
        places = rng.integers(0, 4, ROWS) * (sizes > 0)
        out["positions"] = rng.integers(0, np.maximum(sizes, 1)[:, None], (ROWS, 4)).astype(np.int32)
        out["targets"] = rng.integers(5, 97, (ROWS, 4)).astype(np.int32)
        out["valid"] = np.arange(4) < places[:, None]
    elif isinstance(family, NerFamily):
        out["labels"] = np.where(segments, rng.choice([-3, -2, -1, *range(5)], segments.shape), -1).astype(np.int32)
        out["annotated"] = np.broadcast_to(np.arange(8) < 5, (ROWS, 2, 8)).copy()
        out |= family.side.collate(np.asarray([*range(5), 0, 0, 0]))
    else:
        teacher = rng.normal(size=(ROWS, LENGTH, 16)).astype(np.float32)
        out["teacher"] = teacher / np.linalg.norm(teacher, axis=-1, keepdims=True)
    return out


def start() -> Pretrained:
    backbone = jax.tree.map(lambda x: 4 * x, init_backbone(CONFIG, jax.random.key(0)))  # so that texts differ
    return Pretrained(CONFIG, backbone, tokenizer())


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """To 1e-5 of each tensor's norm. Attention does not depend on the keys' bias: its gradient is rounding alone."""
    whole = np.sqrt(sum(np.sum(np.square(g)) for g in wanted.values()))
    assert found.keys() == wanted.keys() and whole > 0
    for path, g in wanted.items():
        scale = whole if path.endswith("key/bias") else np.linalg.norm(g)
        assert np.linalg.norm(found[path] - g) <= 1e-5 * scale, path


@pytest.mark.parametrize("kind", ["softmax", "distill", "mlm"])
def test_gradients_loss_and_metrics_are_those_of_the_whole_batch(kind: str) -> None:
    family = families()[kind]
    strategy = strategies.make(f"individual_{family.name}", FAMILIES, family.constants, family.encoders)
    head = {family.name: family.init_head(jax.random.key(1), start())}
    flat = flatten_dict({"backbone": start().params, "head": head}, sep="/")
    rows = batch(family)

    def found(parts: int, rows: Any) -> Any:
        setup = train_step.Setup(Encoder(CONFIG), {family.name: family}, strategy, {}, parts={family.name: parts})
        step = functools.partial(train_step.family_gradients, setup, family.name, key=None)
        return jax.jit(lambda f, b: step(f, b), compiler_options=QUICK)(flat, rows)

    loss, metrics, wanted = found(1, rows)
    other_loss, other_metrics, accumulated = found(PARTS, rows)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=1e-6, err_msg=name)
    assert_same(accumulated, wanted)
    halves = [{k: v if k in family.of_batch else v[i::2] for k, v in rows.items()} for i in (0, 1)]
    counts = [int(family.counts(jax.tree.map(jnp.asarray, h))["loss"]) for h in halves]
    assert max(counts) > 1.2 * min(counts), "the mean of means would be another loss"


@pytest.mark.parametrize("clip", ["families", "combined"])
def test_gram_matrices_and_norms_are_those_of_the_large_batch(clip: str) -> None:
    """Of a step of two families: accumulation comes before clipping."""
    chosen = {"ner": families()["sigmoid"], "mlm": families()["mlm"]}
    strategy = strategies.make("naive", chosen, chosen["ner"].constants)
    cfg = optim.OptimizerConfig(clip=clip, clip_norm=0.1)
    heads = {name: f.init_head(jax.random.key(1), start()) for name, f in chosen.items()}
    params = {"backbone": start().params, "head": heads}
    batches = {name: batch(f) for name, f in chosen.items()}
    outcomes = []
    for parts in (1, PARTS):
        setup = train_step.Setup(Encoder(CONFIG), chosen, strategy, {}, parts=dict.fromkeys(chosen, parts))
        tx = optim.make_optimizer(strategy, flatten_dict(params, sep="/"), cfg)
        step = train_step.make_step(setup, tx, cfg, surgery.get("sum"), make_mesh(1), jax.random.key(2))
        outcomes.append(jax.device_get(step(train_step.init_state(jax.tree.map(jnp.array, params), tx), batches)[1]))
    metrics, other_metrics = outcomes
    assert {"gram/layer_0", "dropped/ner", "accuracy/mlm"} <= metrics.keys() == other_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)


def test_each_micro_batch_has_dropout_of_its_own() -> None:
    family = families()["mlm"]
    encoder = Encoder(dataclasses.replace(CONFIG, hidden_dropout=0.5))
    setup = train_step.Setup(encoder, {"mlm": family}, strategies.make("individual_mlm", FAMILIES), {})
    alone = {name: x[:1] for name, x in batch(family).items()}
    alone["valid"][:] = True
    twice = {name: np.repeat(x, 2, 0) for name, x in alone.items()}
    head = {"mlm": family.init_head(jax.random.key(1), start())}
    flat, key = flatten_dict({"backbone": start().params, "head": head}, sep="/"), jax.random.key(3)
    loss = jax.jit(lambda k: train_step.family_loss(setup, "mlm", flat, alone, k)[0], compiler_options=QUICK)
    first, second = (loss(jax.random.fold_in(key, i)) for i in (0, 1))
    parts = setup._replace(parts={"mlm": 2})
    both = jax.jit(lambda k: train_step.family_gradients(parts, "mlm", flat, twice, k)[0], compiler_options=QUICK)(key)
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-5)
    assert abs(first - second) > 1e-3
