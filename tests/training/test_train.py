"""The step: who moves, who does not, and by how much."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprefit import strategies, surgery
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.lora import LoraSpec
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, init_backbone, mean_pool
from jaxprefit.families.base import Family
from jaxprefit.gram import by_layer, gram
from jaxprefit.runtime.sharding import make_mesh, put_batch, put_state
from jaxprefit.training import optim, train_step

CONFIG = EncoderConfig(vocab_size=40, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16, max_positions=8)
OPTIMIZER = optim.OptimizerConfig(steps=10, warmup_steps=2, backbone_lr=1e-2, lora_lr=1e-2, head_lr=1e-2)


@dataclasses.dataclass(frozen=True)
class ToyFamily(Family):
    """A family in a dozen lines: regress a projection of the pooled vector. What a third family has to write."""

    name: str  # type: ignore[misc]
    constants = ("head/ner/offset", "head/tc/offset")

    @classmethod
    def create(cls, config, sources, tokenizer):
        return cls("ner")

    def init_head(self, key, start):
        return {"kernel": jax.random.normal(key, (8, 1)), "offset": jnp.ones(())}

    def encode_record(self, record, source):
        raise NotImplementedError

    def collate(self, examples):
        raise NotImplementedError

    def loss(self, head, encode, batch):
        pooled = mean_pool(encode(batch["input_ids"], batch["mask"]), batch["mask"])
        error = (pooled @ head["kernel"])[:, 0] + head["offset"] - batch["target"]
        return (error**2).mean(), {"error": jnp.abs(error).mean()}


FAMILIES = {name: ToyFamily(name) for name in ("ner", "tc")}


def batch(seed):
    rng = np.random.default_rng(seed)
    mask = np.ones((4, 6), bool)
    mask[0, 4:] = False
    return {"input_ids": rng.integers(0, 40, (4, 6)), "mask": mask, "target": rng.normal(size=4).astype(np.float32)}


BATCHES = {"ner": batch(1), "tc": batch(2)}


def make(name, aggregator="sum", **changes):
    """(step, state, strategy, setup) of a strategy over the toy families."""
    constants = ToyFamily.constants
    strategy = strategies.make(name, FAMILIES, constants)
    families = {f: FAMILIES[f] for f in strategy.families}
    start = Pretrained(CONFIG, init_backbone(CONFIG, jax.random.key(0)), None)  # type: ignore[arg-type]
    params = train_step.init_params(strategy, families, start, LoraSpec(1, rank=2), jax.random.key(1))
    flat = flatten_dict(params, sep="/")
    cfg = dataclasses.replace(OPTIMIZER, **changes)
    tx = optim.make_optimizer(strategy, flat, cfg)
    mesh = make_mesh(1)
    setup = train_step.Setup(Encoder(CONFIG), families, strategy, {})
    step = train_step.make_step(setup, tx, cfg, surgery.get(aggregator), mesh, jax.random.key(2))

    def host_step(state, batches):
        state, metrics = step(state, {n: put_batch(mesh, b) for n, b in batches.items()})
        return jax.device_get(state), jax.device_get(metrics)

    return host_step, jax.device_get(put_state(mesh, train_step.init_state(params, tx))), strategy, setup


def copy(state):
    return jax.tree.map(np.array, state)


def moved(before, after):
    """Groups' paths that changed by a bit."""
    return {p for p in before.params if (before.params[p] != after.params[p]).any()}


@pytest.mark.parametrize("name", strategies.names(FAMILIES)[1:])
def test_what_moves_is_what_the_table_says(name):
    step, state, strategy, _ = make(name)
    before = copy(state)
    for _ in range(2):  # the low-rank a starts to move once b is not zero
        state, _ = step(state, {f: BATCHES[f] for f in strategy.families})
    assert moved(before, state) == {p for p in before.params if strategy.touched_by(p)}


@pytest.mark.parametrize("name", ["task_primary", "shared_lora"])
def test_an_adapter_on_trained_kernels_has_the_gradients_of_the_low_rank_path(name, monkeypatch):
    # In float64: in float32 an entry may differ by its rounding, which says nothing of the two paths.
    monkeypatch.setitem(globals(), "CONFIG", dataclasses.replace(CONFIG, dtype="float64"))
    with jax.enable_x64(True):
        found, expected = both_gradients(name)
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-5, atol=1e-7, err_msg=path)
    assert max(np.abs(g).max() for p, g in found.items() if p.startswith("lora/")) > 1e-3


def both_gradients(name):
    """Loss and gradients by path, as the step takes them and through the low-rank path."""
    _, state, strategy, setup = make(name)
    rng = np.random.default_rng(0)  # b is zero at the start, where a has no gradient
    flat = {p: v + rng.normal(0, 0.1, v.shape).astype(v.dtype) * p.endswith("/b") for p, v in state.params.items()}

    def by_path(mine):
        params = unflatten_dict({**flat, **mine}, sep="/")
        variables = {"params": params["backbone"], "lora": params["lora"][strategy.adapter_of("ner")]}
        encode = functools.partial(setup.encoder.apply, variables)
        return FAMILIES["ner"].loss(params["head"]["ner"], encode, BATCHES["ner"])[0]

    loss, _, found = train_step.family_gradients(setup, "ner", flat, BATCHES["ner"], None)
    expected_loss, expected = jax.value_and_grad(by_path)({p: flat[p] for p in found})
    return {"loss": loss, **found}, {"loss": expected_loss, **expected}


@pytest.mark.parametrize("name", ["naive", "task_primary", "shared_lora", "frozen_lora"])
def test_a_familys_step_leaves_the_others_parameters_and_moments_bit_identical(name):
    step, state, strategy, _ = make(name)
    state, _ = step(state, BATCHES)  # moments of both are no longer zero
    before = copy(state)
    state, _ = step(state, {"ner": BATCHES["ner"]})
    mine = {p for p in before.params if "ner" in strategy.touched_by(p)}
    assert moved(before, state) == mine
    for group, touching in strategy.table:
        a, b = (jax.tree.leaves(s.opt_state.inner_states[group]) for s in (before, state))
        same = all((x == y).all() for x, y in zip(a, b))
        assert same == ("ner" not in touching), group


def test_an_absent_family_does_not_move_though_its_moments_would_move_it():
    step, state, strategy, _ = make("task_primary")
    state, _ = step(state, BATCHES)
    tc = {p: np.array(v) for p, v in state.params.items() if strategy.touched_by(p) == ("tc",)}
    tx = optim.make_optimizer(strategy, state.params, OPTIMIZER)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = tx.update(zeros, state.opt_state, state.params)
    assert max(float(jnp.abs(updates[p]).max()) for p in tc) > 1e-4, "a zero gradient would have moved it"
    state, _ = step(state, {"ner": BATCHES["ner"]})
    assert all((state.params[p] == v).all() for p, v in tc.items())


@pytest.mark.parametrize("name", strategies.names(FAMILIES))
def test_frozen_groups_hold_no_moments_and_trained_ones_exactly_two_each(name):
    _, state, strategy, _ = make(name)
    for group, touching in strategy.table:
        held = [x.size for x in jax.tree.leaves(state.opt_state.inner_states[group]) if x.ndim or x.dtype == np.float32]
        size = sum(v.size for p, v in state.params.items() if strategy.group_of(p) == group)
        assert sum(held) == (2 * size if touching else 0), group


def test_printed_counts_equal_trained_counts():
    step, state, strategy, _ = make("task_primary")
    before = copy(state)
    for _ in range(2):
        state, _ = step(state, BATCHES)
    tree = {p: v for p, v in state.params.items()}
    trainable, total = strategies.trainable_and_total(strategy.counts(tree))
    assert trainable == sum(before.params[p].size for p in moved(before, state))
    assert total == sum(v.size for v in state.params.values())


def test_a_parameter_without_a_row_is_refused():
    strategy = strategies.make("naive", FAMILIES, ToyFamily.constants)
    with pytest.raises(KeyError, match="lora/ner/layer_0/query/a"):
        optim.make_optimizer(strategy, {"lora/ner/layer_0/query/a": jnp.ones(3)}, OPTIMIZER)


def test_one_familys_norm_does_not_shrink_the_others_step():
    """Clipping is per family: scaling up tc's targets leaves ner's part of the combined gradient as it is."""
    _, state, _, setup = make("naive")
    grads = {}
    for scale in (1.0, 1000.0):
        big = {**BATCHES["tc"], "target": BATCHES["tc"]["target"] * scale}
        clipped = {
            n: optim.clip(train_step.family_gradients(setup, n, state.params, b, None)[2], 1.0)[0]
            for n, b in {"ner": BATCHES["ner"], "tc": big}.items()
        }
        grads[scale] = clipped
        assert optax.global_norm(clipped["tc"]) <= 1.0 + 1e-5
    jax.tree.map(np.testing.assert_array_equal, grads[1.0]["ner"], grads[1000.0]["ner"])


def outlier(clip):
    """Update of task_primary by plain descent on gradients clipped at 0.1, once as it is, once with tc's targets a
    thousand times as large: path -> the two updates, and the gradients by family."""
    _, state, strategy, setup = make("task_primary")
    flat = {p: v + 0.1 * p.endswith("/b") for p, v in state.params.items()}  # where it is zero, a has no gradient
    tx = optax.partition(
        {group: optax.sgd(1.0) for group, _ in strategy.table}, {p: strategy.group_of(p) for p in flat}
    )
    cfg = dataclasses.replace(OPTIMIZER, clip=clip, clip_norm=0.1)
    step = train_step.make_step(setup, tx, cfg, surgery.get("sum"), make_mesh(1), jax.random.key(2))
    updates, grads = [], []
    for scale in (1.0, 1000.0):
        batches = {"ner": BATCHES["ner"], "tc": {**BATCHES["tc"], "target": BATCHES["tc"]["target"] * scale}}
        fresh = train_step.TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, flat), tx.init(flat))
        after = step(fresh, batches)[0].params
        updates.append({p: np.asarray(flat[p] - after[p], np.float64) for p in flat if strategy.touched_by(p)})
        grads.append({n: train_step.family_gradients(setup, n, flat, b, None)[2] for n, b in batches.items()})
    return {p: tuple(u[p] for u in updates) for p in updates[0]}, grads


def norm(parts):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in parts))


def test_the_combined_update_is_clipped_by_one_norm_for_each_set_of_families_that_move_it():
    updates, grads = outlier("combined")
    for which, of in enumerate(grads):
        total = {p: sum(np.asarray(g[p], np.float64) for g in of.values() if p in g) for p in updates}
        groups = [("backbone/",), ("lora/ner/", "head/ner/"), ("lora/tc/", "head/tc/")]
        for group in groups:
            paths = [p for p in total if p.startswith(group)]
            factor = min(1.0, 0.1 / norm(total[p] for p in paths))
            assert factor < 1
            for p in paths:
                np.testing.assert_allclose(updates[p][which], factor * total[p], atol=1e-5, err_msg=p)


@pytest.mark.parametrize("clip", ["families", "combined"])
def test_one_familys_outlier_leaves_what_it_must_not_touch_as_it_is(clip):
    updates, _ = outlier(clip)
    for path, (plain, beside_outlier) in updates.items():
        if path.startswith(("lora/ner/", "head/ner/")):
            np.testing.assert_array_equal(plain, beside_outlier, err_msg=path)


@pytest.mark.parametrize("name", ["individual_ner", "individual_tc"])
def test_a_family_alone_is_clipped_alike_in_both_ways(name):
    ends = []
    for clip in ("families", "combined"):
        step, state, strategy, _ = make(name, clip=clip, clip_norm=0.05)
        for _ in range(2):
            state, _ = step(state, {f: BATCHES[f] for f in strategy.families})
        ends.append(state)
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("name", ["naive", "task_primary", "shared_lora"])
def test_clipping_by_family_is_the_step_it_was_bit_for_bit(name):
    step, state, strategy, setup = make(name, clip="families", clip_norm=0.05)
    tx = optim.make_optimizer(strategy, state.params, dataclasses.replace(OPTIMIZER, clip_norm=0.05))

    @jax.jit
    def reference(params, opt_state, batches):
        """Each family's gradients over their norm, then one after the other added up."""
        total = {}
        for family in strategy.families:
            _, _, grads = train_step.family_gradients(setup, family, params, batches[family], None)
            factor = jnp.minimum(1.0, 0.05 / jnp.maximum(optax.global_norm(grads), 1e-12))
            for path, g in grads.items():
                total[path] = total[path] + 1.0 * (g * factor) if path in total else 1.0 * (g * factor)
        return optim.apply_gradients(tx, strategy, params, opt_state, total, strategy.families)

    params, opt_state = state.params, state.opt_state
    for _ in range(3):
        params, opt_state = reference(params, opt_state, BATCHES)
        state, _ = step(state, BATCHES)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), state.params)


def test_surgery_is_done_on_gradients_as_they_are_unless_told_otherwise():
    for aggregator, expected in (("sum", "families"), ("famo", "families"), ("pcgrad", "combined")):
        assert OPTIMIZER.clipped(surgery.METHODS[aggregator].reads_gram) == expected
    ends = {clip: make("naive", "mgda", clip=clip)[0](make("naive")[1], BATCHES)[1] for clip in ("auto", "combined")}
    jax.tree.map(np.testing.assert_array_equal, ends["auto"], ends["combined"])
    gram_of_all = sum(ends["auto"][f"gram/{block}"] for block in ("embeddings", "layer_0", "layer_1"))
    (a, c), (_, b) = gram_of_all
    # The minimum-norm point of two gradients in closed form (arXiv 1810.04650, equation 4), of the unclipped ones.
    np.testing.assert_allclose(ends["auto"]["weights/whole"][0], np.clip((b - c) / (a + b - 2 * c), 0, 1), rtol=1e-3)


@pytest.mark.parametrize("clip", ["families", "combined"])
def test_logged_gram_matrices_are_of_unclipped_gradients(clip):
    step, state, _, setup = make("naive", clip=clip, clip_norm=0.01)
    raw = [train_step.family_gradients(setup, n, state.params, BATCHES[n], None)[2] for n in ("ner", "tc")]
    expected = gram(raw, by_layer)
    _, metrics = step(copy(state), BATCHES)
    for block in ("embeddings", "layer_0", "layer_1"):
        np.testing.assert_allclose(metrics[f"gram/{block}"], expected[block], rtol=1e-4, atol=1e-7)


def test_the_order_of_batches_in_the_dict_does_not_matter():
    outcomes = []
    for order in (("ner", "tc"), ("tc", "ner")):
        step, state, _, _ = make("task_primary")
        state, _ = step(state, {n: BATCHES[n] for n in order})
        outcomes.append(state.params)
    jax.tree.map(np.testing.assert_array_equal, *outcomes)


def test_a_family_starts_with_the_same_head_under_every_strategy():
    heads = [make(name)[1].params["head/tc/kernel"] for name in ("individual_tc", "naive", "task_primary")]
    for head in heads[1:]:
        np.testing.assert_array_equal(head, heads[0])


def test_golden_numbers_of_one_step():
    """If a change is meant to alter training, take the numbers that the failure message prints."""
    step, state, _, _ = make("task_primary", clip="families")
    start = copy(state)
    state, first = step(state, BATCHES)
    state, second = step(state, BATCHES)
    drift = {g: float(sum(np.abs(state.params[p] - start.params[p]).sum() for p in start.params if p.startswith(g)))
             for g in ("backbone", "lora/ner", "lora/tc", "head")}  # fmt: skip
    found = {"ner": [float(m["loss/ner"]) for m in (first, second)],
             "tc": [float(m["loss/tc"]) for m in (first, second)], **drift}  # fmt: skip
    for name, value in GOLDEN.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=f"{name} of {found}")


GOLDEN = {
    "ner": [3.911094, 0.790599],
    "tc": [0.948982, 4.821820],
    "backbone": 11.767010,
    "lora/ner": 1.585599,
    "lora/tc": 1.676746,
    "head": 0.147225,
}
