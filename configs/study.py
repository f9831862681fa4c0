r"""The study: strategies and controls from one or several start encoders, over twenty-one downstream tasks.

python -m experiments.study --workdir=runs/study --config.model.path=DIR --config.data.root=DIR

Size and rates are for two CPU cores and a small encoder. Everything is one tuple of names to change:
--config.study.variants="('none','naive','task_primary')".
"""

from typing import Any

from ml_collections import ConfigDict

from configs import objectives

STARTS: dict[str, dict[str, Any]] = {
    # all-MiniLM-L6-v2: tuned on sentence pairs already, which large steps would undo, hence a fifth of the rate for the
    # backbone and half of LoRA's; larger, hence smaller batches and fewer steps.
    "minilm": {
        "model": {"path": "all-MiniLM-L6-v2"},  # give yours: --config.study.start.minilm.model.path=DIR
        "data": {"ner": {"rows": 16}, "tc": {"rows": 16, "max_length": 32}},
        "optimizer": {"steps": 300, "warmup_steps": 30, "backbone_lr": 1e-4, "lora_lr": 1e-3},
    },
    # The encoder of configs/warmstart.py: the config's rates are for it; batches as above.
    "warmstart": {
        "model": {"path": "warmstart/encoder"},  # give yours, as above
        "data": {"ner": {"rows": 16}, "tc": {"rows": 16, "max_length": 32}},
    },
}


def all_layers(strategy: str = "task_primary", lora: dict[str, Any] | None = None, **own: Any) -> dict[str, Any]:
    """LoRA on each of MiniLM's six layers, or of the four of the warm start's encoder."""
    on_all = {"lora": {"last_layers": 6, **(lora or {})}, "warmstart": {"lora": {"last_layers": 4}}}
    return {"strategy": strategy, **on_all, **own}


VARIANTS: dict[str, dict[str, Any]] = {
    # A pre-finetuning step holds a batch of each family, so that equal steps are equal tokens per family; these
    # encoders have twice the steps: the tokens of both families together.
    "individual_double": {"strategy": "individual", "optimizer": {"steps": "*2", "warmup_steps": "*2"}},
    "individual_lr2": {"strategy": "individual", "optimizer": {"backbone_lr": "*2"}},
    "individual_lr05": {"strategy": "individual", "optimizer": {"backbone_lr": "*0.5"}},
    "naive_lr05": {"strategy": "naive", "optimizer": {"backbone_lr": "*0.5"}},
    # The like of surgery, which clips the combined update.
    "naive_combined": {"strategy": "naive", "optimizer": {"clip": "combined"}},
    "naive_pcgrad": {"strategy": "naive", "aggregator": "pcgrad"},
    "naive_cagrad": {"strategy": "naive", "aggregator": "cagrad"},
    "naive_ner2": {"strategy": "naive", "data": {"ner": {"loss_weight": 2.0}}},
    "naive_ner4": {"strategy": "naive", "data": {"ner": {"loss_weight": 4.0}}},
    "naive_tc2": {"strategy": "naive", "data": {"tc": {"loss_weight": 2.0}}},
    "naive_lr2": {"strategy": "naive", "optimizer": {"backbone_lr": "*2"}},
    "task_primary_lr2": {"strategy": "task_primary", "optimizer": {"backbone_lr": "*2"}},
    "task_primary_lora2": {"strategy": "task_primary", "optimizer": {"lora_lr": "*2"}},
    "task_primary_last1": {"strategy": "task_primary", "lora": {"last_layers": 1}},
    "task_primary_last4": {"strategy": "task_primary", "lora": {"last_layers": 4}},
    "task_primary_first2": {"strategy": "task_primary", "lora": {"layers": (0, 1)}},
    # What the analyzer advises from naive's report, from MiniLM: experiments/results/conflict/minilm_naive.json.
    "task_primary_advised": {
        "strategy": "task_primary",
        "lora": {
            "layers": (1, 2, 3),
            "rank": 20,
            "alpha": 40.0,
            "targets": ("value", "attention_output", "intermediate", "output"),
        },
    },
    "shared_lora_all": all_layers("shared_lora"),
    "frozen_lora_all": all_layers("frozen_lora"),
    "task_primary_all": all_layers(),
    "task_primary_all_rank4": all_layers(lora={"rank": 4, "alpha": 8.0}),
    "task_primary_all_rank64": all_layers(lora={"rank": 64, "alpha": 128.0}),
    "task_primary_all_lr05": all_layers(optimizer={"backbone_lr": "*0.5", "lora_lr": "*0.5"}),
    "task_primary_all_backbone05": all_layers(optimizer={"backbone_lr": "*0.5"}),
    "task_primary_all_lr2": all_layers(optimizer={"backbone_lr": "*2"}),
    # The ratio in which the families are mixed: a step's rows three to one, as many in all. A family's weight in the
    # step stays (the mean loss of its rows); TC's rows are each other's negatives too.
    "task_primary_all_ner3to1": all_layers(data={"ner": {"rows": "*1.5"}, "tc": {"rows": "*0.5"}}),
    "task_primary_all_tc3to1": all_layers(data={"ner": {"rows": "*0.5"}, "tc": {"rows": "*1.5"}}),
    "task_primary_all_ner2": all_layers(data={"ner": {"loss_weight": 2.0}}),
    "task_primary_all_tc2": all_layers(data={"tc": {"loss_weight": 2.0}}),
}

# Variants that differ in one setting, in the order of its values; the page shows those of them that a study has.
SWEEPS: dict[str, tuple[str, ...]] = {
    "individual_rate": ("individual_lr05", "individual", "individual_lr2"),
    "individual_steps": ("individual", "individual_double"),
    "naive_rate": ("naive_lr05", "naive", "naive_lr2"),
    "naive_weights": ("naive_tc2", "naive", "naive_ner2", "naive_ner4"),
    "task_primary_backbone_rate": ("task_primary_all_backbone05", "task_primary_all", "task_primary_all_lr2"),
    "task_primary_depth": ("task_primary_last1", "task_primary", "task_primary_last4", "task_primary_all"),
    "task_primary_position": ("task_primary_first2", "task_primary"),
    "task_primary_rank": ("task_primary_all_rank4", "task_primary_all", "task_primary_all_rank64"),
    "task_primary_rows": ("task_primary_all_tc3to1", "task_primary_all", "task_primary_all_ner3to1"),
    "task_primary_weights": ("task_primary_all_tc2", "task_primary_all", "task_primary_all_ner2"),
}


def get_config() -> ConfigDict:
    c = objectives.get_config()
    del c.individual
    c.data.tc.weights, c.data.tc.alpha = "", 0.0  # each source alike, whatever their names
    c.optimizer.steps, c.optimizer.warmup_steps = 600, 60
    c.optimizer.backbone_lr, c.optimizer.lora_lr = 5e-4, 2e-3
    s = c.study = ConfigDict()
    s.starts = ()  # names in study.start; empty: model.path alone
    s.variants = (
        "none", "individual", "naive", "task_primary", "shared_lora", "frozen_lora", "averaged", "naive_pcgrad",
        "naive_cagrad", "individual_double",
    )  # fmt: skip
    s.modes = ("adapter", "probe_tuned")  # of downstream.mode, or names in study.mode
    s.fractions = (0.1, 1.0)  # of the training labels, nested
    # Of several variants of one strategy the one with the highest sum of mean NER F1 and mean TC accuracy on
    # development rows stands for it; taken in this mode, with this share of the labels.
    s.choice = ConfigDict({"mode": "probe_tuned", "fraction": 0.1})
    s.seeds = (0,)  # of pre-finetuning; those of fine-tuning are downstream.seeds
    # What differs from the config, by name: study.start.minilm.model.path, say.
    s.start = ConfigDict(STARTS)
    s.variant = ConfigDict(VARIANTS)
    s.sweep = ConfigDict(SWEEPS)
    s.mode = ConfigDict({
        # Of 2.5e-3 to 4e-2 for the head the best on development rows: experiments/results/study_recipe.md. Plain
        # `probe` has the head's rate of mode adapter, which is low for a head alone; several pages of results have it.
        "probe_tuned": {"downstream": {"mode": "probe", "head_lr": 2e-2}},
        "mteb": {"downstream": {"mode": "mteb", "shots": 8, "limit": 0, "seeds": tuple(range(10))}},
        "adapter_5shot": {"downstream": {"mode": "adapter", "shots": 5, "limit": 0}},
    })  # fmt: skip
    # Of 1e-3, 2e-3 and 4e-3 for LoRA the best on development rows: experiments/results/study_recipe.md.
    c.downstream.limit, c.downstream.batch_size, c.downstream.lora_lr = 5000, 16, 2e-3
    return c
