"""Mode ablate of experiments.conflict: a grid of short trainings from the run's start, one file a cell."""

import copy
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.common import assembly, family_data
from experiments.common.conflict_results import AblationCell
from jaxprefit import gram
from jaxprefit.conflict import ablation
from jaxprefit.conflict.blocks import ordered
from jaxprefit.conflict.results import AblationSection
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.runtime import results
from jaxprefit.surgery import METHODS
from jaxprefit.training import loop, train_step
from jaxprefit.training.checkpoints import PLACES


def measure(config: ConfigDict, workdir: pathlib.Path, model: Model, shared: list[str]) -> AblationSection:
    """The section 'ablation'. Cells that are there already are read, not trained again.

    Raises UserError for an aggregator under which all else would not be equal.
    """
    check_aggregator(model.meta["config"]["aggregator"])
    c = config.conflict.ablation
    run_config = assembly.original(model, config, workdir)
    blocks = [*ordered(dict.fromkeys(gram.by_layer(path) for path in shared))]
    if unknown := [b for b in c.blocks if b not in blocks]:
        raise UserError(f"conflict.ablation.blocks names '{unknown[0]}'; the families share {', '.join(blocks)}")
    groups = ablation.groups([b for b in blocks if not c.blocks or b in c.blocks], c.layers)
    order = ablation.variants(groups, model.strategy.families, c.controls)
    start = assembly.make_run(run_config, workdir)
    _check_start(model, start)
    # The same batches for every variant and seed, those of the run itself.
    held_out = assembly.held_out_batches(start, run_config)
    if short := [f for f, batches in held_out.items() if not batches]:
        raise UserError(f"data.held_out leaves no held-out row of {short[0]}, on which an ablation is measured")
    cells = {}
    for seed in c.seeds:
        for variant in order:
            cell_config = configured(run_config, variant, seed, c.steps)
            file = workdir / "ablation" / f"{variant.name}_{seed}_{_fingerprint(cell_config, variant, model)}.json"
            if not file.exists():
                losses = train_cell(cell_config, variant, held_out, file.with_suffix(""))
                cell = AblationCell(
                    variant=variant.name,
                    says=variant.says,
                    seed=seed,
                    steps=cell_config.optimizer.steps,
                    losses={family: tuple(values) for family, values in losses.items()},
                )
                results.write(file, cell)
            cells[variant.name, seed] = read_cell(file).losses
            means = ", ".join(f"{f} {np.mean(x):.4f}" for f, x in cells[variant.name, seed].items())
            print(f"{variant.says}, seed {seed}: held-out losses {means}")
    return AblationSection(
        steps=c.steps,
        seeds=tuple(c.seeds),
        batches={name: len(batches) for name, batches in held_out.items()},
        batch_tokens={name: family_data.layout(run_config, name).tokens for name in held_out},
        rows=ablation.content(cells, order),
    )


def check_aggregator(name: str) -> None:
    """Raises UserError where stopping a gradient would change the weights of all others."""
    if METHODS[name].reads_gram:  # which a stopped gradient changes
        raise UserError(
            f"aggregator '{name}' weighs gradients by their Gram matrix, so that stopping one changes the weights of"
            " all others; ablate a run with aggregator=sum"
        )


def read_cell(file: pathlib.Path) -> AblationCell:
    """A finished cell. Raises UserError where `file` is none of this version."""
    try:
        return results.read(file, AblationCell)
    except UserError as e:
        version = AblationCell.VERSION
        raise UserError(f"{file} is no cell of version {version}; delete it, and it is trained again ({e})") from None


def configured(config: ConfigDict, variant: ablation.Variant, seed: int, steps: int) -> ConfigDict:
    """The config of one cell."""
    c = copy.deepcopy(config)
    warmup = round(c.optimizer.warmup_steps * steps / c.optimizer.steps)
    c.update_from_flattened_dict({"seed": seed, "optimizer.steps": steps, "optimizer.warmup_steps": warmup})
    c.strategy = variant.strategy or c.strategy
    for key, factor in variant.factors.items():
        value: Any = c
        for part in key.split("."):
            value = value[part]
        c.update_from_flattened_dict({key: type(value)(value * factor)})
    return c


def train_cell(
    config: ConfigDict, variant: ablation.Variant, held_out: dict[str, list[Any]], folder: pathlib.Path
) -> dict[str, list[float]]:
    """Trains from the start; family -> its loss on each held-out batch, at the end, without dropout. `folder` gets
    metrics.jsonl; a cell that was interrupted begins again."""
    folder.mkdir(parents=True, exist_ok=True)
    run = assembly.make_run(config, folder)
    run = dataclasses.replace(run, setup=run.setup._replace(stopped=variant.stopped))
    state, tx = assembly.fresh_state(run)
    streams = family_data.streams(run.data, run.setup.families, config, config.seed)
    cfg = assembly.loop_config(config, config.optimizer.steps, config.optimizer.steps)
    state = loop.run(assembly.make_step(run, tx, config), state, streams, run.mesh, folder, cfg, lambda *_: None)
    loop.require_a_step(int(state.step), folder / "metrics.jsonl")
    for stream in streams.values():
        stream.close()
    out = {}
    for name in run.setup.families:
        evaluate = train_step.make_eval(run.setup, name)
        out[name] = [float(jax.device_get(evaluate(state.params, batch)["loss"])) for batch in held_out[name]]
    return out


def _check_start(model: Model, start: assembly.Run) -> None:
    """Raises UserError where the encoder, the tokenizer or the data of the run's start are not here."""
    tokenizer = hashlib.sha256(start.start.tokenizer.to_str().encode()).hexdigest()[:16]
    found = {"encoder": dataclasses.asdict(start.start.config), "tokenizer": tokenizer}
    for part, value in {**found, "data": assembly.data_fingerprints(start)}.items():
        if model.meta[part] != value:
            raise UserError(f"the run started with another {part} than is here; check model.path and data.root")


def _fingerprint(config: ConfigDict, variant: ablation.Variant, model: Model) -> str:
    """Of all that a cell's losses follow from."""
    saved = assembly.saved_config(config)
    places = ConfigDict(saved)
    places.update_from_flattened_dict(dict.fromkeys((p for p in PLACES if p != "devices"), ""))
    content = [places.to_dict(), variant.stopped, model.meta["data"], model.meta["encoder"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
