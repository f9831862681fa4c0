"""Block ablation: short joint trainings that differ in one thing, and what that does to held-out losses.

The causal check beside the gradient measures: one family's gradient is stopped on one block, all else equal (seed,
start, data, steps, clipping). Controls change what could explain a loss without any conflict: a family's loss weight,
its temperature eta / b (Mueller et al., 2022: negative transfer may come from it), the number of steps, training alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxprefit.conflict.results import AblationRow, Effect, LossChange
from jaxprefit.significance import holm, mean_difference

LEVEL = 0.95
PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train, against the plain run. Changed settings are factors on those of the run."""

    name: str  # also a file name
    says: str  # in words
    stopped: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # family -> blocks
    factors: dict[str, float] = dataclasses.field(default_factory=dict)  # config key -> factor
    strategy: str = ""  # another than the run's


def groups(blocks: Sequence[str], layers: int) -> dict[str, tuple[str, ...]]:
    """Blocks of a report -> name -> blocks stopped together: so many neighbouring layers, each other block alone."""
    numbered = [b for b in blocks if b.startswith("layer_")]
    out: dict[str, tuple[str, ...]] = {b: (b,) for b in blocks if not b.startswith("layer_")}
    for k in range(0, len(numbered), layers):
        part = numbered[k : k + layers]
        name = part[0] if len(part) == 1 else f"{part[0]}-{part[-1].removeprefix('layer_')}"
        out[name] = tuple(part)
    return out


def variants(blocks: Mapping[str, tuple[str, ...]], families: Sequence[str], controls: bool) -> list[Variant]:
    """The plain run first; each family stopped on each group of `blocks`; then the controls, if wanted."""
    out = [Variant(PLAIN, "the run as it is")]
    for name, stopped in blocks.items():
        for f in families:
            out.append(Variant(f"stop_{f}_{name.replace('/', '.')}", f"{f} stopped on {name}", {f: stopped}))
    if not controls:
        return out
    for f in families:
        out += [
            Variant(f"weight_{f}_{x:g}", f"loss weight of {f} x {x:g}", factors={f"data.{f}.loss_weight": x})
            for x in (0.5, 2.0)
        ]
        batch = {f"data.{f}.rows": 2.0}
        out.append(Variant(f"temperature_{f}", f"temperature eta / b of {f} x 0.5 (batch x 2)", factors=batch))
        out.append(Variant(f"alone_{f}", f"{f} alone, equal steps", strategy=f"individual_{f}"))
    twice = {"optimizer.steps": 2.0, "optimizer.warmup_steps": 2.0}
    out.append(Variant("steps_2", "steps x 2", factors=twice))
    out += [
        Variant(f"alone_{f}_steps_{len(families)}", f"{f} alone, equal compute (steps x {len(families)})",
                factors=dict.fromkeys(twice, float(len(families))), strategy=f"individual_{f}")
        for f in families
    ]  # fmt: skip
    return out


def effect(plain: np.ndarray, changed: np.ndarray) -> LossChange:
    """What a change does to a family's held-out loss, from losses [seeds, batches] on the same batches.

    `difference` is changed minus plain, with `interval` and `p_value` as `significance.mean_difference` of seeds and
    batches: with one seed the interval speaks of other batches only, with one batch of other seeds only.
    """
    change = mean_difference(np.asarray(changed, np.float64) - np.asarray(plain, np.float64), level=LEVEL)
    low, high = change["interval"]
    return LossChange(difference=change["difference"], interval=(low, high), p_value=change["p_value"])


def content(
    cells: Mapping[tuple[str, int], Mapping[str, Sequence[float]]], order: Sequence[Variant]
) -> tuple[AblationRow, ...]:
    """One row a variant, from (variant, seed) -> family -> losses of the held-out batches.

    `verdict` says whether a loss is 'lower', 'higher' or 'undecided' at LEVEL, adjusted (Holm) over all effects of the
    stops, and apart from them over those of the controls.
    """
    seeds = sorted({seed for _, seed in cells})

    def losses(name: str) -> dict[str, np.ndarray]:  # family -> [seeds, batches]
        return {f: np.asarray([cells[name, s][f] for s in seeds]) for f in cells[name, seeds[0]]}

    losses_of = {v.name: losses(v.name) for v in order}
    plain = losses_of[PLAIN]
    changes = {(v.name, f): effect(plain[f], x) for v in order if v.name != PLAIN for f, x in losses_of[v.name].items()}
    stops = {v.name for v in order if v.stopped}
    judged = {
        **_judged({key: change for key, change in changes.items() if key[0] in stops}),
        **_judged({key: change for key, change in changes.items() if key[0] not in stops}),
    }
    return tuple(
        AblationRow(
            variant=v.name,
            says=v.says,
            stopped=v.stopped,
            loss={f: float(x.mean()) for f, x in losses_of[v.name].items()},
            effect={f: judged[v.name, f] for f in losses_of[v.name] if v.name != PLAIN},
        )
        for v in order
    )


def _judged(changes: Mapping[tuple[str, str], LossChange]) -> dict[tuple[str, str], LossChange]:
    """The same changes, by (variant, family), with `p_holm` adjusted over all of them, and the verdict by it."""
    adjusted = holm({str(k): change.p_value for k, change in enumerate(changes.values())})

    def judged(change: LossChange, p_holm: float | None) -> LossChange:
        verdict: Effect = "undecided"
        if p_holm is not None and p_holm < 1 - LEVEL:
            verdict = "lower" if change.difference < 0 else "higher"
        return dataclasses.replace(change, p_holm=p_holm, verdict=verdict)

    return {key: judged(change, adjusted[str(k)]) for k, (key, change) in enumerate(changes.items())}
