"""Strategies by their fronts: how much of both families' gains the variants of one strategy cover together."""

from collections.abc import Mapping, Sequence
from typing import Any


def fronts(results: Sequence[Mapping[str, Any]], strategies: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry per start, mode, fraction and strategy; `strategies` names that of each variant."""
    points: dict[tuple, dict[str, dict[str, float]]] = {}
    for r in results:
        if r["mean"] is not None:
            place = points.setdefault((r["start"], r["mode"], r["fraction"]), {})
            place.setdefault(r["variant"], {})[r["family"]] = r["mean"]
    out = []
    for (start, mode, fraction), found in points.items():
        both = {v: (means["ner"], means["tc"]) for v, means in found.items() if len(means) == 2}
        for strategy in dict.fromkeys(strategies[v] for v in both):
            mine = {v: point for v, point in both.items() if strategies[v] == strategy}
            out.append({
                "start": start, "mode": mode, "fraction": fraction, "strategy": strategy,
                "variants": list(mine), "front": front(mine), "best": max(mine, key=lambda v: sum(mine[v])),
                "area": area([*mine.values()], both["none"]) if "none" in both else None,
            })  # fmt: skip
    return out


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Those that no other beats in one score without losing in the second, from high first score to low."""

    def beaten(a: tuple[float, float]) -> bool:
        return any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in points.values())

    return sorted((name for name, a in points.items() if not beaten(a)), key=lambda name: -points[name][0])


def area(points: Sequence[tuple[float, float]], origin: tuple[float, float]) -> float:
    """Of the scores that are better than `origin` in both and reached by some point in both (the hypervolume)."""
    covered, height = 0.0, origin[1]
    for x, y in sorted(points, reverse=True):
        if x > origin[0] and y > height:
            covered += (x - origin[0]) * (y - height)
            height = y
    return covered
