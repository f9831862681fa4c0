"""A run killed at any moment and started again ends as the unbroken run does, bit for bit."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import run

from experiments.common import prefinetuning
from experiments.common.cli import PREEMPTED_STATUS
from jaxprefit.checkpoints import reader
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import locked

STEPS, EVERY = 40, 5
SETTINGS = {
    "strategy": "task_primary",
    "aggregator_decay": 0.9,
    "aggregator": "pcgrad",  # its weights depend on the last bit of the Gram matrices
    "optimizer.steps": STEPS,
    "optimizer.warmup_steps": 4,
    "model.hidden_dropout": 0.1,
    "lora.dropout": 0.1,
    "run.checkpoint_every": EVERY,
    "run.nonfinite": "skip",  # where nothing is to skip, every bit is as without it
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def unbroken(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    done = run.call("prefinetune", *run.flags(cache, SETTINGS), f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def copy(unbroken: Path, tmp_path: Path) -> Path:
    return shutil.copytree(unbroken, tmp_path / "run")


def metrics(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in lines]


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by path: weights, adapters, heads, the optimizer's moments and counts."""
    folder = workdir / "checkpoints" / str(step)
    trees = {"params": reader.read(folder).params, "optimizer": reader.read_tree(folder / "optimizer")}
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees)}


def assert_same_state(a: Path, b: Path, step: int) -> None:
    first, second = saved(a, step), saved(b, step)
    assert first.keys() == second.keys()
    assert sum("['mu']" in path and array.any() for path, array in first.items()) > 10, "the moments are in there"
    assert not [path for path in first if first[path].tobytes() != second[path].tobytes()]
    for item in ("data", "tokenizer"):
        assert (a / f"checkpoints/{step}/{item}/metadata").read_text() == (
            b / f"checkpoints/{step}/{item}/metadata"
        ).read_text()


def wait(process: subprocess.Popen, ready: Callable[[], Any]) -> None:
    end = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.001)


def grown(metrics_file: Path, old: int, lines: int) -> bool:
    """Whether the file was begun anew since it had inode `old` (at a start) and has so many lines."""
    try:
        return metrics_file.stat().st_ino != old and metrics_file.read_bytes().count(b"\n") >= lines
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_run_ends_like_the_unbroken_one(kills: int, unbroken: Path, cache: Path, tmp_path: Path) -> None:
    workdir, rng = tmp_path / "run", random.Random(7)
    command = "prefinetune", *run.flags(cache, SETTINGS), f"--workdir={workdir}"
    file, unfinished, resumed_from = workdir / "metrics.jsonl", [], []
    moments = sorted(rng.sample(range(2, STEPS - EVERY - 1), kills))
    for number, lines in enumerate(moments):
        old = file.stat().st_ino if file.exists() else 0
        last = number == kills - 1  # it is told to end, and may save before it does
        with run.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait(process, lambda old=old, lines=lines: grown(file, old, lines))
                with pytest.raises(UserError, match=f"in use by process {process.pid} "), locked(workdir):
                    pass
                if last:
                    process.terminate()
                    _, told = process.communicate(timeout=60)
                elif number % 2:  # in the middle of the next save; else wherever the run is
                    wait(process, lambda: [*workdir.glob("checkpoints/*tmp*")])
                else:
                    time.sleep(rng.uniform(0, 0.05))
            finally:
                process.kill()
        assert process.returncode == (PREEMPTED_STATUS if last else -signal.SIGKILL)
        unfinished += workdir.glob("checkpoints/*tmp*")
        resumed_from.append(max((int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()), default=0))
    assert unfinished, "no kill fell into a save"
    assert resumed_from == sorted(resumed_from) and 0 < resumed_from[-1] < STEPS
    assert resumed_from[-1] == metrics(workdir)[-1]["step"], "SIGTERM loses no step"
    assert told == f"error: step {resumed_from[-1]}: ended by SIGTERM; the same command continues\n"

    done = run.call(*command)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(workdir)] == [*range(1, STEPS + 1)]
    assert metrics(workdir) == metrics(unbroken)
    assert_same_state(workdir, unbroken, STEPS)
    assert (workdir / "summary.json").read_text() == (unbroken / "summary.json").read_text()
    assert not [*workdir.glob("checkpoints/*tmp*")]


def test_second_call_of_a_finished_run_changes_nothing(copy: Path, cache: Path) -> None:
    before = run.files(copy)
    prefinetuning.run(run.config(cache, SETTINGS), copy)
    assert run.files(copy) == before


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer.backbone_lr", 1e-5), ("seed", 1), ("strategy", "naive"), ("lora.rank", 2)]
)
def test_changed_setting_is_refused(copy: Path, cache: Path, key: str, value: Any) -> None:
    before = run.files(copy)
    with pytest.raises(UserError) as error:
        prefinetuning.run(run.config(cache, {**SETTINGS, key: value}), copy)
    assert f"{key}: " in str(error.value) and "\n" not in str(error.value)
    assert run.files(copy) == before


def test_places_and_rhythm_may_change_and_the_cache_be_lost(
    unbroken: Path, copy: Path, cache: Path, tmp_path: Path
) -> None:
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    elsewhere = {"data.root": str(tmp_path), "data.cache": str(tmp_path / "cache"), "devices": 1}
    rhythm = {"run.checkpoint_every": 2, "run.keep": 3, "run.nonfinite": "stop"}
    prefinetuning.run(run.config(cache, {**SETTINGS, **elsewhere, **rhythm}), copy)
    assert metrics(copy) == metrics(unbroken)
    assert_same_state(copy, unbroken, STEPS)
