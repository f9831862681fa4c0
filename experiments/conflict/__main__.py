"""`python -m experiments.conflict`."""

from experiments import conflict
from experiments.common import cli

cli.run(
    conflict.run,
    conflict.__doc__ or "",
    checkpoint="Workdir of a run, or one of its steps; mode compare: several, with commas.",
)
