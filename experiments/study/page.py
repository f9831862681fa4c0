"""study.md: the page of a study, from the content of study.json."""

from experiments.common.study_results import StudyResult, TestedClaim
from experiments.study.page_tables import (
    SCORE,
    by_task,
    choice,
    costs,
    curves,
    fronts,
    has_curves,
    main_tables,
    over_none,
    place,
    points,
    sweeps,
    tasks,
    with_interval,
)
from jaxprefit.render.tables import escaped, markdown


def report(content: StudyResult) -> list[str]:
    """Lines of study.md."""
    counts = content.cells
    about = (
        "Scores in percent on test rows (where a title says so, on development rows, and no test was scored), mean "
        "over tasks; ± is the standard deviation over fine-tuning seeds, in brackets that over pre-finetuning seeds. "
        f"Differences in points with 95 % intervals by Student's t {_drawn(content)}; * where that test, adjusted over "
        "the variants of a column (Holm, 0.05), finds one. In mode adapter all have an adapter of equal "
        "shape downstream: a variant with another LoRA is compared with references that were scored with that LoRA; "
        "its differences, but not its own scores, can be read against theirs. Training rows are the same for all "
        "variants and seeds."
    )
    lines = ["# Study", "", about, ""]
    if counts.done < counts.all:
        lines += [f"**{counts.done} of {counts.all} cells are done; {counts.failed} failed, "
                  f"{counts.missing} are missing.** A mean needs all its tasks.", ""]  # fmt: skip
    for task, why in content.left_out.items():
        lines += [f"{task} is left out of every mean, difference and test: {why}.", ""]
    lines += overview(content)
    lines += ["## Main table", "", *main_tables(content)]
    if over_none(content):
        lines += ["![over none](study_differences.png)", ""]
    lines += ["## The paper's claims", "", *claims(content), *settings(content)]
    if content.fronts:
        lines += ["## Fronts", "", "![NER against TC](study_front.png)", "", *fronts(content)]
    if content.sweeps:
        lines += ["## Sweeps", "", "![sweeps](study_sweeps.png)", "", *sweeps(content)]
    if losses := choice(content):
        lines += ["## Without a test row", "", *losses]
    if has_curves(content):
        lines += ["## Label fractions", "", "![label fractions](study_fractions.png)", "", *curves(content)]
    lines += ["## Costs", "", *costs(content)]
    if over_none(content):
        lines += ["![scores against tokens](study_costs.png)", "", "![scores against size](study_sizes.png)", ""]
    lines += ["## Tasks", "", *tasks(content)]
    if by_task(content):
        lines += ["![task by task](study_tasks.png)", ""]
    return [*lines, *failures(content)]


def _seeds(content: StudyResult) -> int:
    """Number of pre-finetuning seeds."""
    return len(content.seeds)


def _drawn(content: StudyResult) -> str:
    """What the intervals count as drawn, and what they say nothing of."""
    if _seeds(content) > 1:
        return "over tasks and pre-finetuning seeds (fine-tuning seeds averaged), which says little where these are few"
    return (
        "over tasks (fine-tuning seeds averaged), for the encoders as trained: with one pre-finetuning seed nothing is "
        "known of how another would turn out"
    )


def overview(content: StudyResult) -> list[str]:
    """The differences that the claims are about, one line a place in the grid, and their means over the places of a
    start and over all; only for several places."""
    columns = [*dict.fromkeys((c.claim, c.family) for c in content.claims)]
    rows: dict[str, dict[tuple[str, str], str]] = {place(content, r): {} for r in content.results}
    if len(rows) < 2 or not columns:
        return []
    lines: list[tuple[str, TestedClaim]] = [(place(content, c), c) for c in content.claims]
    lines += [(f"{a.start or 'all'}, mean over places", a) for a in content.averages]
    for title, line in lines:
        mark = {"holds": " ✓", "does not hold": " ✗"}.get(line.verdict, "")
        rows.setdefault(title, {})[line.claim, line.family] = points([line.difference])[0] + mark
    header = ["place", *(f"{claim}: {SCORE[family].split()[0]}" for claim, family in columns)]
    about = (
        "Differences in points, in the direction of the claim; ✓ it holds, ✗ it does not, else undecided. Means over "
        "places are tested as a place is, each task's difference averaged before; Holm over a line's claims about a "
        "family."
    )
    cells = [[title, *(found.get(column, "-") for column in columns)] for title, found in rows.items()]
    return ["## In short", "", about, "", *markdown("Claims", header, cells)]


def claims(content: StudyResult) -> list[str]:
    """The paper's claims beside ours."""
    rows = [
        [c.claim, c.paper, place(content, c), f"{c.first} - {c.second}", SCORE[c.family],
         with_interval(c), "-" if c.p_holm is None else f"{c.p_holm:.3f}", f"**{c.verdict}**"]
        for c in content.claims
    ]  # fmt: skip
    if not rows:
        return ["The study has none of the variants that the claims are about.", ""]
    header = ["claim", "in the paper", "here", "variants", "score", "difference", "p", "verdict"]
    text = (
        "For a strategy with several settings stands the one with the highest sum of mean scores on development rows "
        "(marked † above), of those with such scores; where none has, the first. A pair that was not scored at equal "
        "capacity is left out. A claim holds, or does not, where the t test over "
        f"{'tasks and pre-finetuning seeds' if _seeds(content) > 1 else 'tasks'} finds the difference on one side of "
        "its margin (p, adjusted by Holm over the claims about one family at a start, mode and fraction, which were "
        "fixed beforehand; 0.05); else it is undecided. The interval is not adjusted. arXiv 2510.07566; its exact "
        "settings are not public."
    )
    return [text, "", *markdown("Claims", header, rows)]


def settings(content: StudyResult) -> list[str]:
    """What start encoders and variants change of the config."""
    rows = [
        [kind, name, ", ".join(f"{key} {value}" for key, value in own.items() if key != "model.path") or "-"]
        for kind, names in (("start", content.starts), ("variant", content.variants))
        for name, own in names.items()
    ]
    return markdown("Settings that differ from the config", ["", "name", "settings"], rows)


def failures(content: StudyResult) -> list[str]:
    """What failed, and why."""
    if not content.failed:
        return []
    lines = ["## Failed", ""]
    for cell in content.failed:
        what = "" if cell.task is None else f", {cell.task} seed {cell.seed}"
        lines.append(f"- {cell.folder}{what}: {escaped(cell.reason)}")
    return [*lines, ""]
