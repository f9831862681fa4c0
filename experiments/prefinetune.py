r"""One pre-finetuning run of one strategy.

python -m experiments.prefinetune --config=configs/minilm.py --workdir=runs/task_primary \
    --config.model.path=DIR --config.data.root=DIR --config.strategy=task_primary

Writes WORKDIR/metrics.jsonl (one line a step), WORKDIR/held_out.jsonl (one every run.eval_every steps),
WORKDIR/checkpoints, WORKDIR/config.json, WORKDIR/summary.json, and where a loss or gradient is not finite the batch as
WORKDIR/nonfinite/step_N.npz.
The same command continues a run that was stopped; on the CPU every later line and weight is the same as without the
stop. After SIGTERM a run saves a checkpoint at the end of the step and ends with status 75.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.checks import check
from experiments.common.prefinetuning import run
from jaxprefit.runtime.distributed import FLAG, joined


def main(config: ConfigDict, workdir: pathlib.Path, distributed: str = "") -> None:
    """`run`, in one process or in all that `distributed` names."""
    check(config)  # before the others are waited for
    with joined(distributed, config.run.join_within, config.run.lost_after):
        run(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__ or "", distributed=FLAG)
