"""Memory, arithmetic and communication of a training step on many devices: which encoders, on how many, laid out how.

python -m experiments.scaling --workdir=runs/scaling
"""

from ml_collections import ConfigDict

from configs import default

FSDP = {1: (1, 1, 1), 8: (1, 8, 1), 64: (8, 8, 1), 256: (32, 8, 1)}


def get_config() -> ConfigDict:
    c = default.get_config()
    c.data.ner.sources = ("generated:ner?rows=200",)  # nothing of the text enters but its shape in a batch
    c.data.tc.sources = ("generated:pairs?rows=200",)
    c.data.held_out = 0
    for family in ("ner", "tc"):
        c.data[family].row_length, c.data[family].max_length = 128, 64
    c.scaling = ConfigDict()
    c.scaling.vocab = 30_522
    c.scaling.models = ConfigDict({  # layers, hidden size, heads
        "MiniLM-L6": (6, 384, 12),
        "BERT-base": (12, 768, 12),
        "BERT-large": (24, 1024, 16),
    })  # fmt: skip
    # Number of chips -> their layout (data, fsdp, tensor). A small encoder is whole on every chip.
    c.scaling.layouts = ConfigDict({
        "MiniLM-L6": {str(n): (n, 1, 1) for n in FSDP},
        "BERT-base": {str(n): mesh for n, mesh in FSDP.items()},
        "BERT-large": {"1": (1, 1, 1), "8": (1, 8, 1), "64": (4, 8, 2), "256": (16, 8, 2)},
    })  # fmt: skip
    c.scaling.ner_rows, c.scaling.tc_rows = 8, 16  # of a batch, for each chip
    c.scaling.minutes = 60  # that compiling a cell may take
    return c
