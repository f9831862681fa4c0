"""Strategies by their fronts: which gains in both families the variants of one strategy reach together, and which of
them stands for the strategy, chosen without a test row."""

from collections.abc import Mapping, Sequence
from typing import Any

Point = tuple[float, float]
"""Gains over `none` at equal capacity: of the mean NER F1 and of the mean TC accuracy."""


def chosen(means: Mapping[str, Mapping[str, float]], strategies: Mapping[str, str]) -> dict[str, str]:
    """Strategy -> the one of its variants with the highest sum of the families' mean scores on development rows.

    `means` are variant -> family -> score; a variant without is chosen only where none of its strategy has any.
    """
    out: dict[str, str] = {}
    for strategy in dict.fromkeys(strategies.values()):
        mine = [v for v, of in strategies.items() if of == strategy]
        known = {v: sum(means[v].values()) for v in mine if means.get(v)}
        out[strategy] = max(known, key=lambda v: known[v]) if known else mine[0]
    return out


def fronts(
    results: Sequence[Mapping[str, Any]], strategies: Mapping[str, str], stands: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """One entry per start, mode, fraction and strategy; `strategies` names that of each variant, `stands` start ->
    strategy -> the chosen one.

    Only variants that are complete, in both families; empty for a study without `none`.
    """
    found: dict[tuple, dict[str, dict[str, float]]] = {}
    for r in results:
        gain = r["versus"].get("none")
        if r["mean"] is not None and gain and gain["tasks"] == len(r["tasks"]):
            place = found.setdefault((r["start"], r["mode"], r["fraction"]), {})
            place.setdefault(r["variant"], {})[r["family"]] = gain["difference"]
    out = []
    for (start, mode, fraction), gains in found.items():
        points = {v: (g["ner"], g["tc"]) for v, g in gains.items() if len(g) == 2}
        for strategy in dict.fromkeys(strategies[v] for v in points):
            mine = {v: point for v, point in points.items() if strategies[v] == strategy}
            out.append({
                "start": start, "mode": mode, "fraction": fraction, "strategy": strategy,
                "gains": {v: list(point) for v, point in mine.items()}, "front": front(mine),
                "chosen": stands[start][strategy], "area": area([*mine.values()]),
            })  # fmt: skip
    return out


def front(points: Mapping[str, Point]) -> list[str]:
    """Those that no other beats in one score without losing in the second, from high first score to low."""

    def beaten(a: Point) -> bool:
        return any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in points.values())

    return sorted((name for name, a in points.items() if not beaten(a)), key=lambda name: -points[name][0])


def area(points: Sequence[Point]) -> float:
    """Of the positive gains that some point reaches in both (the hypervolume)."""
    covered, height = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > height:
            covered += x * (y - height)
            height = y
    return covered
