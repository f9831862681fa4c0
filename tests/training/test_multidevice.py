"""Eight (simulated) devices compute what one does however they are laid out, and a checkpoint fits every layout.

The runs of several devices are processes of their own; this one has a single device.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import run

import jaxprefit
from experiments.common import prefinetuning
from jaxprefit.checkpoints import reader
from jaxprefit.encoder.transformer import EncoderConfig, init_backbone
from jaxprefit.runtime import sharding

STEPS = 6
LAYOUTS = {  # name -> settings
    "1": {"devices": 1},
    "8": {"devices": 8},
    "4x2": {"devices": 8, "mesh.fsdp": 2},
    "2x2x2": {"devices": 8, "mesh.data": 2, "mesh.fsdp": -1, "mesh.tensor": 2},
    # Dropout falls on other places where a batch is cut up.
    "1 without dropout": {"devices": 1, "model.hidden_dropout": 0.0, "lora.dropout": 0.0},
    "2 by parts": {
        "devices": 2, "model.hidden_dropout": 0.0, "lora.dropout": 0.0, "run.accumulate": 2, "data.tc.chunk_rows": 4,
    },
}  # fmt: skip
SETTINGS = {
    "strategy": "task_primary",
    "aggregator": "pcgrad",
    "aggregator_decay": 0.9,
    "model.hidden_dropout": 0.1,
    "lora.dropout": 0.1,
    "optimizer.steps": STEPS,
    "run.checkpoint_every": 3,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(layout, steps) -> the workdir of its run, by a process that sees eight devices, made when it is asked for."""
    folder = tmp_path_factory.mktemp("layouts")

    @functools.cache
    def make(layout: str, steps: int = STEPS) -> Path:
        workdir = folder / f"{layout}-{steps}"
        changes = {**SETTINGS, **LAYOUTS[layout], "optimizer.steps": steps}
        done = run.call("prefinetune", *run.flags(cache, changes), f"--workdir={workdir}", devices=8)
        assert done.returncode == 0, done.stderr
        device = json.loads((workdir / "summary.json").read_text())["device"]
        assert device.startswith(f"{LAYOUTS[layout]['devices']} x ")
        return workdir

    return make


def metrics(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def weights(workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    return flatten_dict(reader.read(workdir / "checkpoints" / str(step)).params, sep="/")


def assert_close_metrics(found: list[dict[str, Any]], expected: list[dict[str, Any]], steps: int = STEPS) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [*range(1, steps + 1)]
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


@pytest.mark.parametrize("layout", ["8", "2x2x2"])
def test_eight_devices_train_like_one(layout: str, made: Callable[..., Path]) -> None:
    assert_close_metrics(metrics(made(layout)), metrics(made("1")))
    assert_close_weights(weights(made(layout)), weights(made("1")))
    start, end = weights(made("1"), 3), weights(made("1"))
    assert max(np.abs(end[path] - start[path]).max() for path in end) > 1e-3, "the weights moved far enough to tell"


def test_gradients_accumulated_on_several_devices_train_like_one(made: Callable[..., Path]) -> None:
    assert_close_metrics(metrics(made("2 by parts")), metrics(made("1 without dropout")))
    assert_close_weights(weights(made("2 by parts")), weights(made("1 without dropout")))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["8", "4x2", "2x2x2"])
def test_twenty_steps_of_every_layout(layout: str, made: Callable[..., Path]) -> None:
    assert_close_metrics(metrics(made(layout, 20)), metrics(made("1", 20)), 20)
    assert_close_weights(weights(made(layout, 20), 20), weights(made("1", 20), 20))


def test_checkpoint_of_eight_devices_loads_on_one(made: Callable[..., Path]) -> None:
    assert jax.device_count() == 1
    model = jaxprefit.load(made("2x2x2"))
    for path, value in flatten_dict(model.params, sep="/").items():
        assert isinstance(value, np.ndarray), path
        np.testing.assert_array_equal(value, weights(made("2x2x2"))[path])
    assert np.isfinite(model.encode(["a text"], adapter="ner").tokens).all()


@pytest.mark.parametrize(("written", "layout"), [("2x2x2", "1"), ("1", "2x2x2")])
def test_resume_on_another_layout(
    written: str, layout: str, made: Callable[..., Path], cache: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(made(written), tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    settings = {**SETTINGS, **LAYOUTS[layout]}
    if layout == "1":
        prefinetuning.run(run.config(cache, settings), workdir)
    else:
        done = run.call("prefinetune", *run.flags(cache, settings), f"--workdir={workdir}", devices=8)
        assert done.returncode == 0, done.stderr
    assert metrics(workdir)[:3] == metrics(made(written))[:3], "the lines before were kept"
    assert_close_metrics(metrics(workdir), metrics(made("1")))
    assert_close_weights(weights(workdir), weights(made("1")))


# Where parameters lie, without any device


PATHS = {"backbone": init_backbone(EncoderConfig(30_522, 8, 1, 2, 16, 8), jax.random.key(0))}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("backbone/layer_0/query/kernel", ("fsdp", "tensor")),
        ("backbone/layer_0/output/kernel", ("tensor", "fsdp")),
        ("backbone/layer_0/output/bias", ()),
        ("backbone/embeddings/word/embedding", (None, "fsdp")),  # 30,522 has no quarters
        ("backbone/embeddings/position/embedding", ()),
    ],
)
def test_rules(path: str, expected: tuple[str | None, ...]) -> None:
    mesh = jax.sharding.AbstractMesh((1, 2, 4), sharding.AXES)
    flat = flatten_dict(PATHS, sep="/")
    assert sharding.spec(mesh, path, flat[path].shape) == jax.sharding.PartitionSpec(*expected)  # type: ignore[arg-type]
    alone = sharding.make_mesh(1)
    assert all(sharding.spec(alone, p, leaf.shape) == jax.sharding.PartitionSpec() for p, leaf in flat.items())


@pytest.mark.parametrize(("shape", "laid"), [((8, 1, 1), False), ((2, 1, 4), False), ((1, 8, 1), True)])
def test_hidden_states_lie_by_rows_where_parameters_are_in_parts(shape: tuple[int, ...], laid: bool) -> None:
    found = sharding.hidden_rows(jax.sharding.AbstractMesh(shape, sharding.AXES))  # type: ignore[arg-type]
    assert (found is not None) == laid and (not laid or found.spec == jax.sharding.PartitionSpec(sharding.ROWS))


def test_a_parameter_without_a_rule_is_refused() -> None:
    with pytest.raises(KeyError, match="backbone/pooler/kernel"):
        sharding.put_state(sharding.make_mesh(1), {"backbone/pooler/kernel": np.ones(3)})


def test_batch_that_does_not_divide(cache: Path, tmp_path: Path) -> None:
    args = *run.flags(cache, {"data.tc.rows": 12}), f"--workdir={tmp_path / 'run'}"
    done = run.call("prefinetune", *args, devices=8)
    assert done.returncode not in (0, None)
    assert done.stderr.startswith("error: data.tc.rows is 12; ") and done.stderr.count("\n") == 1, done.stderr
    assert "8 devices" in done.stderr and not (tmp_path / "run").exists()
