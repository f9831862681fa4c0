"""Conflict in the optimizer's eyes: Adam's metric, look-ahead affinity, curvature, the tragic triad."""

import itertools
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.conflict import lookahead
from jaxprefit.checkpoints import reader
from jaxprefit.conflict import adam_metric, curvature
from jaxprefit.conflict.lookahead import look_ahead
from jaxprefit.conflict.probe import Grams
from jaxprefit.gram import by_layer, gram
from jaxprefit.training import checkpoints, optim, train_step
from jaxprefit.training.train_step import TrainState

B2, EPS = 0.99, 1e-8
PARAMS = {"backbone/layer_0/query/kernel": jnp.ones((2, 3)), "backbone/layer_1/key/bias": jnp.zeros(4)}


def gradient(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for path, p in PARAMS.items()}


@pytest.fixture(scope="module")
def trained() -> tuple:
    """An AdamW state in a partition, after three updates, as the train step has it."""
    inner = optax.adamw(1e-3, b2=B2, eps=EPS)
    tx = optax.partition({"backbone": inner, "frozen": optax.set_to_zero()}, dict.fromkeys(PARAMS, "backbone"))
    state = tx.init(PARAMS)
    for seed in range(3):
        _, state = tx.update(gradient(seed), state, PARAMS)
    return state


def test_metric_is_adams_own(trained: tuple) -> None:
    metric = adam_metric.preconditioner(trained, B2, EPS)
    adam = optax.adam(1.0, b1=0.0, b2=B2, eps=EPS)  # without momentum its update is -P g
    state = adam.init(PARAMS)
    for seed in range(3):
        updates, state = adam.update(gradient(seed), state)
    for path, u in adam_metric.update(gradient(2), metric, 1.0).items():
        np.testing.assert_allclose(u, updates[path], rtol=1e-5)


def test_view_gives_inner_products_in_the_metric(trained: tuple) -> None:
    metric = adam_metric.preconditioner(trained, B2, EPS)
    view = adam_metric.view(metric)
    found = gram([view(gradient(5)), view(gradient(6))], by_layer)["layer_0"]
    path = "backbone/layer_0/query/kernel"
    wanted = float(jnp.sum(gradient(5)[path] * metric[path] * gradient(6)[path]))
    assert found[0, 1] == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="never updated head/x"):
        view({"head/x": jnp.ones(2)})
    assert adam_metric.preconditioner(optax.adam(1.0).init(PARAMS), B2, EPS) == {}, "no step, no metric"


def test_metric_of_a_checkpoint(trained: tuple, tmp_path: Path) -> None:
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(TrainState(jnp.asarray(3, jnp.int32), PARAMS, trained), {}, "{}", {})
    state = reader.read_optimizer(tmp_path / "checkpoints" / "3")
    wanted = adam_metric.preconditioner(trained, B2, EPS)
    found = adam_metric.preconditioner(state, B2, EPS)
    assert found.keys() == wanted.keys()
    for path, p in wanted.items():
        np.testing.assert_allclose(found[path], p, rtol=1e-6)


# A tiny model: two families regress on the same hidden layer.


def tiny_loss(family: str, params: dict, batch: tuple) -> jax.Array:
    x, y = batch
    hidden = jnp.tanh(x @ params["backbone/layer_0/query/kernel"])
    sign = {"ner": 1.0, "tc": -1.0}[family]
    return jnp.mean((sign * hidden @ params[f"head/{family}"] - y) ** 2) + 0.5


@pytest.fixture(scope="module")
def tiny() -> tuple:
    rng = np.random.default_rng(0)
    params = {"backbone/layer_0/query/kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)}
    head = jnp.asarray(rng.normal(size=4), jnp.float32)
    params |= {"head/ner": head, "head/tc": head}

    def batch() -> tuple:
        x = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
        return x, 2 * x[:, 0]

    held = {"ner": [batch(), batch()], "tc": [batch()]}
    gradients = {}
    for f in held:
        shared = jax.grad(lambda k, f=f: tiny_loss(f, {**params, "backbone/layer_0/query/kernel": k}, batch()))
        gradients[f] = {"backbone/layer_0/query/kernel": shared(params["backbone/layer_0/query/kernel"])}
    return params, held, gradients


def test_prediction_meets_measured_affinity(tiny: tuple) -> None:
    params, held, gradients = tiny
    errors = []
    for rate in (0.02, 0.01):
        updates = {f: {path: -rate * g for path, g in gradient.items()} for f, gradient in gradients.items()}
        z = look_ahead(tiny_loss, params, updates, held)
        assert z.measured.shape == (2, 2, 2) and np.isnan(z.measured[1, :, 1]).all(), "tc has one held batch"
        known = np.isfinite(z.measured)
        first, second = (np.abs(p - z.measured)[known].max() for p in (z.first, z.second))
        assert second < 0.3 * first, "curvature explains most of what is left"
        assert np.sign(z.first[known]).tolist() == np.sign(z.measured[known]).tolist()
        errors.append(first)
    assert errors[1] < 0.35 * errors[0], "half the step, a quarter of the error"
    assert z.measured[0, 0, 0] > 0 and z.measured[0, 1, 1] > 0, "a step helps its own family"
    assert z.measured[0, 0, 1] < 0 < abs(z.first[0, 0, 1]), "and here hurts the other, whose sign is reversed"


def test_affinity_by_hand() -> None:
    # L_a = w^2 / 2, L_b = (w - 3)^2 / 2 at w = 1, a step of -0.1 from a's gradient 1
    def loss(family: str, params: dict, batch: float) -> jax.Array:
        return jnp.sum((params["w"] - batch) ** 2) / 2

    steps = {"a": {"w": jnp.full(1, -0.1)}, "b": {"w": jnp.full(1, 0.2)}}
    z = look_ahead(loss, {"w": jnp.ones(1)}, steps, {"a": [0.0], "b": [3.0]})
    np.testing.assert_allclose(z.measured[0], [[1 - 0.81, 1 - 2.1**2 / 4], [1 - 1.44, 1 - 1.8**2 / 4]], atol=1e-6)
    np.testing.assert_allclose(z.first[0], [[0.2, -0.1], [-0.4, 0.2]], atol=1e-6)
    np.testing.assert_allclose(z.second, z.measured, atol=1e-6)
    zero = look_ahead(loss, {"w": jnp.zeros(1)}, steps, {"a": [0.0], "b": [3.0]})
    assert np.isnan(zero.measured[0, :, 0]).all(), "no share of a loss of zero"


# Curvature


HESSIAN = np.asarray([[3.0, 1.0], [1.0, -5.0]])


def product(params: dict, vector: dict) -> dict:
    def loss(p: dict) -> jax.Array:
        return p["w"] @ jnp.asarray(HESSIAN, jnp.float32) @ p["w"] / 2 + p["v"].sum() ** 4

    return curvature.hessian_vector(loss, params, vector)


AT = {"w": jnp.asarray([1.0, 2.0]), "v": jnp.ones(1)}


def test_hessian_vector_product() -> None:
    found = product(AT, {"w": jnp.asarray([2.0, -1.0])})
    np.testing.assert_allclose(found["w"], HESSIAN @ [2.0, -1.0])
    assert set(found) == {"w"}, "what the direction lacks stays fixed"
    u = np.asarray([2.0, -1.0])
    assert curvature.along(product, AT, {"w": jnp.asarray(u)}) == pytest.approx(u @ HESSIAN @ u / (u @ u))
    assert np.isnan(curvature.along(product, AT, {"w": jnp.zeros(2)}))


def test_curvature_on_the_way_and_largest() -> None:
    # d^2/dv^2 v^4 = 12 v^2, whose mean on [1, 3] is 52
    found = curvature.multi_task_curvature(product, AT, {"v": jnp.full(1, 2.0)}, {"v": jnp.ones(1)})
    assert found == pytest.approx(52, rel=1e-5)
    start = {"w": jnp.asarray([0.3, 0.4])}
    largest = np.abs(np.linalg.eigvalsh(HESSIAN)).max()
    assert curvature.largest(product, AT, start, 40) == pytest.approx(largest, rel=1e-3)


def test_tragic_triad_by_hand() -> None:
    # cos -0.8, sizes 1 and 4: Phi = 8 / 17
    g, h = np.asarray([1.0, 0.0]), 4 * np.asarray([-0.8, 0.6])
    m = np.asarray([g, h]) @ np.asarray([g, h]).T
    bound = 0.36 * np.sum((g - h) ** 2) / np.sum((g + h) ** 2)
    lipschitz = 10.0
    high = bound * lipschitz + 1.0

    def triad(
        gram: np.ndarray, curvatures: tuple[float, ...], rate: float, cosine: tuple[float, float] = (-0.9, -0.7)
    ) -> curvature.Triad:
        l = np.asarray(curvatures)  # noqa: E741
        return curvature.tragic_triad(gram, cosine, l, np.full(len(l), lipschitz), rate)

    assert triad(m, (high, high), 2.1) == (True, True, True, True)
    assert triad(m, (high, high), 1.9) == (True, True, False, False)
    assert triad(m, (bound * lipschitz - 1,) * 2, 2.1) == (True, False, False, False)
    equal = np.asarray([[1.0, -0.8], [-0.8, 1.0]])
    assert triad(equal, (100.0, 100.0), 2.1).conflict is False, "no difference in size"
    none = (float("nan"), float("nan"))
    assert triad(np.full((2, 2), np.nan), (high, high), 2.1, none) == (None,) * 4
    assert triad(np.diag([1.0, 0.0]), (high, high), 2.1).flag is None, "a zero gradient: undefined"
    assert triad(m, none, 2.1) == (True, None, None, None)
    # An interval that holds the threshold decides nothing; of one batch there is none.
    assert triad(m, (high, high), 2.1, (-0.9, -0.3)) == (None, True, True, None)
    assert triad(m, (high - 0.5, high + 0.5), 2.1) == (True, None, None, None)
    assert triad(m, (high,), 2.1) == (True, None, None, None)


def test_triad_is_in_adams_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two quadratics in w of Hessians A and B, weighted 1 and 2, under Adam's metric P.
    a, b, p = np.diag([3.0, 1.0]), np.asarray([[2.0, 1.0], [1.0, 4.0]]), np.asarray([4.0, 0.25])
    hessians, at, rate = {"ner": a, "tc": b}, np.asarray([1.0, -2.0]), 1e-3

    def loss(setup: Any, name: str, params: dict, batch: Any, key: Any) -> tuple[jax.Array, dict]:
        return params["w"] @ jnp.asarray(hessians[name], jnp.float32) @ params["w"] / 2 + 1, {}

    monkeypatch.setattr(train_step, "family_loss", loss)
    drawn = types.SimpleNamespace(batch=0)
    k = np.einsum("fd,d,gd->fg", *(np.stack([a @ at, b @ at]), p, np.stack([a @ at, b @ at])))
    given = lookahead.Inputs(
        types.SimpleNamespace(families=("ner", "tc")),  # type: ignore[arg-type]
        {"w": jnp.asarray(at, jnp.float32)},
        ["w"],
        lambda name, _: {"w": jnp.asarray(hessians[name] @ at, jnp.float32)},
        dict.fromkeys(hessians, itertools.repeat(drawn)),
        {name: [0] for name in hessians},
        {"w": jnp.asarray(p, jnp.float32)},
        np.asarray([1.0, 2.0]),
        optim.OptimizerConfig(backbone_lr=rate),
        Grams(np.zeros((2, 2, 2, 2, 2)), np.broadcast_to(k[:, None, :, None], (2, 4, 2, 4))),
    )
    _, found = lookahead.measure(given, 2) or pytest.fail("no held-out batch")
    total = a + 2 * b
    inner, step = np.sqrt(p)[:, None] * total * np.sqrt(p), p * (total @ at)  # of the Hessian in the metric
    assert found.lipschitz.value == pytest.approx(np.linalg.eigvalsh(inner)[-1], rel=1e-3)
    along = step @ total @ step / (step @ (total @ at))
    assert found.joint.value == pytest.approx(along, rel=1e-5) and found.metric == "adam"
    # The decrease of a step -eta P g is eta g P g - eta^2 (Pg) H (Pg) / 2: what eta times `joint` tells beside 2.
    (triad,) = found.triads
    assert triad.step is False and triad.flag is False
