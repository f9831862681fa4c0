"""Sweeps: variants of a study that differ in one setting, in the order of its values, as `study.sweep` names them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxprefit.downstream import significance
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES
from jaxprefit.strategies import names


def named(config: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Sweep -> its variants that the study has, in order; only where these are two or more.

    Raises UserError for a name that no variant could have.
    """
    s = config.study
    known = {*s.variants, *s.variant, *names(FAMILIES), "individual", "averaged"}
    for name, variants in s.sweep.items():
        if unknown := [v for v in variants if v not in known]:
            raise UserError(f"study.sweep.{name} has {unknown[0]!r}, but there is no study.variant.{unknown[0]}")
    found = {name: tuple(v for v in variants if v in s.variants) for name, variants in s.sweep.items()}
    return {name: variants for name, variants in found.items() if len(variants) > 1}


def measure(results: Sequence[Mapping[str, Any]], sweeps: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """One entry per sweep, start, mode, fraction and family: the mean score of each variant that is complete there, and
    its difference from the mean over these variants, so that no one of them need be the reference.

    `results` are those of study.json. The interval is `significance.crossed_bootstrap`'s, as of every difference.
    """
    places: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for r in results:
        if r["mean"] is not None:
            places.setdefault((r["start"], r["mode"], r["fraction"], r["family"]), {})[r["variant"]] = r
    out = []
    for name, variants in sweeps.items():
        for (start, mode, fraction, family), there in places.items():
            mine = {v: np.asarray([t["scores"] for t in there[v]["tasks"]], float) for v in variants if v in there}
            if len(mine) < 2:
                continue
            centre = np.mean(np.broadcast_arrays(*mine.values()), 0)  # [T, P, S]
            out.append({
                "sweep": name, "start": start, "mode": mode, "fraction": fraction, "family": family,
                "points": [_point(there[v], scores - centre) for v, scores in mine.items()],
            })  # fmt: skip
    return out


def _point(result: Mapping[str, Any], differences: np.ndarray) -> dict[str, Any]:
    """Of one variant; `differences` are [T, P, S] to the sweep's mean."""
    found = significance.crossed_bootstrap(differences)
    return {"variant": result["variant"], "mean": result["mean"], "difference": found.difference,
            "interval": [found.low, found.high]}  # fmt: skip
