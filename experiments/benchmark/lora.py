"""What LoRA, and keeping the families' gradients apart, cost a pre-finetuning step; what an adapter saves downstream.

In turns: the step of task_primary and of naive; of naive and of the same on one summed loss; a fine-tuning in mode
adapter and in mode full, one seed of the first task of downstream.tc, of whose test but one row is predicted.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmark.steps import Step, SummedStep
from experiments.benchmark.timing import interleaved, ratios, spread
from experiments.common import assembly, family_data, tasks
from experiments.common.start import start_encoder
from jaxprefit.data.rows import Rows
from jaxprefit.downstream.finetune import TaskData, finetune
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.strategies import make


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Medians and quartiles of seconds, and of the three ratios."""
    config.data.tc.chunk_rows, config.run.log_gram = 0, False
    steps: dict[str, Callable[[], object]] = {
        "task_primary": Step(config, workdir, strategy="task_primary"),
        "naive": (naive := Step(config, workdir, strategy="naive")),
        "summed": SummedStep(config, workdir, strategy="naive"),
    }
    seconds = interleaved(steps, config.repetitions)
    start = start_encoder(config, family_data.cache_folder(config, workdir))
    model = Model(start.config, {"backbone": start.params}, start.tokenizer, make("none", ()), {})
    task = next((t for t in tasks.load_tasks(config, workdir, model) if t.family == "tc"), None)
    if task is None:
        raise UserError("what=lora fine-tunes the first task of downstream.tc, which is empty")
    task = dataclasses.replace(task, test=Rows(task.test.data, range(1)))  # training is what is compared
    modes = {mode: _finetuning(config, model, task, mode) for mode in ("adapter", "full")}
    seconds |= interleaved(modes, config.repetitions)
    return {
        "encoder": f"{start.config.num_layers} x {start.config.hidden_size}",
        "parameters": naive.parameters,
        "lora": dataclasses.asdict(assembly.lora_spec(config)),
        "batch_tokens": {f: family_data.layout(config, f).tokens for f in naive.families},
        "finetuning": {"task": task.name, "steps": config.downstream.steps},
        "seconds": {kind: spread(values) for kind, values in seconds.items()},
        "lora_to_none": ratios(seconds["task_primary"], seconds["naive"]),
        "apart_to_summed": ratios(seconds["naive"], seconds["summed"]),
        "full_to_adapter": ratios(seconds["full"], seconds["adapter"]),
    }


def _finetuning(config: ConfigDict, model: Model, task: TaskData, mode: str) -> Callable[[], object]:
    cfg = dataclasses.replace(tasks.recipe(config), mode=mode)
    return lambda: finetune(model, task, assembly.lora_spec(config), cfg, (0,))
