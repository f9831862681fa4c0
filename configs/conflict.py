r"""The conflict report on real text, from one of two start encoders: what experiments/results/conflict.md rests on.

python -m experiments.conflict_study --config=configs/conflict.py --workdir=runs/conflict/mini \
    --config.model.path=DIR --config.data.root=DIR

The sources and tests of configs/minilm.py, in batches of half their size, so that a report takes minutes on two CPU
cores. The learning rates are those of configs/minilm.py, for an encoder that is already tuned; from a warm start:
--config.optimizer.backbone_lr=5e-4.
"""

from ml_collections import ConfigDict

from configs import minilm


def get_config() -> ConfigDict:
    c = minilm.get_config()
    c.data.ner.rows, c.data.tc.rows = 8, 16
    c.data.held_out = 48  # rows of a source; each cell of an ablation scores all of them
    c.optimizer.steps = 200
    c.optimizer.warmup_steps = 20
    c.downstream.limit = 1000
    c.conflict.rounds = 48
    c.conflict.ablation.steps = 30
    c.conflict.ablation.layers = 2
    c.conflict.representations.texts = 200
    c.conflict.trial = True  # whether the advice is tried, by six more runs
    return c
