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
from flax.traverse_util import unflatten_dict

from jaxprefit.checkpoints import checksums, metadata
from jaxprefit.errors import UserError

FORMAT_VERSION = 1
_NOT_FOR_USE = ("optimizer", "surgery")  # items that only a continued run reads


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint for use: trees of float32 NumPy arrays."""

    params: dict  # {'backbone': ..., 'lora': {adapter: ...}, 'head': {family: ...}}
    meta: dict
    tokenizer: str  # as JSON


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
    quiet()
    folder = folder.absolute()
    require_intact(folder, _NOT_FOR_USE)
    meta = read_meta(folder)
    params = nested({name: read_tree(folder / name) for name in meta["items"]})
    return Loaded(params, meta, read_json_item(folder, "tokenizer")["json"])


def read_optimizer(folder: pathlib.Path) -> dict:
    """The optimizer's state in a step's folder, as nested dicts and lists of NumPy arrays by their names in optax."""
    quiet()
    require_intact(folder.absolute())
    return read_tree(folder.absolute() / "optimizer")


def nested(items: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_items`, nested."""
    return unflatten_dict({tuple(name.split(".")): tree for name, tree in items.items()})


def read_meta(folder: pathlib.Path) -> dict:
    require_item(folder, "meta")
    meta = read_json_item(folder, "meta")
    if not isinstance(meta, dict):
        raise damaged(folder, "the item 'meta' is damaged (it is no JSON object)")
    if meta.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has checkpoint format {meta.get('format_version')}; this version reads format {FORMAT_VERSION}"
        )
    if wrong := metadata.problem(meta):
        raise damaged(folder, f"the item 'meta' is damaged ({wrong})")
    metadata.complete(meta["config"])
    for name in (*meta["items"], "optimizer", "data", "tokenizer"):
        require_item(folder, name)
    return meta


def require_item(folder: pathlib.Path, item: str) -> None:
    if not (folder / item).is_dir():
        raise damaged(folder, f"the checkpoint lacks its item '{item}'")


def require_intact(folder: pathlib.Path, skip: Collection[str] = ()) -> None:
    """Raises UserError where a file is not what was written."""
    if file := checksums.difference(folder, skip):
        item, file = file.split("/")[0][:100], file[:200]  # a damaged list may hold anything
        raise damaged(folder, f"the item '{item}' is damaged ({file} is not what was written)")


def damaged(folder: pathlib.Path, what: str) -> UserError:
    """What is wrong with a step, and the newest step before it that is whole."""
    number = int(folder.name)
    before = [p for p in folder.parent.iterdir() if p.name.isdigit() and int(p.name) < number]
    for step in sorted(before, key=lambda p: int(p.name), reverse=True):
        if not checksums.difference(step):
            return UserError(
                f"{folder}: {what}; step {step.name} is whole: use {step}, or delete {folder} to continue the run there"
            )
    return UserError(f"{folder}: {what}; copy it again, whole, or train anew in another --workdir")


def reason(e: Exception) -> str:
    """A few words for an exception; TensorStore hides the system's error in a page of text."""
    number = re.search(r"os_error_code='(\d+)'", str(e))
    if number:
        return os.strerror(int(number[1]))
    return " ".join((getattr(e, "strerror", None) or str(e) or type(e).__name__).split())[:200]


def read_json_item(folder: pathlib.Path, item: str) -> dict:
    try:
        return json.loads((folder / item / "metadata").read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise damaged(folder, f"the item '{item}' is damaged") from e


def read_tree(folder: pathlib.Path) -> dict:
    try:
        return _read_arrays(folder)
    except Exception as e:  # Orbax and TensorStore raise many kinds
        raise damaged(folder.parent, f"the item '{folder.name}' is damaged") from e


def _read_arrays(folder: pathlib.Path) -> dict:
    reader = ocp.PyTreeCheckpointer()
    saved = reader.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    return reader.restore(folder, restore_args=as_numpy)


def quiet() -> None:
    # Not even errors: Orbax logs a traceback for each of its threads, and raises what matters.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
