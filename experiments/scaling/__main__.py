"""`python -m experiments.scaling`."""

from experiments import scaling
from experiments.common import cli

cli.run(
    scaling.run, scaling.__doc__ or "", config="configs/scaling.py",
    only="Names of the cells to make now, with commas between; all that are missing by default.",
    cell="Name of the one cell that this process compiles; the command gives it to its own processes.",
)  # fmt: skip
