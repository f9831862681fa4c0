"""Tables of several runs side by side, in Markdown, from the JSON files that the other modules wrote.

python -m experiments.tables --runs=runs/minilm --workdir=experiments/results/first_real_run

Finds every summary.json, scores.json and conflict.json below --runs, copies them to WORKDIR (without Gram matrices,
checkpoints or folder names of this machine) and writes WORKDIR/tables.md.
"""

import pathlib
import statistics
from typing import Any

from ml_collections import ConfigDict

from experiments.workdirs import owned
from jaxprefit import cli
from jaxprefit.conflict import report as conflict_report
from jaxprefit.errors import UserError
from jaxprefit.files import read_json, write_json, write_text
from jaxprefit.paths import user_path
from jaxprefit.terminal import lines, printable

ORDER = (
    "none", "individual_ner", "individual_tc", "individual_mlm", "naive", "task_primary", "shared_lora", "frozen_lora",
    "averaged",
)  # fmt: skip
KINDS = {"jaxprefit.prefinetune": "summary", "jaxprefit.scores": "scores", "jaxprefit.conflict": "conflict"}


@owned("tables")
def run(config: ConfigDict, workdir: pathlib.Path, runs: str) -> str:
    """Writes the tables and returns them."""
    if not runs:
        raise UserError("--runs is missing; give the folder that holds the runs' workdirs")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS.values()}
    for file in sorted(user_path(runs).rglob("*.json")):
        if file.stem not in found or "cells" in file.parts:
            continue
        content = read_json(file)
        if kind := KINDS.get(content.get("schema", "")):
            if kind == "conflict" and not (content["version"] == conflict_report.VERSION and content["probe"]):
                continue  # of an older version, or without the section shown here
            found[kind].append(_without_folders(content))
    if not any(found.values()):
        raise UserError(f"{runs} holds no summary.json, scores.json or conflict.json")
    written: list[pathlib.Path] = []
    for kind, contents in found.items():
        contents.sort(key=lambda c: (ORDER.index(_strategy(c)), _run(c).get("step") or 0, c.get("seed", 0)))
        workdir.mkdir(parents=True, exist_ok=True)
        for content in contents:
            file = workdir / f"{kind}_{_label(content)}.json"
            if file in written:  # two seeds of one strategy, say
                raise UserError(f"{runs} holds two results that would both be {file.name}; give a folder without one")
            written.append(file)
            write_json(file, content)
    text = "\n".join([*losses(found["summary"]), *scores(found["scores"]), *conflicts(found["conflict"])])
    write_text(workdir / "tables.md", text)
    print(lines(text))
    return text


def losses(summaries: list[dict[str, Any]]) -> list[str]:
    """Held-out losses at the end of each run."""
    families = sorted({f for s in summaries for f in s["held_out"]})
    rows = []
    for s in summaries:
        cells = [f"{s['held_out'][f]['end']['loss']:.4f}" if f in s["held_out"] else "-" for f in families]
        rows.append([s["strategy"], str(s["steps"]), f"{s['trainable_parameters']:,}", *cells])
    start = {f: s["held_out"][f]["start"]["loss"] for s in summaries for f in s["held_out"]}
    rows.insert(0, ["(start)", "0", "-", *(f"{start[f]:.4f}" for f in families)])
    header = ["strategy", "steps", "trainable parameters", *(f"held-out {f} loss" for f in families)]
    return markdown("Pre-finetuning: held-out losses", header, rows) if summaries else []


def scores(contents: list[dict[str, Any]]) -> list[str]:
    """Downstream scores in percent; mean over seeds, and their range where there are several."""
    if not contents:
        return []
    tasks = [(t["task"], t["family"]) for t in contents[0]["tasks"]]
    rows, beside = [], []
    for c in contents:
        by_name = {t["task"]: t for t in c["tasks"]}
        main = [_spread(by_name[t]["seeds"], "f1" if f == "ner" else "accuracy") for t, f in tasks]
        other = [_spread(by_name[t]["seeds"], "f1_lenient" if f == "ner" else "macro_f1") for t, f in tasks]
        averages = ["-" if c["average"][f] is None else f"{100 * c['average'][f]:.1f}" for f in ("ner", "tc")]
        rows.append([_strategy(c), *main, *averages])
        beside.append([_strategy(c), *other])
    recipe = contents[0]["downstream"]
    seeds = ", ".join(str(s["seed"]) for s in contents[0]["tasks"][0]["seeds"])
    title = f"Downstream: mode {recipe['mode']}, {100 * recipe['fraction']:.0f} % of the labels, seeds {seeds}"
    names = [f"{t} {'F1' if f == 'ner' else 'accuracy'}" for t, f in tasks]
    others = [f"{t} {'lenient F1' if f == 'ner' else 'macro-F1'}" for t, f in tasks]
    return [
        *markdown(title, ["strategy", *names, "mean NER", "mean TC"], rows),
        *markdown("Beside it", ["strategy", *others], beside),
    ]


def conflicts(contents: list[dict[str, Any]]) -> list[str]:
    """The conflict reports, per layer."""
    lines = []
    for c in contents:
        run, probe = c["run"], c["probe"]
        title = f"Conflict: {run['strategy']}, step {run['step']}, {probe['rounds']} rounds, probe seed {probe['seed']}"
        for pair in probe["pairs"]:
            blocks = {**pair["blocks"]["layer"], **pair["blocks"]["whole"]}
            lines += markdown(title, conflict_report.header(*pair["families"]), conflict_report.rows(blocks))
    return lines


def markdown(title: str, header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a titled Markdown table. Whatever a cell or the title holds, it is one cell, and no HTML."""
    table = [map(escaped, header), ["---"] * len(header), *(map(escaped, row) for row in rows)]
    return [f"**{escaped(title)}**", "", *("| " + " | ".join(line) + " |" for line in table), ""]


def escaped(text: str) -> str:
    """Text of a user for Markdown: on one line, no HTML, and no end of a cell."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def _spread(seeds: list[dict[str, float]], key: str) -> str:
    values = [100 * s[key] for s in seeds]
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def _strategy(content: dict[str, Any]) -> str:
    return _run(content)["strategy"]


def _run(content: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that says which run it is about."""
    return content.get("start") or content.get("run") or content


def _label(content: dict[str, Any]) -> str:
    """Strategy, and for a probe its step and seed."""
    probe = f"_step{content['run']['step']}_seed{content['probe']['seed']}" if "run" in content else ""
    return _strategy(content) + probe


def _without_folders(content: dict[str, Any]) -> dict[str, Any]:
    """The same with checkpoints named by their folder alone."""
    place = _run(content)
    if "checkpoint" in place:
        place["checkpoint"] = pathlib.Path(place["checkpoint"]).name
    return content


if __name__ == "__main__":
    cli.run(run, __doc__ or "", config="configs/default.py", runs="Folder that holds the runs' workdirs.")
