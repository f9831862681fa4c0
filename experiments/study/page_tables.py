"""Tables of study.md, from the content of study.json."""

from collections.abc import Iterator, Sequence

from experiments.common.study_results import Place, Result, StudyResult, TaskTest, Versus, WithInterval
from experiments.study.expansion import REFERENCES
from jaxprefit import significance
from jaxprefit.render.tables import markdown

SCORE = {"ner": "NER F1", "tc": "TC accuracy"}
TASK_SCORE = {"ner": "strict span F1", "tc": "accuracy"}

TESTED = (
    "Differences, where a claim is about them, are of the mean over seeds; * where a paired bootstrap over test rows "
    "and seeds finds one (Holm over the tasks of a column, 0.05). study.json has their intervals, McNemar's test of "
    "each pair of seeds, and almost-stochastic order over seeds "
)
ORDERED = f"(below {significance.ASO_BOUND:g}: the first is larger)."
UNORDERED = f"(none here: fewer than {significance.ASO_SEEDS} seeds a side cannot decide it)."


def over_none(content: StudyResult) -> bool:
    """Whether some variant is compared with the start encoder."""
    return any("none" in r.versus for r in content.results)


def by_task(content: StudyResult) -> bool:
    """Whether the study has a pair of variants that a claim is about."""
    return any(t.versus for r in content.results for t in r.tasks)


def has_curves(content: StudyResult) -> bool:
    """Whether some mode is scored at several fractions of the labels."""
    return len(content.fractions) > 1 and any(not recipe.shots for recipe in content.modes.values())


def places(content: StudyResult) -> Iterator[tuple[str, list[Result]]]:
    """(title, results) of each start, mode and fraction."""
    groups: dict[tuple, list[Result]] = {}
    for r in content.results:
        groups.setdefault((r.start, r.mode, r.fraction), []).append(r)
    for results in groups.values():
        recipe = content.modes[results[0].mode]
        limit = f", at most {recipe.limit:,} rows" if recipe.limit else ""
        split = ", development rows" if recipe.split == "dev" else ""
        yield f"{place(content, results[0])}{limit}{split}", results


def place(content: StudyResult, part: Place) -> str:
    """Start, mode and labels of a result, claim or front."""
    shots = content.modes[part.mode].shots
    labels = f"{shots} shots" if shots else f"{100 * part.fraction:g} % of the labels"
    return f"{part.start}, {part.mode}, {labels}"


def main_tables(content: StudyResult) -> list[str]:
    """One table per start, mode and fraction."""
    lines = []
    for title, results in places(content):
        families = [*dict.fromkeys(r.family for r in results)]
        others = [o for o in REFERENCES if any(o in r.versus for r in results)]
        header = ["variant", *(SCORE[f] for f in families)]
        header += [f"{SCORE[f].split()[0]} - {o}" for o in others for f in families]
        rows = []
        for variant in content.variants:
            by_family = {r.family: r for r in results if r.variant == variant}
            scores = [_score(by_family[f]) for f in families]
            rows.append(
                [
                    _marked(content, results[0].start, variant),
                    *scores,
                    *(_difference(by_family[f].versus.get(o)) for o in others for f in families),
                ]
            )
        lines += markdown(title, header, rows)
    return lines


def fronts(content: StudyResult) -> list[str]:
    """Each strategy's variants that no other of it beats in both families, and the chosen one."""
    rows = []
    for f in content.fronts:
        area = f"{1e4 * f.area:.2f}"
        gains = f.gains.get(f.chosen)
        reached = "-" if gains is None else ", ".join(points(gains))
        rows.append([place(content, f), f.strategy, str(len(f.gains)), ", ".join(f.front), f.chosen,
                     reached, area])  # fmt: skip
    header = ["place", "strategy", "variants", "front", "chosen", "its NER, TC", "area, points squared"]
    return markdown("Gains over none in NER and TC, at equal capacity", header, rows)


def sweeps(content: StudyResult) -> list[str]:
    """Variants that differ in one setting, each against the mean over its sweep."""
    families = [f for f in SCORE if any(f in point.scores for s in content.sweeps for point in s.points)]
    header = ["place", "sweep", "variant", "what differs", *(SCORE[f] for f in families)]
    header += [f"{SCORE[f].split()[0]} - sweep's mean" for f in families]
    rows = []
    for s in content.sweeps:
        for point in s.points:
            settings = ", ".join(f"{key} {value}" for key, value in point.settings.items())
            of_families = [point.scores.get(f) for f in families]
            rows.append([place(content, s), s.sweep, point.variant, settings,
                         *("-" if x is None else f"{100 * x.mean:.1f}" for x in of_families),
                         *("-" if x is None else with_interval(x) for x in of_families)])  # fmt: skip
    about = (
        "Variants that differ in one setting. The mean is over the variants of the sweep, this one among them: of two, "
        "each stands half their difference from it. Intervals alone, without a test; these are no scores to choose a "
        "setting by. In mode adapter sweeps that change the shape of LoRA are left out: an app's adapter would be of "
        "another size with each."
    )
    return [about, "", *markdown("Sweeps", header, rows)]


def choice(content: StudyResult) -> list[str]:
    """What is known of the variants without a test row: held-out losses, and scores on development rows."""
    means = {(d.start, d.variant): d.means for d in content.choice.development}
    by_family = [*(h.losses for h in content.held_out), *means.values()]
    families = [f for f in SCORE if any(f in numbers for numbers in by_family)]
    rows = []
    for h in content.held_out:
        mean = means.get((h.start, h.variant), {})
        losses = [f"{h.losses[f]:.4f}" if f in h.losses else "-" for f in families]
        scores = [f"{100 * mean[f]:.1f}" if f in mean else "-" for f in families] if means else []
        rows.append([h.start, _marked(content, h.start, h.variant), *losses, *scores])
    c = content.choice
    header = ["start", "variant", *(f"{f.upper()} held-out loss" for f in families)]
    header += [f"{SCORE[f]}, development rows" for f in families] if means else []
    at = f", and scores on development rows, {c.mode}, {100 * c.fraction:g} % of the labels" if means else ""
    return markdown(f"Held-out losses of pre-finetuning{at}", header, rows) if families else []


def curves(content: StudyResult) -> list[str]:
    """Mean scores against the fraction of the training labels."""
    lines = []
    at = {(r.start, r.mode, r.family, r.variant, r.fraction): r for r in content.results}
    shown = [m for m, recipe in content.modes.items() if not recipe.shots]
    for start, mode, family in dict.fromkeys(key[:3] for key in at if key[1] in shown):
        header = ["variant", *(f"{100 * f:g} %" for f in content.fractions)]
        rows = [[v, *(_score(at[start, mode, family, v, f]) for f in content.fractions)] for v in content.variants]
        lines += markdown(f"{start}, {mode}: {SCORE[family]}", header, rows)
    return lines


def costs(content: StudyResult) -> list[str]:
    """Parameters, adapter bytes and training tokens."""
    rows = []
    for c in content.costs:
        tokens = c.train_tokens
        trained = ["-" if tokens is None else f"{tokens.get(f, 0):,}" for f in ("ner", "tc")]
        rows.append([c.start, c.variant, str(c.backbones), f"{c.backbone_parameters:,}",
                     f"{c.adapter_parameters:,}", f"{c.adapter_bytes:,}",
                     f"{c.family_adapter_parameters:,}", *trained])  # fmt: skip
    header = ["start", "variant", "backbones", "their parameters", "parameters of an app's adapter", "its bytes",
              "of the families' adapters", "NER tokens trained on", "TC tokens"]  # fmt: skip
    about = (
        "An app's adapter has the variant's shape in mode adapter, where it takes the place of the family's. In mode "
        "stacked it has the shape of the config, as that of `none`, and the families' stay beside the backbone."
    )
    return [about, "", *markdown("Costs (float32; an app's linear head comes on top)", header, rows)]


def tasks(content: StudyResult) -> list[str]:
    """Per-task scores of each start, mode, fraction and family."""
    everything = [test for r in content.results for t in r.tasks for test in t.versus.values()]
    lines = [TESTED + (ORDERED if any(test.aso is not None for test in everything) else UNORDERED), ""]
    for title, results in places(content):
        for family in dict.fromkeys(r.family for r in results):
            by_variant = {r.variant: {t.task: t for t in r.tasks} for r in results if r.family == family}
            names = [*dict.fromkeys(name for scores in by_variant.values() for name in scores)]
            pairs = [
                *dict.fromkeys((v, o) for v, scores in by_variant.items() for t in scores.values() for o in t.versus)
            ]
            rows = []
            for name in names:
                trained = next(f"{scores[name].trained_rows:,}" for scores in by_variant.values() if name in scores)
                means = [f"{100 * s[name].mean:.1f}" if name in s else "-" for s in by_variant.values()]
                tests = [by_variant[v][name].versus.get(o) if name in by_variant[v] else None for v, o in pairs]
                rows.append([name, trained, *means, *(_tested(test) for test in tests)])
            header = ["task", "rows", *by_variant, *(f"{v} - {o}" for v, o in pairs)]
            lines += markdown(f"{title}: {TASK_SCORE[family]}", header, rows) if rows else []
    return lines


def _marked(content: StudyResult, start: str, variant: str) -> str:
    """The variant's name, with † where its scores on development rows chose it for its strategy."""
    scored = any(d.means for d in content.choice.development if (d.start, d.variant) == (start, variant))
    chosen = content.choice.chosen[start][content.methods[variant]] == variant
    return f"{variant} †" if chosen and scored else variant


def _score(result: Result) -> str:
    if result.mean is None or result.deviation is None:
        return "-"
    fine, pre = result.deviation.finetuning, result.deviation.prefinetuning
    text = f"{100 * result.mean:.1f}" + ("" if fine is None else f" ± {100 * fine:.1f}")
    return text + ("" if pre is None else f" ({100 * pre:.1f})")


def _difference(versus: Versus | None) -> str:
    return "" if versus is None else with_interval(versus) + starred(versus)


def _tested(test: TaskTest | None) -> str:
    """A task's difference."""
    return "-" if test is None else points([test.difference])[0] + starred(test)


def starred(test: Versus | TaskTest) -> str:
    """* where a difference's test, adjusted, finds one."""
    return "*" if test.p_holm is not None and test.p_holm < 0.05 else ""


def with_interval(result: WithInterval) -> str:
    """A difference in points, with its interval where it has one: not of one task and one pre-finetuning seed."""
    value, (low, high) = points([result.difference])[0], result.interval
    return value if low is None or high is None else "{} ({} to {})".format(value, *points([low, high]))


def points(values: Sequence[float]) -> list[str]:
    return [f"{100 * value:+.1f}" for value in values]
