"""Training steps that can be timed: compiled, on one batch a family that is ready."""

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.common import assembly, family_data
from jaxprefit.runtime.sharding import put_batch
from jaxprefit.training import optim, train_step


class Step:
    """The step of a config; a call takes it and returns when it is done."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, **changes: Any) -> None:
        """`changes` are settings by dotted key, with '__' for the dots."""
        c = copy.deepcopy(config)
        c.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
        c.run.nonfinite = "stop"  # that step is one compiled program
        run = assembly.make_run(c, workdir)
        self.state, tx = assembly.fresh_state(run)
        self.families = list(run.setup.families)
        self.parameters = sum(x.size for x in jax.tree.leaves(run.params["backbone"]))
        streams = family_data.streams(run.data, self.families, c, c.seed)
        self.batches = {name: put_batch(run.mesh, next(stream).batch) for name, stream in streams.items()}
        for stream in streams.values():
            stream.close()
        self.compiled = self.make(run, tx, c).lower(self.state, self.batches).compile()

    def make(self, run: assembly.Run, tx: Any, config: ConfigDict) -> Any:
        """The jitted step."""
        return assembly.make_step(run, tx, config)

    def __call__(self) -> None:
        self.state, metrics = self.compiled(self.state, self.batches)
        jax.block_until_ready((self.state, metrics))


class SummedStep(Step):
    """What other training loops do: one gradient, of the families' summed losses."""

    def make(self, run: assembly.Run, tx: Any, config: ConfigDict) -> Any:
        strategy, setup = run.setup.strategy, run.setup

        def step(
            state: train_step.TrainState, batches: Mapping[str, Mapping]
        ) -> tuple[train_step.TrainState, dict[str, Any]]:
            mine = {path: p for path, p in state.params.items() if strategy.touched_by(path)}

            def loss(mine: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
                flat = {**state.params, **mine}
                losses = {f: train_step.family_loss(setup, f, flat, batches[f], None)[0] for f in setup.families}
                return jnp.stack([*losses.values()]).sum(), losses

            (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(mine)
            clipped, _, _ = optim.clip(grads, run.optimizer.clip_norm)
            params, opt_state = optim.apply_gradients(tx, strategy, state.params, state.opt_state, clipped, batches)
            return train_step.TrainState(state.step + 1, params, opt_state, state.surgery), metrics

        return jax.jit(step, donate_argnums=0)
