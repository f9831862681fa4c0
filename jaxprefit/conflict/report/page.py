"""The conflict report as HTML sections: the verdict in words first, then what it rests on, then the method's limits."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxprefit.conflict.advice import contribution
from jaxprefit.conflict.report import figures, page_steps, verdicts
from jaxprefit.conflict.report.document import SECTIONS, corrected, estimate, explain, header, rows, verdict
from jaxprefit.conflict.report.results import ConflictReport
from jaxprefit.conflict.results import (
    AblationRow,
    AblationSection,
    Advice,
    BlockMeasures,
    ComparedRun,
    OnlineSection,
    ProbeSection,
    Trend,
)
from jaxprefit.render import html
from jaxprefit.render.tables import bounds, signed
from jaxprefit.representations.report import html_parts
from jaxprefit.runtime import results

Section = tuple[str, list[str]]
TRIED, CURVATURE = "The same, tried", "Curvature"  # parts of a probe that it may be without


def sections(result: ConflictReport) -> list[Section]:
    """All sections for `html.page`, those not measured with the command that measures them."""
    limits = ("Limits of the method", [html.paragraph(text) for text in verdicts.LIMITS])
    verdict = ("Verdict", [html.paragraph(text) for text in verdicts.verdict(result)])
    if result.compare is not None:
        return [verdict, ("Runs side by side", compare(result.compare)), limits]
    families, probe = result.run.families or (), result.probe
    found: list[tuple[str, str, list[str] | None]] = [
        ("Over training", "online", _of(online, result.online)),
        ("Per layer", "probe", layers(result) if probe else None),
        ("Per matrix", "probe", _of(modules, probe)),
        ("What a step does to other families", "probe", _of(page_steps.transfer, probe, families)),
        (TRIED, "probe", _of(page_steps.affinity, probe and probe.affinity, families)),
        (CURVATURE, "probe", _of(page_steps.curvature, probe and probe.curvature)),
        ("What stopping one family does", "ablation", _of(ablation, result.ablation)),
    ]
    hidden_states = results.to_json(result.representations) if result.representations else None
    states = _of(html_parts, hidden_states) or [("hidden states", None)]
    found += [(f"Representations: {title.lower()}", "representations", parts) for title, parts in states]
    found += [("Where to put LoRA", "advice", _of(advice, result.advice))]
    measured = [(title, parts or [_missing(title, section, result)]) for title, section, parts in found]
    return [verdict, *measured, limits]


def _of(parts: Callable[..., Any], section: Any, *rest: Any) -> Any:
    return None if section is None else parts(section, *rest)


def _missing(title: str, section: str, result: ConflictReport) -> str:
    """How to measure what is not there."""
    mode, run = SECTIONS[section], result.run
    why, more = "", ""
    if title in (TRIED, CURVATURE) and result.probe:
        if run.step == 0:
            return html.paragraph("Not measured: before the first step Adam has no second moments to scale a step by.")
        why, more = " by this probe (conflict.lookahead was 0, or no row is held out)", " --config.conflict.lookahead=4"
    return html.paragraph(
        f"Not measured{why}. This adds it to the same report: python -m experiments.conflict --config=CONFIG"
        f" --checkpoint={run.checkpoint} --workdir=WORKDIR --config.conflict.mode={mode}{more}"
    )


def online(section: OnlineSection) -> list[str]:
    """Layers x training."""
    out = []
    tokens = ", ".join(f"{n:,.0f} tokens of {f}" for f, n in section.tokens_per_step.items())
    for pair in section.pairs:
        a, b = pair.families
        trends = {**pair.layer, **pair.whole}
        out += [
            html.paragraph(
                f"Mean raw cosine of {a} and {b} in windows of training steps, from the {section.steps} steps that"
                f" the run logged, each with one batch a family of {tokens} on average. Coloured where its sign is"
                " decided (Student's t over the steps of a window, adjusted by Holm over all cells). Raw cosines are"
                " small since batches are noisy; 'noise' below is the standard deviation of one step's cosine."
            ),
            html.picture(figures.over_training(pair), f"Layers by training steps: cosine of {a} and {b} gradients"),
            html.table(
                ["block", "first window [95 %]", "last window [95 %]", "change [95 %]", "noise", "negative steps"],
                [_trend(name, trend) for name, trend in trends.items()],
            ),
        ]
    return out


def layers(result: ConflictReport) -> list[str]:
    """The probe's blocks by layer."""
    out = [html.paragraph(explain(result))]
    for pair in result.probe.pairs if result.probe else ():
        a, b = pair.families
        alt = f"Cosine between {a} and {b} gradients per layer, with reference levels and norms"
        blocks = {**pair.blocks.layer, **pair.blocks.whole}
        out += [html.picture(figures.layers(pair), alt), html.table(header(a, b), rows(blocks))]
    return out


def modules(probe: ProbeSection) -> list[str]:
    """The probe's blocks by kind of matrix."""
    out = [html.paragraph(f"From the same {probe.rounds} rounds as by layer.")]
    for pair in probe.pairs:
        a, b = pair.families
        alt = f"Noise-corrected cosine between {a} and {b} by layer and kind of matrix"
        blocks = {**pair.blocks.kind, **pair.blocks.whole}
        out += [html.picture(figures.modules(pair), alt), html.table(header(a, b), rows(blocks))]
    return out


def ablation(section: AblationSection) -> list[str]:
    """Stops and controls with their effects."""
    families = list(section.batches)
    seeds = ", ".join(map(str, section.seeds))
    over = ", ".join(f"{n} held-out batches of {f}" for f, n in section.batches.items())
    crossed = "seeds and batches" if len(section.seeds) > 1 else "batches of one seed, which says nothing of others"
    plain, *changed = section.rows
    ends = ", ".join(f"{loss:.4f} nats of {f}" for f, loss in plain.loss.items())
    stops = [r for r in changed if r.stopped]
    controls = [r for r in changed if not r.stopped]
    out = [
        html.paragraph(
            f"Trainings of {section.steps} steps from the run's start (seeds {seeds}) that differ in one thing, and"
            f" the change of the mean held-out loss against the run as it is, over {over}. Intervals are paired, over"
            f" {crossed}; verdicts are adjusted by Holm. Below zero: the loss is lower, better, with the change."
            f" The run as it is ends at {ends}."
        )
    ]
    for title, group in (("One family stopped on one block", stops), ("Controls without any stop", controls)):
        if not group:
            continue
        picture = html.picture(figures.effects(group, families), f"{title}: change of held-out losses")
        columns = [c for f in families for c in (f"change of {f} loss, nats [95 %]", "verdict")]
        table = html.table(["variant", *columns], [[r.says, *_effects(r, families)] for r in group])
        out += [html.paragraph(f"{title}."), picture, table]
    return out


def compare(section: Sequence[ComparedRun]) -> list[str]:
    """One table a pair of families: reports as columns, blocks as rows."""
    out = [
        html.paragraph(
            "The verdict, the noise-corrected cosine of the expected gradients with its 95 % interval, and in brackets"
            " the raw cosine with"
            " its interval and the cosines of two batches of one family. Each run is probed at its own"
            " parameters, so that columns differ in the point as well as in the way of training."
        )
    ]
    runs = html.table(
        ["run", "strategy", "aggregator", "step", "rounds", "tokens of a batch", "held-out losses, nats"],
        [_run(r) for r in section],
    )
    pairs = list(dict.fromkeys(p.families for r in section for p in r.pairs))
    for a, b in pairs:
        found = {r.name: p.blocks for r in section for p in r.pairs if p.families == (a, b)}
        blocks = list(dict.fromkeys(n for v in found.values() for n in (*v.layer, *v.whole) if n != "whole"))
        lines = []
        for name in (*blocks, "whole"):
            cells = [{**v.layer, **v.whole}.get(name) for v in found.values()]
            lines.append([name, *(_cell(c) for c in cells)])
        out += [html.paragraph(f"{a} with {b}"), html.table(["block", *found], lines)]
    return [runs, *out]


def advice(section: Advice) -> list[str]:
    """The placement and the evidence for it."""
    placed = section.lora.layers or range(len(section.evidence))[-section.lora.last_layers :]
    shares = [
        [
            f"layer_{e.layer}", e.gradients, contribution(e) or "-", e.ablation or "not measured",
            "yes" if e.layer in placed else "no",
        ]
        for e in section.evidence
    ]  # fmt: skip
    usage = "advice.json holds it for pre-finetuning: --config.lora=@WORKDIR/advice.json"
    return [
        html.paragraph(verdicts.advised(section)),
        html.paragraph(usage),
        html.table(
            ["layer", "gradients", "contribution to the whole cosine [95 %]", "ablation", "carries LoRA"], shares
        ),
    ]


def _trend(name: str, trend: Trend) -> list[str]:
    first, last = trend.windows[0], trend.windows[-1]
    noise = [w.noise for w in trend.windows if w.noise is not None]
    negative = [w.share_negative for w in trend.windows if w.share_negative is not None]
    return [
        name,
        *(estimate(w.cosine, w.cosine_interval, w.verdict != "undecided") for w in (first, last)),
        estimate(trend.change, trend.change_interval, _apart(trend)),
        f"{sum(noise) / len(noise):.3f}" if noise else "-",
        f"{100 * sum(negative) / len(negative):.0f} %" if negative else "-",
    ]


def _apart(trend: Trend) -> bool:
    """Whether the last window's mean differs measurably from the first's."""
    low, high = trend.change_interval
    return low is not None and high is not None and low * high > 0


def _effects(row: AblationRow, families: Sequence[str]) -> list[str]:
    out = []
    for f in families:
        effect = row.effect.get(f)
        change = f"{signed(effect.difference, 4)} {bounds(effect.interval, 4)}" if effect else "-"
        out += [change, effect.verdict if effect else "-"]
    return out


def _run(r: ComparedRun) -> list[str]:
    losses = ", ".join(f"{f} {x:.4f}" for f, x in (r.held_out or {}).items()) or "-"
    tokens = ", ".join(f"{f} {n:,}" for f, n in r.batch_tokens.items())
    return [r.name, r.strategy, r.aggregator, str(r.step), str(r.rounds), tokens, losses]


def _cell(block: BlockMeasures | None) -> str:
    if block is None:
        return "not shared"
    within = " and ".join(signed(c) for c in block.cosine_within)
    return f"{verdict(block)}: {corrected(block)} ({signed(block.cosine)} {bounds(block.cosine_interval)}; {within})"
