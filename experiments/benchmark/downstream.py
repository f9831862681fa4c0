"""Cells per hour of fine-tuning on a frozen backbone: `downstream.finetune` against the plain loop, same scores.

The plain loop trains one seed after another, runs the whole encoder at every step, pads every text of a batch to the
longest training text, and compiles for each task and seed. Compiling counts: it is part of what a grid costs.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.common import assembly, family_data
from experiments.common.start import start_encoder
from experiments.common.tasks import MAIN_SCORE, load_tasks, recipe
from jaxprefit import surgery
from jaxprefit.data.packing import Layout, Packing
from jaxprefit.downstream import batches, cells
from jaxprefit.downstream.finetune import (
    MODES,
    FinetuneConfig,
    Predictions,
    TaskData,
    finetune,
    start_params,
    training_rows,
)
from jaxprefit.encoder import lora
from jaxprefit.encoder.transformer import Encoder
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.runtime.sharding import make_mesh, put_batch, put_state
from jaxprefit.strategies import make
from jaxprefit.training import optim, train_step


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Both ways over the config's tasks and seeds, one after the other: seconds, cells per hour, and their scores."""
    start = start_encoder(config, family_data.cache_folder(config, workdir))
    model = Model(start.config, {"backbone": start.params}, start.tokenizer, make("none", ()), {})
    spec, cfg = assembly.lora_spec(config), recipe(config)
    if cfg.mode not in MODES:
        raise UserError(f"downstream.mode is '{cfg.mode}', which trains nothing; choose from {', '.join(MODES)}")
    tasks, seeds = load_tasks(config, workdir, model), list(config.downstream.seeds)
    begin = time.perf_counter()
    fast = {}
    for data in tasks:
        for seed, found in finetune(model, data, spec, cfg, seeds).predictions.items():
            if isinstance(found, UserError):
                raise found
            fast[data.name, seed] = cells.scores(data, found)
    seconds = {"fast": time.perf_counter() - begin}
    begin = time.perf_counter()
    slow = {(data.name, s): cells.scores(data, plain(model, data, spec, cfg, s)) for data in tasks for s in seeds}
    seconds["plain"] = time.perf_counter() - begin
    main = {data.name: MAIN_SCORE[data.family] for data in tasks}
    differences = [abs(fast[cell][main[cell[0]]] - slow[cell][main[cell[0]]]) for cell in slow]
    return {
        "repetitions": 1,  # a second one would find everything compiled
        "mode": cfg.mode,
        "encoder": f"{start.config.num_layers} x {start.config.hidden_size}",
        "steps": cfg.steps,
        "cells": len(slow),
        "seconds": {way: round(s, 1) for way, s in seconds.items()},
        "cells_per_hour": {way: round(3600 * len(slow) / s, 1) for way, s in seconds.items()},
        "ratio": round(seconds["plain"] / seconds["fast"], 2),
        "largest_score_difference": max(differences),
        "mean_score": {
            way: float(np.mean([found[cell][main[cell[0]]] for cell in slow]))
            for way, found in (("fast", fast), ("plain", slow))
        },
    }


def plain(model: Model, data: TaskData, spec: lora.LoraSpec, cfg: FinetuneConfig, seed: int) -> Predictions:
    """One seed by the step of pre-finetuning, on padded batches, nothing reused: predictions of the test rows."""
    strategy, mesh = MODES[cfg.mode], make_mesh(1)
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = start_params(model, data, spec, cfg.mode, init_key)
    flat = flatten_dict(params, sep="/")
    tx = optim.make_optimizer(strategy, flat, cfg.optimizer)
    state = put_state(mesh, jax.tree.map(jax.numpy.array, train_step.init_state(params, tx)))
    setup = train_step.Setup(Encoder(model.config), {"task": data.task}, strategy, {}, spec.dropout)
    step = train_step.make_step(setup, tx, cfg.optimizer, surgery.get("sum"), mesh, step_key)
    rows = training_rows(data, cfg)
    examples = [data.task.encode_record(data.train[int(i)]) for i in rows]
    length = _up(max(len(e["ids"]) for e in examples))
    for texts in batches.epochs(len(examples), cfg.batch_size, cfg.steps, seed):
        batch = [examples[i] for i in texts]
        state, _ = step(state, {"task": put_batch(mesh, data.task.collate(batch, padded(batch, length)))})

    def classes(head: Any, encode: Any, batch: Any) -> jax.Array:
        hidden = encode(batch["input_ids"], batch["segments"])
        vectors = data.task.vectors(hidden, batch["segments"], 1)
        return data.task.logits(head, vectors).argmax(-1)

    predict = jax.jit(lambda flat, batch: train_step.apply_family(setup, "task", flat, batch, classes))
    tests = [data.task.encode_record(data.test[i]) for i in range(len(data.test))]
    order = sorted(range(len(tests)), key=lambda i: len(tests[i]["ids"]))
    out: Predictions = [[]] * len(tests)
    for begin in range(0, len(order), 64):
        chunk = order[begin : begin + 64]
        batch = [tests[i] for i in [*chunk, *[chunk[-1]] * (64 - len(chunk))]]
        packing = padded(batch, _up(len(batch[-1]["ids"])))
        found = np.asarray(predict(state.params, data.task.collate(batch, packing)))
        for t, i in enumerate(chunk):
            out[i] = data.task.read(found, tests[i], packing, t)
    return out


def padded(examples: Sequence[dict[str, Any]], length: int) -> Packing:
    """One text a row."""
    number = len(examples)
    sizes = np.asarray([len(e["ids"]) for e in examples], np.int32)
    return Packing(
        Layout(number, length, 1), np.arange(number), np.zeros(number, int), np.ones(number, int), sizes
    )  # fmt: skip


def _up(length: int) -> int:
    return -(-length // 16) * 16
