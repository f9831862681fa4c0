"""Aggregators inside the train step: every method at every scope, states kept, absent families, resume."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxprefit import strategies, surgery
from jaxprefit.errors import UserError
from jaxprefit.runtime.sharding import make_mesh, replicated
from jaxprefit.training import optim, train_step
from jaxprefit.training.checkpoints import Checkpoints

STATEFUL = ("uncertainty", "gradnorm", "famo", "gradvac")
CONFIG = optim.OptimizerConfig()  # of which the step takes the clipping only
META: dict[str, Any] = {part: {} for part in ("config", "encoder", "families", "data")}
META |= {"tokenizer": "", "strategy": "", "touch_table": []}


class Toy:
    """A loss without an encoder: distance of two layers' vectors from the batch."""

    def loss(self, head: Any, encode: Any, batch: Any) -> tuple[jax.Array, dict]:
        layers = encode.variables["params"]
        first, second = layers["layer_0"]["kernel"], layers["layer_1"]["kernel"]
        return jnp.mean((first - batch["x"]) ** 2) + jnp.mean((head["kernel"] * second - batch["x"]) ** 2), {}


FAMILIES = {name: Toy() for name in ("ner", "tc", "mlm")}


@functools.cache
def make(name: str, scope: str, families: int = 2, skip_nonfinite: bool = False, decay: float = 0.0) -> tuple[Any, Any]:
    """(jitted step, its first state as NumPy)."""
    chosen: Any = dict([*FAMILIES.items()][:families])
    strategy = strategies.make("naive", chosen)
    params: train_step.Params = {
        "backbone": {f"layer_{i}": {"kernel": jnp.linspace(-1, 1 + i, 4)} for i in range(2)},
        "head": {f: {"kernel": jnp.ones(4)} for f in chosen},
    }
    aggregate = surgery.get(name, scope, decay)
    labels = {path: strategy.group_of(path) for path in flatten_dict(params, sep="/")}
    tx = optax.partition({group: optax.sgd(0.01) for group, _ in strategy.table}, labels)
    state = train_step.init_state(params, tx, train_step.init_surgery(strategy, params, aggregate))
    setup = train_step.Setup(None, chosen, strategy, {})  # type: ignore[arg-type]
    key = jax.random.key(0)
    step = train_step.make_step(setup, tx, CONFIG, aggregate, make_mesh(1), key, skip_nonfinite=skip_nonfinite)
    return step, jax.device_get(state)


def batches(number: int, families: int = 2) -> dict[str, dict]:
    rng = np.random.default_rng(number)
    names = [*FAMILIES][:families]
    return {n: {"segments": np.ones((1, 1), np.int32), "x": rng.normal(i, 1, 4).astype(np.float32)}
            for i, n in enumerate(names)}  # fmt: skip


def start(state: Any) -> Any:
    return jax.device_put(jax.tree.map(np.array, state), replicated(make_mesh(1)))


@pytest.mark.parametrize("scope", surgery.SCOPES)
@pytest.mark.parametrize("name", surgery.METHODS)
def test_every_method_trains_at_every_scope_and_compiles_once(name: str, scope: str) -> None:
    step, fresh = make(name, scope)
    state, kept = start(fresh), []
    for number in range(3):
        state, metrics = step(state, batches(number))
        kept.append(jax.device_get(state.surgery))
        groups = {key.removeprefix("weights/") for key in metrics if key.startswith("weights/")}
        assert groups == ({"whole"} if scope == "whole" else {"layer_0", "layer_1"})
    assert step._cache_size() == 1
    assert all(np.isfinite(p).all() for p in state.params.values())
    assert bool(jax.tree.leaves(kept[0])) == (name in STATEFUL)
    for leaf in jax.tree.leaves(kept[0]):
        assert leaf.shape[0] == len(groups) and set(leaf.shape[1:]) == {2}
    moved = [(a != b).any() for a, b in zip(*map(jax.tree.leaves, (kept[0], kept[2])))]
    assert any(moved) == (name in STATEFUL)


def test_a_block_is_weighed_by_its_own_gram_matrix() -> None:
    step, fresh = make("imtl_g", "block")
    _, metrics = step(start(fresh), batches(0))
    for block in ("layer_0", "layer_1"):
        expected = 1 / np.sqrt(np.diag(metrics[f"gram/{block}"]))  # of gradients as they are; the update is clipped
        np.testing.assert_allclose(metrics[f"weights/{block}"], expected / expected.sum(), rtol=1e-4)


@pytest.mark.parametrize("name, decay", [("uncertainty", 0.0), ("gradvac", 0.0), ("famo", 0.0), ("pcgrad", 0.9)])
def test_an_absent_familys_part_of_the_state_stays(name: str, decay: float) -> None:
    step, fresh = make(name, "block", families=3, decay=decay)
    state, _ = step(start(fresh), batches(0, 3))
    before = jax.tree.map(np.array, state.surgery)
    state, _ = step(state, {n: b for n, b in batches(1, 3).items() if n != "tc"})
    after = jax.tree.map(np.array, state.surgery)
    for a, b in zip(*map(jax.tree.leaves, (before, after))):
        there = np.ix_(range(2), *[[0, 2]] * (a.ndim - 1))
        assert (a[there] != b[there]).any()
        a[there] = b[there]
        np.testing.assert_array_equal(a, b)
    state, _ = step(state, {"ner": batches(2)["ner"]})  # a family alone has nothing to weigh
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.surgery), after)


def test_weights_come_from_the_moving_average_of_gram_matrices() -> None:
    decay, steps = 0.7, 5
    step, fresh = make("imtl_g", "block", decay=decay)
    state, seen = start(fresh), []
    for number in range(steps):
        state, metrics = step(state, batches(number))
        seen.append(np.asarray(metrics["gram/layer_1"], np.float64))
        shares = decay ** np.arange(number, -1, -1)
        average = np.einsum("t,tij->ij", shares / shares.sum(), seen)
        expected = 1 / np.sqrt(np.diag(average))
        np.testing.assert_allclose(metrics["weights/layer_1"], expected / expected.sum(), rtol=1e-4)
    norms = np.sqrt([np.diag(m) for m in seen])
    assert np.ptp(norms[:, 0] / norms[:, 1]) > 0.1, "single steps would have given other weights"


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_state_without_an_average_is_that_of_the_method_alone(decay: float) -> None:
    """A checkpoint's item 'surgery' is there, and of that form, only where something is kept."""
    assert surgery.get("sum", decay=decay).init(2, ["a"]) == ()
    assert surgery.get("famo", decay=decay).init(2, ["a"]).keys() == surgery.METHODS["famo"].init(2).keys()
    assert bool(jax.tree.leaves(surgery.get("pcgrad", decay=decay).init(2, ["a"]))) == bool(decay)


@pytest.mark.parametrize("name, decay", [("famo", 0.0), ("gradvac", 0.9), ("uncertainty", 0.0), ("gradnorm", 0.0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_enters_no_state(name: str, decay: float, bad: float) -> None:
    aggregate = surgery.get(name, decay=decay)
    gram = {"whole": jnp.asarray([[2.0, -1.0], [-1.0, 3.0]])}
    _, state = aggregate(gram, jnp.asarray([1.0, 2.0]), aggregate.init(2, ["a"]), [0, 1])
    for grams, losses in ((gram, jnp.asarray([1.0, bad])), ({"whole": gram["whole"] * bad}, jnp.ones(2))):
        jax.tree.map(np.testing.assert_array_equal, aggregate(grams, losses, state, [0, 1])[1], state)


@pytest.mark.parametrize("name, decay", [("gradvac", 0.0), ("famo", 0.0), ("gradvac", 0.9), ("pcgrad", 0.9)])
def test_a_resumed_run_has_the_aggregators_state_bit_for_bit(name: str, decay: float, tmp_path: pathlib.Path) -> None:
    step, fresh = make(name, "block", decay=decay)
    state = start(fresh)
    for number in range(4):
        if number == 2:
            Checkpoints(tmp_path).save(state, {}, "{}", META)
        state, _ = step(state, batches(number))
    resumed, _ = Checkpoints(tmp_path).restore(2, start(fresh), META)
    assert jax.tree.structure(resumed) == jax.tree.structure(state)
    for number in (2, 3):
        resumed, _ = step(resumed, batches(number))
    assert step._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))


def test_a_checkpoint_without_the_aggregators_state_is_refused(tmp_path: pathlib.Path) -> None:
    without, with_state = make("sum", "whole")[1], make("famo", "whole")[1]
    Checkpoints(tmp_path).save(start(without), {}, "{}", META)
    with pytest.raises(UserError, match="lacks its item 'surgery'"):
        Checkpoints(tmp_path).restore(0, start(with_state), META)


def test_a_step_that_is_not_finite_is_as_if_not_there_and_others_are_as_always() -> None:
    usual, fresh = make("gradvac", "block")  # it keeps something between steps
    careful, _ = make("gradvac", "block", skip_nonfinite=True)
    expected = jax.device_get(usual(usual(start(fresh), batches(0))[0], batches(1))[0])
    state, _ = careful(start(fresh), batches(0))
    before, bad = jax.device_get(state), batches(2)
    bad["tc"]["x"][1] = np.inf
    state, metrics = careful(state, bad)
    assert not np.isfinite(metrics["loss/tc"]) and np.isfinite(metrics["loss/ner"])
    assert state.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state)._replace(step=before.step), before)
    state, _ = careful(state, batches(1))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state)._replace(step=expected.step), expected)
