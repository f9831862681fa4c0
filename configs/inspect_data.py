r"""A look at data: all pre-finetuning sources of the registry against the tests of suite-21.

python -m experiments.inspect_data --config=configs/inspect_data.py --workdir=runs/inspection --config.data.root=DIR
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.data.ner.sources = ("@prefit",)
    c.data.tc.sources = ("@prefit",)
    c.downstream.ner = ("@suite21",)
    c.downstream.tc = ("@suite21",)
    return c
