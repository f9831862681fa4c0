"""Tables of several runs side by side, in Markdown, from the JSON files that the other modules wrote.

python -m experiments.tables --runs=runs/minilm --workdir=experiments/results/first_real_run

Finds every summary.json, scores.json and conflict.json below --runs, copies them to WORKDIR (without Gram matrices,
checkpoints or folder names of this machine) and writes WORKDIR/tables.md.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.run_tables import KINDS, ORDER, TABLES, _label, _run, _strategy, _without_folders
from experiments.common.workdirs import owned
from jaxprefit.conflict.report.results import ConflictReport
from jaxprefit.errors import UserError
from jaxprefit.runtime.files import read_json, write_json, write_text
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.terminal import lines


@owned("tables")
def run(config: ConfigDict, workdir: pathlib.Path, runs: str) -> str:
    """Writes the tables and returns them."""
    if not runs:
        raise UserError("--runs is missing; give the folder that holds the runs' workdirs")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS.values()}
    for file in sorted(user_path(runs).rglob("*.json")):
        if file.stem not in found or "cells" in file.parts:
            continue
        content = read_json(file)
        if not (kind := KINDS.get(content.get("schema", ""))):
            continue
        try:
            if kind == "conflict" and not (content["version"] == ConflictReport.VERSION and content["probe"]):
                continue  # of an older version, or without the section shown here
            TABLES[kind]([content])
            found[kind].append(_without_folders(content))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{file} is no {kind} of this version ({what}); give a folder without it") from None
    if not any(found.values()):
        raise UserError(f"{runs} holds no summary.json, scores.json or conflict.json")
    written: list[pathlib.Path] = []
    for kind, contents in found.items():
        contents.sort(
            key=lambda c: ([*ORDER, _strategy(c)].index(_strategy(c)), _run(c).get("step") or 0, c.get("seed", 0))
        )
        workdir.mkdir(parents=True, exist_ok=True)
        for content in contents:
            file = workdir / f"{kind}_{_label(content)}.json"
            if file in written:  # two seeds of one strategy, say
                raise UserError(f"{runs} holds two results that would both be {file.name}; give a folder without one")
            written.append(file)
            write_json(file, content)
    text = "\n".join(line for kind, contents in found.items() for line in TABLES[kind](contents))
    write_text(workdir / "tables.md", text)
    print(lines(text))
    return text


if __name__ == "__main__":
    cli.run(run, __doc__ or "", config="configs/default.py", runs="Folder that holds the runs' workdirs.")
