r"""Downstream scores of a checkpoint: NER by strict span F1, text classification by accuracy, one table.

python -m experiments.downstream --config=configs/minilm.py --checkpoint=runs/task_primary \
    --workdir=runs/task_primary_scores --config.data.root=DIR

Per task a linear head with a LoRA on the frozen backbone (downstream.mode=adapter, where it starts from the family's
LoRA, or stacked, where it is a fresh one on top of that), a linear head alone (probe), full fine-tuning (full), or for
texts MTEB's logistic regression (mteb). --checkpoint is a run's workdir, one of its steps, or a Hugging Face directory.
Writes WORKDIR/scores.json, and under WORKDIR/cells one file per finished task and seed with its scores and predictions;
the same command continues where it was stopped. A cell that fails, or a task that cannot be read, does not stop the
rest. downstream.split=dev scores development rows instead of the test.
"""

from experiments.common import cli
from experiments.common.scoring import run

if __name__ == "__main__":
    cli.run(run, __doc__ or "", checkpoint="A run's workdir, one of its steps, or a Hugging Face directory.")
