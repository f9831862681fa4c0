"""Records that several result files share: how downstream scores are taken."""

from typing import Any

from jaxprefit.runtime.results import record

Family = str
"""Family of tasks: ner, named entities, or tc, text classification."""

Settings = dict[str, Any]
"""Dotted name of a setting of the config -> its value, as JSON."""


@record
class LoraSettings:
    """Shape of the LoRA that every start has downstream: `config.lora`."""

    last_layers: int
    """Number of layers from the top that have LoRA, where `layers` is empty."""
    layers: tuple[int, ...]
    """Layers that have LoRA, from 0 at the bottom; empty: the last `last_layers`."""
    targets: tuple[str, ...]
    """Names of the kernels that have LoRA."""
    rank: int
    """Rank of each update."""
    alpha: float
    """Scale times rank of each update."""
    dropout: float
    """Probability with which an input of LoRA is dropped in training."""
