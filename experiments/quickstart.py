"""The first look: five strategies under equal steps on generated text, no download, minutes on two CPU cores.

python -m experiments.quickstart --workdir=runs/quickstart

Pre-finetunes a tiny random encoder by each strategy, scores each downstream (frozen backbone, LoRA and linear head,
on phrases and names that pre-finetuning never saw), then probes where the families' gradients conflict in the naive
run. Prints both tables; writes summary.json, report.html and plots (*.png). The same command continues where it was
stopped. The text is generated from a grammar: good for seeing the machinery work, no evidence about real text.
"""

import copy
import pathlib
import time
from typing import Any

import matplotlib.figure
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

import jaxprefit
from experiments import conflict
from experiments.common import cli, family_data, prefinetuning, scoring
from experiments.common.workdirs import owned
from jaxprefit.conflict.report import document as conflict_report
from jaxprefit.conflict.report import figures, page
from jaxprefit.conflict.report.results import ConflictReport
from jaxprefit.conflict.results import ProbeSection
from jaxprefit.errors import UserError
from jaxprefit.render import html
from jaxprefit.runtime.files import write_json, write_text
from jaxprefit.runtime.results import to_json
from jaxprefit.runtime.terminal import printable

SUMMARY_VERSION = 1
STRATEGIES = ("none", "individual_ner", "individual_tc", "naive", "task_primary")


@owned("quickstart")
def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs the whole comparison and returns what summary.json holds."""
    begin = time.perf_counter()
    named = [*config.data.ner.sources, *config.data.tc.sources, *config.downstream.ner, *config.downstream.tc]
    if foreign := [s for s in named if not s.startswith("generated:")]:
        raise UserError(f"quickstart is for generated text, not '{foreign[0]}'; run prefinetune and downstream")
    results = {}
    config.data.cache = str(family_data.cache_folder(config, workdir))
    for strategy in STRATEGIES:
        c = copy.deepcopy(config)
        c.strategy = strategy
        trained = prefinetuning.run(c, workdir / strategy)
        model = jaxprefit.load(workdir / strategy)
        scores = scoring.score_model(c, workdir / strategy / "downstream", model, str(workdir / strategy))
        results[strategy] = {
            "held_out_loss": {f: s["end"]["loss"] for f, s in trained["held_out"].items()},
            "ner_f1": scores["average"]["ner"],
            "tc_accuracy": scores["average"]["tc"],
            "tasks": scores["tasks"],
        }
    report = conflict.run(config, workdir / "conflict", str(workdir / "naive"), show=False)
    assert report.probe is not None  # what mode probe measures
    (pair,) = report.probe.pairs
    blocks = {**pair.blocks.layer, **pair.blocks.whole}
    summary = {
        "schema": "jaxprefit.quickstart",
        "version": SUMMARY_VERSION,
        "data": "generated",
        "seed": config.seed,
        "steps": config.optimizer.steps,
        "device": trained["device"],
        "strategies": results,
        "conflict": {name: to_json(block) for name, block in blocks.items()},
    }
    write_json(workdir / "summary.json", summary)
    write_report(workdir, summary, report, report.probe)
    print_table(summary)
    conflict_report.print_tables(report, ("layer",))
    seconds = time.perf_counter() - begin
    print(printable(f"wrote {workdir / 'report.html'} and {workdir / 'summary.json'}  ({seconds:.0f} s)"))
    return summary


def rows(summary: dict[str, Any]) -> list[list[str]]:
    """Strategy x (NER F1, TC accuracy, held-out losses) as text, scores in percent."""
    out = []
    for name, r in summary["strategies"].items():
        losses = [f"{r['held_out_loss'][f]:.3f}" if f in r["held_out_loss"] else "-" for f in ("ner", "tc")]
        scores = ["-" if r[k] is None else f"{100 * r[k]:.1f}" for k in ("ner_f1", "tc_accuracy")]
        out.append([name, *scores, *losses])
    return out


HEADER = ["strategy", "NER F1", "TC accuracy", "held-out NER loss", "held-out TC loss"]


def print_table(summary: dict[str, Any]) -> None:
    """The main table on the terminal."""
    table = Table(title=f"downstream after {summary['steps']} steps of pre-finetuning (generated text, one seed)")
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows(summary):
        table.add_row(*row)
    Console(width=100).print(table)


def write_report(workdir: pathlib.Path, summary: dict[str, Any], report: ConflictReport, probe: ProbeSection) -> None:
    """report.html with everything inside, and its plots as PNG files beside it."""
    pictures = {"scores": (scores_figure(summary), "Downstream NER F1 against TC accuracy, one point a strategy")}
    text = (
        "All text here is generated from a grammar with open vocabularies, so that this page needs no download. It "
        "shows the program at work; differences between strategies on one seed of generated text are no evidence "
        "about real text. Strategies train for equal steps; downstream, each gets a LoRA of the same shape and a "
        "linear head on "
        "the frozen backbone. NER F1 is strict IOB2 span F1. Held-out losses are of the strategy's own families."
    )
    sections = [
        (
            "Strategies",
            [html.paragraph(text), html.picture(*pictures["scores"]), html.table(HEADER, rows(summary))],
        ),
        ("Conflict in the naive run: per layer", page.layers(report)),
        ("Conflict in the naive run: per matrix", page.modules(probe)),
    ]
    write_text(workdir / "report.html", html.page("jaxprefit quickstart", sections))
    (pair,) = probe.pairs
    drawn = {"scores": pictures["scores"][0], "layers": figures.layers(pair), "modules": figures.modules(pair)}
    for name, figure in drawn.items():
        (workdir / f"{name}.png").write_bytes(html.png(figure))


def scores_figure(summary: dict[str, Any]) -> matplotlib.figure.Figure:
    """NER F1 against TC accuracy: a good backbone for both lies at the upper right."""
    figure = matplotlib.figure.Figure(figsize=(7.5, 4.5), layout="constrained")
    ax = figure.subplots()
    for (name, r), marker in zip(summary["strategies"].items(), "os^vD"):
        if None in (r["tc_accuracy"], r["ner_f1"]):
            continue
        x, y = 100 * r["tc_accuracy"], 100 * r["ner_f1"]
        ax.plot(x, y, marker, ms=9, label=name)
    ax.margins(0.1)
    figure.legend(loc="outside right upper", frameon=False)
    ax.set(xlabel="TC accuracy, %", ylabel="NER strict span F1, %")
    ax.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    cli.run(run, __doc__ or "", config="configs/quickstart.py")
