"""Mode compare of experiments.conflict: the probes of several runs side by side."""

import copy
import pathlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from jaxprefit.conflict.report import document
from jaxprefit.conflict.report.results import ConflictReport, ReportedRun
from jaxprefit.conflict.results import ComparedRun
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import read_json
from jaxprefit.runtime.paths import user_path


def measure(
    config: ConfigDict,
    workdir: pathlib.Path,
    paths: Sequence[str],
    probe: Callable[..., ConflictReport],
    identify: Callable[[str], ReportedRun],
) -> tuple[ComparedRun, ...]:
    """The section 'compare': one entry for each report's folder, or run, which is then probed below `workdir`.

    A probe that is there already stands where it is of the same run, step and settings. Raises UserError where the
    report there is on another run (`identify`: a checkpoint -> which run it is).
    """
    runs, named = [], [_name(p) for p in paths]
    if len(paths) < 2 or len({*named}) < len(named):
        raise UserError(f"--checkpoint={','.join(paths)}: mode compare takes two or more of different names")
    one = copy.deepcopy(config)
    one.conflict.mode = "probe"
    for path, name in zip(paths, named):
        folder = user_path(path)
        if not (folder / "conflict.json").is_file():
            folder = workdir / name
            earlier = document.content(identify(path), {}, folder / "conflict.json").probe
            if not earlier or (earlier.rounds, earlier.seed) != (config.conflict.rounds, config.conflict.seed):
                probe(one, folder, path, show=False)
        runs.append(_compared(name, folder / "conflict.json"))
    return tuple(runs)


def _compared(name: str, file: pathlib.Path) -> ComparedRun:
    """What a comparison shows of one report. Raises UserError where it holds no probe of one run."""
    report = document.read(file)
    run, probe = report.run, report.probe
    if probe is None or run.strategy is None or run.aggregator is None or run.step is None or run.seed is None:
        raise UserError(f"{file} holds no probe; run mode probe there first")
    return ComparedRun(
        name=name,
        strategy=run.strategy,
        aggregator=run.aggregator,
        step=run.step,
        seed=run.seed,
        held_out=_held_out(user_path(run.checkpoint), run.step),
        rounds=probe.rounds,
        batch_tokens=probe.batch_tokens,
        pairs=probe.pairs,
    )


def _name(path: str) -> str:
    """'runs/naive' -> 'naive', 'runs/naive/checkpoints/200' -> 'naive_200'."""
    folder = user_path(path)
    return f"{folder.parents[1].name}_{folder.name}" if folder.name.isdigit() else folder.name


def _held_out(checkpoint: pathlib.Path, step: int) -> dict[str, float] | None:
    """Final held-out losses of a run, where its summary is there and tells of this step."""
    file = checkpoint / "summary.json"
    if not file.is_file():
        return None
    summary = read_json(file)
    return {f: s["end"]["loss"] for f, s in summary["held_out"].items()} if summary["steps"] == step else None
