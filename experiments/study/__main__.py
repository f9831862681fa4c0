"""`python -m experiments.study`."""

from experiments import study
from experiments.common import cli

part = "Part of the grid to run, such as 2/4; empty: all of it; none: only tables."
cli.run(study.run, study.__doc__ or "", config="configs/study.py", shard=part)
