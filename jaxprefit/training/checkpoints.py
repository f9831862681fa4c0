"""A run's checkpoints: saved whole, restored exactly. `jaxprefit.checkpoints` reads them without training code."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprefit.checkpoints import checksums
from jaxprefit.checkpoints.reader import (
    FORMAT_VERSION,
    damaged,
    nested,
    quiet,
    read_meta,
    reason,
    require_intact,
    require_item,
)
from jaxprefit.errors import UserError
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.sharding import put
from jaxprefit.training.train_step import TrainState

PLACES = (
    "data.root", "data.cache", "data.ner.teacher", "data.ner.teacher_cache", "model.path", "model.vocab_path",
    "devices",
)  # fmt: skip
"""Config keys that may differ when a run is continued elsewhere."""


class Checkpoints:
    """The checkpoints of one run. Writes are synchronous: after `save` returns, the step is safe."""

    def __init__(self, workdir: pathlib.Path, keep: int = 2):
        quiet()
        self.folder = user_path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: Mapping[str, Any], tokenizer: str, meta: Mapping[str, Any]) -> None:
        """Writes `state` with the data streams' positions; does nothing where its step is there already.

        Raises UserError where that fails, as on a full disk; the steps before are as they were.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = _items(state.params)
        meta = {**meta, "format_version": FORMAT_VERSION, "step": step, "items": sorted(items)}
        trees = {name: ocp.args.PyTreeSave(tree) for name, tree in {**items, **_states(state)}.items()}
        args = ocp.args.Composite(
            **trees,
            data=ocp.args.JsonSave(dict(data)),
            tokenizer=ocp.args.JsonSave({"json": tokenizer}),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            self._manager.save(step, args=args)
            checksums.write(self.folder / str(step))
        except Exception as e:  # Orbax and TensorStore raise many kinds
            raise UserError(
                f"{self.folder}: step {step} cannot be written ({reason(e)}); earlier steps are kept. "
                "See that there is room and permission, then run the same command again"
            ) from e

    def restore(self, step: int, like: TrainState, meta: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """(state, data positions) of `step`, laid out as `like`, a fresh state of the same run.

        Raises UserError where an item is missing or damaged, or where the run that continues is another one: a
        difference in config, encoder, families, data or tokenizer between its `meta` and the saved one.
        """
        folder = self.folder / str(step)
        require_intact(folder)
        saved = read_meta(folder)
        for part in ("config", "encoder", "families", "data", "tokenizer"):
            if changed := _first_difference(saved[part], meta[part]):
                raise UserError(
                    f"{folder} was written with another {part}: {changed}; use a new --workdir, or change it back"
                )
        for name in _states(like):
            require_item(folder, name)
        trees = {**_items(like.params), **_states(like)}
        args = {
            name: ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
            for name, tree in trees.items()
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args, data=ocp.args.JsonRestore()))
        except Exception as e:  # Orbax and TensorStore raise many kinds
            raise damaged(folder, f"an item is damaged ({reason(e)})") from e
        params = flatten_dict(nested({name: restored[name] for name in _items(like.params)}), sep="/")
        at = put(np.asarray(step, np.int32), like.step.sharding)
        return TrainState(at, params, restored["optimizer"], restored.get("surgery", ())), restored["data"]


def _items(params: Mapping[str, Any]) -> dict[str, Any]:
    """Flat parameters -> item name -> nested tree: 'backbone', 'lora.ner', 'head.ner', ..."""
    tree = unflatten_dict(dict(params), sep="/")
    items = {"backbone": tree["backbone"]}
    for kind in ("lora", "head"):
        items |= {f"{kind}.{name}": sub for name, sub in tree.get(kind, {}).items()}
    return items


def _states(state: TrainState) -> dict[str, Any]:
    """Item name -> tree of what is kept beside the parameters. Orbax refuses a tree without leaves."""
    return {"optimizer": state.opt_state} | ({"surgery": state.surgery} if jax.tree.leaves(state.surgery) else {})


def _first_difference(old: Any, new: Any) -> str:
    """'key: old -> new' for the first differing leaf of two nested dicts; '' where they agree but for places."""
    old, new = json.loads(json.dumps([old, new]))
    if not isinstance(old, dict):
        return "" if old == new else f"{old} -> {new}"
    a, b = (flatten_dict(c, sep=".") for c in (old, new))
    for key in sorted(a.keys() | b.keys()):
        if key not in PLACES and a.get(key) != b.get(key):
            was, now = (str(c.get(key))[:200] for c in (a, b))  # a family may list 200,000 concepts
            return f"{key}: {was} -> {now}"
    return ""


def resume(checkpoints: Checkpoints, fresh: TrainState, streams: Mapping[str, Any], meta: Mapping) -> TrainState:
    """The latest checkpoint's state with `streams` moved to its position, or `fresh` where there is none.

    `meta` says what run this is; a checkpoint of another one is refused.
    """
    latest = checkpoints.latest()
    if latest is None:
        return fresh
    state, saved = checkpoints.restore(latest, fresh, meta)
    for name, stream in streams.items():
        stream.set_state(saved[name])
    return state
