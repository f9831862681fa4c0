"""The data loader alone against the training step: useful tokens per second of each, on the config's sources.

The loader reads, tokenises, mixes and packs; the step is that of config.strategy on batches that are ready. They are
measured in turns, not at once: what counts is whether the loader could keep the step supplied with time to spare.
"""

import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.benchmark.timing import Spread, spread
from experiments.common import assembly, family_data
from jaxprefit.families import mixture, useful_tokens
from jaxprefit.runtime.sharding import put_batch


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Spreads of tokens per second of loader and step, and of their ratio; the share of tokens that are no padding."""
    config.run.nonfinite = "stop"  # that step is one compiled program
    run = assembly.make_run(config, workdir)
    state, tx = assembly.fresh_state(run)
    streams = family_data.streams(run.data, run.setup.families, config, config.seed)
    step = assembly.make_step(run, tx, config)
    most = config.steps_per_repetition
    rates: dict[str, list[float]] = {"loader": [], "step": []}
    for repetition in range(config.repetitions + 1):
        for stream in streams.values():  # what it prepared while the step ran does not count
            for _ in range(mixture.PREFETCH + 1):
                next(stream)
        begin = time.perf_counter()
        drawn = [{name: next(stream) for name, stream in streams.items()} for _ in range(most)]
        middle = time.perf_counter()
        tokens = sum(int(useful_tokens(d.batch)) for ds in drawn for d in ds.values())
        batches = [{name: put_batch(run.mesh, d.batch) for name, d in ds.items()} for ds in drawn]
        jax.block_until_ready(batches)
        ready = time.perf_counter()
        for batch in batches:
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        if repetition:  # the first one compiles
            rates["loader"].append(tokens / (middle - begin))
            rates["step"].append(tokens / (time.perf_counter() - ready))
    useful = {name: d.useful for name, d in drawn[-1].items()}
    for stream in streams.values():
        stream.close()
    return {
        "strategy": run.setup.strategy.name,
        "sources": {name: [source for source, _ in run.data[name].train] for name in run.setup.families},
        "steps": most * config.repetitions,
        "useful_share": useful,
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "loader_to_step": _ratio(rates),
        "compilations": step._cache_size(),  # type: ignore[attr-defined]
    }


def _ratio(rates: dict[str, list[float]]) -> Spread:
    return spread([a / b for a, b in zip(rates["loader"], rates["step"], strict=True)])
