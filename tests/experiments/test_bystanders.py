"""A user's files are never harmed: no program writes outside its workdir and the cache, or over what no run wrote."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run
from helpers.trees import bystanders, lost, snapshot

import jaxprefit
from configs import benchmark as benchmark_config
from configs import clipping as clipping_config
from configs import objectives as objectives_config
from configs import scaling as scaling_config
from configs import study as study_config
from configs import warmstart as warmstart_config
from experiments import conflict, filter_pairs, scaling, tables
from experiments.common import prefinetuning, scoring
from experiments.common.workdirs import MARKER, PROGRAMS

SMALL: dict[str, Any] = {
    "optimizer.steps": 4, "downstream.steps": 2, "downstream.mode": "probe", "data.held_out": 30,
    "conflict.windows": 2, "conflict.ablation.blocks": ("layer_0",), "conflict.ablation.controls": False,
    "conflict.representations.texts": 60, "conflict.representations.tokens": 40, "conflict.representations.folds": 2,
    "conflict.representations.fold_rows": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def naive(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("finished") / "naive"
    prefinetuning.run(run.config(cache, {**SMALL, "strategy": "naive"}), workdir)
    return workdir


@pytest.fixture(scope="module")
def encoder(naive: Path) -> Path:
    """A Hugging Face directory."""
    jaxprefit.load(naive).export(naive.parent / "encoder")
    return naive.parent / "encoder"


def entry(program: str) -> Callable[..., Any]:
    return importlib.import_module(f"experiments.{program}").run


def _benchmark(cache: Path) -> Any:
    config = benchmark_config.get_config()
    config.update_from_flattened_dict({**run.TINY, "data.cache": str(cache)})
    config.data.tc.chunk_rows = 0
    config.update({"what": "data", "repetitions": 2, "steps_per_repetition": 3})
    return config


def _clipping(cache: Path) -> Any:
    config = run.config(cache, SMALL)
    config.clipping = clipping_config.get_config().clipping
    config.clipping.strategies, config.clipping.seeds = ("naive",), (0,)
    return config


def _objectives(cache: Path) -> Any:
    config = run.config(cache, SMALL)
    config.individual = objectives_config.get_config().individual
    for family in ("ner", "tc"):
        config.individual[family].update(steps=2, warmup_steps=1)
    return config


def _scaling(cache: Path) -> Any:
    config = scaling_config.get_config()
    for name in [*config.scaling.models]:
        del config.scaling.models[name], config.scaling.layouts[name]
    config.scaling.models.tiny, config.scaling.layouts.tiny = (1, 32, 2), {"1": (1, 1, 1)}
    config.lora.last_layers, config.scaling.vocab, config.model.vocab = 1, 1000, 1000
    config.data.cache = str(cache)
    return config


def _scaled(config: Any, workdir: Path) -> None:
    (workdir / "cells").mkdir(parents=True, exist_ok=True)  # as the process does that asks for the cell
    (workdir / MARKER).write_text("scaling\n")
    scaling.run(config, workdir, cell="tiny_1")  # in this process
    scaling.run(config, workdir)


def _study(cache: Path, encoder: Path) -> Any:
    config = run.config(cache, {**SMALL, "model.path": str(encoder), "data.held_out": 0})
    config.study = study_config.get_config().study
    config.study.variants, config.study.modes, config.study.fractions = ("none", "individual"), ("probe",), (1.0,)
    return config


def _warmstart(cache: Path) -> Any:
    config = warmstart_config.get_config()
    sizes = {
        f"model.{k}": v for k, v in {"layers": 1, "hidden": 32, "heads": 2, "intermediate": 64, "vocab": 500}.items()
    }
    data = {f"data.mlm.{k}": v for k, v in {"rows": 4, "row_length": 32, "max_length": 24}.items()}
    steps = {"optimizer.steps": 2, "optimizer.warmup_steps": 1, "data.held_out": 30, "data.cache": str(cache)}
    config.update_from_flattened_dict({**sizes, **data, **steps, "data.mlm.sources": ("generated:text?rows=300",)})
    return config


def _trial(cache: Path, workdir: Path) -> None:
    advice = {"layers": [0], "last_layers": 1, "targets": ["key"], "rank": 3, "alpha": 6.0}
    (workdir.parent / "advice.json").write_text(json.dumps(advice))
    changes = {**SMALL, "conflict.ablation.seeds": (0,), "downstream.ner": ()}
    entry("conflict_trial")(run.config(cache, changes), workdir, str(workdir.parent / "advice.json"))


def _conflict(cache: Path, workdir: Path, naive: Path) -> None:
    for mode in ("probe", "online", "ablate", "represent", "advise"):
        conflict.run(run.config(cache, {**SMALL, "conflict.mode": mode}), workdir, str(naive))


# Program -> its run, of (cache, workdir, a finished run, an encoder).
RUNS: dict[str, Callable[[Path, Path, Path, Path], Any]] = {
    "prefinetune": lambda c, w, n, e: prefinetuning.run(run.config(c, {**SMALL, "run.eval_every": 1}), w),
    "downstream": lambda c, w, n, e: scoring.run(run.config(c, SMALL), w, str(n)),
    "inspect_data": lambda c, w, n, e: entry("inspect_data")(run.config(c), w),
    "filter_pairs": lambda c, w, n, e: filter_pairs.run(
        run.config(c, {"filter.sample": 5, "data.limit": 20}), w, str(e)
    ),
    "tables": lambda c, w, n, e: tables.run(run.config(c), w, str(n.parent)),
    "benchmark": lambda c, w, n, e: entry("benchmark")(_benchmark(c), w),
    "representations": lambda c, w, n, e: entry("representations")(run.config(c, SMALL), w, f"start={e},naive={n}"),
    "conflict": lambda c, w, n, e: _conflict(c, w, n),
    "conflict_trial": lambda c, w, n, e: _trial(c, w),
    "conflict_study": lambda c, w, n, e: entry("conflict_study")(_with_trial(run.config(c, SMALL)), w),
    "clipping": lambda c, w, n, e: entry("clipping")(_clipping(c), w),
    "warmstart": lambda c, w, n, e: entry("warmstart")(_warmstart(c), w),
    "scaling": lambda c, w, n, e: _scaled(_scaling(c), w),
    "quickstart": lambda c, w, n, e: entry("quickstart")(run.config(c, SMALL), w),
    "objectives": lambda c, w, n, e: entry("objectives")(_objectives(c), w),
    "study": lambda c, w, n, e: entry("study")(_study(c, e), w),
}
QUICK = ("prefinetune", "downstream", "inspect_data", "filter_pairs", "tables")


def _with_trial(config: Any) -> Any:
    config.conflict.trial = False
    return config


@pytest.mark.parametrize("program", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PROGRAMS])
def test_a_program_writes_to_its_workdir_and_the_cache_alone(
    program: str, naive: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(naive, tmp_path / "finished" / "naive")
    shutil.copytree(encoder, tmp_path / "encoder")
    (tmp_path / "runs").mkdir()
    for place in ("cwd", "cache", "cache/overlap", "runs", "encoder", "finished/naive"):
        bystanders(tmp_path / place)
    monkeypatch.chdir(tmp_path / "cwd")
    cache, workdir = tmp_path / "cache", tmp_path / "runs" / "mine"
    before = snapshot(tmp_path)
    RUNS[program](cache, workdir, tmp_path / "finished" / "naive", tmp_path / "encoder")
    after = snapshot(tmp_path)
    assert lost(before, after) == []
    new = [
        p for p in after if p not in before and not p.startswith(("cache/", "runs/mine")) and p != "runs/advice.json"
    ]
    assert new == []
    # Its results are those that are told from a user's files, beside folders that runs inside mark as their own.
    for path in sorted(workdir.iterdir()):
        known = {*workdir.glob(MARKER)}.union(*(workdir.glob(o) for o in _outputs(program)))
        assert path in known or [*path.rglob(MARKER)], path.name
    # Again, among files that the user has put there since.
    bystanders(workdir)
    before, theirs = snapshot(tmp_path), _theirs(workdir, tmp_path)
    RUNS[program](cache, workdir, tmp_path / "finished" / "naive", tmp_path / "encoder")
    own = {str(p.relative_to(tmp_path)) for p in workdir.rglob("*")} - theirs
    assert set(lost(before, snapshot(tmp_path))) <= own | {"runs/advice.json"}


def _outputs(program: str) -> tuple[str, ...]:
    return PROGRAMS[program].outputs + (PROGRAMS["prefinetune"].outputs if program == "warmstart" else ())


def _theirs(workdir: Path, folder: Path) -> set[str]:
    """Paths of the bystanders in `workdir`, and of the folders that hold them."""
    return {str(p.relative_to(folder)) for p in workdir.rglob("*") if p.is_file() and p.read_bytes()[:6] == b"mine: "}
