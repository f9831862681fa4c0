"""Conflict over training, from the Gram matrices that a run logged at its own steps (`gram/BLOCK` in metrics.jsonl).

One batch of each family a step, at parameters that move. Batches of different families are independent, so the sign of
the mean cosine is that of the expected gradients' relation; its size is not, since noise pulls every cosine toward
zero and one batch a family cannot tell how far. The probe can (`conflict.probe`).
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from jaxprefit.conflict.blocks import interval, number, ordered
from jaxprefit.conflict.results import OnlineSection, PairTrend, Trend, Verdict, Window
from jaxprefit.errors import UserError
from jaxprefit.gram import regroup
from jaxprefit.runtime.files import lines_up_to
from jaxprefit.significance import LEVEL, holm, mean_interval


class Logged(NamedTuple):
    """Gram matrices of a run, by step."""

    steps: np.ndarray  # [N] int
    blocks: dict[str, np.ndarray]  # layer -> [N, F, F]
    tokens: dict[str, np.ndarray]  # family -> [N], without padding


def read(file: pathlib.Path, families: Sequence[str], step: int) -> Logged:
    """The Gram matrices in a metrics.jsonl up to `step`. Raises UserError where there are none."""
    if not file.is_file():
        raise UserError(f"{file} is not there; mode online reads it beside the checkpoints of a run")
    lines = [json.loads(line) for line in lines_up_to(file, step)]
    # A step that left a family out has no matrix of all of them.
    lines = [x for x in lines if any(k.startswith("gram/") for k in x) and all(f"loss/{f}" in x for f in families)]
    if len(lines) < 4:
        raise UserError(f"{file} holds Gram matrices of {len(lines)} steps; train longer, with run.log_gram")
    names = [k.removeprefix("gram/") for k in lines[0] if k.startswith("gram/")]
    blocks = {name: np.asarray([x[f"gram/{name}"] for x in lines], np.float64) for name in names}
    tokens = {f: np.asarray([x[f"tokens/{f}"] for x in lines]) for f in families}
    return Logged(np.asarray([x["step"] for x in lines]), blocks, tokens)


def content(logged: Logged, families: Sequence[str], windows: int) -> OnlineSection:
    """The section 'online' of a report: each pair of families' blocks by windows of steps."""
    layers, whole = ordered(logged.blocks), regroup(logged.blocks, lambda _: "whole")
    parts = np.array_split(np.arange(len(logged.steps)), min(windows, len(logged.steps) // 2))

    def trends(blocks: Mapping[str, np.ndarray], i: int, j: int) -> dict[str, Trend]:
        return _decided({name: _trend(logged.steps, m, i, j, parts) for name, m in blocks.items()})

    pairs = tuple(
        PairTrend(families=(families[i], families[j]), layer=trends(layers, i, j), whole=trends(whole, i, j))
        for i, j in itertools.combinations(range(len(families)), 2)
    )
    tokens = {f: number(t.mean()) for f, t in logged.tokens.items()}
    return OnlineSection(steps=len(logged.steps), tokens_per_step=tokens, pairs=pairs)


def cosines(m: np.ndarray, i: int, j: int) -> np.ndarray:
    """[N] cosine of families i and j at each step; NaN where a gradient is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return m[:, i, j] / np.sqrt(m[:, i, i] * m[:, j, j])


def _trend(steps: np.ndarray, m: np.ndarray, i: int, j: int, parts: Sequence[np.ndarray]) -> Trend:
    """One block's windows, before any verdict."""
    c = cosines(m, i, j)
    first, last = c[parts[0]], c[parts[-1]]
    change = last.mean() - first.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        test = scipy.stats.ttest_ind(last, first, equal_var=False)
        bounds = test.confidence_interval(LEVEL) if len(parts) > 1 else (np.nan, np.nan)
    return Trend(
        windows=tuple(_window(steps[p], m[p], c[p], i, j) for p in parts),
        change=number(change) if len(parts) > 1 else None,
        change_interval=interval(*bounds),
    )


def _window(steps: np.ndarray, m: np.ndarray, c: np.ndarray, i: int, j: int) -> Window:
    mean, low, high, p = mean_interval(c)
    squares = m[:, i, i].mean(), m[:, j, j].mean()
    return Window(
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        steps=len(steps),
        cosine=number(mean),
        cosine_interval=interval(low, high),
        noise=number(c.std(ddof=1)) if len(c) > 1 else None,
        p_value=number(p),
        share_negative=number((c < 0).mean()) if np.isfinite(c).all() else None,
        norm_ratio=number(np.sqrt(squares[0] / squares[1])) if squares[1] > 0 else None,
    )


def _decided(trends: Mapping[str, Trend]) -> dict[str, Trend]:
    """The same trends with each window's `p_holm`, adjusted over all blocks and windows, and the verdict by it."""
    p_values = {f"{name} {k}": w.p_value for name, t in trends.items() for k, w in enumerate(t.windows)}
    adjusted = holm(p_values)

    def judged(window: Window, p_holm: float | None) -> Window:
        verdict: Verdict = "undecided"
        if p_holm is not None and p_holm < 1 - LEVEL and window.cosine is not None:
            verdict = "conflict" if window.cosine < 0 else "agreement"
        return dataclasses.replace(window, p_holm=p_holm, verdict=verdict)

    return {
        name: dataclasses.replace(
            trend, windows=tuple(judged(w, adjusted[f"{name} {k}"]) for k, w in enumerate(trend.windows))
        )
        for name, trend in trends.items()
    }
