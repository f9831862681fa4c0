"""What a run loses by a fault: nothing that was saved, and it says what happened in one line."""

import json
import os
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run

from experiments.common import prefinetuning
from jaxprefit.checkpoints import checksums, reader
from jaxprefit.errors import UserError
from jaxprefit.families.mixture import Drawn
from jaxprefit.runtime.files import locked
from jaxprefit.runtime.preemption import Preempted
from jaxprefit.runtime.sharding import make_mesh
from jaxprefit.training import loop, nonfinite
from jaxprefit.training.checkpoints import Checkpoints
from jaxprefit.training.train_step import TrainState

META: Any = {
    "config": {},
    "encoder": {},
    "families": {},
    "data": {},
    "tokenizer": "",
    "strategy": "",
    "touch_table": [],
}


def state(step: int) -> TrainState:
    """A state whose arrays differ from step to step."""
    values = jax.random.normal(jax.random.key(step), (64, 64))
    params = {"backbone/kernel": values, "lora/ner/a": values[0], "head/ner/kernel": values[1]}
    return TrainState(jnp.asarray(step, jnp.int32), params, {"mu": values + 1})


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    kept = Checkpoints(workdir)
    for step in (1, 2):
        kept.save(state(step), {"ner": {"row": step}}, "{}", META)
    return workdir


@pytest.fixture
def copy(two_steps: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_steps, tmp_path / "run")


def flip(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def refusal(step: int, workdir: Path) -> str:
    """The line with which a run that continues refuses a step."""
    with pytest.raises(UserError) as error:
        Checkpoints(workdir).restore(step, state(0), META)
    assert "\n" not in str(error.value)
    return str(error.value)


# Checkpoints


def test_a_flipped_bit_anywhere_is_detected_and_the_step_before_offered(copy: Path) -> None:
    steps, rng = copy / "checkpoints", np.random.default_rng(0)
    files = sorted(p.relative_to(steps / "2") for p in (steps / "2").rglob("*") if p.is_file())
    assert len(files) > 10
    for file in files:
        whole = (steps / "2" / file).read_bytes()
        if not whole:
            continue
        flip(steps / "2" / file, rng)
        message = refusal(2, copy)
        assert message.startswith(f"{steps / '2'}: ") and "damaged" in message, message
        assert f"step 1 is whole: use {steps / '1'}, or delete {steps / '2'}" in message
        if file.parts[0] not in ("optimizer", "SHA256SUMS"):
            with pytest.raises(UserError, match="damaged"):
                reader.read(steps / "2")
        (steps / "2" / file).write_bytes(whole)
    shutil.rmtree(steps / "2")  # as it says
    kept = Checkpoints(copy)
    restored, data = kept.restore(kept.latest() or 0, state(0), META)
    jax.tree.map(np.testing.assert_array_equal, restored, state(1))
    assert data == {"ner": {"row": 1}}


def test_no_step_is_offered_where_none_is_whole(copy: Path) -> None:
    for step in "12":
        flip(next((copy / "checkpoints" / step / "backbone").glob("d/*")), np.random.default_rng(1))
    for step in (1, 2):
        assert "is whole" not in refusal(step, copy)


def test_a_step_without_checksums_is_read(copy: Path) -> None:
    (copy / "checkpoints" / "2" / checksums.NAME).unlink()
    restored, _ = Checkpoints(copy).restore(2, state(0), META)
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))
    for file in (copy / "checkpoints" / "2" / "optimizer").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert "damaged" in refusal(2, copy)


def test_full_disk_while_saving(copy: Path) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    kept, (soft, hard) = Checkpoints(copy), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # files can get so many bytes and no more, as if there was no room
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        with pytest.raises(UserError) as error:
            kept.save(state(3), {}, "{}", META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(error.value)
    assert f"{copy / 'checkpoints'}: step 3 cannot be written (File too large); earlier steps are kept" in message
    assert "\n" not in message
    assert {p: p.read_bytes() for p in before} == before
    assert kept.latest() == 2 and reader.find(copy) == copy / "checkpoints" / "2"
    jax.tree.map(np.testing.assert_array_equal, kept.restore(2, state(0), META)[0], state(2))


# The workdir


def test_second_run_in_a_workdir_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*; wait") as error, locked(tmp_path):
            pass
        assert str(tmp_path) in str(error.value)
    with locked(tmp_path):
        pass


def test_workdir_that_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if root := os.geteuid() == 0:  # whom nothing is forbidden
            os.seteuid(65534)
        try:
            told = f"{folder} cannot be written .*; give another --workdir"
            with pytest.raises(UserError, match=told), locked(Path(folder)):
                pass
        finally:
            if root:
                os.seteuid(0)


# The loop, with steps that cost nothing


class Stream(Iterator):
    """Batches that hold their number."""

    number = 0

    def __next__(self) -> Drawn:
        self.number += 1
        return Drawn({"x": np.full(2, self.number)}, {"a": self.number}, 1.0)

    def get_state(self) -> dict[str, int]:
        return {"number": self.number}


def train(workdir: Path, step: Any, steps: int = 6, **settings: Any) -> list[tuple[int, Any]]:
    """(step, position) of every checkpoint that the loop asks for."""
    saved: list[tuple[int, Any]] = []
    cfg = loop.LoopConfig(steps, checkpoint_every=4, **settings)
    try:
        loop.run(step, state(0), {"ner": Stream()}, make_mesh(1), workdir, cfg,
                 lambda s, position: saved.append((int(s.step), position["ner"]["number"])))  # fmt: skip
    finally:
        train.saved = saved  # type: ignore[attr-defined]
    return saved


def advance(state: TrainState, loss: float = 1.0) -> tuple[TrainState, dict[str, Any]]:
    metrics = {"loss/ner": np.float32(loss), "gradient_norm/ner": np.float32(1), "tokens/ner": np.int32(8)}
    return state._replace(step=state.step + 1), metrics


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_sigterm_saves_the_step_it_came_in_and_ends(tmp_path: Path) -> None:
    def step(state: TrainState, batches: Any) -> Any:
        if int(state.step) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(state)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="step 2: "):
        train(tmp_path, step)
    assert train.saved == [(2, 2)] and len(lines(tmp_path)) == 2  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_trains_too(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path, lambda s, _: advance(s))))
    thread.start()
    thread.join()
    assert found == [[(4, 4), (6, 6)]]


# Steps that are not finite


def falling_out(*numbers: int) -> Any:
    """A step whose loss is not finite at the steps of these numbers."""
    return lambda state, _: advance(state, np.nan if int(state.step) + 1 in numbers else 1.0)


def test_a_bad_step_stops_the_run_and_its_batch_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^step 5: loss/ner is not finite; .*nonfinite$"):
        train(tmp_path, falling_out(5))
    assert train.saved == [(4, 4)] and len(lines(tmp_path)) == 4  # type: ignore[attr-defined]
    with np.load(tmp_path / "nonfinite" / "step_5.npz") as kept:
        np.testing.assert_array_equal(kept["ner/x"], [5, 5])
    assert [*tmp_path.glob("nonfinite/*")] == [*tmp_path.glob("nonfinite/*.npz")]


def test_bad_steps_are_skipped_and_counted(tmp_path: Path) -> None:
    skip: Any = {"nonfinite": "skip", "nonfinite_limit": 3, "log_every": 2}
    assert train(tmp_path, falling_out(1, 2, 5), **skip) == [(4, 4), (6, 6)]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4, 5, 6]
    assert [line.get("skipped") for line in lines(tmp_path)] == [["loss/ner"], ["loss/ner"], None, ["loss/ner"], None]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert loop.skipped_steps(tmp_path / "metrics.jsonl") == 3
    assert sorted(p.name for p in tmp_path.glob("nonfinite/*")) == ["step_1.npz", "step_2.npz", "step_5.npz"]


def test_too_many_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    skip: Any = {"nonfinite": "skip", "nonfinite_limit": 3}
    with pytest.raises(UserError, match="^step 6: .* 3 steps in a row .run.nonfinite_limit.; "):
        train(tmp_path, falling_out(1, 2, 4, 5, 6), steps=9, **skip)


def test_a_run_without_a_step_fails(tmp_path: Path) -> None:
    skip: Any = {"nonfinite": "skip", "nonfinite_limit": 9}
    train(tmp_path, falling_out(1, 2, 3, 4), steps=4, **skip)
    with pytest.raises(
        UserError, match="^no step was done: all 4 were skipped, since a loss or gradient was not finite"
    ):
        loop.require_a_step(4, tmp_path / "metrics.jsonl")
    (tmp_path / "other").mkdir()
    train(tmp_path / "other", falling_out(1, 2, 4), steps=4, **skip)
    loop.require_a_step(4, tmp_path / "other" / "metrics.jsonl")
    with pytest.raises(UserError, match="^no step was done: a source has less than a batch"):
        loop.require_a_step(0, tmp_path / "none.jsonl")


def test_prefinetune_fails_where_no_step_was_done(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    stop = {f"data.{family}.exhaustion": "stop" for family in ("ner", "tc")}
    few = {
        "data.ner.sources": ("generated:ner?rows=9",),
        "data.tc.sources": ("generated:pairs?rows=9",),
        "data.held_out": 0,
    }
    with pytest.raises(UserError, match="no step was done: a source has less than a batch"):
        prefinetuning.run(
            run.config(cache, {**stop, **few, "data.tc.rows": 64, "data.ner.rows": 64}), tmp_path / "stop"
        )
    zero = {
        "data.tc.temperature": 1e-50,
        "strategy": "individual_tc",
    }  # 0 in float32, by which similarities are divided
    bad = run.config(cache, {"run.nonfinite": "skip", "optimizer.steps": 2, **zero})
    for _ in range(2):  # also where all steps are there
        with pytest.raises(UserError, match="no step was done: all 2 were skipped"):
            prefinetuning.run(bad, tmp_path / "skip")
    assert not (tmp_path / "skip" / "summary.json").exists()


def test_no_more_batches_are_kept_than_tell_something(tmp_path: Path) -> None:
    train(tmp_path, falling_out(*range(1, 60, 2)), steps=60, nonfinite="skip")
    assert len([*tmp_path.glob("nonfinite/*")]) == nonfinite.BATCHES
