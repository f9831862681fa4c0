"""A task_primary step against the same work in transformers and peft on torch, on the same texts, in turns.

Needs model.path, a BERT that both can read, and `pip install torch transformers peft`. Both get the texts of the same
packed batches, ready in memory: this side as they are packed, the peer padded to the longest of a batch. Losses of the
first batch show that the work is the same.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.benchmark.timing import interleaved, ratios, spread
from experiments.common import assembly, family_data
from jaxprefit.errors import UserError
from jaxprefit.families import useful_tokens
from jaxprefit.runtime.sharding import put_batch
from jaxprefit.training import train_step


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Useful tokens per second of both, their ratio, and what part of each one's places is no padding."""
    try:
        from experiments.benchmark import peer_torch
    except ImportError as e:
        raise UserError(f"what=peer needs {e.name}; pip install torch transformers peft") from None
    if not config.model.path:
        raise UserError("what=peer needs an encoder that both can read; give model.path, a Hugging Face directory")
    config.strategy, config.data.tc.chunk_rows, config.run.log_gram = "task_primary", 0, False
    run = assembly.make_run(config, workdir)
    streams = family_data.streams(run.data, run.setup.families, config, config.seed)
    drawn = [{name: next(s).batch for name, s in streams.items()} for _ in range(config.steps_per_repetition)]
    for stream in streams.values():
        stream.close()
    concepts = np.asarray(run.params["head"]["ner"]["concepts"])
    theirs = peer_torch.Peer(config.model.path, assembly.lora_spec(config), run.optimizer, concepts,
                             config.data.tc.temperature)  # fmt: skip
    padded = [{"ner": ner_batch(peer_torch, batch["ner"]), "tc": tc_batch(peer_torch, batch["tc"])} for batch in drawn]
    ours = _Steps(run, config, drawn)
    losses = {}
    for name in run.setup.families:
        mine = train_step.make_eval(run.setup, name)(ours.state.params, drawn[0][name])["loss"]
        losses[name] = [float(jax.device_get(mine)), theirs.loss(name, padded[0][name])]

    def step_peer() -> None:
        for batch in padded:
            theirs.step(batch["ner"], batch["tc"])

    seconds = interleaved({"jaxprefit": ours, "peer": step_peer}, config.repetitions)
    tokens = sum(int(useful_tokens(b)) for batch in drawn for b in batch.values())
    places = {
        "jaxprefit": sum(b["segments"].size for batch in drawn for b in batch.values()),
        "peer": sum(peer_torch.places(batch["ner"], batch["tc"]) for batch in padded),
    }
    return {
        "encoder": f"{run.start.config.num_layers} x {run.start.config.hidden_size}",
        "lora": dataclasses.asdict(assembly.lora_spec(config)),
        "sources": {name: [source for source, _ in run.data[name].train] for name in run.setup.families},
        "versions": {"jax": jax.__version__, **peer_torch.versions()},
        "threads": peer_torch.threads(),
        "steps": len(drawn),
        "losses": losses,
        "useful_tokens": tokens,
        "useful_share": {name: tokens / n for name, n in places.items()},
        "tokens_per_s": {name: spread([tokens / s for s in values]) for name, values in seconds.items()},
        "ratio": ratios(seconds["peer"], seconds["jaxprefit"]),
    }


class _Steps:
    """The project's step over all batches; a call returns when they are done."""

    def __init__(self, run: assembly.Run, config: ConfigDict, drawn: list[dict[str, Any]]) -> None:
        self.state, tx = assembly.fresh_state(run)
        self.step = assembly.make_step(run, tx, config)
        self.batches = [{name: put_batch(run.mesh, b) for name, b in batch.items()} for batch in drawn]

    def __call__(self) -> None:
        for batch in self.batches:
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready((self.state, metrics))


def unpacked(batch: Mapping[str, np.ndarray], key: str, per_row: int) -> dict[int, np.ndarray]:
    """Slot -> the values [n] at its text's tokens, of a packed array [R, L]."""
    segments = batch["segments"]
    return {
        row * per_row + segment - 1: batch[key][row][segments[row] == segment]
        for row in range(len(segments))
        for segment in range(1, segments[row].max() + 1)
    }


def ner_batch(peer: Any, batch: Mapping[str, np.ndarray]) -> Any:
    """The sentences of a packed batch as `peer_torch.NerBatch`."""
    _, per_row, places = batch["annotated"].shape
    ids, labels = (unpacked(batch, key, per_row) for key in ("input_ids", "labels"))
    annotated = batch["annotated"].reshape(-1, places)[[*ids]]
    return peer.NerBatch.of([*ids.values()], [*labels.values()], annotated, batch["concepts"])


def tc_batch(peer: Any, batch: Mapping[str, np.ndarray]) -> Any:
    """The pairs of a packed batch as `peer_torch.TcBatch`."""
    there = batch["valid"]
    ids = unpacked(batch, "input_ids", 2 * len(there) // len(batch["segments"]))
    a, b = ([ids[slot] for slot in batch[f"{side}_slot"][there]] for side in "ab")
    return peer.TcBatch.of(a, b, batch["a_key"][there], batch["b_key"][there])
