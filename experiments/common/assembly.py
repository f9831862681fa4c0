"""From a config to the objects of a run: encoder, data, optimizer, mesh, step."""

import copy
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.common import family_data
from experiments.common.checks import check, check_machine
from experiments.common.start import start_encoder
from jaxprefit import strategies, surgery
from jaxprefit.downstream.tasks import TASKS
from jaxprefit.encoder import lora
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.transformer import Encoder, EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES, Family, mixture
from jaxprefit.model import Model
from jaxprefit.runtime.distributed import first
from jaxprefit.runtime.sharding import check_rows, hidden_rows, make_mesh, put_batch, put_state, row_devices, shardings
from jaxprefit.training import loop, optim, train_step
from jaxprefit.training.checkpoints import PLACES

Scores = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run is made of."""

    start: Pretrained
    data: dict[str, family_data.FamilyData]  # of every family
    setup: train_step.Setup
    optimizer: optim.OptimizerConfig
    mesh: jax.sharding.Mesh
    params: train_step.Params
    aggregate: surgery.Aggregator


def named_families(config: ConfigDict) -> tuple[str, ...]:
    """The families that have sources, which a strategy over several families trains all of.

    Raises UserError for an unknown strategy, and for one that lacks a source of what it trains.
    """
    name = strategies.make(config.strategy, FAMILIES).name
    named = tuple(f for f in FAMILIES if config.data[f].sources)
    single = name.removeprefix("individual_")
    needed = () if name == "none" else (single,) if single in FAMILIES else named if len(named) > 1 else FAMILIES
    for family in needed:
        if family not in named:
            what = f"'{family}'" if family == single else "several families"
            raise UserError(f"strategy '{name}' trains {what}, but data.{family}.sources is empty")
    return named


def lora_spec(config: ConfigDict) -> lora.LoraSpec:
    """The LoRA settings; what makes an adapter validates them."""
    c = config.lora
    return lora.LoraSpec(c.last_layers, tuple(c.targets), c.rank, c.alpha, c.dropout, tuple(c.layers))


def make_run(config: ConfigDict, workdir: pathlib.Path) -> Run:
    """Everything for one pre-finetuning run, checked before anything is written or trained."""
    check(config)
    # An unknown name fails before data is read; the next line too.
    aggregate = surgery.get(config.aggregator, config.aggregator_scope, config.aggregator_decay)
    named = named_families(config)
    optimizer = optim.OptimizerConfig(**config.optimizer.to_dict())
    mesh = make_mesh(config.devices, **config.mesh)
    cache = family_data.cache_folder(config, workdir)
    if cache.exists() and not cache.is_dir():
        raise UserError(f"{cache} is a file; give the name of a folder, new or old")
    start = start_encoder(config, cache)
    check_machine(config, start.config, row_devices(mesh))
    spec = lora_spec(config)
    planned = strategies.make(config.strategy, named)  # all is checked before data is read
    if planned.adapters:
        spec.validate(start.config)
    for name in planned.families:
        check_family(config, name, mesh, start.config)
    data = family_data.load(config, start.tokenizer, cache)
    constants = [c for d in data.values() for c in d.family.constants]
    encoders = [e for d in data.values() for e in d.family.encoders]
    strategy = strategies.make(config.strategy, named, constants, encoders)
    families = {name: data[name].family for name in strategy.families}
    for name, family in families.items():
        mixture.check_room(family, family_data.layout(config, name))
    weights = {name: config.data[name].loss_weight for name in families}
    parts = accumulation(config, config.run.accumulate, families, row_devices(mesh))
    encoder = Encoder(start.config, config.run.remat, hidden_rows(mesh))
    setup = train_step.Setup(encoder, families, strategy, weights, spec.dropout, parts=parts)
    params = train_step.init_params(strategy, families, start, spec, jax.random.key(config.seed))
    return Run(start, data, setup, optimizer, mesh, params, aggregate)


def check_family(config: ConfigDict, name: str, mesh: jax.sharding.Mesh, encoder: EncoderConfig) -> None:
    """Raises UserError for batches of a family that do not fit the mesh or the encoder."""
    c = config.data[name]
    check_rows(mesh, c.rows, f"data.{name}.rows")
    if not 4 <= c.max_length <= encoder.max_positions:
        raise UserError(
            f"data.{name}.max_length is {c.max_length}; this encoder takes 4 to {encoder.max_positions} tokens"
        )
    if c.row_length < c.max_length:
        raise UserError(
            f"data.{name}.row_length is {c.row_length}; "
            f"a row must hold a text of data.{name}.max_length, {c.max_length}"
        )


def accumulation(config: ConfigDict, parts: int, families: Mapping[str, Family], devices: int) -> dict[str, int]:
    """Family -> `parts`, the number of micro-batches, for those that accumulate gradients.

    Raises UserError where the rows of a family cannot be cut so, or where a family can neither accumulate nor encode
    its rows in chunks.
    """
    out = {}
    for name, family in families.items():
        c = config.data[name]
        if family.accumulates:
            if c.rows % (parts * devices):
                raise UserError(
                    f"run.accumulate is {parts}; data.{name}.rows, {c.rows}, must be a multiple of that "
                    f"times the {devices} devices on the data axes"
                )
            out[name] = parts
        elif parts > 1 and not c.get("chunk_rows"):
            raise UserError(
                f"run.accumulate is {parts}, but the loss of {name} sees all texts of a batch together; "
                f"set data.{name}.chunk_rows as well, such as {max(c.rows // parts, 1)}: there it saves the memory"
            )
    return out


def reopen(
    model: Model, config: ConfigDict, workdir: pathlib.Path
) -> tuple[ConfigDict, dict[str, family_data.FamilyData], train_step.Setup]:
    """(config, data, setup) of the run that `model` was loaded from, to take its gradients again.

    Where things lie (`checkpoints.PLACES`) comes from `config` as far as it says so, all else from the checkpoint.
    """
    saved = ConfigDict(model.meta["config"])
    _take_places(saved, config)
    data = family_data.load(saved, model.tokenizer, family_data.cache_folder(saved, workdir))
    strategy = model.strategy
    families = {name: data[name].family for name in strategy.families}
    for name, family in families.items():
        if family.describe() != model.meta["families"][name]:
            raise UserError(f"the {name} sources differ from those the checkpoint was trained on; check data.root")
    rows = {name: fingerprints(data[name]) for name in families}
    if rows != model.meta.get("data", rows):  # a model that was put together by hand names none
        _warn(
            "the rows to train on are not those that the run was trained on (other data, or a version of before the "
            "held-out rows were drawn over the whole file), so held-out numbers may be of rows it has seen"
        )
    parts = accumulation(saved, config.run.accumulate, {n: f for n, f in families.items() if f.accumulates}, 1)
    return saved, data, train_step.Setup(Encoder(model.config, config.run.remat), families, strategy, {}, parts=parts)


def original(model: Model, config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """The config that the run of `model` had, to train from its start again; run.* and conflict.* are those of
    `config`, and its places as far as it names them."""
    out = copy.deepcopy(config)
    out.update(ConfigDict(model.meta["config"]))
    _take_places(out, config)
    out.data.cache = str(family_data.cache_folder(out, workdir))
    return out


def _take_places(saved: ConfigDict, config: ConfigDict) -> None:
    here = flatten_dict(config.to_dict(), sep=".")
    saved.update_from_flattened_dict({key: here[key] for key in PLACES if here[key]})


def fresh_state(run: Run) -> tuple[train_step.TrainState, Any]:
    """(state at step 0 on the mesh, its optimizer)."""
    flat = flatten_dict(run.params, sep="/")
    tx = optim.make_optimizer(run.setup.strategy, flat, run.optimizer)
    return put_state(run.mesh, _first_state(run, tx, run.params)), tx


def _first_state(run: Run, tx: Any, params: train_step.Params) -> train_step.TrainState:
    return train_step.init_state(params, tx, train_step.init_surgery(run.setup.strategy, params, run.aggregate))


def saved_config(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that a continued run must share with its beginning, as JSON."""
    content = json.loads(config.to_json_best_effort())
    saved = {k: v for k, v in content.items() if k not in ("run", "mesh", "conflict", "downstream", "filter")}
    if config.data.drop_overlap:  # then the tests decide which rows are trained on
        saved["downstream"] = {name: content["downstream"][name] for name in TASKS}
    return saved


def data_fingerprints(run: Run) -> dict[str, dict[str, str]]:
    """Trained family -> source -> `mixture.Rows.fingerprint`."""
    return {f: fingerprints(run.data[f]) for f in run.setup.families}


def fingerprints(data: family_data.FamilyData) -> dict[str, str]:
    """Source -> `mixture.Rows.fingerprint` of the rows trained on."""
    return {name: rows.fingerprint for name, rows in data.train}


def make_step(run: Run, tx: Any, config: ConfigDict) -> loop.Step:
    """The run's jitted step."""
    like = jax.eval_shape(functools.partial(_first_state, run, tx), run.params)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    skip = config.run.nonfinite == "skip"
    return train_step.make_step(
        run.setup, tx, run.optimizer, run.aggregate, run.mesh, key, config.run.log_gram, skip, shardings(run.mesh, like)
    )


def loop_config(config: ConfigDict, steps: int, checkpoint_every: int) -> loop.LoopConfig:
    """The loop's settings, for the step of `make_step`."""
    c = config.run
    return loop.LoopConfig(steps, checkpoint_every, c.log_every, c.nonfinite, c.nonfinite_limit, c.profile)


def held_out_batches(run: Run, config: ConfigDict) -> dict[str, list[dict[str, np.ndarray]]]:
    """Batches of the held-out rows of every trained family."""
    return {
        name: mixture.held_out_batches(d.family, d.held_out, family_data.layout(config, name), config.seed)
        for name, d in run.data.items()
        if name in run.setup.families
    }


def held_out_scorer(run: Run, config: ConfigDict) -> Callable[[Mapping[str, jax.Array]], Scores]:
    """A function of flat parameters: family -> mean held-out loss and metrics without dropout, on the same batches.

    Its first call tells of families without a held-out row, and of batches that say nothing.
    """
    batches = held_out_batches(run, config)
    evaluate = {name: train_step.make_eval(run.setup, name) for name in batches}
    if config.data.held_out:
        for name in (n for n in batches if not batches[n]):
            _warn(f"no source of {name} has the 10 rows that one is held out of, so there is no held-out score of it")
    told: set[str] = set()

    def score(flat: Mapping[str, jax.Array]) -> Scores:
        scores = {}
        for name in (n for n in run.setup.families if batches[n]):
            results = [jax.device_get(evaluate[name](flat, put_batch(run.mesh, b))) for b in batches[name]]
            scores[name], silent = mean_scores(results)
            if silent and name not in told:
                told.add(name)
                _warn(
                    f"{silent} of {len(results)} held-out batches of {name} have no pair with a negative: their loss "
                    "is 0 whatever the encoder, their accuracy undefined, "
                    + ("and there is no other" if silent == len(results) else "and they are left out")
                )
        return scores

    return score


def mean_scores(results: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], int]:
    """(means over the batches of `results`, with their number as 'batches'; how many of them say nothing).

    A batch whose accuracy is undefined (`info_nce`) is left out; where all are such, so is the accuracy.
    """
    telling = [r for r in results if not np.isnan(r.get("accuracy", 0.0))]
    used = telling or results
    names = [k for k in used[0] if telling or k != "accuracy"]
    means = {k: float(sum(r[k] for r in used) / len(used)) for k in names}
    return {**means, "batches": len(used)}, len(results) - len(telling)


def _warn(message: str) -> None:
    if first():
        print(message, file=sys.stderr)
