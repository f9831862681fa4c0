"""Downstream scores of a model: every task and seed of a config, one file each, and their summary."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

import jaxprefit
from experiments.common import assembly
from experiments.common.checks import check
from experiments.common.tasks import (
    MAIN_SCORE,
    description,
    load_those_that_can,
    recipe,
    task_names,
)
from experiments.common.workdirs import owned
from jaxprefit.downstream import cells, mteb, notes
from jaxprefit.downstream.finetune import MODES, MTEB, FinetuneConfig, TaskData, finetune
from jaxprefit.encoder import lora
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import write_json
from jaxprefit.runtime.progress import GridProgress
from jaxprefit.runtime.terminal import plain, printable

SCORES_VERSION = 2


@owned("downstream")
def run(config: ConfigDict, workdir: pathlib.Path, checkpoint: str) -> dict[str, Any]:
    """Scores every task of the config, and returns what scores.json holds."""
    if not checkpoint:
        raise UserError("--checkpoint is missing; give a run's workdir or a Hugging Face directory")
    content = score_model(config, workdir, jaxprefit.load(checkpoint), checkpoint)
    if content["failed"]:
        raise UserError(f"{len(content['failed'])} cells failed, as shown above; the others are in {workdir}")
    return content


@owned("downstream")
def score_model(
    config: ConfigDict,
    workdir: pathlib.Path,
    model: jaxprefit.Model,
    checkpoint: str,
    progress: GridProgress | None = None,
) -> dict[str, Any]:
    """Scores a model in memory on every task of the config, and returns what scores.json holds.

    With the `progress` of a larger grid that is shown instead of a table.
    """
    check(config)
    c = config.downstream
    cfg = recipe(config)
    # The same arithmetic and dropout for every start, whatever a Hugging Face config.json says.
    arithmetic = {"dtype": config.model.dtype, "hidden_dropout": config.model.hidden_dropout}
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, **arithmetic))
    spec = assembly.lora_spec(config)
    if c.mode != MTEB and MODES[c.mode].adapters:
        spec.validate(model.config)
    own = model.meta["config"]["lora"] if model.adapters else {}
    described = description(config)
    if c.mode == "adapter" and own and own != described["lora"]:
        raise UserError(
            f"config.lora differs from the LoRA of {checkpoint}, {own}; give the same, to compare like with like"
        )
    tasks, unreadable = load_those_that_can(config, workdir, model)
    start = {"checkpoint": checkpoint, "step": model.meta.get("step"), "strategy": model.meta.get("strategy", "none")}
    weights = fingerprint(model.params)
    files = {}
    for data in tasks:
        # A finished cell is used again only for the same weights, recipe and rows.
        identity = [*described.values(), weights, data.train.fingerprint, data.test.fingerprint]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        for seed in c.seeds:
            files[data.name, seed] = workdir / "cells" / cells.file_name(data.name, seed, digest)
    failed = [{"task": name, "seed": seed, "reason": reason} for name, reason in unreadable.items() for seed in c.seeds]
    with contextlib.nullcontext(progress) if progress else GridProgress(len(files) + len(failed)) as shown:
        shown.skip(len(failed))
        failed += run_cells(model, tasks, list(c.seeds), spec, cfg, files, shown)
    results = []
    for data in tasks:
        if done := [file for seed in c.seeds if (file := files[data.name, seed]).exists()]:
            results.append(summary(data, [cells.read(file) for file in done]))
            results[-1]["cells"] = [str(file.relative_to(workdir)) for file in done]
    content = {
        "schema": "jaxprefit.scores", "version": SCORES_VERSION, "start": start, **described, "tasks": results,
        "failed": failed, "average": {f: average(f, task_names(config, f), results, failed) for f in MAIN_SCORE},
    }  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "scores.json", content)
    if not progress:
        print_table(content)
    return content


def run_cells(
    model: jaxprefit.Model,
    tasks: list[TaskData],
    seeds: list[int],
    spec: lora.LoraSpec,
    cfg: FinetuneConfig,
    files: dict[tuple[str, int], pathlib.Path],
    progress: GridProgress,
) -> list[dict[str, Any]]:
    """Runs the cells that have no file yet, and returns those that failed, with the reason."""
    failed = []
    progress.skip(sum(file.exists() for file in files.values()))
    for data in tasks:
        missing = [seed for seed in seeds if not files[data.name, seed].exists()]
        if not missing:
            continue
        progress.begin(data.name, len(missing) if cfg.mode == MTEB else cfg.steps, len(missing))
        made: dict[int, cells.Cell | UserError]
        try:
            if cfg.mode == MTEB:
                found = mteb.classify(model, data, cfg, missing, progress.step)
            else:
                found = finetune(model, data, spec, cfg, missing, progress.step)
            made = {seed: cells.make(data, seed, found) for seed in missing}
        except UserError as error:
            made = dict.fromkeys(missing, error)
        except jax.errors.JaxRuntimeError as error:  # out of memory, say; another task may fit
            reason = f"task '{data.name}': {str(error).splitlines()[0]}"
            made = dict.fromkeys(missing, UserError(reason))
        for seed, cell in made.items():
            if isinstance(cell, UserError):
                failed.append({"task": data.name, "seed": seed, "reason": str(cell)})
                print(printable(f"{data.name} seed {seed} failed: {cell}"), file=sys.stderr)
            else:
                cells.write(files[data.name, seed], cell)
        progress.end()
    return failed


def summary(data: TaskData, done: list[cells.Cell]) -> dict[str, Any]:
    """A task's entry in scores.json."""
    mean = {k: sum(cell.scores[k] for cell in done) / len(done) for k in done[0].scores}
    says_nothing = notes.says_nothing(data, done[0])
    return {
        "task": data.name,
        "family": data.family,
        "train_rows": len(data.train),
        "trained_rows": done[0].train_rows,
        "test_rows": len(data.test),
        "classes": len(data.task.labels),
        "unseen": list(done[0].unseen),
        "cuts": cells.cuts(data, done[0]),
        "averaged": not says_nothing,
        "notes": [*says_nothing, *data.notes, *notes.of_scores(data, done[0], mean)],
        "mean": mean,
        "seeds": [{"seed": cell.seed, **cell.scores} for cell in done],
    }


def average(family: str, names: list[str], results: list[dict], failed: list[dict]) -> float | None:
    """Mean of the family's main score over its tasks `names`, but for those whose score says nothing; None without
    such tasks, or where a cell of one failed."""
    scores = [r["mean"][MAIN_SCORE[family]] for r in results if r["task"] in names and r["averaged"]]
    if not scores or any(cell["task"] in names for cell in failed):
        return None
    return sum(scores) / len(scores)


def fingerprint(tree: Any) -> str:
    """A hash of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(tree, sep="/").items()):
        digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def print_table(content: dict[str, Any]) -> None:
    """The scores, in percent."""
    start = content["start"]
    title = plain(f"{start['strategy']}: {start['checkpoint']}", "table.title")
    table = Table("task", "main score", "beside it", "trained on / test rows", title=title)
    for r in content["tasks"]:
        m = r["mean"]
        if r["family"] == "ner":
            main, beside = f"F1 {100 * m['f1']:.1f}", f"lenient {100 * m['f1_lenient']:.1f}"
        else:
            main, beside = f"accuracy {100 * m['accuracy']:.1f}", f"macro-F1 {100 * m['macro_f1']:.1f}"
        if not r["averaged"]:
            main += ", left out of the average"
        table.add_row(plain(r["task"]), main, beside, f"{r['trained_rows']:,} / {r['test_rows']:,}")
    for cell in content["failed"]:
        table.add_row(plain(cell["task"]), f"seed {cell['seed']} failed", plain(cell["reason"]), "")
    Console(width=110).print(table)
    for r in content["tasks"]:
        for note in r["notes"]:
            print(printable(f"{r['task']}: {note}"))
    print("NER F1 is strict IOB2; the lenient score repairs ill-formed tags")
