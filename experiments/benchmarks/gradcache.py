"""Gradient caching against the plain step: seconds at a batch that both can hold, and memory there and at a larger one.

Both train the same encoder on the same batch (strategy individual_tc); they differ in data.tc.chunk_rows alone.
"""

import copy
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import family_data, wiring
from experiments.benchmarks.timing import interleaved, ratios, spread
from jaxprefit import surgery, train
from jaxprefit.errors import UserError
from jaxprefit.sharding import put_batch


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Medians and quartiles of seconds a step and of their ratio; bytes of temporary memory, as compiled."""
    c = config.data.tc
    if not c.chunk_rows:
        raise UserError("data.tc.chunk_rows is 0; give the number of rows in a chunk")
    rows = {"small": c.rows, "large": config.gradcache.large_rows}
    chunks = {"plain": 0, "cached": c.chunk_rows}
    memory: dict[str, dict[int, int]] = {kind: {} for kind in chunks}
    steps: dict[str, Callable[[], object]] = {}
    for kind, chunk_rows in chunks.items():
        for number in {rows["large"], c.rows}:
            variant = copy.deepcopy(config)
            variant.strategy = "individual_tc"
            variant.data.tc.rows, variant.data.tc.chunk_rows = number, chunk_rows
            step = _Step(variant, workdir)
            memory[kind][number] = step.temporary_bytes
            if number == c.rows:
                steps[kind] = step
    seconds = interleaved(steps, config.repetitions)
    return {
        "rows": rows,
        "row_length": c.row_length,
        "chunk_rows": c.chunk_rows,
        "seconds": {kind: spread(values) for kind, values in seconds.items()},
        "time_ratio": ratios(seconds["cached"], seconds["plain"]),
        "temporary_bytes": {kind: {size: memory[kind][n] for size, n in rows.items()} for kind in chunks},
    }


class _Step:
    """A compiled training step on one batch; a call takes it and returns when it is done."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        run = wiring.make_run(config, workdir)
        self.state, tx = wiring.fresh_state(run)
        stream = family_data.streams(run.data, ("tc",), config, config.seed)["tc"]
        self.batches = {"tc": put_batch(run.mesh, next(stream).batch)}
        stream.close()
        key = jax.random.key(config.seed)
        step = train.make_step(run.setup, tx, run.optimizer, surgery.get("sum"), run.mesh, key)
        self.compiled = step.lower(self.state, self.batches).compile()  # type: ignore[attr-defined]
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes

    def __call__(self) -> None:
        self.state, metrics = self.compiled(self.state, self.batches)
        jax.block_until_ready((self.state, metrics))
