r"""Which gradients to clip, and what surgery does after it: short runs of all-MiniLM-L6-v2 on real text.

python -m experiments.clipping --workdir=runs/clipping --config.model.path=DIR --config.data.root=DIR

`data.root` has ner_pf/ and pairs/ as named below. The size is for one CPU core.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.data.limit = 4000
    c.data.held_out = 256
    c.data.ner.sources = tuple(
        f"ner_pf/{name}" for name in ("multiconer2_en", "wikineural_en", "sgd_slots", "bio_bionlp13cg")
    )
    c.data.tc.sources = tuple(f"pairs/{name}" for name in ("arxiv", "sgd_turns", "medquad"))
    c.data.ner.rows = c.data.tc.rows = 4
    c.optimizer.steps, c.optimizer.warmup_steps = 80, 8
    c.optimizer.backbone_lr, c.optimizer.lora_lr = 1e-4, 1e-3
    c.clipping = ConfigDict()
    c.clipping.strategies = ("naive", "task_primary")
    c.clipping.seeds = (0, 1)
    c.clipping.decays = (0.0, 0.9, 0.99)  # of averaged Gram matrices, for the angles of surgery
    return c
