"""Tiny runs for the tests: their settings, and the experiments as processes of their own."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from helpers.paths import ROOT

TINY: dict[str, Any] = {
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.intermediate": 64,
    "model.vocab": 1000,
    "lora.last_layers": 1,
    "lora.rank": 4,
    "optimizer.steps": 3,
    "optimizer.warmup_steps": 1,
    "data.held_out": 8,
    "data.ner.sources": ("generated:ner?rows=300&seed=1",),
    "data.ner.rows": 8,
    "data.ner.row_length": 32,
    "data.ner.max_length": 16,
    "data.tc.sources": ("generated:pairs?rows=300&seed=2",),
    "data.tc.rows": 8,
    "data.tc.row_length": 32,
    "data.tc.max_length": 16,
    "conflict.rounds": 4,
    "conflict.lookahead": 0,
    "conflict.ablation.steps": 2,
    "conflict.ablation.seeds": (0,),
    "downstream.ner": ("generated:ner?rows=200&seed=11&held_out=1",),
    "downstream.tc": ("generated:labelled?rows=200&seed=12&held_out=1",),
    "downstream.max_length": 16,
    "downstream.steps": 3,
    "downstream.batch_size": 8,
}


def config(cache: Path, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """configs/quickstart.py with the TINY settings, data cached in `cache`, and `changes` by dotted key."""
    c = quickstart.get_config()
    c.update_from_flattened_dict({**TINY, "data.cache": str(cache), **(changes or {})})
    return c


def flags(cache: Path, changes: Mapping[str, Any] | None = None) -> list[str]:
    """The same settings as `config`, as command line flags."""
    settings = {**TINY, "data.cache": str(cache), **(changes or {})}
    return ["--config=configs/quickstart.py", *(f"--config.{key}={value}" for key, value in settings.items())]


def start(experiment: str, *args: str, devices: int = 1, **streams: Any) -> subprocess.Popen:
    """`python -m experiments.EXPERIMENT ARGS` from the repository's root on so many simulated devices, running."""
    return _python("-m", f"experiments.{experiment}", *args, devices=devices, **streams)


def _python(*args: str, devices: int, **streams: Any) -> subprocess.Popen:
    kept = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    xla = f"{kept} --xla_force_host_platform_device_count={devices}".strip()
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
    return subprocess.Popen([sys.executable, *args], cwd=ROOT, env=env, **streams)


def call(experiment: str, *args: str, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """As `start`, to its end, with what it printed."""
    return _ended(start(experiment, *args, devices=devices, **_PIPED))


def code(text: str, *args: str) -> subprocess.CompletedProcess[str]:
    """`python -c TEXT ARGS`, likewise."""
    return _ended(_python("-c", text, *args, devices=1, **_PIPED))


_PIPED: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def _ended(process: subprocess.Popen) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_together(*args: str, processes: int = 2, devices: int = 4) -> list[subprocess.Popen[str]]:
    """`python ARGS` in several processes that are told of each other by a last argument --distributed=..., each with so
    many devices and its stderr piped."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    places = [f"--distributed={address},{number},{processes}" for number in range(processes)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [_python(*args, place, devices=devices, **quiet) for place in places]


def end_together(processes: Sequence[subprocess.Popen[str]], timeout: float = 300) -> list[tuple[int, str]]:
    """(exit status, stderr) of each when it has ended, all within so many seconds; what has not ended is killed."""
    end = time.monotonic() + timeout
    try:
        errors = [p.communicate(timeout=max(end - time.monotonic(), 0))[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, error) for p, error in zip(processes, errors)]


def files(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file under `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
