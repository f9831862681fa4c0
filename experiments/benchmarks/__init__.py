"""What `python -m experiments.benchmark` measures, one module each: measure(config, workdir) -> JSON content."""
