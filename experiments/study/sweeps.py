"""Sweeps: variants of a study that differ in one setting, in the order of its values, as `study.sweep` names them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.study.claims import over_tasks
from experiments.study.expansion import Grid
from experiments.study.variant_settings import STRATEGIES
from jaxprefit.errors import UserError

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Variant -> family -> its entry in `results` of study.json, at one place: a start, mode and fraction."""


def check(config: ConfigDict) -> None:
    """Raises UserError for a sweep with a name that no variant could have."""
    s = config.study
    known = {*s.variants, *s.variant, *STRATEGIES}
    for name, variants in s.sweep.items():
        if unknown := [v for v in variants if v not in known]:
            raise UserError(f"study.sweep.{name} has {unknown[0]!r}, but there is no study.variant.{unknown[0]}")


def measure(
    results: Sequence[Mapping[str, Any]], sweeps: Mapping[str, Sequence[str]], grid: Grid
) -> list[dict[str, Any]]:
    """One entry per sweep and place that has two or more of its variants: the mean scores of each, and their
    differences from the mean over these variants, so that no one of them need be the reference.

    `results` are those of study.json. A variant counts where it is complete in every family of the place, and once
    where several are the same encoder from this start. A place where an app's adapter has another shape with each is
    left out. Intervals are `study_claims.over_tasks`'s, as of every difference.
    """
    places: dict[tuple[str, str, float], dict[str, dict[str, Mapping[str, Any]]]] = {}
    for r in results:
        places.setdefault((r["start"], r["mode"], r["fraction"]), {}).setdefault(r["variant"], {})[r["family"]] = r
    shapes = {(e.start, e.mode, e.fraction, e.variant): e.scorings[0].config.lora.to_json() for e in grid.entries}
    out = []
    for name, variants in sweeps.items():
        for place, there in places.items():
            mine = _different(place[0], [v for v in variants if v in there and _complete(there[v])], grid)
            if len(mine) > 1 and len({shapes[*place, v] for v in mine}) == 1:
                points = _points({v: there[v] for v in mine}, _settings(place[0], mine, grid))
                out.append({"sweep": name, **dict(zip(("start", "mode", "fraction"), place)), "points": points})
    return out


def _complete(families: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(r["mean"] is not None for r in families.values())


def _different(start: str, variants: Sequence[str], grid: Grid) -> list[str]:
    """Without those that come to the same encoders as one before."""
    first: dict[tuple[str, ...], str] = {}
    for v in variants:
        first.setdefault(tuple(run.folder for runs in grid.encoders[start, v].values() for run in runs), v)
    return [*first.values()]


def _settings(start: str, variants: Sequence[str], grid: Grid) -> dict[str, dict[str, Any]]:
    """Variant -> the settings of its encoder that are not the same in all of them, as JSON."""
    runs = {v: next(iter(grid.encoders[start, v].values()))[0] for v in variants}
    flat = {v: flatten_dict(run.config.to_dict(), sep=".") for v, run in runs.items()}
    changed = [key for key in flat[variants[0]] if any(flat[v][key] != flat[variants[0]][key] for v in variants)]
    return {v: json.loads(json.dumps({key: flat[v][key] for key in changed})) for v in variants}


def _points(there: Results, settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    scores: dict[str, dict[str, Any]] = {v: {} for v in there}
    for family in next(iter(there.values())):
        tables = [np.asarray([t["scores"] for t in found[family]["tasks"]], float) for found in there.values()]
        centre = np.mean(np.broadcast_arrays(*tables), 0)  # [T, P, S]
        for (v, found), mine in zip(there.items(), tables):
            over = over_tasks(mine - centre)
            scores[v][family] = {"mean": found[family]["mean"], "difference": over["difference"],
                                 "interval": over["interval"]}  # fmt: skip
    return [{"variant": v, "settings": settings[v], "scores": scores[v]} for v in there]
