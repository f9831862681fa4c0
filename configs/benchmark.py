"""Speed and memory on this machine: what to measure, and at which sizes.

python -m experiments.benchmark --config.what=gradcache --workdir=runs/benchmark

The encoder is of BERT-mini size with random weights, the text generated: neither changes what a step costs. What a
loader costs depends on the sources (data.ner.sources, data.tc.sources).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.what = "gradcache"  # see experiments/benchmark/__init__.py
    c.repetitions = 7  # of each thing that is compared, in turns
    c.steps_per_repetition = 10  # of what=data
    c.gradcache = ConfigDict()
    c.gradcache.large_rows = 1024  # of the batch for which memory is compared beside data.tc.rows (nothing is run)
    c.model.layers, c.model.hidden, c.model.heads, c.model.intermediate = 4, 256, 4, 1024
    c.data.ner.sources = ("generated:ner?rows=8000",)
    c.data.tc.sources = ("generated:pairs?rows=8000",)
    c.downstream.ner = ("generated:ner?rows=1000&seed=11&held_out=1",)
    c.downstream.tc = ("generated:labelled?rows=600&seed=12&held_out=1",)
    c.data.tc.rows = 128
    c.data.tc.chunk_rows = 32
    return c
