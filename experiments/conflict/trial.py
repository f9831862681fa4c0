"""The placement of LoRA that a report advises, tried against the default: held-out losses and downstream scores."""

import copy
import json
import pathlib
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import jaxprefit
from experiments.common import assembly, family_data, prefinetuning, scoring, tasks
from experiments.common.checks import check
from experiments.common.conflict_results import (
    Change,
    OverSeeds,
    Placements,
    Trial,
    TrialDownstream,
    TrialLosses,
    TrialPlacement,
    TrialTask,
)
from experiments.common.workdirs import owned
from jaxprefit.conflict import ablation
from jaxprefit.encoder import lora
from jaxprefit.errors import UserError
from jaxprefit.render.tables import bounds, escaped, markdown, signed
from jaxprefit.runtime import results
from jaxprefit.runtime.files import write_text
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.terminal import lines
from jaxprefit.significance import spread
from jaxprefit.training import train_step

PLACEMENTS = ("default", "advised")


@owned("conflict_trial")
def run(config: ConfigDict, workdir: pathlib.Path, advice: str) -> Trial:
    """Trains and scores what is not there yet, and returns what trial.json holds."""
    check(config)
    configs = {"default": of_placement(config, {}), "advised": of_placement(config, read(advice))}
    specs = {p: assembly.lora_spec(c) for p, c in configs.items()}
    if specs["default"] == specs["advised"]:
        raise UserError(f"{advice} advises the LoRA that config.lora already has; there is nothing to compare")
    seeds = list(config.conflict.ablation.seeds)
    losses: dict[str, dict[str, list[list[float]]]] = {p: {} for p in PLACEMENTS}  # placement -> family -> [S, B]
    scores: dict[str, list[dict[str, Any]]] = {p: [] for p in PLACEMENTS}
    parameters: dict[str, int] = {}
    for seed in seeds:
        for placement, c in configs.items():
            c.seed, folder = seed, workdir / f"{placement}_{seed}"
            c.data.cache = str(family_data.cache_folder(config, workdir))
            prefinetuning.run(c, folder)
            model = jaxprefit.load(folder)
            parameters[placement] = lora.size(specs[placement], model.config)
            for family, values in held_out(c, folder, model, config.seed).items():
                losses[placement].setdefault(family, []).append(values)
            if config.downstream.ner or config.downstream.tc:
                scores[placement].append(scoring.score_model(c, folder / "downstream", model, str(folder)))
    placements = {p: TrialPlacement(**configs[p].lora.to_dict(), parameters=parameters[p]) for p in PLACEMENTS}
    content = Trial(
        start=pathlib.Path(config.model.path).name or "random",
        steps=config.optimizer.steps,
        seeds=tuple(seeds),
        lora=Placements(**placements),
        held_out=compared(losses),
        downstream=TrialDownstream(
            settings=scores["default"][0]["downstream"] if scores["default"] else None, tasks=scores_by_task(scores)
        ),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    results.write(workdir / "trial.json", content)
    text = "\n".join(report(content))
    write_text(workdir / "trial.md", text)
    print(lines(text))
    return content


def read(advice: str) -> dict[str, Any]:
    """The settings of config.lora in an advice.json."""
    if not advice:
        raise UserError("--advice is missing; give the advice.json that experiments.conflict wrote in mode advise")
    try:
        found = json.loads(user_path(advice).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{advice} cannot be read as JSON ({type(e).__name__}); mode advise writes it") from None
    unknown = set(found) - {"layers", "last_layers", "targets", "rank", "alpha"} if isinstance(found, dict) else {"it"}
    if unknown:
        raise UserError(f"{advice} holds {min(unknown)[:100]!r}, which is no setting of LoRA; mode advise writes it")
    return found


def of_placement(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    """The config of one placement of the families' LoRAs."""
    c = copy.deepcopy(config)
    c.strategy = "task_primary"
    c.lora.update({key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
    return c


def held_out(config: ConfigDict, folder: pathlib.Path, model: jaxprefit.Model, seed: int) -> dict[str, list[float]]:
    """Family -> the model's loss on each held-out batch, the batches drawn by `seed`, equal for all runs."""
    parts, same = assembly.make_run(config, folder), copy.deepcopy(config)
    same.seed = seed
    flat, found = flatten_dict(model.params, sep="/"), {}
    for name, batches in assembly.held_out_batches(parts, same).items():
        evaluate = train_step.make_eval(parts.setup, name)
        found[name] = [float(jax.device_get(evaluate(flat, batch)["loss"])) for batch in batches]
    return found


def compared(losses: dict[str, dict[str, list[list[float]]]]) -> dict[str, TrialLosses]:
    """Family -> mean losses, and advised minus default with its interval."""
    return {
        family: TrialLosses(
            batches=len(default[0]),
            default=over_seeds([float(x) for x in np.mean(default, 1)]),
            advised=over_seeds([float(x) for x in np.mean(losses["advised"][family], 1)]),
            effect=change(np.asarray(default), np.asarray(losses["advised"][family])),
        )
        for family, default in losses["default"].items()
    }


def over_seeds(values: list[float]) -> OverSeeds:
    """Mean and deviation of one number a pre-finetuning seed."""
    found = spread(values)
    return OverSeeds(mean=found["mean"], deviation=found["deviation"], seeds=tuple(values))


def change(default: np.ndarray, advised: np.ndarray) -> Change:
    """Advised minus default, both [seeds, batches or 1], paired."""
    effect = ablation.effect(default, advised)
    return Change(difference=effect.difference, interval=effect.interval, p_value=effect.p_value)


def scores_by_task(scores: dict[str, list[dict[str, Any]]]) -> tuple[TrialTask, ...]:
    """Per downstream task the main score of every pre-finetuning seed, mean over the fine-tuning seeds."""
    entries = []
    for i, entry in enumerate(scores["default"][0]["tasks"] if scores["default"] else ()):
        key = tasks.MAIN_SCORE[entry["family"]]
        means = {p: over_seeds([result["tasks"][i]["mean"][key] for result in scores[p]]) for p in PLACEMENTS}
        score: Literal["f1", "accuracy"] = "f1" if key == "f1" else "accuracy"
        entries.append(TrialTask(task=entry["task"], family=entry["family"], score=score, **means))
    return tuple(entries)


def report(content: Trial) -> list[str]:
    """Lines of trial.md."""
    seeds = ", ".join(map(str, content.seeds))
    lines = [f"# LoRA as advised and on the last layers, from {escaped(content.start)}", ""]
    lines += [f"task_primary, {content.steps} steps, pre-finetuning seeds {seeds}.", ""]
    placed = [
        [name, _layers(p), ", ".join(p.targets), str(p.rank), f"{p.parameters:,}"]
        for name, p in (("default", content.lora.default), ("advised", content.lora.advised))
    ]
    lines += markdown("Placements", ["placement", "layers", "matrices", "rank", "parameters of an adapter"], placed)
    rows = []
    for family, losses in content.held_out.items():
        e = losses.effect
        shown = f"{signed(e.difference, 4)} {bounds(e.interval, 4)}"
        rows.append([family, _mean(losses.default, 1, 4), _mean(losses.advised, 1, 4), shown, _verdict(e)])
    title = "Held-out losses in nats (mean and deviation over seeds; interval at 95 % over seeds and batches)"
    lines += markdown(title, ["family", *PLACEMENTS, "advised - default", "verdict"], rows)
    if content.downstream.tasks and content.downstream.settings:
        c = content.downstream.settings
        scored = []
        for task in content.downstream.tasks:
            e = score_change(task.default, task.advised)
            cell = f"{signed(e.difference, 1)} {bounds(e.interval, 1)}".rstrip()
            means = _mean(task.default, 100, 1), _mean(task.advised, 100, 1)
            scored.append([task.task, *means, cell, _verdict(e, higher=True)])
        title = (
            f"Downstream, mode {c['mode']}, {c['fraction']:.0%} of the labels: strict span F1, accuracy, in percent"
            " (paired interval at 95 % over pre-finetuning seeds, not adjusted for the number of tasks)"
        )
        lines += markdown(title, ["task", *PLACEMENTS, "advised - default", "verdict"], scored)
    return lines


def score_change(default: OverSeeds, advised: OverSeeds) -> Change:
    """Advised minus default score of a task in percent, paired by pre-finetuning seed."""
    first, second = (100 * np.asarray(side.seeds)[:, None] for side in (default, advised))
    return change(first, second)


def _layers(placement: TrialPlacement) -> str:
    return ", ".join(map(str, placement.layers)) or f"last {placement.last_layers}"


def _mean(values: OverSeeds, scale: float, digits: int) -> str:
    deviation = "" if values.deviation is None else f" ± {scale * values.deviation:.{digits}f}"
    return f"{scale * values.mean:.{digits}f}{deviation}"


def _verdict(e: Change, higher: bool = False) -> str:
    """Which placement is better, by values of which the lower or, on demand, the higher are better."""
    decided = e.p_value is not None and e.p_value < 1 - ablation.LEVEL
    return ("advised better" if (e.difference > 0) == higher else "advised worse") if decided else "undecided"
