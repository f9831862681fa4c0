"""Which folder a program may write to: a new or empty one, or one that it has written before.

So no program ever writes over what it has not written: an encoder, a data set, a repository. A program's folder holds
a file `.jaxprefit` with the names of the programs that write there. Folders from before there was such a file are known
by their results.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

from ml_collections import ConfigDict

from jaxprefit.errors import UserError
from jaxprefit.runtime.distributed import first
from jaxprefit.runtime.files import write_text
from jaxprefit.runtime.paths import user_path

MARKER = ".jaxprefit"
# Folders inside a workdir in which a program expects its own files alone.
MANAGED = ("checkpoints", "nonfinite", "profile", "cells", "ablation")
# What an empty folder may hold: of file systems, and a study's note on a run that failed before it wrote anything.
NOT_COUNTED = {"lost+found", ".DS_Store", "failed.txt"}

P = ParamSpec("P")
R = TypeVar("R")
Run = Callable[Concatenate[ConfigDict, pathlib.Path, P], R]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program writes to its workdir, as globs.

    Attributes:
      outputs: names of its own files and folders; folders of runs inside have a marker of their own.
      results: JSON files by which a folder without a marker is known as written by it.
    """

    outputs: tuple[str, ...]
    results: tuple[str, ...]


PROGRAMS = {
    "prefinetune": Program(
        (".lock", "config.json", "summary.json", "metrics.jsonl", "held_out.jsonl", "checkpoints", "nonfinite",
         "profile", "profile.txt"),
        ("config.json",),
    ),
    "warmstart": Program(("encoder", "warmstart.json", "warmstart.md"), ("config.json",)),
    "downstream": Program(("scores.json", "cells"), ("scores.json", "cells/*.json")),
    "conflict": Program(
        ("conflict.json", "conflict.html", "advice.json", "grams.npz", "ablation"),
        ("conflict.json", "ablation/*.json", "*/conflict.json"),
    ),
    "representations": Program(
        ("representations.json", "representations.html", "together.png", "geometry.png", "probes.png"),
        ("representations.json",),
    ),
    "inspect_data": Program(("inspection.json", "inspection.md"), ("inspection.json",)),
    "filter_pairs": Program(("filter.json",), ("filter.json",)),
    "tables": Program(
        ("tables.md", "summary_*.json", "scores_*.json", "conflict_*.json"),
        ("summary_*.json", "scores_*.json", "conflict_*.json"),
    ),
    "study": Program((".lock", ".shard-*", "study.json", "study.md", "*.png"), ("study.json", "*/*-seed*/config.json")),
    "scaling": Program((".lock", "cells", "scaling.json", "scaling.md"), ("scaling.json", "cells/*.json")),
    "benchmark": Program(("benchmark_*.json",), ("benchmark_*.json",)),
    "quickstart": Program(("summary.json", "report.html", "*.png"), ("none/config.json",)),
    "objectives": Program(("objectives.json", "objectives.md"), ("none/config.json",)),
    "conflict_trial": Program(("trial.json", "trial.md"), ("trial.json", "default_*/config.json")),
    "clipping": Program(("clipping.json", "*_families_*", "*_combined_*"), ("clipping.json",)),
    "conflict_study": Program(("conflict_study.md",), ("naive/config.json",)),
}  # fmt: skip


def owned(program: str) -> Callable[[Run[P, R]], Run[P, R]]:
    """Makes a function of (config, workdir, ...) refuse a workdir that is not the program's, before all else."""

    def decorate(run: Run[P, R]) -> Run[P, R]:
        @functools.wraps(run)
        def checked(config: ConfigDict, workdir: pathlib.Path, *args: P.args, **kwargs: P.kwargs) -> R:
            folder = user_path(workdir)
            with claimed(folder, program):
                return run(config, folder, *args, **kwargs)

        return checked

    return decorate


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, program: str) -> Iterator[None]:
    """Makes `workdir` and marks it as the program's; nothing is left of that where the context fails before it writes.

    Raises UserError as `check` does.
    """
    check(workdir, program)
    if not first():  # of several processes
        yield
        return
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    before = is_marked(workdir)
    try:
        mark(workdir, program)
    except OSError as e:
        _remove(made)
        raise UserError(f"{workdir} cannot be written ({e.strerror}); give another --workdir") from e
    try:
        yield
    except BaseException:
        if not before and {p.name for p in workdir.iterdir()} == {MARKER}:
            (workdir / MARKER).unlink()
            _remove(made)
        raise


def mark(workdir: pathlib.Path, program: str) -> None:
    """Makes `workdir` and notes in it that `program` writes there."""
    workdir.mkdir(parents=True, exist_ok=True)
    if program not in (before := _marked(workdir)):
        write_text(workdir / MARKER, "".join(f"{name}\n" for name in [*before, program]))


def is_marked(workdir: pathlib.Path) -> bool:
    """Whether any program notes that it writes there."""
    return (workdir / MARKER).is_file()


def check(workdir: pathlib.Path, program: str) -> None:
    """Raises UserError where `workdir` is a file, a part of another workdir, or holds what `program` did not write."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; give the name of a folder, new or old")
    for folder in (path := workdir.absolute(), *path.parents):
        if folder.name in MANAGED and _is_workdir(folder.parent):
            raise UserError(f"{workdir} is inside {folder}, where a run keeps its own files; give another --workdir")
    try:
        entries = {p.name for p in workdir.iterdir()} - NOT_COUNTED if workdir.exists() else set()
        entries = {name for name in entries if not name.startswith(f".{MARKER}.")}  # another process writes it now
    except OSError as e:
        raise UserError(f"{workdir} cannot be read ({e.strerror}); give another --workdir") from e
    if not entries or program in _marked(workdir) or _holds(workdir, PROGRAMS[program].results):
        return
    if not _is_workdir(workdir):
        raise UserError(
            f"{workdir} is not empty, and no run of {program} has written it; give --workdir a new or empty folder"
        )
    foreign = [p.name for pattern in PROGRAMS[program].outputs for p in sorted(workdir.glob(pattern))]
    if foreign:
        raise UserError(
            f"{workdir} holds {foreign[0]}, which {program} has not written and would overwrite; give another "
            f"--workdir, such as {workdir / program}"
        )


def _is_workdir(folder: pathlib.Path) -> bool:
    """Whether any program has written it; a folder that holds workdirs is none."""
    return is_marked(folder) or _holds(folder, [g for p in PROGRAMS.values() for g in p.results if "/" not in g])


def _holds(folder: pathlib.Path, globs: Iterable[str]) -> bool:
    return any(_is_ours(file) for glob in globs for file in folder.glob(glob))


def _marked(workdir: pathlib.Path) -> list[str]:
    file = workdir / MARKER
    return file.read_text(encoding="utf-8", errors="replace").split() if is_marked(workdir) else []


def _is_ours(file: pathlib.Path) -> bool:
    """Whether a JSON file is one of the project's results, or the settings of a run."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    return str(content.get("schema", "")).startswith("jaxprefit.") or {"strategy", "optimizer"} <= content.keys()


def _remove(folders: list[pathlib.Path]) -> None:
    """Removes those of the folders that are empty, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
