"""Programs, run as `python -m experiments.NAME --workdir=DIR`; what they share is in `experiments.common`."""
