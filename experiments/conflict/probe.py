"""Mode probe of experiments.conflict: gradients at the checkpoint's parameters, on batches drawn anew."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.common import assembly, family_data
from experiments.conflict import lookahead
from jaxprefit import gram
from jaxprefit.checkpoints import reader
from jaxprefit.conflict import adam_metric, blocks, lora_gauge
from jaxprefit.conflict.probe import View, probe
from jaxprefit.conflict.results import Adapters, CutCounts, ProbeSection
from jaxprefit.encoder.cuts import Cuts, sentence
from jaxprefit.families import mixture
from jaxprefit.gram import Flat
from jaxprefit.model import Model
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.sharding import check_rows, make_mesh, put_batch, put_state
from jaxprefit.runtime.terminal import progress_bar
from jaxprefit.surgery import METHODS
from jaxprefit.training import optim, train_step


def measure(config: ConfigDict, workdir: pathlib.Path, model: Model, shared: list[str], path: str) -> ProbeSection:
    """The section 'probe' of the checkpoint at `path`; grams.npz with the raw Gram matrices beside it."""
    saved, data, setup = assembly.reopen(model, config, workdir)
    families, optimizer = list(setup.families), optim.OptimizerConfig(**saved.optimizer.to_dict())
    mesh = make_mesh(config.devices, **config.mesh)
    for name in families:
        check_rows(mesh, saved.data[name].rows, f"data.{name}.rows of the run")
    flat = put_state(mesh, flatten_dict(model.params, sep="/"))
    gradients = {
        name: jax.jit(lambda f, batch, name=name: train_step.family_gradients(setup, name, f, batch, None)[2])
        for name in families
    }
    streams = family_data.streams(data, families, saved, config.conflict.seed + 7919)
    joint = optimizer.clipped(METHODS[saved.aggregator].reads_gram) == "combined"
    drawn: dict[str, dict[str, int]] = {}  # by family: examples by source
    factors: dict[str, list[float]] = {name: [] for name in families}

    def gradient(name: str, batch: mixture.Drawn) -> Flat:
        """Gradient of all that the family touches; keeps its factor in the run's step, by loss weight and clipping."""
        drawn[name] = batch.examples
        found = gradients[name](flat, put_batch(mesh, batch.batch))
        clipped = 1.0 if joint else min(1.0, optimizer.clip_norm / max(float(optax.global_norm(found)), 1e-12))
        factors[name].append(saved.data[name].loss_weight * clipped)
        return found

    metric = _metric(path, optimizer)
    views: dict[str, View] = {"adam": adam_metric.view(metric)} if set(shared) <= set(metric) else {}
    directions: dict[str, lora_gauge.Directions] = {}
    if any(p.startswith("lora/") for p in shared):
        views["tangent"], directions = lora_gauge.view(flat)
    rounds = config.conflict.rounds
    with progress_bar() as bar:
        row = bar.add_task("probing", total=rounds)
        found = probe(gradient, streams, shared, rounds, lambda n: bar.update(row, completed=n), views)
    rows = {name: {source: len(part) for source, part in data[name].train} for name in families}
    repeated = repeated_families(drawn, rows)
    plain = found["tangent"] if directions else found["gradient"]
    means = np.asarray([np.mean(factors[name]) for name in families])
    if joint:
        whole = gram.regroup(found["gradient"], gram.GROUPINGS["whole"])["whole"]
        means = means * _combined_factor(whole.rounds, means, optimizer.clip_norm)
    tried = None
    if config.conflict.lookahead and "adam" in views:
        whole = gram.regroup(found["adam"], gram.GROUPINGS["whole"])["whole"]
        held = {
            name: mixture.held_out_batches(d.family, d.held_out, family_data.layout(saved, name), saved.seed)
            for name, d in data.items()
            if name in families
        }
        inputs = lookahead.Inputs(setup, flat, shared, gradient, streams, held, metric, means, optimizer, whole)
        tried = lookahead.measure(inputs, config.conflict.lookahead)
    cuts = {  # of all batches drawn
        name: {source: Cuts(*counts) for source, counts in stream.get_state()["cuts"].items()}
        for name, stream in streams.items()
    }
    section = ProbeSection(
        rounds=rounds,
        batch_tokens={name: family_data.layout(saved, name).tokens for name in families},
        examples={name: sum(drawn[name].values()) for name in families},
        rows={name: sum(rows[name].values()) for name in families},
        repeated=tuple(repeated),
        seed=config.conflict.seed,
        pairs=blocks.pairs(plain, families, found.get("adam"), repeated),
        transfer={
            view: blocks.transfer_matrix(gram.regroup(found[view], gram.GROUPINGS["whole"])["whole"].groups, scale)
            for view, scale in (("gradient", None), ("adam", means))
            if view in found
        },
        adapters=Adapters(**lora_gauge.undefined(directions)._asdict()) if directions else None,
        affinity=tried and tried[0],
        curvature=tried and tried[1],
        cuts={name: {s: CutCounts(**c.report()) for s, c in by_source.items()} for name, by_source in cuts.items()},
    )
    for stream in streams.values():
        stream.close()
    for name, by_source in cuts.items():
        if (total := Cuts.total(by_source.values())).cut_texts:
            print(f"{name}: {sentence(total.report())} {'windowed' if data[name].family.windows else 'cut'}")
    workdir.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{view}:{block}:{part}": x
        for view, of in found.items()
        for block, g in of.items()
        for part, x in g._asdict().items()
        if x is not None
    }
    np.savez(workdir / "grams.npz", **arrays)
    return section


def _combined_factor(rounds: np.ndarray, weights: np.ndarray, clip_norm: float) -> float:
    """Mean factor that clips the sum of weighted gradients, over batches of `conflict.probe.Grams.rounds`."""
    squares = np.einsum("i,niaja,j->na", weights, rounds, weights)
    return float(np.minimum(1.0, clip_norm / np.sqrt(np.maximum(squares, 1e-24))).mean())


def repeated_families(drawn: Mapping[str, Mapping[str, int]], rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Families of which some source gave more examples than it has rows; both are by family and source."""
    return [name for name, sources in drawn.items() if any(n > rows[name][source] for source, n in sources.items())]


def _metric(path: str, optimizer: optim.OptimizerConfig) -> dict[str, jax.Array]:
    """Adam's metric by path, of the checkpoint's own second moments; {} before the first step."""
    folder = reader.find(user_path(path))
    assert folder is not None  # it was loaded
    return adam_metric.preconditioner(reader.read_optimizer(folder), optimizer.b2, optimizer.eps)
