"""Eight (simulated) devices compute what one does, and a checkpoint does not care how many there were.

The runs of several devices are processes of their own; this one has a single device.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import run
from flax.traverse_util import flatten_dict

import jaxprefit
from experiments import prefinetune
from jaxprefit import checkpoints

STEPS = 6
SETTINGS = {
    "strategy": "task_primary",
    "aggregator": "pcgrad",
    "model.hidden_dropout": 0.1,
    "lora.dropout": 0.1,
    "optimizer.steps": STEPS,
    "run.checkpoint_every": 3,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of devices -> workdir, both out of processes that see eight."""
    folder = tmp_path_factory.mktemp("devices")
    for n in (8, 1):
        args = *run.flags(cache, {**SETTINGS, "devices": n}), f"--workdir={folder / str(n)}"
        done = run.call("prefinetune", *args, devices=8)
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / str(n) / "summary.json").read_text())["device"].startswith(f"{n} x ")
    return {n: folder / str(n) for n in (8, 1)}


def metrics(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def weights(workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    return flatten_dict(checkpoints.read(workdir / "checkpoints" / str(step)).params, sep="/")


def assert_close_metrics(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [*range(1, STEPS + 1)]
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for key in b.keys() - {"seconds", "tokens_per_s"}:
            if isinstance(b[key], dict):  # examples by source
                assert a[key] == b[key], key
                continue
            # An inner product may cancel: rounding is relative to the norms, which stand on the diagonal.
            scale = np.max(np.abs(b[key]))
            np.testing.assert_allclose(a[key], b[key], rtol=0, atol=1e-5 * scale, err_msg=f"{a['step']} {key}")


def assert_close_weights(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        # Adam divides by the gradient's size: where an entry's gradient is near rounding, its steps are noise of up to
        # the learning rate. That is all of the keys' bias, which attention does not depend on, and stray entries
        # elsewhere. A tensor as a whole has to agree: a fault in a gradient would show at some per cent of its norm.
        if not path.endswith("key/bias"):
            error, norm = np.linalg.norm(found[path] - value), np.linalg.norm(value)
            assert error <= 2e-4 * norm, f"{path}: relative difference {error / norm:.2e}"


def test_eight_devices_train_like_one(runs: dict[int, Path]) -> None:
    assert_close_metrics(metrics(runs[8]), metrics(runs[1]))
    assert_close_weights(weights(runs[8]), weights(runs[1]))
    start, end = weights(runs[1], 3), weights(runs[1])
    assert max(np.abs(end[path] - start[path]).max() for path in end) > 1e-3, "the weights moved far enough to tell"


def test_checkpoint_of_eight_devices_loads_on_one(runs: dict[int, Path]) -> None:
    assert jax.device_count() == 1
    model = jaxprefit.load(runs[8])
    for path, value in flatten_dict(model.params, sep="/").items():
        assert isinstance(value, np.ndarray), path
        np.testing.assert_array_equal(value, weights(runs[8])[path])
    assert np.isfinite(model.encode(["a text"], adapter="ner").tokens).all()


@pytest.mark.parametrize(("written", "devices"), [(8, 1), (1, 8)])
def test_resume_on_another_number_of_devices(
    written: int, devices: int, runs: dict[int, Path], cache: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(runs[written], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    settings = {**SETTINGS, "devices": devices}
    if devices == 1:
        prefinetune.run(run.config(cache, settings), workdir)
    else:
        done = run.call("prefinetune", *run.flags(cache, settings), f"--workdir={workdir}", devices=8)
        assert done.returncode == 0, done.stderr
    assert metrics(workdir)[:3] == metrics(runs[written])[:3], "the lines before were kept"
    assert_close_metrics(metrics(workdir), metrics(runs[1]))
    assert_close_weights(weights(workdir), weights(runs[1]))


def test_batch_that_does_not_divide(cache: Path, tmp_path: Path) -> None:
    args = *run.flags(cache, {"data.tc.rows": 12}), f"--workdir={tmp_path / 'run'}"
    done = run.call("prefinetune", *args, devices=8)
    assert done.returncode not in (0, None)
    assert done.stderr.startswith("error: data.tc.rows is 12; ") and done.stderr.count("\n") == 1, done.stderr
    assert "8 devices" in done.stderr and not (tmp_path / "run").exists()
