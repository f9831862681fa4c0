"""From a conflict report to a placement of the families' LoRAs: which layers and matrices, at which rank.

Layers that the report shows in conflict go first, so that there each family gets parameters of its own (the idea of
Shi et al., arXiv 2302.11289, Recon, with adapters in place of untied layers). That this helps is a hypothesis, which
pre-finetuning with it tests.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from jaxprefit.conflict.results import AblationRow, Advice, Evidence, LayerEvidence, PairReport, Placement, Verdict
from jaxprefit.encoder import lora
from jaxprefit.encoder.transformer import LINEAR_MAPS, EncoderConfig
from jaxprefit.render.tables import bounds, signed


def advise(
    pairs: Sequence[PairReport],
    ablation: Sequence[AblationRow] | None,
    default: lora.LoraSpec,
    encoder: EncoderConfig,
) -> Advice:
    """The section 'advice' of a report, from its probe's pairs and, where measured, the rows of its ablation.

    A layer is a candidate where some pair of families is in conflict by the probe's verdict, or where stopping one
    family measurably lowers another's loss; not where stopping one only raises another's. Those that cost by
    ablation go first, then those with the most negative contribution to the whole cosine. As many as the default has
    layers, the best of them, are taken; their matrices are those in conflict in at least half of them (the default's
    where none is); the rank is the largest with which the adapter has no more parameters than the default. With no
    candidate the default stays.
    """
    default = dataclasses.replace(default, layers=())
    evidence = [_evidence(n, pairs, ablation) for n in range(encoder.num_layers)]
    chosen = sorted((e for e in evidence if e.candidate), key=_order)[: default.last_layers]
    numbers = sorted(e.layer for e in chosen)
    targets = _targets(numbers, pairs) or default.targets
    advised = dataclasses.replace(default, layers=tuple(numbers), targets=targets) if numbers else default
    rank = _rank(advised, default, encoder)
    if rank < 1:  # more kinds of matrix than the default's parameters can pay for
        advised = dataclasses.replace(advised, targets=default.targets)
        rank = _rank(advised, default, encoder)
    advised = dataclasses.replace(advised, rank=rank, alpha=default.alpha * rank / default.rank)
    return Advice(
        decided=bool(numbers),
        reason=_reason(evidence, numbers),
        lora=placement(advised),
        parameters=lora.size(advised, encoder),
        default=placement(default),
        default_parameters=lora.size(default, encoder),
        evidence=tuple(evidence),
    )


def placement(spec: lora.LoraSpec) -> Placement:
    """What advice.json holds, the values for config.lora."""
    return Placement(
        layers=spec.layers, last_layers=spec.last_layers, targets=spec.targets, rank=spec.rank, alpha=spec.alpha
    )


class Stop(NamedTuple):
    """What stopping one family on some blocks did to the others."""

    family: str  # the one stopped
    effect: Evidence
    others: list[str]  # families whose loss says so
    blocks: str


def ablated(row: AblationRow) -> Stop | None:
    """What one row of an ablation says; None for a control.

    'costs': another family's loss falls measurably without it; 'helps': one rises and none falls.
    """
    if not row.stopped:
        return None
    ((family, blocks),) = row.stopped.items()
    others = {f: e.verdict for f, e in row.effect.items() if f != family}
    if lower := [f for f, v in others.items() if v == "lower"]:
        return Stop(family, "costs", lower, ", ".join(blocks))
    if higher := [f for f, v in others.items() if v == "higher"]:
        return Stop(family, "helps", higher, ", ".join(blocks))
    return Stop(family, "undecided", [], ", ".join(blocks))


def contribution(e: LayerEvidence) -> str:
    """A layer's contribution to the whole cosine, with its interval; nothing where there is no interval (several pairs
    in conflict, a report of an older version)."""
    interval = e.contribution_interval
    return f"{signed(e.contribution)} {bounds(interval)}" if interval else ""


def _evidence(n: int, pairs: Sequence[PairReport], ablation: Sequence[AblationRow] | None) -> LayerEvidence:
    """What is known of layer n."""
    name = f"layer_{n}"
    blocks = [p.blocks.layer[name] for p in pairs if name in p.blocks.layer]
    verdicts = [b.verdict for b in blocks]
    sized = [b for b in blocks if b.verdict == "conflict" and b.contribution is not None]
    gradient: Verdict = (
        "conflict" if "conflict" in verdicts else "agreement" if "agreement" in verdicts else "undecided"
    )
    stops = [ablated(row) for row in ablation or () if row.stopped and name in next(iter(row.stopped.values()))]
    effects = [stop.effect for stop in stops if stop]
    effect: Evidence | None = None
    if effects:
        effect = "costs" if "costs" in effects else "helps" if "helps" in effects else "undecided"
    return LayerEvidence(
        layer=n,
        gradients=gradient,
        contribution=round(sum(b.contribution or 0.0 for b in sized), 6) if sized else None,
        # Those of several pairs depend on each other, so that their sum has no interval.
        contribution_interval=sized[0].contribution_interval if len(sized) == 1 else None,
        ablation=effect,
        candidate=effect == "costs" or (gradient == "conflict" and effect != "helps"),
    )


def _rank(spec: lora.LoraSpec, default: lora.LoraSpec, encoder: EncoderConfig) -> int:
    """The largest rank with which `spec` has at most the parameters of `default`."""
    return lora.size(default, encoder) // lora.size(dataclasses.replace(spec, rank=1), encoder)


def _order(e: LayerEvidence) -> tuple:
    return e.ablation != "costs", 0.0 if e.contribution is None else e.contribution, e.layer


def _targets(layers: Sequence[int], pairs: Sequence[PairReport]) -> tuple[str, ...]:
    """The kinds of matrix in conflict, by the probe's verdict, in at least half of the layers."""

    def in_conflict(n: int, kind: str) -> bool:
        name = f"layer_{n}/{kind}"
        return any(name in p.blocks.module and p.blocks.module[name].verdict == "conflict" for p in pairs)

    return tuple(k for k in LINEAR_MAPS if layers and 2 * sum(in_conflict(n, k) for n in layers) >= len(layers))


def _reason(evidence: Sequence[LayerEvidence], chosen: Sequence[int]) -> str:
    if not chosen:
        return _no_reason(evidence)
    undecided = [e.layer for e in evidence if e.gradients == "undecided"]
    how = [
        f"layer {n}: " + ("stopping a family there lowers another's loss" if e.ablation == "costs" else
        f"conflict, contribution {contribution(e)} to the whole cosine" if contribution(e) else "conflict")
        for n in chosen for e in [evidence[n]]
    ]  # fmt: skip
    measured = any(e.ablation for e in evidence)
    cost = "" if measured else " Whether the conflict costs anything was not measured (mode ablate)."
    rest = f" Undecided: layers {', '.join(map(str, undecided))}." if undecided else ""
    return "; ".join(how).capitalize() + "." + rest + cost


def _no_reason(evidence: Sequence[LayerEvidence]) -> str:
    """Why no layer is a candidate."""
    helped = [e.layer for e in evidence if e.ablation == "helps"]
    agree, undecided = (
        [e.layer for e in evidence if e.ablation != "helps" and e.gradients == v] for v in ("agreement", "undecided")
    )
    out = ["No layer is a candidate."]
    if agree:
        out.append(f"Gradients agree: layers {', '.join(map(str, agree))}.")
    if helped:
        out.append(f"Stopping a family only raises another's loss: layers {', '.join(map(str, helped))}.")
    if undecided:
        out.append(
            f"Gradients are undecided in {len(undecided)} of {len(evidence)} layers: there the data does not suffice"
            " to place LoRA elsewhere than by default. More rounds (conflict.rounds) or an ablation would tell"
            " more."
        )
    return " ".join(out)
