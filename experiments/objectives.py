r"""Does pre-finetuning for one family help that family's downstream tasks? One start encoder, one command.

python -m experiments.objectives --workdir=runs/objectives --config.model.path=DIR --config.data.root=DIR

Pre-finetunes individual_ner and individual_tc (settings in config.individual over config.optimizer), fine-tunes every
downstream task from the start encoder (none), and each task of a family from that family's encoder too, or with
individual.FAMILY.start_share from the mean of its weights and the start's: frozen backbone, fresh LoRA, linear head,
equal for all. Writes WORKDIR/objectives.json and objectives.md: per task the mean and spread over the seeds, the
difference with its bootstrap interval over test sentences, and on how many tasks the mean is higher. The same command
continues where it was stopped.
"""

import copy
import pathlib
import statistics
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import jaxprefit
from experiments.common import cli, family_data, prefinetuning, scoring, tasks
from experiments.common.checks import check
from experiments.common.workdirs import owned
from jaxprefit import significance
from jaxprefit.downstream import cells
from jaxprefit.errors import UserError
from jaxprefit.model import averaged
from jaxprefit.render.tables import escaped, markdown
from jaxprefit.runtime.files import write_json, write_text
from jaxprefit.runtime.terminal import lines
from jaxprefit.significance import spread

OBJECTIVES_VERSION = 1


@owned("objectives")
def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs what is not there yet, and returns what objectives.json holds."""
    check(config)
    config.data.cache = str(family_data.cache_folder(config, workdir))
    families = [*dict.fromkeys(family for family, _ in tasks.task_sources(config))]
    configs = {s: of_strategy(config, s) for s in ("none", *(f"individual_{f}" for f in families))}
    for c in configs.values():  # all of them before the first is trained
        check(c)
    shares = {strategy: start_share(config, strategy) for strategy in configs}
    trained, scores = {}, {}
    for strategy, c in configs.items():
        trained[strategy] = prefinetuning.run(c, workdir / strategy)
        model = jaxprefit.load(workdir / strategy)
        if share := shares[strategy]:
            model = averaged([jaxprefit.load(workdir / "none"), model], [share, 1 - share])
        scores[strategy] = scoring.score_model(c, workdir / strategy / "downstream", model, str(workdir / strategy))
    none = {entry["task"]: entry for entry in scores["none"]["tasks"]}
    compared: list[dict[str, Any]] = []
    left_out = {t["task"]: t["notes"][0] for found in scores.values() for t in found["tasks"] if not t["averaged"]}
    for family in families:
        strategy = f"individual_{family}"
        for entry in scores[strategy]["tasks"]:
            if entry["task"] in none and entry["family"] == family and entry["task"] not in left_out:
                folders = workdir / "none" / "downstream", workdir / strategy / "downstream"
                compared.append(compare(none[entry["task"]], entry, *folders))
    adjusted = significance.holm({entry["task"]: entry["p_value"] for entry in compared})
    for entry in compared:
        entry["p_holm"] = adjusted[entry["task"]]
    content = {
        "schema": "jaxprefit.objectives",
        "version": OBJECTIVES_VERSION,
        "start": pathlib.Path(config.model.path).name or "random",
        "downstream": scores["none"]["downstream"],
        "lora": scores["none"]["lora"],
        "prefinetuning": {
            f: {"settings": config.individual[f].to_dict(), "held_out": trained[f"individual_{f}"]["held_out"].get(f)}
            for f in families
        },
        "tasks": compared,
        "left_out": left_out,
        "families": {f: of_family([entry for entry in compared if entry["family"] == f]) for f in families},
        "failed": [{"strategy": name, **cell} for name, found in scores.items() for cell in found["failed"]],
    }
    write_json(workdir / "objectives.json", content)
    text = "\n".join(report(content))
    write_text(workdir / "objectives.md", text)
    print(lines(text))
    return content


def of_strategy(config: ConfigDict, strategy: str) -> ConfigDict:
    """The config of one strategy: its optimizer settings, and of an individual one its family's tasks alone."""
    c = copy.deepcopy(config)
    c.strategy = strategy
    with c.unlocked():  # the command line locks a config against typos
        del c.individual
    family = strategy.removeprefix("individual_")
    if family in config.individual:
        c.optimizer.update({k: v for k, v in config.individual[family].items() if k != "start_share"})
        for other in tasks.MAIN_SCORE:
            if other != family:
                c.downstream[other] = ()
    return c


def start_share(config: ConfigDict, strategy: str) -> float:
    """The share of the start encoder in the mean of weights that is scored; 0: what was trained, as it is."""
    family = strategy.removeprefix("individual_")
    share = config.individual.get(family, {}).get("start_share", 0.0)
    if not 0 <= share < 1:
        raise UserError(f"individual.{family}.start_share is {share}; it must be 0 or more and less than 1")
    return share


def compare(
    none: dict[str, Any], individual: dict[str, Any], none_dir: pathlib.Path, other_dir: pathlib.Path
) -> dict[str, Any]:
    """One task's entry: both starts, and the difference by a paired bootstrap over test rows and seeds."""
    key = tasks.MAIN_SCORE[individual["family"]]

    def counts(entry: dict[str, Any], folder: pathlib.Path) -> np.ndarray:
        return np.asarray([cells.read(folder / file).counts for file in entry["cells"]])

    found = significance.paired_bootstrap(counts(individual, other_dir), counts(none, none_dir))
    return {
        "task": individual["task"],
        "family": individual["family"],
        "score": key,
        "trained_rows": individual["trained_rows"],
        "test_rows": individual["test_rows"],
        "none": spread([seed[key] for seed in none["seeds"]]),
        "individual": spread([seed[key] for seed in individual["seeds"]]),
        "difference": found.difference,
        "interval": [found.low, found.high],
        "p_value": found.p_value,
    }


def of_family(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """How often and by how much the individual encoder beats the start encoder."""
    if not entries:
        return {"tasks": 0, "wins": 0, "none": None, "individual": None, "difference": None, "wilcoxon_p": None}
    none, individual = ([e[side]["mean"] for e in entries] for side in ("none", "individual"))
    return {
        "tasks": len(entries),
        "wins": sum(a > b for a, b in zip(individual, none)),
        "none": statistics.mean(none),
        "individual": statistics.mean(individual),
        "difference": statistics.mean(individual) - statistics.mean(none),
        "wilcoxon_p": significance.wilcoxon(individual, none),
    }


def report(content: dict[str, Any]) -> list[str]:
    """Lines of objectives.md."""
    recipe, names = content["downstream"], {"ner": "strict span F1", "tc": "accuracy"}
    lines = [f"# Pre-finetuning for one family, from {escaped(content['start'])}", ""]
    lines += [
        f"Mode {recipe['mode']} (LoRA of equal shape, linear head), {recipe['fraction']:.0%} of the training rows, "
        f"{recipe['steps']} steps of {recipe['batch_size']} rows. Scores in percent: mean and standard deviation over "
        "seeds. The interval (95 %) and p-value of the difference are from a paired bootstrap over test rows and seeds "
        "that recomputes the score; p is adjusted over all tasks (Holm).",
        "",
    ]
    for family, total in content["families"].items():
        rows = [_row(e) for e in content["tasks"] if e["family"] == family]
        if not rows:
            continue
        mean = [f"{100 * total[side]:.1f}" for side in ("none", "individual")]
        rows.append(["**mean**", "", *mean, f"{100 * total['difference']:+.1f}", "", f"{total['wilcoxon_p']:.3f}"])
        header = ["task", "rows", "none", f"individual_{family}", "difference", "interval", "p"]
        lines += markdown(f"{family.upper()}: {names[family]}", header, rows)
        beats = f"individual_{family} beats none on {total['wins']} of {total['tasks']} tasks"
        lines += [f"{beats} (last p: Wilcoxon's signed-rank test over tasks).", ""]
    lines += [f"- left out, as its score says nothing: {task}: {why}" for task, why in content["left_out"].items()]
    for cell in content["failed"]:
        what = f"{cell['strategy']}, {cell['task']} seed {cell['seed']}: {cell['reason']}"
        lines.append(f"- failed: {escaped(what)}")
    return lines


def _row(entry: dict[str, Any]) -> list[str]:
    def score(side: dict[str, Any]) -> str:
        deviation = "" if side["deviation"] is None else f" ± {100 * side['deviation']:.1f}"
        return f"{100 * side['mean']:.1f}{deviation}"

    low, high = (f"{100 * x:+.1f}" for x in entry["interval"])
    numbers = [score(entry["none"]), score(entry["individual"]), f"{100 * entry['difference']:+.1f}"]
    return [entry["task"], f"{entry['trained_rows']:,}", *numbers, f"{low} to {high}", f"{entry['p_holm']:.3f}"]


if __name__ == "__main__":
    cli.run(run, __doc__ or "", config="configs/objectives.py")
