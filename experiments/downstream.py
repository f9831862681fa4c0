r"""Downstream scores of a checkpoint: NER by strict span F1, text classification by accuracy, one table.

python -m experiments.downstream --config=configs/minilm.py --checkpoint=runs/task_primary \
    --workdir=runs/task_primary_scores --config.data.root=DIR

Per task a linear head with a LoRA on the frozen backbone (downstream.mode=adapter; it starts from the family's LoRA),
a linear head alone (probe), or full fine-tuning (full). --checkpoint is a run's workdir, one of its steps, or a
Hugging Face directory. Writes WORKDIR/scores.json, and one file per finished task and seed under WORKDIR/cells; the
same command continues where it was stopped.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

import jaxprefit
from configs.datasets import DATASETS
from experiments import wiring
from experiments.checks import check
from jaxprefit import cli
from jaxprefit.data import sources
from jaxprefit.data.registry import resolve
from jaxprefit.downstream.finetune import FinetuneConfig, TaskData, finetune
from jaxprefit.downstream.tasks import TASKS, check_labels
from jaxprefit.errors import UserError
from jaxprefit.files import write_json

SCORES_VERSION = 1
MAIN_SCORE = {"ner": "f1", "tc": "accuracy"}


def run(config: ConfigDict, workdir: pathlib.Path, checkpoint: str) -> dict[str, Any]:
    """Scores every task of the config, and returns what scores.json holds."""
    if not checkpoint:
        raise UserError("--checkpoint is missing; give a run's workdir or a Hugging Face directory")
    model = jaxprefit.load(checkpoint)
    return score_model(config, workdir, model, checkpoint)


def score_model(config: ConfigDict, workdir: pathlib.Path, model: jaxprefit.Model, checkpoint: str) -> dict[str, Any]:
    """As `run`, for a model in memory."""
    check(config)
    c = config.downstream
    cfg = FinetuneConfig(c.mode, c.steps, c.batch_size, c.fraction, c.lora_lr, c.head_lr, c.backbone_lr)
    cfg.validate()
    # The same arithmetic and dropout for every start, whatever a Hugging Face config.json says.
    arithmetic = {"dtype": config.model.dtype, "hidden_dropout": config.model.hidden_dropout}
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, **arithmetic))
    spec = wiring.lora_spec(config)
    if c.mode == "adapter":
        spec.validate(model.config)
    own = model.meta["config"]["lora"] if model.adapters else {}
    given = json.loads(json.dumps(config.lora.to_dict()))
    if c.mode == "adapter" and own and own != given:
        raise UserError(
            f"config.lora differs from the LoRA of {checkpoint}, {own}; give the same, to compare like with like"
        )
    tasks = load_tasks(config, workdir, model)
    start = {"checkpoint": checkpoint, "step": model.meta.get("step"), "strategy": model.meta.get("strategy", "none")}
    recipe = {k: v for k, v in c.to_dict().items() if k not in ("ner", "tc", "seeds")}
    settings = json.loads(json.dumps({"start": start, "downstream": recipe | arithmetic, "lora": given}))
    weights = fingerprint(model.params)
    results: list[dict[str, Any]] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        for data in tasks:
            cells = []
            # A finished cell is used again only for the same checkpoint, recipe and rows.
            identity = [settings, weights, data.train.directory.name, data.test.directory.name]
            digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
            for seed in c.seeds:
                file = workdir / "cells" / f"{data.name.replace('/', '_')}-seed{seed}-{digest}.json"
                if not file.exists():
                    row = bar.add_task(f"{data.name} seed {seed}", total=cfg.steps)
                    scores = finetune(model, data, spec, cfg, seed, functools.partial(_advance, bar, row))
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, {"seed": seed, **scores})
                cells.append(json.loads(file.read_text()))
            mean = {k: sum(cell[k] for cell in cells) / len(cells) for k in cells[0] if k != "seed"}
            results.append(
                {
                    "task": data.name, "family": data.family, "train_rows": len(data.train),
                    "test_rows": len(data.test), "classes": len(data.task.labels), "mean": mean, "seeds": cells,
                }
            )  # fmt: skip
    averages = {f: _mean([r["mean"][MAIN_SCORE[f]] for r in results if r["family"] == f]) for f in MAIN_SCORE}
    content = {
        "schema": "jaxprefit.scores", "version": SCORES_VERSION, **settings, "tasks": results, "average": averages
    }  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "scores.json", content)
    print_table(content)
    return content


def fingerprint(tree: Any) -> str:
    """A hash of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(tree, sep="/").items()):
        digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def load_tasks(config: ConfigDict, workdir: pathlib.Path, model: jaxprefit.Model) -> list[TaskData]:
    """The config's tasks with their train and test rows."""
    cache, tasks = str(wiring.cache_folder(config, workdir)), []
    longest = config.downstream.max_length
    if not 4 <= longest <= model.config.max_positions:
        raise UserError(
            f"downstream.max_length is {longest}; this encoder takes 4 to {model.config.max_positions} tokens"
        )
    for family, cls in TASKS.items():
        for name in resolve(config.downstream[family], cls.kind, DATASETS):
            train, test = (sources.prepare(name, cls.kind, config.data.root, cache, split=s) for s in ("train", "test"))
            check_labels(name, train, test)
            task = cls.create({"max_length": longest}, [train], model.tokenizer)
            tasks.append(TaskData(name.partition("?")[0].replace(":", "_"), family, task, train, test))
    if not tasks:
        raise UserError("no task to score; name folders with train and test files in downstream.ner or downstream.tc")
    return tasks


def print_table(content: dict[str, Any]) -> None:
    """The scores, in percent."""
    start = content["start"]
    table = Table(
        "task", "main score", "beside it", "train / test rows", title=f"{start['strategy']}: {start['checkpoint']}"
    )
    for r in content["tasks"]:
        m = r["mean"]
        if r["family"] == "ner":
            main, beside = f"F1 {100 * m['f1']:.1f}", f"lenient {100 * m['f1_lenient']:.1f}"
        else:
            main, beside = f"accuracy {100 * m['accuracy']:.1f}", f"macro-F1 {100 * m['macro_f1']:.1f}"
        table.add_row(r["task"], main, beside, f"{r['train_rows']:,} / {r['test_rows']:,}")
    Console(width=110).print(table)
    print("NER F1 is strict IOB2 (seqeval); the lenient score repairs ill-formed tags")


def _advance(bar: Progress, row: TaskID, done: int) -> None:
    bar.update(row, completed=done)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    cli.run(run, __doc__ or "", checkpoint="A run's workdir, one of its steps, or a Hugging Face directory.")
