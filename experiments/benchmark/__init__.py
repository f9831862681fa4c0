r"""Speed and memory, measured on this machine.

python -m experiments.benchmark --config.what=gradcache --workdir=runs/benchmark

What there is to measure: gradcache, the step of gradient caching against the plain one; data, the loader alone against
the step; downstream, fine-tuning on a frozen backbone against the plain loop; conflict, the step that logs Gram
matrices against the step that does not; lora, what LoRA and gradients kept apart cost a step, and what an adapter saves
downstream; peer, a task_primary step against the same work in transformers and peft; first_step, the time from the
command to the end of its first step. Sizes, sources and repetitions: configs/benchmark.py. Writes
WORKDIR/benchmark_WHAT.json and prints it.
"""

import json
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.benchmark import conflict, data, downstream, first_step, gradcache, lora, peer
from experiments.common.checks import check
from experiments.common.workdirs import owned
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import write_json

BENCHMARK_VERSION = 1
BENCHMARKS: dict[str, Callable[[ConfigDict, pathlib.Path], dict[str, Any]]] = {
    "gradcache": gradcache.measure,
    "data": data.measure,
    "downstream": downstream.measure,
    "conflict": conflict.measure,
    "lora": lora.measure,
    "peer": peer.measure,
    "first_step": first_step.measure,
}


@owned("benchmark")
def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Measures what `config.what` names, and returns what the JSON file holds."""
    check(config)
    if config.what not in BENCHMARKS:
        raise UserError(f"what is '{config.what}'; choose from {', '.join(BENCHMARKS)}")
    if config.repetitions < 2:
        raise UserError(f"repetitions is {config.repetitions}; it must be at least 2, to give a spread")
    # Before this process takes the device, which first_step leaves to others.
    measured = BENCHMARKS[config.what](config, workdir)
    content = {
        "schema": f"jaxprefit.benchmark.{config.what}",
        "version": BENCHMARK_VERSION,
        "device": f"{config.devices or jax.device_count()} x {device_kind()}",
        "repetitions": config.repetitions,
        **measured,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / f"benchmark_{config.what}.json", content)
    print(json.dumps(content, indent=1))
    return content


def device_kind() -> str:
    """The device's name; of a CPU also what Linux calls it, since ratios differ between generations."""
    kind, facts = jax.devices()[0].device_kind, pathlib.Path("/proc/cpuinfo")
    if kind != "cpu" or not facts.exists():
        return kind
    first = facts.read_text(encoding="utf-8").split("\n\n")[0]
    of = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    told = [of.get("model name", ""), *(f"{key} {of[key]}" for key in ("cpu family", "model") if key in of)]
    return f"{kind} ({', '.join(filter(None, told)) or platform.machine()})"
