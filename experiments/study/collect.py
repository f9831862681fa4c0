"""What stands in a study's workdir, as the content of study.json: a pure function of the grid and the files."""

import contextlib
import dataclasses
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.common import tasks as task_data
from experiments.common.results import LoraSettings
from experiments.common.study_results import (
    CellCounts,
    Choice,
    Development,
    Deviation,
    Failure,
    HeldOut,
    Mode,
    Result,
    StudyResult,
    TaskResult,
    TaskTest,
    Versus,
)
from experiments.common.tasks import MAIN_SCORE, description
from experiments.study import claims, encoders, fronts, stars, sweeps, variant_settings
from experiments.study.claims import Table
from experiments.study.expansion import Entry, Grid, Scoring
from jaxprefit import significance
from jaxprefit.runtime.files import read_json, write_text
from jaxprefit.runtime.results import from_json


@dataclasses.dataclass
class Outcome:
    """How a piece of work ended."""

    failed: str = ""  # the reason


@contextlib.contextmanager
def recorded(folder: pathlib.Path, failures: tuple[type[Exception], ...]) -> Iterator[Outcome]:
    """Keeps the reason in the folder's failed.txt where its work fails, until it succeeds."""
    outcome = Outcome()
    try:
        yield outcome
        forget(folder)
    except failures as error:
        outcome.failed = (str(error).strip().splitlines() or [type(error).__name__])[0]
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "failed.txt", outcome.failed + "\n")


def forget(folder: pathlib.Path) -> None:
    """That its work failed."""
    (folder / "failed.txt").unlink(missing_ok=True)


def failure(folder: pathlib.Path) -> str:
    """The reason why the folder's work failed last; '' if it did not."""
    file = folder / "failed.txt"
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


@dataclasses.dataclass(frozen=True)
class Scored:
    """What is there of one scoring."""

    scores: Mapping[str, Mapping[int, float]]  # task -> seed -> main score
    rows: Mapping[str, int]  # task -> rows trained on
    cells: Mapping[str, Mapping[int, pathlib.Path]]  # task -> seed -> file
    failed: tuple[Failure, ...]
    left_out: Mapping[str, str]  # task whose score says nothing, so that it is part of no mean or test -> why


def collect(config: ConfigDict, grid: Grid, shapes: Mapping[str, encoders.Shape], workdir: pathlib.Path) -> StudyResult:
    """The study as far as it is; `shapes` are those of the start encoders. What is not there yet counts as missing."""
    scored = {s.folder: read(s, workdir) for s in grid.scorings}
    failed = [cell for s in scored.values() for cell in s.failed]
    failed += [Failure(folder=r.folder, task=None, seed=None, reason=failure(workdir / r.folder))
               for r in grid.runs if failure(workdir / r.folder)]  # fmt: skip
    everything = sum(s.cells for s in grid.scorings)
    done = sum(len(seeds) for s in scored.values() for seeds in s.scores.values())
    lost = 0
    for s in grid.scorings:
        of, broken = scored[s.folder], failure(workdir / s.run.folder) or failure(workdir / s.folder)
        lost += s.cells - sum(map(len, of.scores.values())) if broken else len(of.failed)
    s = config.study
    methods = {v: variant_settings.method(config, v) for v in s.variants}
    results = adjusted([result(entry, scored, methods[entry.variant]) for entry in grid.entries])
    losses = {(start, v): encoders.held_out(served, workdir) for (start, v), served in grid.encoders.items()}
    means = {place: development(choice, scored) for place, choice in grid.choices.items()}
    stands = {start: fronts.chosen({v: means.get((start, v), {}) for v in s.variants}, methods)
              for start in shapes}  # fmt: skip
    measured = claims.measure(grid.entries, {e: table(e.scorings, scored) for e in grid.entries},
                                    lambda e, other: reference(e, other, grid, scored), stands)  # fmt: skip
    chosen = Choice(
        **s.choice.to_dict(),
        development=tuple(Development(start=start, variant=v, means=m) for (start, v), m in means.items()),
        chosen=stands,
    )
    return StudyResult(
        starts={start: variant_settings.settings_of(config, "start", start) for start in shapes},
        variants={v: variant_settings.settings_of(config, "variant", v) for v in s.variants},
        methods=methods,
        modes={mode: _mode(grid, mode) for mode in s.modes},
        fractions=tuple(s.fractions),
        seeds=tuple(s.seeds),
        lora=from_json(description(config)["lora"], LoraSettings, "config.lora"),
        cells=CellCounts(all=everything, done=done, failed=lost, missing=everything - done - lost),
        failed=tuple(failed),
        left_out={name: why for s in scored.values() for name, why in s.left_out.items()},
        results=tuple(results),
        held_out=tuple(HeldOut(start=start, variant=v, losses=of) for (start, v), of in losses.items()),
        choice=chosen,
        fronts=tuple(fronts.fronts(results, methods, stands)),
        sweeps=tuple(sweeps.measure(results, s.sweep.to_dict(), grid)),
        claims=tuple(claims.judge(measured)),
        averages=tuple(claims.average(measured)),
        costs=tuple(encoders.cost(grid, start, v, shapes[start], workdir) for start in shapes for v in s.variants),
    )


def read(scoring: Scoring, workdir: pathlib.Path) -> Scored:
    """The scores that stand in the scoring's folder, if they are of its recipe and of an encoder whose pre-finetuning
    has ended with this config; that its weights cannot be loaded any more does not matter."""
    file = workdir / scoring.folder / "scores.json"
    reason = failure(workdir / scoring.folder)
    broken = (Failure(folder=scoring.folder, task=None, seed=None, reason=reason),) if reason else ()
    if reason or not file.exists() or not encoders.summaries(scoring.run, workdir):
        return Scored({}, {}, {}, broken, {})
    content = read_json(file)
    if any(content.get(key) != value for key, value in description(scoring.config).items()):
        return Scored({}, {}, {}, (), {})
    wanted, seeds = {task_data.task_name(source) for source in scoring.tasks}, scoring.config.downstream.seeds
    entries = {t["task"]: t for t in content["tasks"] if t["task"] in wanted}
    scores = {
        name: {s["seed"]: s[MAIN_SCORE[t["family"]]] for s in t["seeds"] if s["seed"] in seeds}
        for name, t in entries.items()
    }
    failed = [
        Failure(folder=scoring.folder, task=cell["task"], seed=cell["seed"], reason=cell["reason"])
        for cell in content["failed"]
        if cell["task"] in wanted and cell["seed"] in seeds
    ]
    files = {
        name: {s["seed"]: file.parent / cell for s, cell in zip(t["seeds"], t["cells"])} for name, t in entries.items()
    }
    rows = {name: t["trained_rows"] for name, t in entries.items()}
    left_out = {name: t["notes"][0] for name, t in entries.items() if not t.get("averaged", True)}
    return Scored(scores, rows, files, tuple(failed), left_out)


def table(scorings: tuple[Scoring, ...], scored: Mapping[str, Scored]) -> Table:
    """The tasks of which every cell is there, but for those whose scores say nothing."""
    out = {}
    for name in counted(scorings, scored):
        found = [[scored[s.folder].scores.get(name, {}).get(seed) for seed in s.config.downstream.seeds]
                 for s in scorings]  # fmt: skip
        if all(value is not None for line in found for value in line):
            out[name] = np.asarray(found, float)
    return out


def counted(scorings: tuple[Scoring, ...], scored: Mapping[str, Scored]) -> list[str]:
    """Names of the tasks that are part of a mean."""
    names = [task_data.task_name(source) for source in scorings[0].tasks]
    return [name for name in names if not any(name in scored[s.folder].left_out for s in scorings)]


def result(entry: Entry, scored: Mapping[str, Scored], method: str) -> Result:
    """One entry of the main table, with its tasks; `method` is what the variant is a setting of. The `p_holm` of its
    `versus` are not adjusted yet."""
    own = table(entry.scorings, scored)
    others = {other: table(scorings, scored) for other, scorings in entry.references.items()}
    complete = 0 < len(own) == len(counted(entry.scorings, scored))
    first = scored[entry.scorings[0].folder]
    tasks = [
        TaskResult(
            task=name, trained_rows=first.rows[name], mean=float(scores.mean()),
            scores=tuple(map(tuple, scores.tolist())),
            versus={other: tested(entry, other, name, own, of, scored) for other, of in others.items()
                    if (method, other) in stars.PAIRS and name in of},
        )
        for name, scores in own.items()
    ]  # fmt: skip
    return Result(
        start=entry.start,
        mode=entry.mode,
        fraction=entry.fraction,
        variant=entry.variant,
        family=entry.family,
        mean=float(np.mean([*own.values()])) if complete else None,
        deviation=deviations(np.mean([*own.values()], 0)) if complete else None,
        tasks=stars.adjusted(tasks),
        versus={other: difference for other, of in others.items() if (difference := versus(own, of))},
    )


def reference(entry: Entry, other: str, grid: Grid, scored: Mapping[str, Scored]) -> Table | None:
    """The scores of the variant `other` at the entry's place and its capacity downstream; None where it has none."""
    if other in entry.references:
        return table(entry.references[other], scored)
    for e in grid.entries:
        alike = (e.start, e.mode, e.fraction, e.family) == (entry.start, entry.mode, entry.fraction, entry.family)
        if alike and e.variant == other and e.scorings[0].config.lora == entry.scorings[0].config.lora:
            return table(e.scorings, scored)
    return None


def development(choice: Mapping[str, tuple[Scoring, ...]], scored: Mapping[str, Scored]) -> dict[str, float]:
    """Family -> mean score of a variant on development rows; empty where a cell is missing."""
    tables = {family: table(scorings, scored) for family, scorings in choice.items()}
    whole = all(0 < len(found) == len(counted(choice[family], scored)) for family, found in tables.items())
    return {family: float(np.mean([*found.values()])) for family, found in tables.items()} if whole else {}


def tested(entry: Entry, other: str, task: str, first: Table, second: Table, scored: Mapping[str, Scored]) -> TaskTest:
    """The entry's tests on one task against the reference `other`, whose scores are `second`."""
    files = [[[scored[s.folder].cells[task][seed] for seed in s.config.downstream.seeds] for s in side]
             for side in (entry.scorings, entry.references[other])]  # fmt: skip
    return stars.against(files[0], files[1], (first[task], second[task]), len(entry.scorings[0].tasks))


def deviations(scores: np.ndarray) -> Deviation:
    """Standard deviations of [P, S]: over seeds of pre-finetuning (fine-tuning averaged), and the other way round."""
    by_run, by_draw = (m.tolist() for m in (scores.mean(1), scores.mean(0)))
    return Deviation(
        prefinetuning=statistics.stdev(by_run) if len(by_run) > 1 else None,
        finetuning=statistics.stdev(by_draw) if len(by_draw) > 1 else None,
    )


def versus(first: Table, second: Table) -> Versus | None:
    """The difference of the means over the tasks that both have, with its interval; None without such a task."""
    differences = paired(first, second)
    return Versus(**vars(claims.over_tasks(differences)), p_holm=None) if differences.size else None


def paired(first: Table, second: Table) -> np.ndarray:
    """[T, P, S]: first minus second, on the tasks that both have; an encoder without training has one P for all."""
    return np.asarray([first[name] - second[name] for name in first if name in second])


def adjusted(results: Sequence[Result]) -> list[Result]:
    """The results with `p_holm`, over the variants that are compared with one reference in one table and family."""
    lines = [(i, other, r) for i, r in enumerate(results) for other in r.versus]
    p_values = significance.holm_by_table(
        ((r.start, r.mode, r.fraction, r.family, other), r.versus[other].p_value) for _, other, r in lines
    )
    versus: list[dict[str, Versus]] = [{} for _ in results]
    for (i, other, r), p in zip(lines, p_values):
        versus[i][other] = dataclasses.replace(r.versus[other], p_holm=p)
    return [dataclasses.replace(r, versus=v) for r, v in zip(results, versus)]


def _mode(grid: Grid, mode: str) -> Mode:
    """How a mode's cells are taken, but for the fraction of the labels."""
    configs = [s.config for e in grid.entries if e.mode == mode for s in e.scorings]
    config = next((c for c in configs if c.downstream.mode == mode), configs[0])  # in stacked some are of adapter
    settings = {k: v for k, v in description(config)["downstream"].items() if k != "fraction"}
    return from_json(settings | {"seeds": list(config.downstream.seeds)}, Mode, "config.downstream")
