"""Progress of a training run or of a grid of small ones: a bar on a terminal, a line now and then elsewhere."""

import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.progress

QUIET_SECONDS = 30  # between lines where there is no terminal


class TrainingProgress:
    """Shows step, losses, useful tokens per second and ETA, on standard error."""

    def __init__(self, steps: int, start: int, families: Sequence[str]):
        self.steps, self.start, self.families = steps, start, families
        self.began = self.shown = time.perf_counter()
        console = rich.console.Console(stderr=True)
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
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
        if self.bar.disable and now - self.shown > QUIET_SECONDS:
            left = (now - self.began) / (step - self.start) * (self.steps - step)
            eta = datetime.timedelta(seconds=round(left))
            print(f"step {step}/{self.steps}  {text}  ETA {eta}", file=sys.stderr, flush=True)
            self.shown = now


class GridProgress:
    """Cells done of a grid and ETA, with the steps of the cells under way, on standard error."""

    def __init__(self, cells: int, done: int):
        self.cells, self.done, self.start = cells, done, done
        self.began = self.shown = time.perf_counter()
        console = rich.console.Console(stderr=True)
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("cell {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=600,  # cells differ in length
        )
        self.task = self.bar.add_task("", total=cells, completed=done, text="")

    def __enter__(self) -> "GridProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, name: str, steps: int, cells: int) -> None:
        """So many cells of the task `name` start together."""
        self.name, self.steps, self.together = name, steps, cells
        self.step(0)

    def step(self, number: int) -> None:
        """After a step of the cells under way."""
        self.bar.update(self.task, text=f"{self.name} step {number}/{self.steps}")

    def end(self) -> None:
        """The cells under way are finished, or have failed."""
        self.done += self.together
        self.bar.update(self.task, completed=self.done)
        now = time.perf_counter()
        if self.bar.disable and now - self.shown > QUIET_SECONDS:
            left = (now - self.began) / (self.done - self.start) * (self.cells - self.done)
            eta = datetime.timedelta(seconds=round(left))
            print(f"cell {self.done}/{self.cells}  {self.name}  ETA {eta}", file=sys.stderr, flush=True)
            self.shown = now
