"""What the encoders of a study took and came to, before any task is scored: size, tokens, held-out losses."""

import pathlib
import statistics
from typing import Any

import jax

from experiments.common import assembly, prefinetuning
from experiments.common.start import start_encoder
from experiments.common.study_results import Cost
from experiments.study.expansion import Encoders, Grid, Run, adapter_of
from jaxprefit.encoder import lora
from jaxprefit.encoder.transformer import EncoderConfig

Shape = tuple[EncoderConfig, int]
"""Of a start encoder, and its number of parameters."""


def shapes(grid: Grid, cache: pathlib.Path) -> dict[str, Shape]:
    """By start."""
    out: dict[str, Shape] = {}
    for (start, _), served in grid.encoders.items():
        if start not in out:
            first = start_encoder(next(iter(served.values()))[0].config, cache)
            out[start] = first.config, sum(leaf.size for leaf in jax.tree.leaves(first.params))
    return out


def summaries(run: Run, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """That of its pre-finetuning, or of each of its parts; empty where one has not ended with this config."""
    found = [prefinetuning.finished(part.config, workdir / part.folder) for part in run.parts or (run,)]
    return [summary for summary in found if summary] if all(found) else []


def held_out(served: Encoders, workdir: pathlib.Path) -> dict[str, float]:
    """Family -> held-out loss after pre-finetuning of the encoders that serve it, the mean over their seeds; empty
    where one is not there yet, or was not trained."""
    out = {}
    for family, runs in served.items():
        ended = [summary for one in runs if not one.parts for summary in summaries(one, workdir)]
        found = [s["held_out"][family]["end"]["loss"] for s in ended if family in s["held_out"]]
        if len(found) < len(runs):
            return {}
        out[family] = statistics.fmean(found)
    return out


def cost(grid: Grid, start: str, variant: str, shape: Shape, workdir: pathlib.Path) -> Cost:
    """What a variant takes to train and to keep on a device: first pre-finetuning seed, float32.

    `shape` is that of the start encoder, and its number of parameters.
    """
    served = {one.folder: one for runs in grid.encoders[start, variant].values() for one in runs[:1]}
    ended = [summaries(one, workdir) for one in served.values()]
    tokens: dict[str, int] = {}
    for summary in (s for of_one in ended for s in of_one):
        for family, data in summary["data"].items():
            tokens[family] = tokens.get(family, 0) + data["useful_tokens"]
    encoder, parameters = shape
    adapter = lora.size(assembly.lora_spec(next(iter(served.values())).config), encoder)
    adapters = {adapter_of(r, family) for family, runs in grid.encoders[start, variant].items() for r in runs[:1]}
    return Cost(
        start=start,
        variant=variant,
        backbones=len(served),
        backbone_parameters=parameters * len(served),
        adapter_parameters=adapter,
        adapter_bytes=4 * adapter,
        family_adapter_parameters=adapter * len(adapters - {None}),
        train_tokens=tokens if all(ended) else None,
    )
