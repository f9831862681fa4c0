"""Fine-tuning one task on a loaded model, all seeds at once, on the families' touch tables and optimizer."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprefit.data.packing import Layout, packed, row_length
from jaxprefit.data.rows import Rows
from jaxprefit.downstream import batches, finetune_step, sampling
from jaxprefit.downstream.features import Features
from jaxprefit.downstream.tasks import Task
from jaxprefit.encoder import lora
from jaxprefit.encoder.cuts import Cuts
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.strategies import Strategy
from jaxprefit.training import optim, train_step

_HEAD = ("head/task", ("task",))
_ADAPTER = (("lora/*/scale", ()), ("backbone", ()), ("lora/task", ("task",)), _HEAD)
MODES: dict[str, Strategy] = {
    # What an app does: the backbone stays as it is, its own adapter and head are trained. The adapter starts from the
    # family's, or, stacked, is a fresh one on top of the family's, which is merged into the weights and stays.
    "adapter": Strategy("adapter", _ADAPTER),
    "stacked": Strategy("stacked", _ADAPTER),
    # Only a linear head, on the backbone through the family's adapter as it came.
    "probe": Strategy("probe", (("backbone", ()), _HEAD)),
    # Everything, the family's adapter merged into the weights first.
    "full": Strategy("full", (("backbone", ("task",)), _HEAD)),
}

MTEB = "mteb"
"""A further mode, which trains no part of the encoder: `mteb.py`."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One recipe for every task."""

    mode: str
    steps: int
    batch_size: int
    fraction: float  # of the training rows
    lora_lr: float
    head_lr: float
    backbone_lr: float  # mode full only
    limit: int = 0  # training rows at most, after the fraction; 0: all
    cache_mb: int = 1024  # of frozen activations kept in memory; beyond it they are computed at each step
    shots: int = 0  # of each class, instead of a fraction; 0: as the fraction says

    def validate(self) -> None:
        """Raises UserError for a mode that does not exist, and for two ways of choosing rows at once."""
        if self.mode not in (*MODES, MTEB):
            raise UserError(f"downstream.mode is '{self.mode}'; choose from {', '.join((*MODES, MTEB))}")
        if self.mode == MTEB and not self.shots:
            raise UserError("downstream.shots is 0; downstream.mode=mteb draws so many rows of each label, usually 8")
        if self.shots and (self.fraction < 1 or self.limit):
            raise UserError(
                f"downstream.shots is {self.shots}; with shots downstream.fraction must be 1 and downstream.limit 0"
            )

    @property
    def optimizer(self) -> optim.OptimizerConfig:
        """A tenth of the steps warms up."""
        return optim.OptimizerConfig(
            steps=self.steps,
            warmup_steps=self.steps // 10,
            backbone_lr=self.backbone_lr,
            lora_lr=self.lora_lr,
            head_lr=self.head_lr,
        )


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task with its rows."""

    name: str
    family: str  # 'ner' or 'tc'
    task: Task
    train: Rows
    test: Rows  # the rows it is scored on
    notes: tuple[str, ...] = ()  # what to tell of these rows beside the scores


Predictions = list[list[int]]
"""One entry per test row: the class of each word (NER), or the one class of the text (TC)."""


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What fine-tuning one task gives."""

    predictions: dict[int, Predictions | UserError]  # by seed; the reason where the seed's loss was not finite
    train_rows: int  # trained on
    unseen: tuple[str, ...]  # classes of the head that none of those rows has
    cuts: dict[str, Cuts]  # what was beyond max_length, in the rows trained on ('train') and scored ('test')


def training_rows(data: TaskData, cfg: FinetuneConfig) -> np.ndarray:
    """Indices of the training rows that the recipe uses."""
    if cfg.shots:
        return sampling.shots([data.train[i] for i in range(len(data.train))], cfg.shots)
    return sampling.subset(len(data.train), cfg.fraction, cfg.limit)


def start_params(model: Model, data: TaskData, spec: lora.LoraSpec, mode: str, key: jax.Array) -> train_step.Params:
    """The trees that a task starts from.

    In mode adapter the family's adapter where the model has one, else a fresh one of shape `spec`, so that all
    strategies have the same capacity downstream; in mode stacked always a fresh one.
    """
    adapter = model.adapters.get(data.family)
    head_key, lora_key = jax.random.split(key)
    params: train_step.Params = {
        "backbone": model.backbone,
        "head": {"task": data.task.init_head(head_key, model.pretrained)},
    }
    if mode == "adapter" and adapter:
        params["lora"] = {"task": adapter}
        return params
    if adapter:
        # Merged rather than carried along: nothing of the adapter is trained in these modes.
        params["backbone"] = lora.merge(model.backbone, adapter)
    if MODES[mode].adapters:
        params["lora"] = {"task": lora.init_lora(spec, model.config, lora_key)}
    return params


def frozen_layers(params: train_step.Params, mode: str, layers: int) -> int | None:
    """How many layers lie below all that is trained; None where even the embeddings are."""
    if mode == "full":
        return None
    adapted = params["lora"]["task"] if "lora" in params else {}
    return min((int(name.removeprefix("layer_")) for name in adapted), default=layers)


def finetune(
    model: Model,
    data: TaskData,
    spec: lora.LoraSpec,
    cfg: FinetuneConfig,
    chosen: Sequence[int],
    on_step: Callable[[int], Any] = lambda _: None,
) -> Finetuned:
    """Trains one task with each of the `chosen` seeds, side by side, and predicts the test rows.

    The same rows make each batch whatever the other seeds are, so that a seed's result does not depend on them beyond
    rounding.
    """
    examples = [data.task.encode_record(data.train[int(i)]) for i in training_rows(data, cfg)]
    if not examples:
        reason = f"fits downstream.shots, {cfg.shots}; take more shots" if cfg.shots else "is left; give it more rows"
        raise UserError(f"task '{data.name}': no training row {reason}")
    keys = [jax.random.split(jax.random.key(seed)) for seed in chosen]  # of the start, of dropout
    starts = [start_params(model, data, spec, cfg.mode, key) for key, _ in keys]
    layer = frozen_layers(starts[0], cfg.mode, model.config.num_layers)
    recipe = finetune_step.Recipe(model.config, layer, type(data.task), MODES[cfg.mode], cfg.optimizer, spec.dropout)
    backbone = {} if layer is None else jax.device_put(starts[0]["backbone"])
    state = finetune_step.init(recipe, [finetune_step.trained_part(start, recipe.strategy) for start in starts])
    length = row_length(data.task.max_length)
    ids = [e["ids"] for e in examples]
    features = Features(model.config, backbone, layer, ids, length, cfg.cache_mb * 2**20)

    step, dropout_keys = finetune_step.make_step(recipe), jax.numpy.stack([key for _, key in keys])
    orders = [batches.epochs(len(examples), cfg.batch_size, cfg.steps, seed) for seed in chosen]
    for number, texts in enumerate(zip(*orders), start=1):
        placed = batches.fit(texts, [len(i) for i in ids], length)
        batch = [finetune_step.collate(data.task, examples, features, *one) for one in placed]
        state, losses = step(backbone, state, dropout_keys, jax.tree.map(lambda *x: np.stack(x), *batch))
        on_step(number)

    predictions = predict(recipe, backbone, state.params, data, length)
    outcomes: dict[int, Predictions | UserError] = {}
    for seed, loss, found in zip(chosen, np.asarray(losses), predictions):
        reason = f"task '{data.name}': the loss is {loss} after {cfg.steps} steps; lower the learning rates"
        outcomes[seed] = found if np.isfinite(loss) else UserError(reason)
    cuts = {"train": cuts_of(examples), "test": cuts_of(encoded(data.task, data.test))}
    return Finetuned(outcomes, len(examples), unseen(data.task, examples), cuts)


def encoded(task: Task, data: Rows) -> list[dict[str, Any]]:
    """All rows, encoded by the task, in their order."""
    return [task.encode_record(data[i]) for i in range(len(data))]


def cuts_of(examples: Iterable[Mapping[str, Any]]) -> Cuts:
    """What of encoded rows was beyond max_length."""
    return Cuts.total(e["cuts"] for e in examples)


def predict(
    recipe: finetune_step.Recipe, backbone: Mapping, flat: Mapping[str, jax.Array], data: TaskData, length: int
) -> list[Predictions]:
    """Predictions of every seed on the test rows, in their order; what is frozen is computed once for all seeds."""
    examples = encoded(data.task, data.test)
    ids = [e["ids"] for e in examples]
    features = Features(recipe.encoder, backbone, recipe.layer, ids, length, limit=0)
    layout = Layout.of(batches.TEST_ROWS, length)
    classes_of = finetune_step.make_predict(recipe, layout.per_row)
    number = len(jax.tree.leaves(flat)[0])
    out: list[Predictions] = [[[]] * len(examples) for _ in range(number)]
    for texts, packing in packed([len(i) for i in ids], layout):
        batch = {"features": features.lay(texts, packing), "segments": packing.segments()}
        for mine, classes in zip(out, np.asarray(classes_of(backbone, flat, batch))):
            for t, i in enumerate(texts):
                mine[i] = data.task.read(classes, examples[i], packing, t)
    return out


def unseen(task: Task, examples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The classes of the head that no word or text of `examples` has."""
    present = {int(label) for e in examples for label in np.unique(e["labels"])}
    return tuple(label for i, label in enumerate(task.labels) if i not in present)
