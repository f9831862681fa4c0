"""Progress of a training run or of a grid of small ones: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress

from jaxprefit.runtime.terminal import printable, text_column

QUIET_SECONDS = 30  # between lines where there is no terminal


class TrainingProgress:
    """Shows step, losses, useful tokens per second and ETA, on standard error, if `visible`."""

    def __init__(self, steps: int, start: int, families: Sequence[str], visible: bool = True):
        self.steps, self.start, self.families, self.visible = steps, start, families, visible
        self.began = self.shown = time.perf_counter()
        console = rich.console.Console(stderr=True)
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            text_column("{task.fields[text]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not (visible and console.is_terminal),
        )
        self.task = self.bar.add_task("", total=steps, completed=start, text="")

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, step: int, line: Mapping[str, Any]) -> None:
        """After a step; `line` is its line of metrics.jsonl."""
        losses = "  ".join(f"{name} {line[f'loss/{name}']:.4f}" for name in self.families)
        text = f"{losses}  {line['tokens_per_s']:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, text=text)
        now = time.perf_counter()
        if self.visible and self.bar.disable and now - self.shown > QUIET_SECONDS:
            left = (now - self.began) / (step - self.start) * (self.steps - step)
            eta = datetime.timedelta(seconds=round(left))
            print(f"step {step}/{self.steps}  {text}  ETA {eta}", file=sys.stderr, flush=True)
            self.shown = now


class GridProgress:
    """Cells done of a grid and ETA, with the steps of the cells under way, on standard error.

    Cells may need encoders that are trained first: the ETA adds up what is left of both at the pace of each so far.
    """

    def __init__(self, cells: int, trainings: int = 0):
        self.cells, self.done, self.computed = cells, 0, 0
        self.trainings, self.trained, self.training_seconds = trainings, 0, 0.0
        self.began = self.shown = time.perf_counter()
        console = rich.console.Console(stderr=True)
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("cell {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            text_column("{task.fields[text]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("ETA {task.fields[eta]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=cells, text="", eta="-")

    def __enter__(self) -> "GridProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @contextlib.contextmanager
    def training(self, name: str) -> Iterator[None]:
        """While an encoder is trained, whose own progress is shown instead."""
        self.bar.stop()  # a terminal shows one bar at a time
        place = f"encoder {self.trained + 1}/{self.trainings}, cell {self.done}/{self.cells}"
        print(printable(f"{place}  {name}  ETA {self.eta()}"), file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.training_seconds += time.perf_counter() - began
            self.trained += 1
            self.bar.start()

    def begin(self, name: str, steps: int, cells: int) -> None:
        """So many cells of the task `name` start together."""
        self.name, self.steps, self.together = name, steps, cells
        self.step(0)

    def step(self, number: int) -> None:
        """After a step of the cells under way."""
        self.bar.update(self.task, text=printable(f"{self.name} step {number}/{self.steps}"))

    def end(self) -> None:
        """The cells under way are finished, or have failed."""
        self.computed += self.together
        self.skip(self.together)
        now = time.perf_counter()
        if self.bar.disable and now - self.shown > QUIET_SECONDS:
            line = f"cell {self.done}/{self.cells}  {self.name}  ETA {self.eta()}"
            print(printable(line), file=sys.stderr, flush=True)
            self.shown = now

    def skip(self, cells: int) -> None:
        """So many cells are there already, or cannot be computed."""
        self.done += cells
        self.bar.update(self.task, completed=self.done, eta=self.eta())

    def eta(self) -> str:
        """Hours, minutes and seconds left; '-' before there is any pace."""
        in_cells = time.perf_counter() - self.began - self.training_seconds
        known = [(self.cells - self.done, in_cells, self.computed)]
        known += [(self.trainings - self.trained, self.training_seconds, self.trained)]
        if any(left > 0 and not number for left, _, number in known):
            return "-"
        left = sum(left * seconds / number for left, seconds, number in known if left > 0)
        return str(datetime.timedelta(seconds=round(left)))
