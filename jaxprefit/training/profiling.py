"""Where the time of a few training steps goes: a trace for the usual viewers, and a page of text.

The trace, WORKDIR/profile, opens in TensorBoard's profiler, XProf and Perfetto. The page, WORKDIR/profile.txt, has the
loop's own clocks and the longest device operations of the trace. Of several processes the first alone is profiled.
"""

import contextlib
import gzip
import json
import pathlib
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxprefit.runtime.distributed import first
from jaxprefit.runtime.files import write_text
from jaxprefit.runtime.terminal import printable

WARM_UP = 3  # steps before the profile: the first compiles
LONGEST = 25  # operations listed

PARTS = {
    "input": "waiting for the loader's batch",
    "to device": "handing the batch over",
    "dispatch": "calling the step, and held-out scores after it",
    "device": "waiting for the step before, which the device ran during all of the above",
    "metrics": "reading metrics and writing the log",
}
"""What the loop does in a step, by the name of its clock."""


class Profile:
    """A profile of `steps` steps of a loop that begins after step `start`; 0: none, and no cost."""

    def __init__(self, workdir: pathlib.Path, start: int, steps: int):
        self.workdir, self.first, self.steps = workdir, start + WARM_UP, steps if first() else 0
        self.clocks = dict.fromkeys(PARTS, 0.0)
        self.began = 0.0  # when the trace began; 0: it has not
        self.done = 0
        self.mark = contextlib.ExitStack()  # the step's annotation in the trace

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        wanted = self.steps
        if self.began:
            self._end()
        if wanted and not self.done and kind is None:
            print(f"no profile: the run had no more than {WARM_UP} steps, which warm up", file=sys.stderr)

    def step(self, number: int) -> None:
        """After step `number`."""
        if not self.steps:
            return
        self.mark.close()
        if self.began:
            self.done = number - self.first
            if self.done == self.steps:
                self._end()
        elif number == self.first:
            jax.profiler.start_trace(self.workdir / "profile")
            self.began = time.perf_counter()
        if self.began:
            self.mark.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=number + 1))

    @contextlib.contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        with jax.profiler.TraceAnnotation(part):
            yield
        self.clocks[part] += time.perf_counter() - began

    def part(self, name: str) -> contextlib.AbstractContextManager[None]:
        """A context that takes the time of one of PARTS."""
        return self._clock(name) if self.began else contextlib.nullcontext()

    def _end(self) -> None:
        seconds = time.perf_counter() - self.began
        self.mark.close()
        jax.profiler.stop_trace()
        self.began, self.steps = 0.0, 0
        if self.done:
            text = summary(self.first + 1, self.done, seconds, self.clocks, newest_trace(self.workdir / "profile"))
            write_text(self.workdir / "profile.txt", text)
            print(printable(f"profile: {self.workdir / 'profile.txt'}, and {self.workdir / 'profile'} for TensorBoard"))


def newest_trace(folder: pathlib.Path) -> dict[str, Any]:
    """The content of the newest trace file of a profile; {} where there is none."""
    files = sorted(folder.glob("plugins/profile/*/*.trace.json.gz"), key=lambda f: f.stat().st_mtime)
    return json.loads(gzip.decompress(files[-1].read_bytes())) if files else {}


def operations(trace: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """(name, seconds, calls) of the device operations in a trace, the longest first; what an operation contains, such
    as a loop's body, is not counted to it. Operations whose names differ in a number at the end are one."""
    events = trace.get("traceEvents", [])
    of_ops = {(e["pid"], e["tid"]) for e in events if e.get("args", {}).get("name") == "XLA Ops"}  # a TPU's thread
    lines: dict[tuple[int, int], list[Mapping]] = {}
    for e in events:
        thread = e.get("pid"), e.get("tid")
        if e.get("ph") == "X" and ("hlo_op" in e.get("args", {}) or thread in of_ops):
            lines.setdefault(thread, []).append(e)
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for line in lines.values():
        around: list[tuple[float, str]] = []  # (end, name) of the operations that contain the next one
        for e in sorted(line, key=lambda e: (e["ts"], -e["dur"])):
            name, length = re.sub(r"[.\d]+$", "", e["name"]), e["dur"] / 1e6
            while around and around[-1][0] <= e["ts"]:
                around.pop()
            if around:
                seconds[around[-1][1]] -= length
            seconds[name] += length
            calls[name] += 1
            around.append((e["ts"] + e["dur"], name))
    return [(name, total, calls[name]) for name, total in seconds.most_common()]


def summary(first: int, steps: int, seconds: float, clocks: Mapping[str, float], trace: Mapping[str, Any]) -> str:
    """The page: host clocks and device operations of `steps` steps from `first`, which took `seconds`."""
    device = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"
    lines = [f"steps {first} to {first + steps - 1} on {device}: {1e3 * seconds / steps:.2f} ms a step", ""]
    lines += ["The host's time:", f"{'ms a step':>12}{'share':>9}"]
    rows = [(name, clocks[name], text) for name, text in PARTS.items()]
    rows.append(("rest", seconds - sum(clocks.values()), "progress, checkpoints"))
    lines += [f"{_numbers(s, seconds, steps)}  {name}: {text}" for name, s, text in rows]
    found = operations(trace)
    total = sum(s for _, s, _ in found)
    lines += [
        "",
        f"The devices' operations, {1e3 * total / steps:.2f} ms a step over all threads and devices here:",
    ]
    lines += [f"{'ms a step':>12}{'share':>9}{'calls':>9}"] if found else ["the trace has none"]
    lines += [f"{_numbers(s, total, steps)}{calls / steps:9.1f}  {name}" for name, s, calls in found[:LONGEST]]
    return "\n".join(lines) + "\n"


def _numbers(part: float, whole: float, steps: int) -> str:
    return f"{1e3 * part / steps:12.3f}{100 * part / max(whole, 1e-12):7.1f} %"
