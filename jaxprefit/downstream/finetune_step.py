"""One step of fine-tuning, and predictions, for all seeds of a task at once.

Trained parameters have a leading seed axis; the frozen ones are shared. Seeds differ in head, fresh adapter, row order
and dropout. What is compiled depends on shapes alone: heads are padded to a few class counts, parameters and keys are
arguments, so that tasks and checkpoints of one process share it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprefit.data.packing import Packing
from jaxprefit.downstream.features import Features
from jaxprefit.downstream.tasks import Task
from jaxprefit.encoder.transformer import Encoder, EncoderConfig
from jaxprefit.strategies import Strategy
from jaxprefit.training import optim, train_step

NO_CLASS = -1e9
"""Bias of a padded class: no probability, hence no gradient, and never the largest."""


class Recipe(NamedTuple):
    """All that compiled functions depend on beside shapes."""

    encoder: EncoderConfig
    layer: int | None  # frozen layers below the trained part; None: the embeddings are trained as well
    task: type[Task]
    strategy: Strategy
    optimizer: optim.OptimizerConfig
    lora_dropout: float


def trained_part(params: train_step.Params, strategy: Strategy) -> dict[str, jax.Array]:
    """Flat parameters without the backbone where it is frozen, the head padded to a shared number of classes."""
    classes = params["head"]["task"]["bias"].shape[0]
    extra = padded_classes(classes) - classes
    head = params["head"]["task"]
    padded = {
        "kernel": jnp.pad(head["kernel"], ((0, 0), (0, extra))),
        "bias": jnp.pad(head["bias"], (0, extra), constant_values=NO_CLASS),
    }
    flat = flatten_dict({**params, "head": {"task": padded}}, sep="/")
    frozen = () if strategy.touched_by("backbone") else ("backbone/",)
    return {path: jnp.asarray(p) for path, p in flat.items() if not path.startswith(frozen)}


def padded_classes(classes: int) -> int:
    """The next of 16, 64, 256, ..."""
    size = 16
    while size < classes:
        size *= 4
    return size


def stack(trees: Sequence[Any]) -> Any:
    """Equal trees -> one with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def init(recipe: Recipe, starts: Sequence[Mapping[str, jax.Array]]) -> train_step.TrainState:
    """The stacked state at step 0 of one flat start per seed."""

    def one(flat: dict[str, jax.Array]) -> train_step.TrainState:
        tx = optim.make_optimizer(recipe.strategy, flat, recipe.optimizer)
        return train_step.TrainState(jnp.zeros((), jnp.int32), flat, tx.init(flat))

    return jax.jit(jax.vmap(one))(stack(starts))


def collate(
    task: Task, examples: Sequence[Mapping[str, Any]], features: Features, texts: Sequence[int], packing: Packing
) -> dict[str, Any]:
    """One seed's batch: features [R, L, D] (or ids [R, L]), segments [R, L], labels [R, P]."""
    return {
        "features": features.lay(texts, packing),
        "segments": packing.segments(),
        "labels": task.places([examples[i] for i in texts], packing),
    }


def hidden_states(
    recipe: Recipe, backbone: Mapping, flat: Mapping[str, jax.Array], batch: Mapping, key: jax.Array | None
) -> jax.Array:
    """The last hidden states [R, L, D] of one seed, from a batch's features; `key` switches dropout on."""
    params = unflatten_dict(dict(flat), sep="/")
    variables = {"params": params.get("backbone", backbone)}
    if "lora" in params:
        variables["lora"] = params["lora"]["task"]
    part: dict[str, Any] = {} if recipe.layer is None else {"layer": recipe.layer, "method": "top"}
    hidden: Any = Encoder(recipe.encoder).apply(
        variables,
        batch["features"],
        batch["segments"],
        lora_dropout=recipe.lora_dropout,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
        **part,
    )
    return hidden


@functools.cache
def make_step(recipe: Recipe) -> Callable[..., tuple[train_step.TrainState, jax.Array]]:
    """Jitted (backbone, state [S], keys [S], batch [S]) -> (state [S], losses [S]). The state is donated.

    The batch is one of `collate` per seed, stacked.
    """

    def step(
        backbone: Mapping, state: train_step.TrainState, key: jax.Array, batch: Mapping
    ) -> tuple[train_step.TrainState, jax.Array]:
        tx = optim.make_optimizer(recipe.strategy, state.params, recipe.optimizer)
        mine = {path: p for path, p in state.params.items() if recipe.strategy.touched_by(path)}

        def loss(mine: Mapping[str, jax.Array]) -> jax.Array:
            flat = {**state.params, **mine}
            hidden = hidden_states(recipe, backbone, flat, batch, jax.random.fold_in(key, state.step))
            head = {"kernel": flat["head/task/kernel"], "bias": flat["head/task/bias"]}
            return recipe.task.loss_of(head, hidden, batch)

        value, grads = jax.value_and_grad(loss)(mine)
        clipped, _, _ = optim.clip(grads, recipe.optimizer.clip_norm)
        params, opt_state = optim.apply_gradients(
            tx, recipe.strategy, state.params, state.opt_state, clipped, present=("task",)
        )
        return train_step.TrainState(state.step + 1, params, opt_state), value

    return jax.jit(jax.vmap(step, in_axes=(None, 0, 0, 0)), donate_argnums=1)


@functools.cache
def make_predict(recipe: Recipe, per_row: int) -> Callable[[Mapping, Mapping, Mapping], jax.Array]:
    """Jitted (backbone, flat parameters [S], batch) -> classes [S, R, P] int32, all seeds on the same batch."""

    def predict(backbone: Mapping, flat: Mapping[str, jax.Array], batch: Mapping) -> jax.Array:
        hidden = hidden_states(recipe, backbone, flat, batch, None)
        head = {"kernel": flat["head/task/kernel"], "bias": flat["head/task/bias"]}
        vectors = recipe.task.vectors(hidden, batch["segments"], per_row)
        return recipe.task.logits(head, vectors).argmax(-1).astype(jnp.int32)

    return jax.jit(jax.vmap(predict, in_axes=(None, 0, None)))
