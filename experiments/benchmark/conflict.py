"""What logging the families' Gram matrices at every step costs: the same step with and without it, in turns.

Both train the same encoder (strategy naive, aggregator sum) on the same batches; without the log no product of
gradients is computed at all.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmark.steps import Step
from experiments.benchmark.timing import interleaved, ratios, spread
from experiments.common import family_data


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Medians and quartiles of seconds a step and of their ratio."""
    config.strategy, config.aggregator, config.data.tc.chunk_rows = "naive", "sum", 0
    steps = {kind: Step(config, workdir, run__log_gram=kind == "with") for kind in ("without", "with")}
    seconds = interleaved(steps, config.repetitions)
    return {
        "families": steps["with"].families,
        "batch_tokens": {f: family_data.layout(config, f).tokens for f in steps["with"].families},
        "parameters": steps["with"].parameters,
        "seconds": {kind: spread(values) for kind, values in seconds.items()},
        "time_ratio": ratios(seconds["with"], seconds["without"]),
    }
