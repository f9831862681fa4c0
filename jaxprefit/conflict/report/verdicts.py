"""The verdict of a conflict report in sentences. Gradients are 'consistent with'; only the ablation speaks of cost."""

import itertools
from collections.abc import Mapping, Sequence

from jaxprefit.conflict.advice import ablated
from jaxprefit.conflict.blocks import ROWS_DRAWN
from jaxprefit.conflict.noise import SOUGHT
from jaxprefit.conflict.report.document import corrected
from jaxprefit.conflict.report.results import ConflictReport, ReportedRun
from jaxprefit.conflict.results import (
    AblationSection,
    Advice,
    BlockMeasures,
    ComparedRun,
    OnlineSection,
    PairReport,
    PairTrend,
    ProbeSection,
)
from jaxprefit.render.tables import bounds, signed

LIMITS = (
    "A gradient is a first-order view of one point: a negative inner product says that a small plain gradient step for"
    " one family raises the other's loss there. What AdamW does with momentum and its scaling is not in the cosine.",
    "Where joint training has nearly converged, the expected gradients must cancel, whatever the tasks: a negative"
    " cosine late in training is in part what the minimum of a sum looks like. Read it beside the one over training.",
    "Raw cosines shrink with batch noise, and their size compares only at equal batch sizes. The noise-corrected cosine"
    " corrects for that, with an interval of its own; where the signal is too weak it is refused.",
    "Verdicts are adjusted for their number (Holm) within one table, not over all tables of a report; the intervals"
    " beside them are at 95 % each.",
    "Where no block of a table has any relation, some verdict, of conflict or of agreement, still stands in it in up to"
    " 5 % of cases. What barely passes a test is on average smaller than its printed size: read the intervals, and"
    " undecided values beside decided ones. A value near refusal is a lower bound in size.",
    "Intervals take batches for independent draws. Where rows were drawn more than once, intervals and verdicts are of"
    " the rows drawn alone. Two families must never be probed on the same texts, batch by batch: shared noise looks"
    " like agreement.",
    "The probe compares the gradients of a shared adapter without their gauge. The Gram matrices that a run logs"
    " ('over training') are of the adapter's two factors as they are, and so depend on how its product is split.",
    "Stopping one family on a block also leaves the block to the other family alone, whose share of the AdamW step"
    " grows there. A lower loss shows that the first family's presence costs; the loss-weight rows show how much of"
    " that is a matter of size rather than direction.",
    "An ablation is a short training on this data from this start. Its interval covers other held-out batches, and"
    " other seeds where several were run, not other data.",
)


def verdict(result: ConflictReport) -> list[str]:
    """A few sentences, first what was found on the gradients, then whether it costs anything, then what to do."""
    out = []
    if result.probe is not None:
        out += [_gradients(pair, result.probe, result.run) for pair in result.probe.pairs]
    if result.online is not None:
        out += [_training(pair, result.online) for pair in result.online.pairs]
    if result.compare is not None:
        out.append(_compared(result.compare))
    elif result.probe is None and result.online is None:
        out.append("The gradients were not measured.")
    if result.ablation:
        out += _cost(result.ablation)
    elif result.compare is None:
        out.append(
            "Whether that costs a family anything was not measured: the block ablation (mode ablate) would show it."
        )
    if result.advice:
        out.append(advised(result.advice))
    return out


def _compared(section: Sequence[ComparedRun]) -> str:
    *others, last = (f"{r.name} ({r.strategy}, {r.aggregator}, step {r.step})" for r in section)
    return (
        f"Side by side: {', '.join(others)} and {last}, each with the verdicts of its own probe. Differences between"
        " the runs are not tested: one run decided and another not is no evidence that they differ."
    )


def _gradients(pair: PairReport, probe: ProbeSection, run: ReportedRun) -> str:
    (a, b), whole = pair.families, pair.blocks.whole["whole"]
    says = {
        "conflict": "point against each other, which is consistent with the families getting in each other's way",
        "agreement": "point the same way: no sign of conflict",
        "undecided": "show no decided relation: the batches are too noisy, or too few, to tell",
    }[whole.verdict]
    number = (
        f" (noise-corrected cosine {corrected(whole)}; raw {signed(whole.cosine)}"
        f" {bounds(whole.cosine_interval)}, where two batches of one family have"
        f" {signed(whole.cosine_within[0])} and {signed(whole.cosine_within[1])})"
        if corrected(whole) != "refused"
        else ""
    )
    if whole.verdict == "undecided" and whole.batches_for_sought is not None:  # not in older reports
        number += (
            f" (to see a cosine of {SOUGHT:g} takes about {whole.batches_for_sought:,.0f} batches a family,"
            f" {whole.batches} were drawn)"
        )
    sizes = " and ".join(f"{probe.batch_tokens[f]:,} tokens of {f}" for f in (a, b))
    layers = _by_verdict(pair.blocks.layer)
    drawn = " on the rows drawn, some of them more than once," if whole.scope == ROWS_DRAWN else ""
    return (
        f"At step {run.step} of {run.strategy} the expected gradients of {a} and {b}{drawn} over all shared"
        f" parameters {says}{number}. This rests on {probe.rounds} rounds of two batches of {sizes}. {layers}"
    )


def _by_verdict(blocks: Mapping[str, BlockMeasures]) -> str:
    parts = []
    for v, says in (("conflict", "in conflict"), ("agreement", "in agreement"), ("undecided", "undecided")):
        if names := [n for n, b in blocks.items() if b.verdict == v]:
            parts.append(f"{says}: {', '.join(names)}")
    return f"By layer, {'; '.join(parts)}."


def _training(pair: PairTrend, online: OnlineSection) -> str:
    a, b = pair.families
    windows = pair.whole["whole"].windows
    runs = [(v, [*group]) for v, group in itertools.groupby(windows, key=lambda w: w.verdict)]
    spans = "; ".join(f"steps {group[0].first_step} to {group[-1].last_step} {v}" for v, group in runs)
    return (
        f"Over training ({online.steps} logged steps in {len(windows)} windows), by the sign of the mean raw cosine"
        f" of {a} and {b} over all shared parameters: {spans}."
    )


def _cost(section: AblationSection) -> list[str]:
    stops = [stop for stop in map(ablated, section.rows) if stop]
    rest = f"{section.steps} steps, {len(section.seeds)} seed{'s' * (len(section.seeds) > 1)}"
    out = []
    for says, text in (
        ("costs", "costs {others}: without it there the held-out loss of {others} is lower"),
        ("helps", "helps {others}: without it there the held-out loss of {others} is higher"),
    ):
        parts = [
            f"{stop.family} on {stop.blocks} " + text.format(others=" and ".join(stop.others))
            for stop in stops
            if stop.effect == says
        ]
        out += [f"By ablation ({rest}), {'; '.join(parts)}."] if parts else []
    if not any(stop.effect == "costs" for stop in stops):
        out.append(
            f"No ablation ({len(stops)} of them, {rest} each) lowered the other family's loss measurably: that conflict"
            " costs anything is not shown."
        )
    return out


def advised(section: Advice) -> str:
    """The advice and its reason."""
    c = section.lora
    if not section.decided:
        return f"Advice: keep LoRA where it is by default, on the last {c.last_layers} layer(s). {section.reason}"
    return (
        f"Advice: family LoRAs on layers {', '.join(map(str, c.layers))}, matrices {', '.join(c.targets)}, rank"
        f" {c.rank} ({section.parameters:,} parameters; default {section.default_parameters:,})."
        f" {section.reason}"
    )
