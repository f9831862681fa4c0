"""`python -m experiments.benchmark`."""

from experiments import benchmark
from experiments.common import cli

cli.run(benchmark.run, benchmark.__doc__ or "", config="configs/benchmark.py")
