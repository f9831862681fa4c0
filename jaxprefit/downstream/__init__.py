"""Downstream tasks: a linear head (with an adapter, alone, or with the whole encoder) per task, and its scores."""
