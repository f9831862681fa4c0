r"""Is LoRA better where a conflict report advises it than on the last layers? Equal parameters, several seeds.

python -m experiments.conflict_trial --config=configs/conflict.py --workdir=runs/trial \
    --advice=runs/naive_conflict/advice.json --config.model.path=DIR --config.data.root=DIR

Pre-finetunes task_primary with config.lora and with the advised LoRA, once per seed of conflict.ablation.seeds, and
fine-tunes downstream.ner and downstream.tc from each. Writes WORKDIR/trial.json and trial.md: held-out losses with
paired intervals over seeds and batches, and downstream scores. The same command continues where it was stopped.
"""

from experiments.common import cli
from experiments.conflict.trial import run

if __name__ == "__main__":
    cli.run(run, __doc__ or "", advice="The advice.json of a report.")
