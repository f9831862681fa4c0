"""What the programs share: command line, checks, a run assembled from a config, data, tasks."""
