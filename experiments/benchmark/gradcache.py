"""Gradient caching against the plain step: seconds at a batch that both can hold, and memory there and at a larger one.

Both train the same encoder on the same batch (strategy individual_tc); they differ in data.tc.chunk_rows alone.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmark.steps import Step
from experiments.benchmark.timing import interleaved, ratios, spread
from jaxprefit.errors import UserError


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Medians and quartiles of seconds a step and of their ratio; bytes of temporary memory, as compiled."""
    c = config.data.tc
    if not c.chunk_rows:
        raise UserError("data.tc.chunk_rows is 0; give the number of rows in a chunk")
    if config.gradcache.large_rows % c.chunk_rows:
        raise UserError(f"gradcache.large_rows is {config.gradcache.large_rows}; it must be a multiple of "
                        f"data.tc.chunk_rows, {c.chunk_rows}")  # fmt: skip
    rows = {"small": c.rows, "large": config.gradcache.large_rows}
    chunks = {"plain": 0, "cached": c.chunk_rows}
    memory: dict[str, dict[int, int]] = {kind: {} for kind in chunks}
    steps: dict[str, Callable[[], object]] = {}
    for kind, chunk_rows in chunks.items():
        for number in {rows["large"], c.rows}:
            changes = {"data__tc__rows": number, "data__tc__chunk_rows": chunk_rows}
            step = Step(config, workdir, strategy="individual_tc", **changes)
            memory[kind][number] = step.compiled.memory_analysis().temp_size_in_bytes
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
