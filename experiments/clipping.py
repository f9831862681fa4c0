r"""Gradients clipped by family, or the combined update clipped: held-out losses, and what surgery does in each case.

python -m experiments.clipping --workdir=runs/clipping --config.model.path=DIR --config.data.root=DIR

Trains each strategy of clipping.strategies with aggregator 'sum' and each choice of optimizer.clip, once per seed of
clipping.seeds. Writes WORKDIR/clipping.json: held-out losses by family, and for every method that reads the Gram matrix
the angle between its combined gradient and the plain sum, from the logged Gram matrices of the shared parameters. The
same command continues where it was stopped.
"""

import copy
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.common import assembly, cli
from experiments.common.checks import check
from experiments.common.workdirs import owned
from experiments.conflict import ablate
from jaxprefit import surgery
from jaxprefit.conflict.ablation import Variant
from jaxprefit.gram import GROUPINGS, regroup
from jaxprefit.runtime.files import write_json

CLIPPING_VERSION = 1
METHODS = tuple(name for name, method in surgery.METHODS.items() if method.reads_gram and name != "gradnorm")


@owned("clipping")
def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains what is not there yet, and returns what clipping.json holds."""
    check(config)
    cells, angles = [], []
    for seed in config.clipping.seeds:
        for strategy in config.clipping.strategies:
            for clip in ("families", "combined"):
                c = copy.deepcopy(config)
                c.update_from_flattened_dict(
                    {"strategy": strategy, "seed": seed, "optimizer.clip": clip, "run.log_gram": True}
                )
                folder = workdir / f"{strategy}_{clip}_{seed}"
                about = {"strategy": strategy, "clip": clip, "seed": seed}
                cells.append({**about, **_cell(c, folder)})
                print(json.dumps(cells[-1]), flush=True)
                angles.append({**about, **directions(folder / "metrics.jsonl", c)})
    content = {
        "schema": "jaxprefit.clipping",
        "version": CLIPPING_VERSION,
        "start": pathlib.Path(config.model.path).name or "random",
        "steps": config.optimizer.steps,
        "clip_norm": config.optimizer.clip_norm,
        "runs": cells,
        "angles": angles,
    }
    write_json(workdir / "clipping.json", content)
    return content


def _cell(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Held-out losses after the training of `config`; read where they are there already."""
    file = folder / "losses.json"
    if not file.exists():
        start = assembly.make_run(config, folder)
        held_out = assembly.held_out_batches(start, config)
        losses = ablate.train_cell(config, Variant("plain", ""), held_out, folder)
        write_json(file, {"held_out": {f: round(float(np.mean(x)), 5) for f, x in losses.items()}})
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def directions(metrics: pathlib.Path, config: ConfigDict) -> dict[str, Any]:
    """How the families' gradients lie to each other and to the plain sum, over the steps of a run.

    `clipped` is the share of steps in which all families are longer than the clip norm; `norms` and `cosine` are means
    over the shared parameters; `angle` is the mean and largest angle to the sum in degrees over the clipped steps, by
    decay of the Gram matrices and method.
    """
    steps = [*grams(metrics)]
    norms = np.asarray([np.sqrt(np.diag(gram)) for gram, _ in steps])
    limit = config.optimizer.clip_norm
    return {
        "clipped": round(float(np.mean([(total > limit).all() for _, total in steps])), 4),
        "norms": [round(float(x), 4) for x in norms.mean(0)],
        "cosine": round(float(np.mean([gram[0, 1] / np.sqrt(gram[0, 0] * gram[1, 1]) for gram, _ in steps])), 4),
        "angle": {f"{decay:g}": angles(steps, config, decay) for decay in config.clipping.decays},
    }


def angles(steps: list[tuple[np.ndarray, np.ndarray]], config: ConfigDict, decay: float) -> dict[str, dict[str, float]]:
    """Method -> its `mean` and `max` angle to the sum, as the step of `config` with this decay would weigh them."""
    out = {}
    for name in METHODS:
        aggregate = surgery.get(name, decay=decay)
        weigh = jax.jit(lambda gram, state, aggregate=aggregate: aggregate(gram, jnp.ones(2), state, [0, 1]))
        state = aggregate.init(2, ["whole"])
        found = []
        for gram, total in steps:
            if config.optimizer.clip == "families":
                factor = np.minimum(1.0, config.optimizer.clip_norm / total)
                gram = gram * np.outer(factor, factor)
            weights, state = weigh({"whole": jnp.asarray(gram, jnp.float32)}, state)
            if (total > config.optimizer.clip_norm).all():
                found.append(angle(gram, np.asarray(weights["whole"], np.float64), np.ones(2)))
        out[name] = {"mean": round(float(np.mean(found)), 3), "max": round(max(found), 3)} if found else {}
    return out


def angle(gram: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Degrees between the combinations of gradients with Gram matrix [F, F] by two vectors of weights [F]."""
    product = first @ gram @ second / np.sqrt(first @ gram @ first * (second @ gram @ second))
    return float(np.degrees(np.arccos(np.clip(product, -1.0, 1.0))))


def grams(metrics: pathlib.Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The steps' Gram matrices [F, F] of all shared parameters, with each family's norm [F] over all it touches."""
    for line in metrics.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        blocks = {k.removeprefix("gram/"): np.asarray(v) for k, v in values.items() if k.startswith("gram/")}
        norms = [v for k, v in values.items() if k.startswith("gradient_norm/")]
        yield regroup(blocks, GROUPINGS["whole"])["whole"], np.asarray(norms)


if __name__ == "__main__":
    cli.run(run, __doc__ or "", "configs/clipping.py")
