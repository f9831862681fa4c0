"""Checkpoints through Orbax: save, resume exactly, read for use.

    WORKDIR/checkpoints/STEP/
        backbone      lora.<adapter>      head.<family>     one item each, restorable alone
        optimizer     moments and counts, by group of the touch table
        surgery       what the aggregator keeps between steps, where it keeps anything
        data          position in each family's stream
        tokenizer     tokenizer.json's content
        meta          format version, config, encoder, touch table, step, names of all items
        SHA256SUMS    checksums of all these files, compared before anything of them is used

A step's folder appears under its final name only when everything in it but the checksums is written. Of several
processes (`distributed`) each writes the parts of arrays that its devices hold, and the first all the rest.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprefit.checkpoints import checksums
from jaxprefit.checkpoints import metadata as checkpoint_meta
from jaxprefit.errors import UserError
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.sharding import put
from jaxprefit.training.train_step import TrainState

FORMAT_VERSION = 1
PLACES = (
    "data.root", "data.cache", "data.ner.teacher", "data.ner.teacher_cache", "model.path", "model.vocab_path",
    "devices",
)  # fmt: skip
"""Config keys that may differ when a run is continued elsewhere."""
_NOT_FOR_USE = ("optimizer", "surgery")  # items that only a continued run reads


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint for use: trees of float32 NumPy arrays."""

    params: dict  # {'backbone': ..., 'lora': {adapter: ...}, 'head': {family: ...}}
    meta: dict
    tokenizer: str  # as JSON


class Checkpoints:
    """The checkpoints of one run. Writes are synchronous: after `save` returns, the step is safe."""

    def __init__(self, workdir: pathlib.Path, keep: int = 2):
        _quiet()
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
                f"{self.folder}: step {step} cannot be written ({_reason(e)}); earlier steps are kept. "
                "See that there is room and permission, then run the same command again"
            ) from e

    def restore(self, step: int, like: TrainState, meta: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """(state, data positions) of `step`, laid out as `like`, a fresh state of the same run.

        Raises UserError where an item is missing or damaged, or where the run that continues is another one: a
        difference in config, encoder, families, data or tokenizer between its `meta` and the saved one.
        """
        folder = self.folder / str(step)
        _compare(folder)
        saved = _read_meta(folder)
        for part in ("config", "encoder", "families", "data", "tokenizer"):
            if changed := _first_difference(saved[part], meta[part]):
                raise UserError(
                    f"{folder} was written with another {part}: {changed}; use a new --workdir, or change it back"
                )
        for name in _states(like):
            _require(folder, name)
        trees = {**_items(like.params), **_states(like)}
        args = {
            name: ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
            for name, tree in trees.items()
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args, data=ocp.args.JsonRestore()))
        except Exception as e:  # Orbax and TensorStore raise many kinds
            raise _damaged(folder, f"an item is damaged ({_reason(e)})") from e
        params = flatten_dict(_tree({name: restored[name] for name in _items(like.params)}), sep="/")
        at = put(np.asarray(step, np.int32), like.step.sharding)
        return TrainState(at, params, restored["optimizer"], restored.get("surgery", ())), restored["data"]


def find(path: pathlib.Path) -> pathlib.Path | None:
    """The newest step's folder of a workdir or of its checkpoints/, `path` itself where it is one step's folder or a
    link to one, None for anything else."""
    path = path.resolve() if path.is_symlink() else path
    if path.name == "checkpoints" and any(p.name.isdigit() for p in path.glob("*/")):
        path = path.parent
    if (path / "checkpoints").is_dir():
        steps = [p for p in (path / "checkpoints").iterdir() if p.name.isdigit()]
        if not steps:
            raise UserError(f"{path} holds no complete checkpoint yet; run the training command again to continue")
        return max(steps, key=lambda p: int(p.name))
    return path if path.name.isdigit() and any((path / n).is_dir() for n in ("meta", "backbone")) else None


def read(folder: pathlib.Path) -> Loaded:
    """A step's folder as NumPy trees, whatever devices it was written on. Raises UserError for a missing or damaged
    item."""
    _quiet()
    folder = folder.absolute()
    _compare(folder, _NOT_FOR_USE)
    meta = _read_meta(folder)
    params = _tree({name: _read_tree(folder / name) for name in meta["items"]})
    return Loaded(params, meta, _read_json_item(folder, "tokenizer")["json"])


def read_optimizer(folder: pathlib.Path) -> dict:
    """The optimizer's state in a step's folder, as nested dicts and lists of NumPy arrays by their names in optax."""
    _quiet()
    _compare(folder.absolute())
    return _read_tree(folder.absolute() / "optimizer")


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


def _tree(items: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_items`, nested."""
    return unflatten_dict({tuple(name.split(".")): tree for name, tree in items.items()})


def _read_meta(folder: pathlib.Path) -> dict:
    _require(folder, "meta")
    meta = _read_json_item(folder, "meta")
    if not isinstance(meta, dict):
        raise _damaged(folder, "the item 'meta' is damaged (it is no JSON object)")
    if meta.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has checkpoint format {meta.get('format_version')}; this version reads format {FORMAT_VERSION}"
        )
    if wrong := checkpoint_meta.problem(meta):
        raise _damaged(folder, f"the item 'meta' is damaged ({wrong})")
    checkpoint_meta.complete(meta["config"])
    for name in (*meta["items"], "optimizer", "data", "tokenizer"):
        _require(folder, name)
    return meta


def _require(folder: pathlib.Path, item: str) -> None:
    if not (folder / item).is_dir():
        raise _damaged(folder, f"the checkpoint lacks its item '{item}'")


def _compare(folder: pathlib.Path, skip: Collection[str] = ()) -> None:
    """Raises UserError where a file is not what was written."""
    if file := checksums.difference(folder, skip):
        item, file = file.split("/")[0][:100], file[:200]  # a damaged list may hold anything
        raise _damaged(folder, f"the item '{item}' is damaged ({file} is not what was written)")


def _damaged(folder: pathlib.Path, what: str) -> UserError:
    """What is wrong with a step, and the newest step before it that is whole."""
    number = int(folder.name)
    before = [p for p in folder.parent.iterdir() if p.name.isdigit() and int(p.name) < number]
    for step in sorted(before, key=lambda p: int(p.name), reverse=True):
        if not checksums.difference(step):
            return UserError(
                f"{folder}: {what}; step {step.name} is whole: use {step}, or delete {folder} to continue the run there"
            )
    return UserError(f"{folder}: {what}; copy it again, whole, or train anew in another --workdir")


def _reason(e: Exception) -> str:
    """A few words for an exception; TensorStore hides the system's error in a page of text."""
    number = re.search(r"os_error_code='(\d+)'", str(e))
    if number:
        return os.strerror(int(number[1]))
    return " ".join((getattr(e, "strerror", None) or str(e) or type(e).__name__).split())[:200]


def _read_json_item(folder: pathlib.Path, item: str) -> dict:
    try:
        return json.loads((folder / item / "metadata").read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise _damaged(folder, f"the item '{item}' is damaged") from e


def _read_tree(folder: pathlib.Path) -> dict:
    try:
        return _read_arrays(folder)
    except Exception as e:  # Orbax and TensorStore raise many kinds
        raise _damaged(folder.parent, f"the item '{folder.name}' is damaged") from e


def _read_arrays(folder: pathlib.Path) -> dict:
    reader = ocp.PyTreeCheckpointer()
    metadata = reader.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
    return reader.restore(folder, restore_args=as_numpy)


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


def _quiet() -> None:
    # Not even errors: Orbax logs a traceback for each of its threads, and raises what matters.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
