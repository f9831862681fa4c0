"""Speed and memory on this machine: what to measure, and at which sizes.

python -m experiments.benchmark --config.what=gradcache --workdir=runs/benchmark

The encoder is of BERT-mini size with random weights, the text generated: neither changes what a step costs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.what = "gradcache"  # see experiments/benchmark.py
    c.repetitions = 7  # of each thing that is compared, in turns
    c.gradcache = ConfigDict()
    c.gradcache.large_rows = 1024  # of the batch for which memory is compared beside data.tc.rows (nothing is run)
    c.model.layers, c.model.hidden, c.model.heads, c.model.intermediate = 4, 256, 4, 1024
    c.data.tc.sources = ("generated:pairs?rows=8000",)
    c.data.tc.rows = 128
    c.data.tc.chunk_rows = 32
    return c
