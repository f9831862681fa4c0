"""Progress of a training run: a bar on a terminal, a line now and then elsewhere."""

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
