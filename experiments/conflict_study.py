r"""All that the project says of gradient conflict from one start encoder, in one command that can be stopped.

python -m experiments.conflict_study --workdir=runs/conflict/mini --config.model.path=DIR --config.data.root=DIR

Pre-finetunes naive and task_primary, writes the full report of each (every mode of experiments.conflict, controls of
the ablation for naive only), sets the two side by side, and, with conflict.trial, tries the advice of naive's report
where one was decided (experiments.conflict_trial). Writes WORKDIR/conflict_study.md, the figures in tables, beside the
reports in WORKDIR/report_STRATEGY/conflict.html. What is finished is not done again.
"""

import copy
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments import conflict
from experiments.common import cli, family_data, prefinetuning
from experiments.common.checks import check
from experiments.common.conflict_results import Trial
from experiments.common.workdirs import owned
from experiments.conflict import ablate, trial
from jaxprefit.conflict.report import verdicts
from jaxprefit.conflict.report.document import SECTIONS, corrected, read, verdict
from jaxprefit.conflict.report.results import ConflictReport
from jaxprefit.conflict.results import AblationSection
from jaxprefit.render.tables import bounds, escaped, markdown, signed
from jaxprefit.runtime.files import write_text
from jaxprefit.runtime.terminal import lines

STRATEGIES = ("naive", "task_primary")


@owned("conflict_study")
def run(config: ConfigDict, workdir: pathlib.Path) -> str:
    """Runs what is not there yet, and returns what conflict_study.md holds."""
    check(config)
    ablate.check_aggregator(config.aggregator)  # before hours of training that an ablation could not end
    base = copy.deepcopy(config)
    base.data.cache = str(family_data.cache_folder(config, workdir))
    reports = {}
    for strategy in STRATEGIES:
        c = copy.deepcopy(base)
        c.strategy = strategy
        c.conflict.ablation.controls = base.conflict.ablation.controls and strategy == "naive"
        prefinetuning.run(c, workdir / strategy)
        reports[strategy] = full_report(c, workdir / f"report_{strategy}", workdir / strategy)
    c = copy.deepcopy(base)
    c.conflict.mode = "compare"
    together = ",".join(str(workdir / f"report_{s}") for s in STRATEGIES)
    conflict.run(c, workdir / "compare", together, show=False)
    advised = None
    if config.conflict.trial and reports["naive"].advice and reports["naive"].advice.decided:
        advised = trial.run(base, workdir / "trial", str(workdir / "report_naive" / "advice.json"))
    text = "\n".join(tables(pathlib.Path(config.model.path).name or "random", reports, advised))
    write_text(workdir / "conflict_study.md", text)
    print(lines(text))
    return text


def full_report(config: ConfigDict, folder: pathlib.Path, checkpoint: pathlib.Path) -> ConflictReport:
    """The report of one run with every section, and advice from all of them."""
    file = folder / "conflict.json"
    for section, mode in SECTIONS.items():
        if mode == "compare" or (file.exists() and getattr(read(file), section) is not None):
            continue
        config.conflict.mode = mode
        conflict.run(config, folder, str(checkpoint), show=False)
    return read(file)


def tables(start: str, reports: Mapping[str, ConflictReport], advised: Trial | None) -> list[str]:
    """Lines of conflict_study.md."""
    lines = [f"# Conflict from {escaped(start)}", ""]
    for strategy, report in reports.items():
        lines += [f"**{strategy}, in words**", "", *(f"- {text}" for text in verdicts.verdict(report)), ""]
    lines += gradients(reports)
    for strategy, report in reports.items():
        lines += ablated(strategy, report.ablation) if report.ablation else []
    lines += trial.report(advised)[2:] if advised else ["The advice was not tried.", ""]
    return lines


def gradients(reports: Mapping[str, ConflictReport]) -> list[str]:
    """The probe's blocks by layer, strategies side by side."""
    rows, sizes = [], []
    probes = {strategy: report.probe for strategy, report in reports.items() if report.probe}
    for strategy, probe in probes.items():
        sizes.append(f"{strategy}: step {reports[strategy].run.step}, {probe.rounds} rounds of two batches of "
                     + " and ".join(f"{n:,} tokens of {f}" for f, n in probe.batch_tokens.items()))  # fmt: skip
    blocks = {s: probe.pairs[0].blocks for s, probe in probes.items()}
    names = [n for n in next(iter(blocks.values())).layer if n != "whole"]
    for name in (*names, "whole"):
        row = [name]
        for groupings in blocks.values():
            b = {**groupings.layer, **groupings.whole}[name]
            within = " / ".join(signed(c) for c in b.cosine_within)
            raw = f"{signed(b.cosine)} {bounds(b.cosine_interval)}"
            row += [verdict(b), corrected(b), raw, within]
        rows.append(row)
    header = ["block"]
    for s in probes:
        header += [f"{s}: verdict", "noise-corrected [95 %]", "raw [95 %]", "within ner / tc"]
    return markdown("Gradients (" + "; ".join(sizes) + ")", header, rows)


def ablated(strategy: str, section: AblationSection) -> list[str]:
    """The ablation's rows."""
    families = list(section.batches)
    rows = []
    for r in section.rows:
        row = [r.says]
        for f in families:
            e = r.effect.get(f)
            if e:
                row += [f"{signed(e.difference, 4)} {bounds(e.interval, 4)}", e.verdict]
            else:
                row += [f"loss {r.loss[f]:.4f}" if f in r.loss else "-", "-"]
        rows.append(row)
    seeds = ", ".join(map(str, section.seeds))
    over = ", ".join(f"{n} batches of {f}" for f, n in section.batches.items())
    title = f"Ablation of {strategy}: {section.steps} steps, seeds {seeds}; change of held-out loss in nats over {over}"
    return markdown(title, ["variant", *(c for f in families for c in (f"{f} [95 %]", "verdict"))], rows)


if __name__ == "__main__":
    cli.run(run, __doc__ or "", config="configs/conflict.py")
