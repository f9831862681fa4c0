"""The training loop: progress, `metrics.jsonl`, periodic checkpoints, exact resume, a stop on non-finite loss or on
SIGTERM. In several processes (`distributed`) all go through it alike, and the first writes the lines."""

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np

from jaxprefit.errors import UserError
from jaxprefit.families.mixture import Drawn
from jaxprefit.runtime.distributed import Agreement, first
from jaxprefit.runtime.files import lines_up_to, write_text
from jaxprefit.runtime.preemption import Notice, Preempted
from jaxprefit.runtime.progress import TrainingProgress
from jaxprefit.runtime.sharding import put_batch
from jaxprefit.training.nonfinite import Watch
from jaxprefit.training.profiling import Profile
from jaxprefit.training.train_step import TrainState

Step = Callable[[TrainState, Mapping[str, Mapping]], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and what is written when."""

    steps: int
    checkpoint_every: int = 100  # steps; the last step is always saved
    log_every: int = 1  # steps between lines of metrics.jsonl
    nonfinite: str = "stop"  # or "skip", where `step_fn` skips such steps too
    nonfinite_limit: int = 10  # skipped steps in a row that end the run
    profile: int = 0  # steps that are profiled


def run(
    step_fn: Step,
    state: TrainState,
    streams: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    workdir: pathlib.Path,
    cfg: LoopConfig,
    save: Callable[[TrainState, dict], None],
) -> TrainState:
    """Trains from `state.step` to `cfg.steps`, or until a stream ends. `streams` are iterators of `mixture.Drawn`,
    `save(state, data_positions)` writes a checkpoint.

    The metrics of step n are read while step n + 1 runs, so the host never blocks the device; before a checkpoint
    they are read at once, so that a non-finite loss is never saved. Raises UserError naming the step at which a loss
    or gradient is not finite, or the last of too many in a row that were skipped; the last good checkpoint stays, and
    the batches are in the workdir's folder nonfinite. Raises Preempted after the step in which SIGTERM came, with a
    checkpoint of it; of several processes all do, after the next step, whichever of them was told.
    """
    start = int(state.step)
    writer = MetricsWriter(workdir / "metrics.jsonl", start, cfg.log_every)
    agreed, profiled = Agreement(mesh), Profile(workdir, start, cfg.profile)
    shown = TrainingProgress(cfg.steps, start, list(streams), first())
    with Notice() as notice, writer, shown as progress, profiled as profile:
        undefined = Undefined()
        watch = Watch(workdir / "nonfinite", cfg.nonfinite, cfg.nonfinite_limit)
        pending: tuple[int, dict, dict[str, Drawn]] | None = None

        def flush() -> None:
            nonlocal pending
            if pending is not None:
                number, metrics, drawn = pending
                pending = None
                with profile.part("device"):
                    jax.block_until_ready(metrics)
                with profile.part("metrics"):
                    values = {k: np.asarray(v) for k, v in jax.device_get(dict(metrics)).items()}
                    bad = watch.bad(number, values, {name: d.batch for name, d in drawn.items()})
                    undefined.tell(number, values)
                    line = writer.write(number, values, drawn, bad)
                if not bad:
                    progress.update(number, line)

        number = start
        while number < cfg.steps:
            try:
                with profile.part("input"):
                    drawn = {name: next(stream) for name, stream in streams.items()}
            except StopIteration:  # a source is used up, and the config says to stop there
                cfg = dataclasses.replace(cfg, steps=number)
            else:
                number += 1
                with profile.part("to device"):
                    batches = {name: put_batch(mesh, d.batch) for name, d in drawn.items()}
                with profile.part("dispatch"):
                    state, metrics = step_fn(state, batches)
                flush()
                pending = number, metrics, drawn
            ending = agreed(notice.given)
            if ending or number % cfg.checkpoint_every == 0 or number == cfg.steps:
                flush()
                if not all_finite(state.params):
                    raise UserError(
                        f"step {number}: a weight is not finite; earlier checkpoints are kept. Lower the learning rate"
                    )
                writer.sync()
                save(state, positions(streams))
            profile.step(number)
            if ending:
                raise Preempted(f"step {number}: ended by SIGTERM; the same command continues")
        flush()
    return state


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number in a tree of arrays is finite."""
    return jax.numpy.all(jax.numpy.stack([jax.numpy.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def positions(streams: Mapping[str, Any]) -> dict[str, Any]:
    """Where each family's stream stands, as JSON."""
    return {name: stream.get_state() for name, stream in streams.items()}


class MetricsWriter:
    """Appends to `metrics.jsonl`, after dropping lines past `start`: what a resumed run will write again.

    Of several processes the first does; the others make up the lines and write none.
    """

    def __init__(self, path: pathlib.Path, start: int, every: int):
        self.every, self.clock = every, time.perf_counter()
        self.file: TextIO | None = None
        if not first():
            return
        write_text(path, "".join(lines_up_to(path, start)))
        self.file = path.open("a")

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def write(
        self, number: int, values: Mapping[str, np.ndarray], drawn: Mapping[str, Drawn], skipped: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Writes the line of step `number` and returns it. Of a step that was skipped, for the metrics `skipped`, it
        is always written, and holds no result."""
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        tokens = {k: int(v) for k, v in values.items() if k.startswith("tokens/")}
        found = {k: None if _undefined(k, v) else v.tolist() for k, v in values.items()}
        found = tokens | {"skipped": [*skipped]} if skipped else found
        line: dict[str, Any] = {"step": number, **dict(sorted(found.items()))}
        line |= {f"examples/{name}": d.examples for name, d in drawn.items()}
        line |= {f"useful/{name}": round(d.useful, 4) for name, d in drawn.items()}
        rate = sum(tokens.values()) / max(seconds, 1e-9)
        line |= {"seconds": round(seconds, 4), "tokens_per_s": round(rate, 1)}
        if self.file and (number % self.every == 0 or skipped):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        return line

    def sync(self) -> None:
        """Makes sure that what was written survives a crash of the machine."""
        if self.file:
            os.fsync(self.file.fileno())


class Undefined:
    """Tells once, for each family, of a batch whose accuracy is undefined."""

    def __init__(self) -> None:
        self.families: set[str] = set()

    def tell(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Looks at the metrics of step `number`."""
        names = {key.partition("/")[2] for key, value in values.items() if _undefined(key, value)} - self.families
        self.families |= names
        for name in sorted(names) if first() else ():
            print(
                f"step {number}: no pair of the batch of {name} has a negative, so that its loss is 0, it teaches "
                f"nothing, and its accuracy is undefined; take more data.{name}.rows, or look whether the texts of the "
                "source are all alike as cut. Later such batches are not told",
                file=sys.stderr,
            )


def _undefined(key: str, value: np.ndarray) -> bool:
    return key.startswith("accuracy/") and bool(np.isnan(value))


def skipped_steps(path: pathlib.Path) -> int:
    """How many steps of a whole metrics.jsonl were skipped; 0 where there is no such file."""
    return sum('"skipped"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def require_a_step(step: int, path: pathlib.Path) -> None:
    """Raises UserError where a run that ended at `step` with the metrics.jsonl at `path` has changed no parameter."""
    if not step:
        raise UserError(
            "no step was done: a source has less than a batch (data.*.exhaustion=stop); take fewer data.*.rows"
        )
    if skipped_steps(path) >= step:
        raise UserError(
            f"no step was done: all {step} were skipped, since a loss or gradient was not finite; lower the learning "
            f"rate or look at the batches in {path.with_name('nonfinite')}"
        )
