"""Which folders a program takes for its own: new and empty ones, and those that it has written before."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run
from helpers.paths import ROOT
from helpers.trees import bystanders, lost, snapshot

import jaxprefit
from experiments import conflict, filter_pairs
from experiments.common import prefinetuning, scoring, workdirs
from experiments.common.workdirs import MARKER, PROGRAMS
from jaxprefit.errors import UserError

SMALL = {"optimizer.steps": 2, "downstream.steps": 2, "downstream.mode": "probe"}


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


def test_every_program_is_known() -> None:
    texts = {p.stem: p.read_text() for p in (ROOT / "experiments").glob("*.py")}
    # An export writes no workdir but a folder that must be new (tests/export/test_folder.py).
    modules = {name for name, text in texts.items() if "cli.run(" in text and 'folder="output"' not in text}
    packages = {p.parent.name for p in (ROOT / "experiments").glob("*/__main__.py")}
    assert modules | packages == {*PROGRAMS}


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_takes_a_folder_that_it_did_not_write(program: str, cache: Path, tmp_path: Path) -> None:
    bystanders(tmp_path / "mine")
    for name in ("config.json", "summary.json", "scores.json", "study.md", "tables.md"):
        (tmp_path / "mine" / name).write_text('{"schema": "of another", "model_type": "bert"}')
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=f"mine is not empty, and no run of {program} has written it; give --workdir"):
        entry(program)(run.config(cache), tmp_path / "mine", *[""] * (program in ("downstream", "conflict", "tables")))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "place", ["encoder", "root", "link", "checkpoints", "inside checkpoints", "file", "empty name"]
)
def test_prefinetune_never_harms(
    place: str, cache: Path, naive: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(encoder)
    (tmp_path / "file").write_text("mine")
    places = {
        "encoder": encoder, "root": ROOT, "link": tmp_path / "link", "file": tmp_path / "file", "empty name": Path(),
        "checkpoints": naive / "checkpoints", "inside checkpoints": naive / "checkpoints" / "3",
    }  # fmt: skip
    monkeypatch.chdir(encoder)
    before = snapshot(naive.parent)
    with pytest.raises(UserError, match="is not empty, and no run|is a file; give|where a run keeps its own files"):
        prefinetuning.run(run.config(cache, {"model.path": str(encoder)}), places[place])
    assert snapshot(naive.parent) == before
    jaxprefit.load(encoder)


def test_a_run_that_is_refused_leaves_no_folder(cache: Path, tmp_path: Path) -> None:
    bad = run.config(cache, {"data.ner.sources": ("nowhere",)})
    (tmp_path / "empty").mkdir()
    for workdir in (tmp_path / "runs" / "new", tmp_path / "empty"):
        with pytest.raises(UserError, match="nowhere"):
            prefinetuning.run(bad, workdir)
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_a_run_is_told_from_what_lies_beside_it(cache: Path, naive: Path, tmp_path: Path) -> None:
    """A folder of runs is none; nor is one that holds what file systems put there a full one."""
    shutil.copytree(naive, tmp_path / "runs" / "naive")
    with pytest.raises(UserError, match="runs is not empty"):
        prefinetuning.run(run.config(cache), tmp_path / "runs")
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    workdirs.check(tmp_path / "disk", "prefinetune")


def test_runs_from_before_there_was_a_marker_continue(cache: Path, naive: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "naive"
    shutil.copytree(naive, workdir, ignore=shutil.ignore_patterns(".*"))
    config = run.config(cache, {**SMALL, "strategy": "naive"})
    before = snapshot(workdir / "checkpoints")
    prefinetuning.run(config, workdir)
    assert snapshot(workdir / "checkpoints") == before and (workdir / MARKER).read_text() == "prefinetune\n"


@pytest.mark.parametrize(
    ("program", "file", "content"),
    [
        ("warmstart", "config.json", {"strategy": "individual_mlm", "optimizer": {}}),
        ("downstream", "cells/task-seed0-abc.json", {"schema": "jaxprefit.cell"}),
        ("conflict", "conflict.json", {"schema": "jaxprefit.conflict"}),
        ("conflict", "ablation/plain_0_abc.json", {"schema": "jaxprefit.ablation_cell"}),
        ("conflict", "naive/conflict.json", {"schema": "jaxprefit.conflict"}),
        ("representations", "representations.json", {"schema": "jaxprefit.representations"}),
        ("inspect_data", "inspection.json", {"schema": "jaxprefit.inspect_data"}),
        ("filter_pairs", "filter.json", {"schema": "jaxprefit.filter"}),
        ("tables", "summary_naive.json", {"schema": "jaxprefit.prefinetune"}),
        ("study", "study.json", {"schema": "jaxprefit.study"}),
        ("study", "minilm/naive-seed0/config.json", {"strategy": "naive", "optimizer": {}}),
        ("scaling", "cells/tiny_1.json", {"schema": "jaxprefit.scaling_cell"}),
        ("benchmark", "benchmark_data.json", {"schema": "jaxprefit.benchmark.data"}),
        ("quickstart", "none/config.json", {"strategy": "none", "optimizer": {}}),
        ("objectives", "none/config.json", {"strategy": "none", "optimizer": {}}),
        ("conflict_trial", "default_0/config.json", {"strategy": "task_primary", "optimizer": {}}),
        ("conflict_study", "naive/config.json", {"strategy": "naive", "optimizer": {}}),
    ],
)
def test_results_from_before_there_was_a_marker_are_known(
    program: str, file: str, content: Any, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    for wrong in ("", "[1]", '{"schema": 3}', '{"schema": "of another"}', '{"strategy": "naive"}'):
        (tmp_path / file).write_text(wrong)
        with pytest.raises(UserError, match="is not empty"):
            workdirs.check(tmp_path, program)
    (tmp_path / file).write_text(json.dumps(content))
    workdirs.check(tmp_path, program)


def test_two_programs_in_one_workdir_where_none_writes_over_the_other(cache: Path, naive: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "naive"
    shutil.copytree(naive, workdir)
    before = snapshot(workdir)
    scoring.run(run.config(cache, {**SMALL, "downstream.ner": ()}), workdir, str(workdir))
    assert lost(before, snapshot(workdir)) == [MARKER]
    assert (workdir / MARKER).read_text().split() == ["prefinetune", "downstream"]
    (workdir / "conflict.html").write_text("mine")
    with pytest.raises(
        UserError, match="naive holds summary.json, which quickstart has not written and would overwrite"
    ):
        entry("quickstart")(run.config(cache), workdir)
    with pytest.raises(
        UserError, match="holds conflict.html, which conflict has not written .* such as .*naive/conflict"
    ):
        conflict.run(run.config(cache), workdir, str(workdir))


def test_a_cache_inside_the_workdir_and_a_second_try(cache: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    config = run.config(workdir / "cache", {**SMALL, "strategy": "individual_tc", "data.tc.sources": ("nowhere",)})
    config.data.ner.sources = ("generated:ner?rows=20",)
    with pytest.raises(UserError, match="nowhere"):
        prefinetuning.run(config, workdir)
    assert (workdir / "cache").is_dir()
    with pytest.raises(UserError, match="nowhere"):
        prefinetuning.run(config, workdir)


def test_filtering_never_writes_over_the_data(encoder: Path, cache: Path, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"a": f"a {i}", "b": f"b {i}"}) + "\n" for i in range(6))
    for name in ("data/pairs", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "pairs" / "train.jsonl").write_text(rows)
    (tmp_path / "data" / "more.jsonl").write_text(rows)
    changes = {
        "data.root": str(tmp_path / "data"),
        "data.tc.sources": ("pairs",),
        "filter.top_k": 1,
        "filter.sample": 5,
    }
    config = run.config(cache, changes)
    before = snapshot(tmp_path / "data")
    with pytest.raises(UserError, match="data is not empty"):
        filter_pairs.run(config, tmp_path / "data", str(encoder))
    assert snapshot(tmp_path / "data") == before
    filter_pairs.run(config, tmp_path / "out", str(encoder))
    filter_pairs.run(config, tmp_path / "out", str(encoder))  # its own rows it may write again
    mine = tmp_path / "out" / "more.jsonl" / "train.jsonl.xz"
    mine.parent.mkdir()
    mine.write_text("mine")
    config.data.tc.sources = ("more.jsonl",)
    with pytest.raises(UserError, match="train.jsonl.xz was not written by filter_pairs"):
        filter_pairs.run(config, tmp_path / "out", str(encoder))
    assert mine.read_text() == "mine"


def test_an_export_goes_to_a_new_folder_alone(encoder: Path, naive: Path, tmp_path: Path) -> None:
    bystanders(tmp_path)
    before, model = snapshot(tmp_path), jaxprefit.load(naive)
    for place in (tmp_path, tmp_path / "sub", tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="is not an empty directory"):
            model.export(place)
    assert snapshot(tmp_path) == before
    model.export(tmp_path / "new")
    assert not lost(before, snapshot(tmp_path)) and snapshot(tmp_path / "new").keys() == snapshot(encoder).keys()
