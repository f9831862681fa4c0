"""Mode compare of experiments.conflict: the probes of several runs side by side."""

import copy
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxprefit.conflict.report import document
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import read_json
from jaxprefit.runtime.paths import user_path


def measure(
    config: ConfigDict,
    workdir: pathlib.Path,
    paths: Sequence[str],
    probe: Callable[..., dict[str, Any]],
    identify: Callable[[str], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The section 'compare': one entry for each report's folder, or run, which is then probed below `workdir`.

    A probe that is there already stands where it is of the same run, step and settings. Raises UserError where the
    report there is on another run (`identify`: a checkpoint -> which run it is).
    """
    found, named = [], [_name(p) for p in paths]
    if len(paths) < 2 or len({*named}) < len(named):
        raise UserError(f"--checkpoint={','.join(paths)}: mode compare takes two or more of different names")
    one = copy.deepcopy(config)
    one.conflict.mode = "probe"
    for path, name in zip(paths, named):
        folder = user_path(path)
        if not (folder / "conflict.json").is_file():
            folder = workdir / name
            there = document.content(identify(path), {}, folder / "conflict.json")["probe"]
            if not there or any(there[key] != config.conflict[key] for key in ("rounds", "seed")):
                probe(one, folder, path, show=False)
        content = document.read(folder / "conflict.json")
        if content["probe"] is None:
            raise UserError(f"{folder / 'conflict.json'} holds no probe; run mode probe there first")
        about = {k: content["run"][k] for k in ("strategy", "aggregator", "step", "seed")}
        measured = {k: content["probe"][k] for k in ("rounds", "batch_tokens", "pairs")}
        losses = _held_out(user_path(content["run"]["checkpoint"]), content["run"]["step"])
        found.append({"name": name, **about, "held_out": losses, **measured})
    return found


def _name(path: str) -> str:
    """'runs/naive' -> 'naive', 'runs/naive/checkpoints/200' -> 'naive_200'."""
    folder = user_path(path)
    return f"{folder.parents[1].name}_{folder.name}" if folder.name.isdigit() else folder.name


def _held_out(checkpoint: pathlib.Path, step: int) -> dict[str, float] | None:
    """Final held-out losses of a run, where its summary is there and tells of this step."""
    file = checkpoint / "summary.json"
    if not file.is_file():
        return None
    summary = read_json(file)
    return {f: s["end"]["loss"] for f, s in summary["held_out"].items()} if summary["steps"] == step else None
