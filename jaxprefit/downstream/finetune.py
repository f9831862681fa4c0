"""Fine-tuning one task on a loaded model, through the same touch tables and the same step as pre-finetuning."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxprefit import lora, optim, surgery, train
from jaxprefit.data.builders import Prepared
from jaxprefit.downstream.evaluate import ner_scores, tc_scores
from jaxprefit.downstream.tasks import LabellingTask, TaggingTask, Task
from jaxprefit.encoder import Encoder
from jaxprefit.errors import UserError
from jaxprefit.loading import Model
from jaxprefit.sharding import make_mesh, put_batch, put_state
from jaxprefit.strategies import Strategy

_HEAD = ("head/task", ("task",))
MODES: dict[str, Strategy] = {
    # What an app does: the backbone stays as it is, its own adapter and head are trained.
    "adapter": Strategy("adapter", (("lora/*/scale", ()), ("backbone", ()), ("lora/task", ("task",)), _HEAD)),
    # Only a linear head, on the backbone through the family's adapter as it came.
    "probe": Strategy("probe", (("backbone", ()), _HEAD)),
    # Everything, the family's adapter merged into the weights first.
    "full": Strategy("full", (("backbone", ("task",)), _HEAD)),
}


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

    def validate(self) -> None:
        """Raises UserError for a mode that does not exist."""
        if self.mode not in MODES:
            raise UserError(f"downstream.mode is '{self.mode}'; choose from {', '.join(MODES)}")


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task: its family, its rows."""

    name: str
    family: str  # 'ner' or 'tc'
    task: Task
    train: Prepared
    test: Prepared


def subset(rows: int, fraction: float) -> np.ndarray:
    """Indices of the training rows used: nested over fractions, the same for every seed and every strategy."""
    return np.random.default_rng(0).permutation(rows)[: max(1, round(rows * fraction))]


def start_params(model: Model, data: TaskData, spec: lora.LoraSpec, mode: str, key: jax.Array) -> train.Params:
    """The trees that a task starts from.

    In mode adapter the family's adapter where the model has one, else a fresh one of shape `spec`, so that all
    strategies have the same capacity downstream.
    """
    adapter = model.adapters.get(data.family)
    head_key, lora_key = jax.random.split(key)
    params: train.Params = {
        "backbone": model.backbone,
        "head": {"task": data.task.init_head(head_key, model.pretrained)},
    }
    if mode == "adapter":
        params["lora"] = {"task": adapter if adapter else lora.init_lora(spec, model.config, lora_key)}
    elif adapter:
        # Merged rather than carried along: nothing of the adapter is trained in these modes.
        params["backbone"] = lora.merge(model.backbone, adapter)
    return params


def finetune(
    model: Model,
    data: TaskData,
    spec: lora.LoraSpec,
    cfg: FinetuneConfig,
    seed: int,
    on_step: Callable[[int], Any] = lambda _: None,
) -> dict[str, float]:
    """Trains one task with one seed and scores it on the test rows."""
    strategy = MODES[cfg.mode]
    mesh = make_mesh(1)
    optimizer = optim.OptimizerConfig(
        steps=cfg.steps,
        warmup_steps=cfg.steps // 10,
        backbone_lr=cfg.backbone_lr,
        lora_lr=cfg.lora_lr,
        head_lr=cfg.head_lr,
    )
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = start_params(model, data, spec, cfg.mode, init_key)
    flat = flatten_dict(params, sep="/")
    tx = optim.make_optimizer(strategy, flat, optimizer)
    # A copy: the step donates its state, and the model's arrays are used again by the next task.
    state = put_state(mesh, jax.tree.map(jax.numpy.array, train.init_state(params, tx)))
    setup = train.Setup(Encoder(model.config), {"task": data.task}, strategy, {}, spec.dropout)
    step = train.make_step(setup, tx, optimizer, surgery.weighted_sum, mesh, step_key)

    chosen = subset(len(data.train), cfg.fraction)
    examples = [data.task.encode_record(data.train[int(i)], data.name) for i in chosen]
    # One shape: as long as the longest training text needs, in steps of 16.
    length = min(data.task.max_length, -(-max(len(e["ids"]) for e in examples) // 16) * 16)
    task = dataclasses.replace(data.task, max_length=length)
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for number in range(cfg.steps):
        while len(order) < cfg.batch_size:
            order.extend(rng.permutation(len(examples)).tolist())
        batch = task.collate([examples[i] for i in order[: cfg.batch_size]])
        del order[: cfg.batch_size]
        state, metrics = step(state, {"task": put_batch(mesh, batch)})
        on_step(number + 1)
    if not np.isfinite(loss := float(metrics["loss/task"])):
        raise UserError(f"task '{data.name}': the loss is {loss} after {cfg.steps} steps; lower the learning rates")
    return score(setup, state.params, data)


def score(setup: train.Setup, flat: dict[str, jax.Array], data: TaskData) -> dict[str, float]:
    """Scores of the trained parameters on the test rows."""
    predict = jax.jit(lambda flat, batch: train.apply_family(setup, "task", flat, batch, data.task.logits).argmax(-1))
    rows = [data.test[i] for i in range(len(data.test))]
    examples = [data.task.encode_record(r, data.name) for r in rows]
    chosen = _predict_all(lambda batch: predict(flat, batch), data.task, examples)
    labels = np.asarray(data.task.labels)
    if isinstance(data.task, TaggingTask):
        predicted = []
        for row, example, ids in zip(rows, examples, chosen):
            tags = labels[ids[example["first"]]].tolist()
            predicted.append(tags + ["O"] * (len(row["tags"]) - len(tags)))  # words past max_length
        return ner_scores([r["tags"] for r in rows], predicted)
    assert isinstance(data.task, LabellingTask)
    return tc_scores([r["label"] for r in rows], labels[np.asarray(chosen)].tolist())


def _predict_all(predict: Callable, task: Task, examples: Sequence[dict], batch_size: int = 64) -> list[np.ndarray]:
    """Predictions in the order of `examples`, computed in batches of like length."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["ids"]))
    out: list[Any] = [None] * len(examples)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        padded = [*chunk, *[chunk[-1]] * (batch_size - len(chunk))]  # one shape for the last batch too
        length = min(task.max_length, -(-len(examples[padded[-1]]["ids"]) // 16) * 16)
        batch = dataclasses.replace(task, max_length=length).collate([examples[i] for i in padded])
        for i, prediction in zip(chunk, np.asarray(predict(batch))):
            out[i] = prediction
    return out
