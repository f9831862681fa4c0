"""What logging the families' Gram matrices at every step costs: the same step with and without it, in turns.

Both train the same encoder (strategy naive, aggregator sum) on the same batches; without the log no product of
gradients is computed at all.
"""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import wiring
from experiments.benchmarks.timing import interleaved, ratios, spread
from jaxprefit.sharding import put_batch


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Medians and quartiles of seconds a step and of their ratio."""
    config.strategy, config.data.tc.chunk_rows = "naive", 0
    steps = {kind: _Step(config, workdir, logged) for kind, logged in (("without", False), ("with", True))}
    seconds = interleaved(steps, config.repetitions)
    return {
        "families": steps["with"].families,
        "batch_tokens": {f: wiring.layout(config, f).tokens for f in steps["with"].families},
        "parameters": steps["with"].parameters,
        "seconds": {kind: spread(values) for kind, values in seconds.items()},
        "time_ratio": ratios(seconds["with"], seconds["without"]),
    }


class _Step:
    """A compiled training step on one batch a family; a call takes it and returns when it is done."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, logged: bool) -> None:
        config.run.log_gram = logged
        run = wiring.make_run(config, workdir)
        self.state, tx = wiring.fresh_state(run)
        self.families = list(run.setup.families)
        self.parameters = sum(x.size for x in jax.tree.leaves(run.params["backbone"]))
        streams = wiring.streams(run.data, self.families, config, config.seed)
        self.batches = {name: put_batch(run.mesh, next(stream).batch) for name, stream in streams.items()}
        for stream in streams.values():
            stream.close()
        step: Any = wiring.make_step(run, tx, config)
        self.compiled = step.lower(self.state, self.batches).compile()

    def __call__(self) -> None:
        self.state, metrics = self.compiled(self.state, self.batches)
        jax.block_until_ready((self.state, metrics))
