"""The profile of a training loop: a trace in the usual format, and a page with the loop's clocks and the operations."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from experiments.common import cli
from jaxprefit.families.mixture import Drawn
from jaxprefit.runtime.sharding import make_mesh
from jaxprefit.training import loop
from jaxprefit.training.profiling import WARM_UP, operations
from jaxprefit.training.train_step import TrainState

SLOW = 0.02  # seconds that the loader takes


class Stream(Iterator):
    def __next__(self) -> Drawn:
        time.sleep(SLOW)
        return Drawn({"x": np.ones((64, 64), np.float32)}, {"a": 1}, 1.0)

    def get_state(self) -> dict[str, int]:
        return {}


@jax.jit
def step(state: TrainState, batches: Any) -> Any:
    x = batches["ner"]["x"]
    metrics = {"loss/ner": jnp.tanh(x @ x).sum(), "gradient_norm/ner": jnp.ones(()), "tokens/ner": jnp.ones((), int)}
    return state._replace(step=state.step + 1), metrics


def train(workdir: Path, steps: int, profile: int) -> None:
    state = TrainState(jnp.zeros((), jnp.int32), {"backbone/x": jnp.zeros(1)}, (), ())
    cfg = loop.LoopConfig(steps, profile=profile)
    loop.run(step, state, {"ner": Stream()}, make_mesh(1), workdir, cfg, lambda *_: None)


@pytest.mark.parametrize("after", [0, 2])
def test_steps_after_warm_up_are_profiled(after: int, tmp_path: Path) -> None:
    """Also where the run ends with them."""
    train(tmp_path, WARM_UP + 4 + after, 4)
    assert len([*tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")]) == 1
    text = (tmp_path / "profile.txt").read_text()
    assert text.startswith("steps 4 to 7 on 1 x ")
    (waiting,) = (line.split() for line in text.splitlines() if "input: " in line)
    assert float(waiting[0]) >= 1e3 * SLOW
    assert "device: waiting" in text and "rest: " in text
    assert " % " in text[text.index("The devices' operations") :], "some operation"


def test_a_run_without_a_profile_leaves_none_and_a_short_one_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, WARM_UP + 2, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]
    train(tmp_path / ".", 1, 4)
    assert "profile" not in {p.name for p in tmp_path.iterdir()}
    assert "no profile: the run had no more than 3 steps" in capsys.readouterr().err
    train(tmp_path / ".", WARM_UP, 4)
    assert not (tmp_path / "profile.txt").exists()
    assert "no profile: the run had no more than 3 steps" in capsys.readouterr().err


def test_an_operation_does_not_count_what_it_contains() -> None:
    def event(thread: int, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
        return {"ph": "X", "pid": 1, "tid": thread, "name": name, "ts": ts, "dur": dur, "args": args}

    events = [
        {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name", "args": {"name": "XLA Ops"}},
        event(2, "fusion.1", 12, 3, hlo_op="fusion.1"),
        event(2, "while.5", 10, 10, hlo_op="while.5"),
        event(2, "fusion.22", 15, 4, hlo_op="fusion.22"),
        event(2, "dot", 20, 2, hlo_op="dot"),
        event(7, "dot.3", 0, 6),  # a TPU's
        event(3, "python", 0, 100),
    ]
    found = operations({"traceEvents": events})
    assert [(name, round(1e6 * s, 6), calls) for name, s, calls in found] == [
        ("dot", 8, 2), ("fusion", 7, 2), ("while", 3, 1),
    ]  # fmt: skip
    assert operations({}) == []


def test_compiled_programs_are_kept_beside_the_data_caches_unless_told_otherwise(tmp_path: Path) -> None:
    config, workdir, before = default.get_config(), tmp_path / "runs" / "first", jax.config.jax_compilation_cache_dir

    def folder(given: str | None) -> str | None:
        jax.config.update("jax_compilation_cache_dir", given)
        cli._keep_compiled(config, workdir)
        return jax.config.jax_compilation_cache_dir

    try:
        assert folder(None) == str(tmp_path / "runs" / "cache" / "compiled")
        assert folder("/named/by/the/environment") == "/named/by/the/environment"
        config.data.cache = str(tmp_path / "elsewhere")
        assert folder(None) == str(tmp_path / "elsewhere" / "compiled")
        config.run.compilation_cache = False
        assert folder(None) is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
