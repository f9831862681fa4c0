r"""Where do the families' gradients conflict? A report from a checkpoint and batches drawn anew.

python -m experiments.conflict --config=configs/minilm.py --checkpoint=runs/naive --workdir=runs/naive_conflict

At the checkpoint's parameters, per block of the shared parameters (embeddings, each layer, each kind of matrix): the
cosine between families, the cosine of two disjoint batches of one family as the reference level, the noise-corrected
cosine, the share of rounds below zero, the ratio of norms. Batches are the run's training rows in a new
order; gradients are taken before clipping and loss weights. Sources, batch sizes and LoRA are the run's own; from
--config come only conflict.*, devices, and data.root and data.cache where given. Writes conflict.json, conflict.html,
and grams.npz with the raw Gram matrices.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

import jaxprefit
from experiments import wiring
from experiments.checks import check
from jaxprefit import cli, train
from jaxprefit.conflict import report as conflict_report
from jaxprefit.conflict.probe import probe
from jaxprefit.data import mixture
from jaxprefit.errors import UserError
from jaxprefit.files import write_json, write_text
from jaxprefit.html import page
from jaxprefit.sharding import check_rows, make_mesh, put_batch, put_state


def run(config: ConfigDict, workdir: pathlib.Path, checkpoint: str, show: bool = True) -> dict[str, Any]:
    """Probes the checkpoint, writes the report, prints it where `show`, returns what conflict.json holds."""
    if not checkpoint:
        raise UserError("--checkpoint is missing; give the workdir of a run that trained two families together")
    check(config)
    model = jaxprefit.load(checkpoint)
    if not model.meta:
        raise UserError(f"{checkpoint} is a plain encoder, no run; the probe needs both families' heads")
    strategy = model.strategy
    flat = flatten_dict(model.params, sep="/")
    shared = [path for path in flat if len(strategy.touched_by(path)) > 1]
    if not shared:
        raise UserError(f"strategy '{strategy.name}' shares no parameter between families; nothing can conflict")
    if len(strategy.families) != 2:
        there = ", ".join(strategy.families)
        raise UserError(
            f"the probe compares two families, and {checkpoint} trained {there}; leave out the sources of one"
        )
    saved, data, setup = wiring.reopen(model, config, workdir)
    mesh = make_mesh(config.devices)
    for name in setup.families:
        check_rows(mesh, saved.data[name].rows, f"data.{name}.rows of the run")
    flat = put_state(mesh, flat)
    gradients = {
        name: jax.jit(lambda f, batch, name=name: train.family_gradients(setup, name, f, batch, None)[2])
        for name in setup.families
    }
    streams = wiring.streams(data, setup.families, saved, config.conflict.seed + 7919)
    drawn = dict.fromkeys(setup.families, 0)

    def gradient(name: str, batch: mixture.Drawn) -> Mapping[str, jax.Array]:
        drawn[name] = sum(batch.examples.values())
        return gradients[name](flat, put_batch(mesh, batch.batch))

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task("probing", total=config.conflict.rounds)
        blocks = probe(
            gradient,
            streams,
            shared,
            config.conflict.rounds,
            lambda n: bar.update(row, completed=n),
        )["gradient"]
    for stream in streams.values():
        stream.close()
    settings = {
        "checkpoint": checkpoint,
        "step": model.meta["step"],
        "strategy": strategy.name,
        "rounds": config.conflict.rounds,
        "batch_tokens": {name: wiring.layout(saved, name).tokens for name in setup.families},
        "examples": drawn,
        "rows": {name: sum(len(part) for _, part in data[name].train) for name in setup.families},
        "seed": config.conflict.seed,
    }
    first, second = setup.families
    result = conflict_report.content(blocks, (first, second), settings)
    workdir.mkdir(parents=True, exist_ok=True)
    arrays = {f"{b}:{part}": x for b, g in blocks.items() for part, x in g._asdict().items() if x is not None}
    np.savez(workdir / "grams.npz", **arrays)
    write_json(workdir / "conflict.json", result)
    title = f"Gradient conflict: {strategy.name}, step {model.meta['step']}"
    write_text(workdir / "conflict.html", page(title, conflict_report.html_parts(result)))
    if show:
        conflict_report.print_tables(result)
    print(f"wrote {workdir / 'conflict.json'} and {workdir / 'conflict.html'}")
    return result


if __name__ == "__main__":
    cli.run(run, __doc__ or "", checkpoint="Workdir of a run, or one of its steps.")
