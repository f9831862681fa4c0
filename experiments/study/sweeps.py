"""Sweeps: variants of a study that differ in one setting, in the order of its values, as `study.sweep` names them."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.common.results import Family, Settings
from experiments.common.study_results import Result, Sweep, SweepPoint, SweepScore
from experiments.study.claims import over_tasks
from experiments.study.expansion import Grid
from experiments.study.variant_settings import STRATEGIES
from jaxprefit.errors import UserError

Results = Mapping[str, Mapping[str, Result]]
"""Variant -> family -> result, at one start, mode and fraction."""


def check(config: ConfigDict) -> None:
    """Raises UserError for a sweep with a name that no variant could have."""
    s = config.study
    known = {*s.variants, *s.variant, *STRATEGIES}
    for name, variants in s.sweep.items():
        if unknown := [v for v in variants if v not in known]:
            raise UserError(f"study.sweep.{name} has {unknown[0]!r}, but there is no study.variant.{unknown[0]}")


def measure(results: Sequence[Result], sweeps: Mapping[str, Sequence[str]], grid: Grid) -> list[Sweep]:
    """Every sweep at every place that has two or more of its variants: the mean scores of each, and their
    differences from the mean over these variants, so that no one of them need be the reference.

    A variant counts where it is complete in every family of the place, and once
    where several are the same encoder from this start. A place where an app's adapter has another shape with each is
    left out. Intervals are those of `claims.over_tasks`, as of every difference.
    """
    places: dict[tuple[str, str, float], dict[str, dict[str, Result]]] = {}
    for r in results:
        places.setdefault((r.start, r.mode, r.fraction), {}).setdefault(r.variant, {})[r.family] = r
    shapes = {(e.start, e.mode, e.fraction, e.variant): e.scorings[0].config.lora.to_json() for e in grid.entries}
    out = []
    for name, variants in sweeps.items():
        for (start, mode, fraction), at in places.items():
            swept = _different(start, [v for v in variants if v in at and _complete(at[v])], grid)
            if len(swept) > 1 and len({shapes[start, mode, fraction, v] for v in swept}) == 1:
                points = _points({v: at[v] for v in swept}, _settings(start, swept, grid))
                out.append(Sweep(sweep=name, start=start, mode=mode, fraction=fraction, points=points))
    return out


def _complete(families: Mapping[str, Result]) -> bool:
    return all(r.mean is not None for r in families.values())


def _different(start: str, variants: Sequence[str], grid: Grid) -> list[str]:
    """The variants without those that come to the same encoders as one before."""
    first: dict[tuple[str, ...], str] = {}
    for v in variants:
        first.setdefault(tuple(run.folder for runs in grid.encoders[start, v].values() for run in runs), v)
    return [*first.values()]


def _settings(start: str, variants: Sequence[str], grid: Grid) -> dict[str, Settings]:
    """Variant -> the settings of its encoder that are not the same in all of them, as JSON."""
    runs = {v: next(iter(grid.encoders[start, v].values()))[0] for v in variants}
    flat = {v: flatten_dict(run.config.to_dict(), sep=".") for v, run in runs.items()}
    changed = [key for key in flat[variants[0]] if any(flat[v][key] != flat[variants[0]][key] for v in variants)]
    return {v: json.loads(json.dumps({key: flat[v][key] for key in changed})) for v in variants}


def _points(results: Results, settings: Mapping[str, Settings]) -> tuple[SweepPoint, ...]:
    """Each variant's mean score by family, and its difference from the mean over the variants."""
    scores: dict[str, dict[Family, SweepScore]] = {v: {} for v in results}
    for family in next(iter(results.values())):
        tables = [np.asarray([t.scores for t in of[family].tasks], float) for of in results.values()]
        centre = np.mean(np.broadcast_arrays(*tables), 0)  # [T, P, S]
        for (v, of), table in zip(results.items(), tables):
            mean, over = of[family].mean, over_tasks(table - centre)
            assert mean is not None  # of a complete variant
            scores[v][of[family].family] = SweepScore(mean=mean, difference=over.difference, interval=over.interval)
    return tuple(SweepPoint(variant=v, settings=settings[v], scores=scores[v]) for v in results)
