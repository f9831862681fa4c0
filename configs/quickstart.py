"""The first look: generated text, a tiny random encoder, minutes on two CPU cores, no download.

python -m experiments.quickstart --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.layers, c.model.hidden, c.model.heads, c.model.intermediate = 4, 128, 4, 512
    c.lora.last_layers = 2
    c.optimizer.steps = 300
    c.optimizer.warmup_steps = 30
    c.optimizer.backbone_lr = 5e-4
    c.optimizer.lora_lr = 2e-3
    c.optimizer.head_lr = 2e-3
    c.data.ner.sources = ("generated:ner?rows=8000&seed=1",)
    c.data.tc.sources = ("generated:pairs?rows=8000&seed=2",)
    c.run.checkpoint_every = 150
    c.downstream.ner = ("generated:ner?rows=1000&seed=11&held_out=1",)
    c.downstream.tc = ("generated:labelled?rows=600&seed=12&held_out=1",)
    c.downstream.max_length = 32
    c.downstream.steps = 150
    return c
