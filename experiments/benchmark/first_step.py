"""From the command to the end of its first step: experiments.prefinetune, started several times.

The first start finds nothing of an earlier one: it reads the sources and compiles (cold). The others find both in the
cache (warm). A start ends when the line of step 1 is in metrics.jsonl, which is written while step 2 runs.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import benchmark
from experiments.benchmark.timing import spread
from jaxprefit.errors import UserError

OTHER_CACHES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")  # the run's own cache is what is measured


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Seconds of the cold start, and median and quartiles of the warm ones."""
    config.run.log_every = 1
    config.optimizer.steps, config.data.tc.chunk_rows = 1000, 0  # ended long before
    with tempfile.TemporaryDirectory() as folder:
        config.data.cache = f"{folder}/cache"
        cold, *warm = (first_step(config, pathlib.Path(folder) / f"run_{i}") for i in range(config.repetitions + 1))
    return {
        "encoder": pathlib.Path(config.model.path).name or f"{config.model.layers} x {config.model.hidden}",
        "strategy": config.strategy,
        "sources": {f: len(config.data[f].sources) for f in ("ner", "tc")},
        "seconds": {"cold": cold, "warm": spread(warm)},
    }


def first_step(config: ConfigDict, workdir: pathlib.Path) -> float:
    """Seconds until the run in `workdir` has taken its first step; it is ended then."""
    settings = flatten_dict(config.to_dict(), sep=".")
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    flags = [f"--config={benchmark.__file__}", *flags, f"--workdir={workdir}"]
    command = [sys.executable, "-m", "experiments.prefinetune", *flags]
    env = {key: value for key, value in os.environ.items() if key not in OTHER_CACHES}
    metrics, begin = workdir / "metrics.jsonl", time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not _written(metrics):
                time.sleep(0.02)
            seconds = time.perf_counter() - begin
        finally:
            process.kill()
        if not _written(metrics):
            _, told = process.communicate()
            raise UserError((told.strip().splitlines() or ["the run ended before its first step"])[-1])
    return seconds


def _written(file: pathlib.Path) -> bool:
    return file.exists() and file.stat().st_size > 0
