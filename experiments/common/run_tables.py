"""Tables of several runs side by side: held-out losses, downstream scores, conflict."""

import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from jaxprefit.conflict.report import document as conflict_report
from jaxprefit.conflict.report.results import ConflictReport
from jaxprefit.errors import UserError
from jaxprefit.render.tables import markdown
from jaxprefit.runtime.results import from_json

ORDER = (
    "none", "individual_ner", "individual_tc", "individual_mlm", "naive", "task_primary", "shared_lora", "frozen_lora",
    "averaged",
)  # fmt: skip


SCORES = {
    "ner": (("f1", "F1"), ("f1_lenient", "lenient F1")),
    "tc": (("accuracy", "accuracy"), ("macro_f1", "macro-F1")),
}
"""Family -> key and name of its main score, and of the score beside it."""


KINDS = {"jaxprefit.prefinetune": "summary", "jaxprefit.scores": "scores", "jaxprefit.conflict": "conflict"}


def losses(summaries: list[dict[str, Any]]) -> list[str]:
    """Held-out losses at the end of each run, and at the start: once where all runs have the same, else of each run."""
    families = sorted({f for s in summaries for f in s["held_out"]})
    ends, starts = ([_losses(s, when, families) for s in summaries] for when in ("end", "start"))
    known = [{*column} - {"-"} for column in zip(*starts)]
    rows = []
    if all(len(values) == 1 for values in known):
        rows.append(["(start)", "0", "-", *(value for (value,) in known)])
        starts = []
    for i, s in enumerate(summaries):
        if starts:
            rows.append([f"(start of {s['strategy']})", "0", "-", *starts[i]])
        rows.append([s["strategy"], str(s["steps"]), f"{s['trainable_parameters']:,}", *ends[i]])
    header = ["strategy", "steps", "trainable parameters", *(f"held-out {f} loss" for f in families)]
    return markdown("Pre-finetuning: held-out losses", header, rows) if summaries else []


def _losses(summary: dict[str, Any], when: str, families: list[str]) -> list[str]:
    held_out = summary["held_out"]
    return [f"{held_out[f][when]['loss']:.4f}" if f in held_out else "-" for f in families]


def scores(contents: list[dict[str, Any]]) -> list[str]:
    """Downstream scores, one table for all runs of the same settings and seeds."""
    groups: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for c in contents:
        own = _settings(c)
        # A setting that a file lacks was no choice when it was written.
        alike = (g for settings, g in groups if all(own[k] == settings[k] for k in own.keys() & settings.keys()))
        if (group := next(alike, None)) is not None:
            group.append(c)
        else:
            groups.append((own, [c]))
    shared = set.intersection(*({*settings} for settings, _ in groups)) if groups else set()
    differ = [k for k in sorted(shared) if len({str(settings[k]) for settings, _ in groups}) > 1]
    lines = []
    for own, group in groups:
        recipe, seeds = group[0]["downstream"], ", ".join(map(str, own["seeds"]))
        title = f"Downstream: mode {recipe['mode']}, {100 * recipe['fraction']:.0f} % of the labels, seeds {seeds}"
        shown = [f"{key} {own[key]}" for key in differ if key not in ("mode", "fraction", "seeds")]
        lines += score_tables(", ".join([title, *shown]), group)
    return lines


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """What the scores of runs must share to stand in one table."""
    lora = {f"lora.{key}": value for key, value in content.get("lora", {}).items()}
    return {**content["downstream"], **lora, "seeds": _seeds(content)}


def score_tables(title: str, contents: list[dict[str, Any]]) -> list[str]:
    """Scores in percent of runs of one recipe: mean over seeds, and their range where there are several.

    A run without a task has '-' there and for the mean that the task is part of. Raises UserError where two runs scored
    other rows under one name.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for t in (t for c in contents for t in c["tasks"]):
        rows, other = (f"{x['train_rows']:,} and {x['test_rows']:,}" for x in (t, tasks.setdefault(t["task"], t)))
        if rows != other:
            raise UserError(
                f"two runs have other rows of the task {t['task']!r} (to train on and to score: {other}, or {rows}); "
                "give a folder of runs on the same data"
            )
    runs = [(c, {t["task"]: t for t in c["tasks"]}) for c in contents]
    lines = []
    for beside in (False, True):
        rows_shown = []
        for c, own in runs:
            cells = [_score(own.get(name), SCORES[t["family"]][beside][0], len(_seeds(c))) for name, t in tasks.items()]
            means = [] if beside else [_mean(c, own, tasks, family) for family in SCORES]
            rows_shown.append([_strategy(c), *cells, *means])
        names = [f"{name} {SCORES[t['family']][beside][1]}" for name, t in tasks.items()]
        header = ["strategy", *names, *([] if beside else ["mean NER", "mean TC"])]
        lines += markdown("Beside it" if beside else title, header, rows_shown)
    left_out = [name for name, t in tasks.items() if not t.get("averaged", True)]
    for name in left_out:
        lines += [f"{name} is part of no mean: {tasks[name]['notes'][0]}.", ""]
    return lines


def _score(task: dict[str, Any] | None, key: str, seeds: int) -> str:
    """A task's cell: '-' where the run lacks it; with the number of its seeds where the run lacks some."""
    if not task:
        return "-"
    some = f", {len(task['seeds'])} of {seeds} seeds" if len(task["seeds"]) < seeds else ""
    return _spread(task["seeds"], key) + some


def _mean(content: dict[str, Any], own: Mapping[str, Any], tasks: Mapping[str, Any], family: str) -> str:
    """A run's average over the family's tasks; '-' where it lacks one of those in the table."""
    average = content["average"][family]
    lacks = any(t["family"] == family and name not in own for name, t in tasks.items())
    return "-" if average is None or lacks else f"{100 * average:.1f}"


def _seeds(content: dict[str, Any]) -> list[int]:
    """The seeds of a run's cells, those that failed too."""
    done = {s["seed"] for t in content["tasks"] for s in t["seeds"]}
    return sorted(done | {cell["seed"] for cell in content.get("failed", ())})


def conflicts(contents: list[dict[str, Any]]) -> list[str]:
    """The conflict reports, per layer."""
    lines = []
    for c in contents:
        report = from_json(c, ConflictReport, "conflict.json")
        run, probe = report.run, report.probe
        assert probe is not None  # reports without one are left out
        title = f"Conflict: {run.strategy}, step {run.step}, {probe.rounds} rounds, probe seed {probe.seed}"
        for pair in probe.pairs:
            blocks = {**pair.blocks.layer, **pair.blocks.whole}
            lines += markdown(title, conflict_report.header(*pair.families), conflict_report.rows(blocks))
    return lines


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


TABLES = {"summary": losses, "scores": scores, "conflict": conflicts}
