"""One module per question, run as `python -m experiments.NAME --config=configs/X.py --workdir=DIR`."""
