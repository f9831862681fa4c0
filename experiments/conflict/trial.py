"""The placement of LoRA that a report advises, tried against the default: held-out losses and downstream scores."""

import copy
import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import jaxprefit
from experiments.common import assembly, family_data, prefinetuning, scoring, tasks
from experiments.common.checks import check
from experiments.common.workdirs import owned
from jaxprefit.conflict import ablation
from jaxprefit.encoder import lora
from jaxprefit.errors import UserError
from jaxprefit.render.tables import bounds, escaped, markdown, signed
from jaxprefit.runtime.files import write_json, write_text
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.terminal import lines
from jaxprefit.significance import spread
from jaxprefit.training import train_step

TRIAL_VERSION = 1


PLACEMENTS = ("default", "advised")


@owned("conflict_trial")
def run(config: ConfigDict, workdir: pathlib.Path, advice: str) -> dict[str, Any]:
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
    content = {
        "schema": "jaxprefit.trial",
        "version": TRIAL_VERSION,
        "start": pathlib.Path(config.model.path).name or "random",
        "steps": config.optimizer.steps,
        "seeds": seeds,
        "lora": {p: {**configs[p].lora.to_dict(), "parameters": parameters[p]} for p in PLACEMENTS},
        "held_out": compared(losses),
        "downstream": {"settings": scores["default"][0]["downstream"] if scores["default"] else None,
                       "tasks": scores_by_task(scores)},
    }  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "trial.json", content)
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


def compared(losses: dict[str, dict[str, list[list[float]]]]) -> dict[str, Any]:
    """Family -> mean losses, and advised minus default with its interval."""
    out: dict[str, Any] = {}
    for family, default in losses["default"].items():
        values = {p: np.asarray(losses[p][family]) for p in PLACEMENTS}
        out[family] = {
            "batches": len(default[0]),
            **{p: spread([float(x) for x in v.mean(1)]) for p, v in values.items()},
            "effect": ablation.effect(values["default"], values["advised"]),
        }
    return out


def scores_by_task(scores: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Per downstream task the main score of every pre-finetuning seed, mean over the fine-tuning seeds."""
    out = []
    for i, entry in enumerate(scores["default"][0]["tasks"] if scores["default"] else ()):
        key = tasks.MAIN_SCORE[entry["family"]]
        means = {p: spread([found["tasks"][i]["mean"][key] for found in scores[p]]) for p in PLACEMENTS}
        out.append({"task": entry["task"], "family": entry["family"], "score": key, **means})
    return out


def report(content: dict[str, Any]) -> list[str]:
    """Lines of trial.md."""
    seeds = ", ".join(map(str, content["seeds"]))
    lines = [f"# LoRA as advised and on the last layers, from {escaped(content['start'])}", ""]
    lines += [f"task_primary, {content['steps']} steps, pre-finetuning seeds {seeds}.", ""]
    placed = [[p, _layers(c), ", ".join(c["targets"]), str(c["rank"]), f"{c['parameters']:,}"]
              for p, c in content["lora"].items()]  # fmt: skip
    lines += markdown("Placements", ["placement", "layers", "matrices", "rank", "parameters of an adapter"], placed)
    rows = []
    for family, entry in content["held_out"].items():
        e = entry["effect"]
        change = f"{signed(e['difference'], 4)} {bounds(e['interval'], 4)}"
        rows.append([family, *(_mean(entry[p], 1, 4) for p in PLACEMENTS), change, _verdict(e)])
    title = "Held-out losses in nats (mean and deviation over seeds; interval at 95 % over seeds and batches)"
    lines += markdown(title, ["family", *PLACEMENTS, "advised - default", "verdict"], rows)
    if content["downstream"]["tasks"]:
        c = content["downstream"]["settings"]
        scored = []
        for entry in content["downstream"]["tasks"]:
            e = over_seeds(entry)
            cell = f"{signed(e['difference'], 1)} {bounds(e['interval'], 1)}".rstrip()
            scored.append(
                [entry["task"], *(_mean(entry[p], 100, 1) for p in PLACEMENTS), cell, _verdict(e, higher=True)]
            )
        title = (
            f"Downstream, mode {c['mode']}, {c['fraction']:.0%} of the labels: strict span F1, accuracy, in percent"
            " (paired interval at 95 % over pre-finetuning seeds, not adjusted for the number of tasks)"
        )
        lines += markdown(title, ["task", *PLACEMENTS, "advised - default", "verdict"], scored)
    return lines


def over_seeds(entry: dict[str, Any]) -> dict[str, Any]:
    """Advised minus default score of a task in percent, paired by pre-finetuning seed."""
    default, advised = (100 * np.asarray(entry[p]["seeds"])[:, None] for p in PLACEMENTS)
    return ablation.effect(default, advised)


def _layers(settings: dict[str, Any]) -> str:
    return ", ".join(map(str, settings["layers"])) or f"last {settings['last_layers']}"


def _mean(values: dict[str, Any], scale: float, digits: int) -> str:
    deviation = "" if values["deviation"] is None else f" ± {scale * values['deviation']:.{digits}f}"
    return f"{scale * values['mean']:.{digits}f}{deviation}"


def _verdict(e: dict[str, Any], higher: bool = False) -> str:
    """Which placement is better, by values of which the lower or, on demand, the higher are better."""
    decided = e["p_value"] is not None and e["p_value"] < 1 - ablation.LEVEL
    return ("advised better" if (e["difference"] > 0) == higher else "advised worse") if decided else "undecided"
