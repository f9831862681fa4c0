r"""Memory, arithmetic and communication of a training step on many chips, from the compiled program alone.

python -m experiments.scaling --workdir=runs/scaling

For each encoder and number of chips of configs/scaling.py the step is compiled for so many simulated CPU devices, with
abstract arrays, and its own cost analysis is read; nothing is run. The batch of a chip is the same everywhere (weak
scaling). Writes WORKDIR/cells/MODEL_CHIPS.json, one a cell, WORKDIR/scaling.json and WORKDIR/scaling.md. The same
command continues, and --only=MiniLM-L6_8,BERT-base_8 does some of the cells.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.common.workdirs import owned
from experiments.scaling import compiled_step
from jaxprefit.errors import UserError
from jaxprefit.render.tables import markdown
from jaxprefit.runtime.files import locked, read_json, write_json, write_text
from jaxprefit.runtime.terminal import printable

SCALING_VERSION = 1
FIELDS = ("run", "mesh", "conflict", "downstream", "filter")  # of the config, that do not change a cell


@owned("scaling")
def run(config: ConfigDict, workdir: pathlib.Path, only: str = "", cell: str = "") -> dict[str, Any] | None:
    """Compiles the cells that are missing, each in a process of its own, and returns what scaling.json holds; with
    `cell`, a name such as BERT-base_8, this is that process."""
    names = cells(config)
    if unknown := [name for name in filter(None, [*only.split(","), cell]) if name not in names]:
        raise UserError(f"there is no cell '{unknown[0]}'; choose from {', '.join(names)}")
    if cell:
        content = compiled_step.measure(config, names[cell][0], workdir)
        write_json(workdir / "cells" / f"{cell}.json", {**header("cell"), "settings": settings(config), **content})
        return None
    with locked(workdir):
        (workdir / "cells").mkdir(exist_ok=True)
        failed = {name: reason for name in names if name in (only or name).split(",")
                  if (reason := compiled(config, workdir, name, names[name][1]))}  # fmt: skip
        return collect(config, workdir, failed)


def cells(config: ConfigDict) -> dict[str, tuple[str, int]]:
    """Name -> (model, chips) of every cell, the small ones first."""
    sizes = sorted((layers * hidden, m) for m, (layers, hidden, _) in config.scaling.models.items())
    return {f"{m}_{n}": (m, n) for _, m in sizes for n in sorted(map(int, config.scaling.layouts[m]))}


def settings(config: ConfigDict) -> dict[str, Any]:
    """All that a cell depends on, as JSON."""
    content = json.loads(config.to_json_best_effort())
    del content["scaling"]["minutes"]
    return {key: value for key, value in content.items() if key not in FIELDS} | {"remat": config.run.remat}


def header(kind: str = "") -> dict[str, Any]:
    """Schema and version of a file."""
    return {"schema": f"jaxprefit.scaling{'_' * bool(kind)}{kind}", "version": SCALING_VERSION}


def done(config: ConfigDict, workdir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """The content of a cell that is there, of these settings."""
    file = workdir / "cells" / f"{name}.json"
    content = read_json(file) if file.exists() else {}
    return content if content.get("settings") == settings(config) else None


def compiled(config: ConfigDict, workdir: pathlib.Path, name: str, chips: int) -> str:
    """Makes a cell, unless it is there; why it could not be made, else ''."""
    if done(config, workdir, name):
        return ""
    print(f"{name} ...", file=sys.stderr, flush=True)
    kept = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags = f"{kept} --xla_force_host_platform_device_count={chips}".strip()
    # A program that comes from the cache of compiled ones has no costs to read.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "experiments.scaling", *sys.argv[1:], f"--cell={name}"]
    try:
        end = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=60 * config.scaling.minutes)
    except subprocess.TimeoutExpired:
        return f"not compiled within {config.scaling.minutes} minutes"
    return "" if end.returncode == 0 else (end.stderr.strip().splitlines() or ["no reason given"])[-1][:200]


def collect(config: ConfigDict, workdir: pathlib.Path, failed: Mapping[str, str]) -> dict[str, Any]:
    """Writes scaling.json and scaling.md from the cells that are there, and returns the former."""
    there = {name: content for name in cells(config) if (content := done(config, workdir, name))}
    found = [{k: v for k, v in c.items() if k not in ("schema", "version", "settings")} for c in there.values()]
    missing = [name for name in cells(config) if name not in there]
    reasons = [{"cell": name, "reason": failed.get(name, "not asked for yet")} for name in missing]
    content = {**header(), "settings": settings(config), "cells": found, "missing": reasons}
    write_json(workdir / "scaling.json", content)
    write_text(workdir / "scaling.md", "\n".join(page(content)))
    print(printable(f"{len(found)} of {len(cells(config))} cells: {workdir / 'scaling.md'}"))
    return content


def page(content: Mapping[str, Any]) -> list[str]:
    """Lines of scaling.md."""
    s, data = content["settings"]["scaling"], content["settings"]["data"]
    tokens = sum(s[f"{f}_rows"] * data[f]["row_length"] for f in ("ner", "tc"))
    lines = [
        "# Scaling",
        "",
        f"One training step of strategy `{content['settings']['strategy']}`, NER and TC together, in float32, with "
        f"{tokens:,} tokens a chip ({s['ner_rows']} rows of NER, {s['tc_rows']} of TC) whatever the number of chips. "
        "The step is compiled for simulated CPU devices and never run: memory is what the compiled program asks for, "
        "FLOPs are XLA's count, communication is read from the program's text. All numbers are of one chip. "
        "`python -m experiments.scaling --workdir=runs/scaling` makes this page.",
        "",
        "Two things grow on each chip with the batch of all: TC takes its negatives from the whole batch, so a chip "
        "scores its pairs against those of all chips; and the NER batch has a place for a concept for each row.",
        "",
        *markdown("Memory and arithmetic", MEMORY, [_memory(c) for c in content["cells"]]),
        "*state*: parameters, optimizer state and the batch; *temporary*: activations, gradients and all else; *peak*: "
        "both, the new state written over the old. *model GFLOPs*: of the layers' matrix products alone, forward and "
        "backward.",
        "",
        *markdown("Communication", TRAFFIC, [_traffic(c) for c in content["cells"] if c["chips"] > 1]),
        "MB of the operations' results, by kind, and what each chip sends if they run on a ring of n chips: "
        "2 (n - 1) / n of an all-reduce, (n - 1) / n of a gather.",
        "",
        *LIMITS,
    ]
    if content["missing"]:
        lines += ["**Missing cells**", "", *(f"- {m['cell']}: {m['reason']}" for m in content["missing"]), ""]
    return lines


MEMORY = ["encoder", "chips", "data x fsdp x tensor", "state MB", "temporary MB", "peak MB", "GFLOPs", "model GFLOPs"]
TRAFFIC = ["encoder", "chips", *compiled_step.KINDS, "operations", "sent MB", "sent bytes a kFLOP"]
LIMITS: Sequence[str] = (
    "**What this does not say.** The program is the CPU compiler's, not a TPU's or GPU's. It is partitioned by the "
    "same pass (SPMD), so which collectives there are and how large is a fair guide. But an accelerator's compiler "
    "makes a reduce-scatter, half as large, of an all-reduce whose result is cut up at once, and lets communication "
    "and arithmetic overlap; its fusions and its order of operations differ, and with them the temporary memory; the "
    "scores of attention [rows, heads, length, length] count in full, which a fused kernel never stores; and bytes say "
    "nothing of links, latency or hosts. The program is compiled in the order that saves memory "
    "(`xla_cpu_scheduler_type`), since the CPU's default one spends memory on parallelism.",
    "",
)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def _memory(c: Mapping[str, Any]) -> list[str]:
    m = c["memory"]
    sizes = [_mb(m[part]) for part in ("argument", "temp", "peak")]
    layout = " x ".join(str(n) for n in c["mesh"].values())
    return [c["model"], str(c["chips"]), layout, *sizes, f"{c['flops'] / 1e9:,.1f}", f"{c['model_flops'] / 1e9:,.1f}"]


def _traffic(c: Mapping[str, Any]) -> list[str]:
    kinds = [c["collectives"][kind] for kind in compiled_step.KINDS]
    sent, number = sum(k["sent"] for k in kinds), sum(k["count"] for k in kinds)
    sizes = [_mb(k["bytes"]) if k["count"] else "-" for k in kinds]
    return [c["model"], str(c["chips"]), *sizes, str(number), _mb(sent), f"{1e3 * sent / c['flops']:.2f}"]
