"""One pre-finetuning run from a config: trained or continued, scored on held-out rows, summarised."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.common import assembly, family_data
from experiments.common.workdirs import owned
from jaxprefit.checkpoints import metadata
from jaxprefit.encoder.cuts import Cuts, sentence, share
from jaxprefit.errors import UserError
from jaxprefit.runtime import files
from jaxprefit.runtime.distributed import first_alone, require_alike
from jaxprefit.runtime.files import locked, read_json, write_json, write_text
from jaxprefit.runtime.terminal import plain, printable
from jaxprefit.strategies import Strategy, trainable_and_total
from jaxprefit.training import loop, train_step
from jaxprefit.training.checkpoints import PLACES, Checkpoints, resume
from jaxprefit.training.optim import Flat

SUMMARY_VERSION = 2


@owned("prefinetune")
def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, or continues, and returns the summary."""
    with first_alone("data"):
        parts = assembly.make_run(config, workdir)
    settings = flatten_dict(json.loads(config.to_json_best_effort()), sep=".")
    require_alike([{k: v for k, v in settings.items() if k not in PLACES}, assembly.data_fingerprints(parts)])
    print_counts(parts.setup.strategy, parts.setup.strategy.counts(parts.params))
    with locked(workdir):
        return train_and_score(parts, config, workdir)


def train_and_score(parts: assembly.Run, config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """`run`, in a folder that no other run writes."""
    strategy = parts.setup.strategy
    tokenizer = parts.start.tokenizer.to_str()
    meta = {
        "config": assembly.saved_config(config),
        "encoder": dataclasses.asdict(parts.start.config),
        "strategy": strategy.name,
        "touch_table": strategy.table,
        "families": {name: parts.data[name].family.describe() for name in parts.setup.families},
        "data": assembly.data_fingerprints(parts),
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest()[:16],
    }
    checkpoints = Checkpoints(workdir, config.run.keep)
    fresh, tx = assembly.fresh_state(parts)
    streams = family_data.streams(parts.data, parts.setup.families, config, config.seed)
    state = resume(checkpoints, fresh, streams, meta)
    write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))
    score = assembly.held_out_scorer(parts, config)
    before = score(fresh.params)

    def save(state: train_step.TrainState, positions: dict) -> None:
        checkpoints.save(state, positions, tokenizer, meta)

    steps = parts.optimizer.steps if strategy.families else 0
    step = assembly.make_step(parts, tx, config)
    curve = Curve(workdir / "held_out.jsonl", int(state.step), before)
    if config.run.eval_every:
        step = curve.during(step, config.run.eval_every, score)
    cfg = assembly.loop_config(config, steps, config.run.checkpoint_every)
    del fresh
    if int(state.step) < steps:
        state = loop.run(step, state, streams, parts.mesh, workdir, cfg, save)
        if int(state.step) < steps:
            print(f"stopped after {int(state.step)} of {steps} steps: a source is used up (data.*.exhaustion=stop)")
    elif not steps:  # nothing to train: the checkpoint is the start encoder
        save(state, {})
    if strategy.families:
        loop.require_a_step(int(state.step), workdir / "metrics.jsonl")
    after = score(state.params)
    for name, found in after.items():
        if not math.isfinite(found["loss"]):
            raise UserError(f"step {steps}: the held-out {name} loss is not finite; lower the learning rate")
    curve.write(int(state.step), after)
    trainable, total = trainable_and_total(strategy.counts(parts.params))
    summary = {
        "schema": "jaxprefit.prefinetune",
        "version": SUMMARY_VERSION,
        "strategy": strategy.name,
        "aggregator": config.aggregator,
        "aggregator_scope": config.aggregator_scope,
        "seed": config.seed,
        "steps": int(state.step),
        "skipped_steps": loop.skipped_steps(workdir / "metrics.jsonl"),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "device": f"{len(parts.mesh.devices.flat)} x {jax.devices()[0].device_kind}",
        "data": {name: data_report(config, parts.data[name], stream.get_state()) for name, stream in streams.items()},
        "held_out": {name: {"start": before[name], "end": after[name]} for name in after},
    }
    for stream in streams.values():
        stream.close()
    write_json(workdir / "summary.json", summary)
    print_data(summary["data"])
    if skipped := summary["skipped_steps"]:
        batches = workdir / "nonfinite"
        print(printable(f"{skipped} steps were skipped: a loss or gradient was not finite; see {batches}"))
    for name, scores in summary["held_out"].items():
        print(f"held-out {name} loss {scores['start']['loss']:.4f} -> {scores['end']['loss']:.4f}")
    return summary


def finished(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary in `workdir` where a run of this config has ended there, else None. Nothing is built or compiled.

    Whether data files have changed since is not looked at; `run` would refuse them.
    """
    if not ((workdir / "summary.json").exists() and (workdir / "config.json").exists()):
        return None
    metadata.complete(then := read_json(workdir / "config.json"))
    before, now = (flatten_dict(assembly.saved_config(c), sep=".") for c in (ConfigDict(then), config))
    same = all(before.get(key) == now.get(key) for key in before.keys() | now.keys() if key not in PLACES)
    return read_json(workdir / "summary.json") if same else None


class Curve:
    """held_out.jsonl: held-out scores against steps, first those of step 0; a step has one line."""

    def __init__(self, path: pathlib.Path, step: int, before: assembly.Scores):
        """Keeps the lines up to `step`, where the run continues."""
        self.path, self.step = path, step
        self.lines = files.lines_up_to(path, step) or [_line(0, before)]

    def during(self, step_fn: loop.Step, every: int, score: Callable[[Flat], assembly.Scores]) -> loop.Step:
        """`step_fn` that writes a line of the scores after it every so many steps."""

        def step(state: train_step.TrainState, batches: Mapping[str, Mapping]) -> Any:
            state, metrics = step_fn(state, batches)
            self.step += 1
            if self.step % every == 0:
                self.write(self.step, score(state.params))
            return state, metrics

        return step

    def write(self, step: int, scores: assembly.Scores) -> None:
        """Adds the line of `step`, unless it is there."""
        if json.loads(self.lines[-1])["step"] < step:
            self.lines.append(_line(step, scores))
        write_text(self.path, "".join(self.lines))


def _line(step: int, scores: assembly.Scores) -> str:
    return json.dumps({"step": step, "held_out": scores}) + "\n"


def data_report(config: ConfigDict, data: family_data.FamilyData, position: dict[str, Any]) -> dict[str, Any]:
    """What one family's stream was asked for and what it gave up to `position`."""
    requested = family_data.requested_shares(config, data)
    examples = position["examples"]
    capacity = position["batches"] * family_data.layout(config, data.family.name).tokens
    return {
        "useful_tokens": position["tokens"],
        "useful_share": position["tokens"] / max(capacity, 1),
        "max_length": data.family.max_length,
        "longer": "windowed" if data.family.windows else "cut",
        "sources": {
            name: {
                "rows": len(rows),
                "dropped": data.dropped[name],
                "requested": requested[name],
                "observed": examples[name] / max(sum(examples.values()), 1),
                "examples": examples[name],
                "cuts": Cuts(*position["cuts"][name]).report(),
            }
            for name, rows in data.train
        },
    }


def print_data(report: dict[str, Any]) -> None:
    """Requested and observed shares of every source, and what of its texts was beyond max_length."""
    for family, r in report.items():
        title = f"{family}: {r['useful_tokens']:,} tokens, {100 * r['useful_share']:.1f} % of the batches' places"
        columns = ("source", "rows", "left out", "examples", "requested", "observed", f"texts {r['longer']}")
        table = Table(*columns, title=title)
        for name, s in r["sources"].items():
            shares = (f"{100 * s[k]:.2f} %" for k in ("requested", "observed"))
            beyond = f"{100 * share(s['cuts'], 'texts'):.1f} %"
            table.add_row(plain(name), f"{s['rows']:,}", f"{s['dropped']:,}", f"{s['examples']:,}", *shares, beyond)
        Console(width=100).print(table)
        if (cuts := Cuts.total(Cuts(**s["cuts"]) for s in r["sources"].values())).cut_texts:
            print(f"{family}: {sentence(cuts.report())} {r['longer']} at data.{family}.max_length, {r['max_length']}")


def print_counts(strategy: Strategy, counts: dict[str, tuple[int, tuple[str, ...]]]) -> None:
    """The touch table with the number of parameters in each row."""
    table = Table("group", "parameters", "trained by", title=f"strategy {strategy.name}")
    for group, (number, touching) in counts.items():
        table.add_row(group, f"{number:,}", ", ".join(touching) or "-")
    trainable, total = trainable_and_total(counts)
    Console(width=100).print(table)
    print(f"{trainable:,} of {total:,} parameters trainable")
