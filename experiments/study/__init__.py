r"""A study: strategies and controls from several start encoders, over all downstream tasks, as one grid of small runs.

python -m experiments.study --workdir=runs/study --config.model.path=DIR --config.data.root=DIR

start encoders x variants x pre-finetuning seeds x tasks x modes x label fractions x fine-tuning seeds, all from one
config (configs/study.py; what the names in it mean: experiments/study/expansion.py). Can be stopped at any moment; the
same command continues, and no finished run or cell is done again. A run or cell that fails is shown with its reason,
and the rest goes on. --shard=2/4 does the second of four parts of the encoders, each with all its cells, on a machine
of its own; with the parts' workdirs copied into one, --shard=none puts together what is there, and the command without
--shard does what is missing first. What is finished is not compared with the files that it came from: where a start
encoder or a task's rows have changed, give another --workdir.

Writes WORKDIR/study.json, and study.md with plots (*.png) beside it: the main table with intervals, per-task scores,
sweeps, label fractions, costs, and the paper's claims, each marked by the statistics.
"""

import pathlib
import sys
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

import jaxprefit
from experiments.common import assembly, family_data, prefinetuning, tasks
from experiments.common.checks import check, check_study
from experiments.common.scoring import score_model
from experiments.common.study_results import StudyResult
from experiments.common.workdirs import owned
from experiments.study import collect, encoders, expansion, figures, page, page_tables, sweeps
from experiments.study.expansion import Grid, Run, Scoring
from jaxprefit.errors import UserError
from jaxprefit.model import averaged
from jaxprefit.render import html
from jaxprefit.runtime import results
from jaxprefit.runtime.files import locked, write_text
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.progress import GridProgress
from jaxprefit.runtime.terminal import lines, printable

FAILURES = (UserError, jax.errors.JaxRuntimeError)  # the second: out of memory, say


@owned("study")
def run(config: ConfigDict, workdir: pathlib.Path, shard: str = "") -> StudyResult:
    """Runs what is not there yet of the shard, and returns what study.json holds."""
    check_study(config)
    sweeps.check(config)
    config.data.cache = str(family_data.cache_folder(config, workdir))
    grid = expansion.expand(config)
    for one in grid.runs:  # all of them before the first is trained
        check(one.config)
        if not one.parts:
            assembly.named_families(one.config)
    for scoring in grid.scorings:
        check(scoring.config)
        tasks.recipe(scoring.config)
    mine = expansion.shard(grid, shard)
    shapes = encoders.shapes(grid, user_path(config.data.cache))  # tells of a wrong path before any work
    with locked(workdir / f".shard-{shard.replace('/', '-')}" if shard else workdir):
        execute(grid, mine, workdir)
    content = collect.collect(config, grid, shapes, workdir)
    results.write(workdir / "study.json", content)
    write_text(workdir / "study.md", "\n".join(page.report(content)))
    for name, figure in figures.figures(content).items():
        (workdir / f"{name}.png").write_bytes(html.png(figure))
    print(lines("\n".join(page_tables.main_tables(content))))
    counts = content.cells
    done = f"{counts.done} of {counts.all} cells done, {counts.failed} failed"
    print(printable(f"{done}; see {workdir / 'study.md'}"))
    if content.failed:
        raise UserError(f"{counts.failed} cells failed, as told in {workdir / 'study.md'}; the others are done")
    return content


def execute(grid: Grid, runs: tuple[Run, ...], workdir: pathlib.Path) -> None:
    """Trains the encoders of `runs` and scores their cells, each where it is not there already."""
    mine = {one: [s for s in grid.scorings if s.run is one] for one in runs}
    cells = sum(s.cells for scorings in mine.values() for s in scorings)
    untrained = [r for r in runs if not r.parts and not prefinetuning.finished(r.config, workdir / r.folder)]
    with GridProgress(cells, len(untrained)) as progress:
        for one, scorings in mine.items():
            if complete(one, scorings, workdir):
                collect.forget(workdir / one.folder)
                progress.skip(sum(s.cells for s in scorings))
                continue
            with collect.recorded(workdir / one.folder, FAILURES) as outcome:
                model = encoder(one, workdir, progress)
            if outcome.failed:
                print(printable(f"{one.folder} failed: {outcome.failed}"), file=sys.stderr)
                progress.skip(sum(s.cells for s in scorings))
                continue
            for scoring in scorings:
                folder = workdir / scoring.folder
                with collect.recorded(folder, FAILURES) as outcome:
                    score_model(scoring.config, folder, model, one.folder, progress)
                if outcome.failed:
                    print(printable(f"{scoring.folder} failed: {outcome.failed}"), file=sys.stderr)
                    progress.skip(scoring.cells)


def complete(one: Run, scorings: Sequence[Scoring], workdir: pathlib.Path) -> bool:
    """Whether the run has ended and each of its cells is there, so that neither its weights nor the data are needed."""
    if not encoders.summaries(one, workdir):
        return False
    for scoring in scorings:
        found = collect.read(scoring, workdir)
        cells = [file for files in found.cells.values() for file in files.values() if file.exists()]
        if found.failed or len(cells) < scoring.cells or sum(map(len, found.scores.values())) < scoring.cells:
            return False
    return True


def encoder(one: Run, workdir: pathlib.Path, progress: GridProgress) -> jaxprefit.Model:
    """The run's model, trained where it is not there yet."""
    if one.parts:
        for part in one.parts:
            if reason := collect.failure(workdir / part.folder):
                raise UserError(f"{part.folder}, a part of it, failed: {reason}")
        return averaged([jaxprefit.load(workdir / part.folder) for part in one.parts])
    if not prefinetuning.finished(one.config, workdir / one.folder):
        with progress.training(one.folder):
            prefinetuning.run(one.config, workdir / one.folder)
    return jaxprefit.load(workdir / one.folder)
