"""The train state, per-family gradients, and the one jitted step.

    per-family loss -> per-family gradients -> Gram matrices per block -> weights -> combined update -> clipped

Each family has its own batch, so keeping the families' gradients apart costs no extra arithmetic. With weights that do
not come from Gram matrices each family's gradients are clipped instead, before they are weighed (`optimizer.clip`).
"""

import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprefit import gram as gram_lib
from jaxprefit import surgery
from jaxprefit.encoder import lora as lora_lib
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.transformer import Encoder
from jaxprefit.families import Family, useful_tokens
from jaxprefit.families.base import Encode, Objective
from jaxprefit.runtime.sharding import replicated
from jaxprefit.strategies import Strategy
from jaxprefit.training import nonfinite, optim
from jaxprefit.training.accumulation import Found, accumulated

Params = dict[str, Any]
"""{'backbone': ..., 'lora': {adapter: ...}, 'head': {family: ...}}"""


class TrainState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # [] int32, number of steps done
    params: dict[str, jax.Array]  # flat, by slash-joined path
    opt_state: optax.OptState
    surgery: Any = ()  # what the aggregator keeps between steps; () for most


class Setup(NamedTuple):
    """All that a step is made from and does not change."""

    encoder: Encoder
    families: Mapping[str, Objective]  # those the strategy trains
    strategy: Strategy
    weights: Mapping[str, float]  # static weight per family, on its gradient
    lora_dropout: float = 0.0
    stopped: Mapping[str, Collection[str]] = MappingProxyType({})  # family -> blocks (`gram.by_layer`) it does not move
    parts: Mapping[str, int] = MappingProxyType({})  # family -> micro-batches that its gradient is accumulated over


def init_params(
    strategy: Strategy,
    families: Mapping[str, Family],
    start: Pretrained,
    spec: lora_lib.LoraSpec,
    key: jax.Array,
) -> Params:
    """The parameter tree of a strategy: the start encoder, fresh adapters, fresh heads. Float32."""
    lora_key, head_key = jax.random.split(key)
    return {
        "backbone": jax.tree.map(jnp.asarray, start.params),
        "lora": {a: lora_lib.init_lora(spec, start.config, named_key(lora_key, a)) for a in strategy.adapters},
        "head": {f: families[f].init_head(named_key(head_key, f), start) for f in strategy.families},
    }


def named_key(key: jax.Array, name: str) -> jax.Array:
    """One key per name, so that what bears the name starts alike whatever stands beside it."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def init_state(params: Params, tx: optax.GradientTransformation, surgery_state: Any = ()) -> TrainState:
    """State at step 0."""
    flat = flatten_dict(params, sep="/")
    return TrainState(jnp.zeros((), jnp.int32), flat, tx.init(flat), surgery_state)


def init_surgery(strategy: Strategy, params: Params, aggregate: surgery.Aggregator) -> Any:
    """The aggregator's state at step 0, for the blocks that the strategy shares between families."""
    shared = [path for path in flatten_dict(params, sep="/") if len(strategy.touched_by(path)) > 1]
    return aggregate.init(len(strategy.families), [gram_lib.by_layer(path) for path in shared])


def apply_family(
    setup: Setup,
    name: str,
    flat: Mapping[str, jax.Array],
    batch: Mapping,
    method: Callable[[Mapping, Encode, Mapping], Any],
    key: jax.Array | None = None,
) -> Any:
    """method(head, encode, batch) of one family, with `encode` running through the adapter that the family may touch.

    `key` switches dropout on. An adapter on kernels that the family trains too is added to them beforehand: the
    gradient of the sum gives those of both, and no token takes a way of its own through a and b. That is the same map,
    but for dropout on the way to a. On a frozen kernel the gradient of the sum would be the dearer one.
    """
    params: Params = unflatten_dict(dict(flat), sep="/")
    variables = {"params": params["backbone"]}
    adapter = setup.strategy.adapter_of(name)
    if adapter is not None:
        trained = any(path.startswith("backbone/") and name in setup.strategy.touched_by(path) for path in flat)
        if trained and not (setup.lora_dropout and key is not None):
            variables["params"] = lora_lib.merge(params["backbone"], params["lora"][adapter])
        else:
            variables["lora"] = params["lora"][adapter]

    return method(params.get("head", {}).get(name, {}), _Encode(setup, variables, key), batch)


class _Encode(NamedTuple):
    """`families.Encode` over a backbone and perhaps an adapter."""

    setup: Setup
    variables: Mapping
    key: jax.Array | None

    def __call__(self, input_ids: jax.Array, segments: jax.Array, fold: int | jax.Array = 0) -> jax.Array:
        hidden = self.setup.encoder.apply(
            self.variables,
            input_ids,
            segments,
            lora_dropout=self.setup.lora_dropout,
            deterministic=self.key is None,
            rngs=None if self.key is None else {"dropout": jax.random.fold_in(self.key, fold)},
        )
        return cast(jax.Array, hidden)

    @property
    def word_embedding(self) -> jax.Array:
        table: jax.Array = self.variables["params"]["embeddings"]["word"]["embedding"]
        return table

    def with_params(self, params: Mapping, input_ids: jax.Array, mask: jax.Array) -> jax.Array:
        return cast(jax.Array, self.setup.encoder.apply({"params": params}, input_ids, mask))


def family_loss(
    setup: Setup, name: str, flat: Mapping[str, jax.Array], batch: Mapping, key: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of one family on its batch; `key` switches dropout on."""
    return apply_family(setup, name, flat, batch, setup.families[name].loss, key)


def family_gradients(
    setup: Setup, name: str, flat: Mapping[str, jax.Array], batch: Mapping, key: jax.Array | None
) -> Found:
    """(loss, metrics, gradients by path) of one family, with respect to exactly what it may touch."""
    mine = {path: p for path, p in flat.items() if name in setup.strategy.touched_by(path)}

    def gradients(batch: Mapping, key: jax.Array | None) -> Found:
        def loss_fn(touched: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
            return family_loss(setup, name, {**flat, **touched}, batch, key)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(mine)
        return loss, metrics, grads

    parts = setup.parts.get(name, 1)
    if parts == 1:
        return gradients(batch, key)
    return accumulated(cast(Family, setup.families[name]), gradients, batch, parts, key)


Gradients = Mapping[str, Mapping[str, jax.Array]]
"""Family -> path -> gradient."""


def weigh(
    grads: Gradients, losses: jax.Array, aggregate: surgery.Aggregator, state: Any, present: Sequence[int]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Any]:
    """The Gram matrices [F, F] of families' gradients per layer over the shared parameters, the weights [F] per group
    of layers, and the aggregator's next state; no matrices and no weights where nothing is shared.

    `losses` [F] are those of the families in `grads`, `present` their numbers among all families.
    """
    shared = _shared(grads)
    if not shared:
        return {}, {}, state
    blocks = gram_lib.gram([{p: g[p] for p in shared} for g in grads.values()], gram_lib.by_layer)
    weights, state = aggregate(gram_lib.regroup(blocks, aggregate.group), losses, state, present)
    return blocks, weights, state


def combine(grads: Gradients, weights: Mapping[str, jax.Array], aggregate: surgery.Aggregator) -> dict[str, jax.Array]:
    """Families' gradients -> one per parameter: sum_i w_i g_i with the weights of its group (`weigh`) for a shared
    one, the gradient of the one family that touches it for any other."""
    combined = {path: g for of_family in grads.values() for path, g in of_family.items()}
    for path in _shared(grads):
        group_weights = weights[aggregate.group(gram_lib.by_layer(path))]
        combined[path] = sum(w * g[path] for w, g in zip(group_weights, grads.values()))
    return combined


def _shared(grads: Gradients) -> list[str]:
    """Paths that more than one family has a gradient of."""
    # A list, not a set: sums taken in another order in another process would differ in their last bit.
    paths = dict.fromkeys(path for of_family in grads.values() for path in of_family)
    return [path for path in paths if sum(path in g for g in grads.values()) > 1]


def _without(grads: Gradients, stopped: Mapping[str, Collection[str]]) -> Gradients:
    """`grads` with zeros where a family's gradient is stopped (`Setup.stopped`)."""

    def kept(name: str, path: str, g: jax.Array) -> jax.Array:
        return jnp.zeros_like(g) if gram_lib.by_layer(path) in stopped.get(name, ()) else g

    return {name: {path: kept(name, path, g) for path, g in of.items()} for name, of in grads.items()}


def make_step(
    setup: Setup,
    tx: optax.GradientTransformation,
    optimizer: optim.OptimizerConfig,
    aggregate: surgery.Aggregator,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    log_gram: bool = True,
    skip_nonfinite: bool = False,
    shardings: Any = None,
) -> Callable[[TrainState, Mapping[str, Mapping]], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted train step: (state, {family: batch}) -> (state, metrics). The state is donated.

    The families in the dict are those trained in this step; what an absent family owns does not move. Without
    `log_gram` the Gram matrices are no metrics, and are computed only where the aggregator needs them. With
    `skip_nonfinite` a step with a loss or gradient that is not finite adds to `step` and changes nothing else; the
    state is not donated then, and stands in memory twice for a moment. `shardings` are the state's, if not the same
    on every device.
    """
    per_family = optimizer.clipped(aggregate.method.reads_gram) == "families"

    def step(state: TrainState, batches: Mapping[str, Mapping]) -> tuple[TrainState, dict[str, jax.Array]]:
        metrics: dict[str, jax.Array] = {}
        grads, factors, losses = {}, {}, {}
        step_key = jax.random.fold_in(key, state.step)
        # Table order, whatever the order in the dict.
        for name in (n for n in setup.families if n in batches):
            dropout_key = named_key(step_key, name)
            loss, extra, raw = family_gradients(setup, name, state.params, batches[name], dropout_key)
            clipped, norm, factor = optim.clip(raw, optimizer.clip_norm if per_family else math.inf)
            # The static weight comes after the family's clipping, which would cancel it.
            weight = setup.weights.get(name, 1.0)
            grads[name] = {path: weight * g for path, g in clipped.items()}
            factors[name], losses[name] = jnp.maximum(weight * factor, 1e-15), loss
            metrics |= {f"loss/{name}": loss, f"gradient_norm/{name}": norm}
            metrics |= {f"{metric}/{name}": value for metric, value in extra.items()}
            metrics[f"tokens/{name}"] = useful_tokens(batches[name])
        present = [i for i, name in enumerate(setup.families) if name in grads]
        at_hand = jnp.stack([*losses.values()]).astype(jnp.float32)
        blocks, weights, kept = weigh(grads, at_hand, aggregate, state.surgery, present)
        update = combine(grads, weights, aggregate)
        scale = {} if per_family else optim.combined_factors(update, grads, optimizer.clip_norm)
        if any(setup.stopped.get(name) for name in grads):
            # Only now that weights and factors are known, so that the step elsewhere keeps its size.
            update = combine(_without(grads, setup.stopped), weights, aggregate)
        if scale:
            update = {path: g * scale[path] for path, g in update.items()}
        if blocks and log_gram:
            # Logged before any clipping and the static weights, so that norms compare.
            f = jnp.stack([factors[n] for n in grads])
            metrics |= {f"gram/{block}": m / (f[:, None] * f) for block, m in blocks.items()}
            metrics |= {f"weights/{group}": w for group, w in weights.items()}
        params, opt_state = optim.apply_gradients(
            tx, setup.strategy, state.params, state.opt_state, update, present=batches
        )
        return TrainState(state.step + 1, params, opt_state, kept), metrics

    out = shardings or replicated(mesh)
    if not skip_nonfinite:
        return jax.jit(step, donate_argnums=0, out_shardings=(out, replicated(mesh)))

    def keep(after: TrainState, before: TrainState, metrics: dict[str, jax.Array]) -> TrainState:
        good = nonfinite.all_finite(metrics)
        unmoved = before._replace(step=after.step)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, unmoved)

    # A program of its own: inside the step's it would be fused with the update, and change its last bits.
    try_step = jax.jit(step, out_shardings=(out, replicated(mesh)))
    choose = jax.jit(keep, donate_argnums=0, out_shardings=out)

    def careful_step(state: TrainState, batches: Mapping[str, Mapping]) -> tuple[TrainState, dict[str, jax.Array]]:
        after, metrics = try_step(state, batches)
        return choose(after, state, metrics), metrics

    return careful_step


def make_eval(setup: Setup, name: str) -> Callable[[Mapping, Mapping], dict[str, jax.Array]]:
    """Jitted (flat params, batch) -> {'loss', metrics...} of one family, without dropout."""

    def evaluate(flat: Mapping, batch: Mapping) -> dict[str, jax.Array]:
        loss, metrics = family_loss(setup, name, flat, batch, None)
        return {"loss": loss, **metrics}

    return jax.jit(evaluate)
