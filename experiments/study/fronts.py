"""Strategies by their fronts: which gains in both families the variants of one strategy reach together, and which of
them stands for the strategy, chosen without a test row."""

from collections.abc import Mapping, Sequence

from experiments.common.study_results import Front, Result

Point = tuple[float, float]
"""Gains over `none` at equal capacity: of the mean NER F1 and of the mean TC accuracy."""


def chosen(means: Mapping[str, Mapping[str, float]], strategies: Mapping[str, str]) -> dict[str, str]:
    """Strategy -> the one of its variants with the highest sum of the families' mean scores on development rows.

    `means` are variant -> family -> score; a variant without is chosen only where none of its strategy has any.
    """
    out: dict[str, str] = {}
    for strategy in dict.fromkeys(strategies.values()):
        variants = [v for v, of in strategies.items() if of == strategy]
        sums = {v: sum(means[v].values()) for v in variants if means.get(v)}
        out[strategy] = max(sums, key=lambda v: sums[v]) if sums else variants[0]
    return out


def fronts(
    results: Sequence[Result], strategies: Mapping[str, str], stands: Mapping[str, Mapping[str, str]]
) -> list[Front]:
    """The front of each start, mode, fraction and strategy; `strategies` names that of each variant, `stands` start
    -> strategy -> the chosen one.

    Only variants that are complete, in both families; empty for a study without `none`.
    """
    by_place: dict[tuple[str, str, float], dict[str, dict[str, float]]] = {}
    for r in results:
        gain = r.versus.get("none")
        if r.mean is not None and gain and gain.tasks == len(r.tasks):
            place = by_place.setdefault((r.start, r.mode, r.fraction), {})
            place.setdefault(r.variant, {})[r.family] = gain.difference
    out = []
    for (start, mode, fraction), gains in by_place.items():
        points = {v: (g["ner"], g["tc"]) for v, g in gains.items() if len(g) == 2}
        for strategy in dict.fromkeys(strategies[v] for v in points):
            reached = {v: point for v, point in points.items() if strategies[v] == strategy}
            out.append(Front(
                start=start, mode=mode, fraction=fraction, strategy=strategy, gains=reached,
                front=tuple(front(reached)), chosen=stands[start][strategy], area=area([*reached.values()]),
            ))  # fmt: skip
    return out


def front(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other beats in one score without losing in the second, by falling first score."""

    def beaten(a: Point) -> bool:
        return any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in points.values())

    return sorted((name for name, a in points.items() if not beaten(a)), key=lambda name: -points[name][0])


def area(points: Sequence[Point]) -> float:
    """The area of the positive gains that some point reaches in both (the hypervolume)."""
    covered, height = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > height:
            covered += x * (y - height)
            height = y
    return covered
