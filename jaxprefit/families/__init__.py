"""Task families, by name."""

from jaxprefit.families.base import Family, useful_tokens
from jaxprefit.families.mlm import MlmFamily
from jaxprefit.families.ner import NerFamily
from jaxprefit.families.tc_contrastive import ClassificationFamily

FAMILIES: dict[str, type[Family]] = {f.name: f for f in (NerFamily, ClassificationFamily, MlmFamily)}

__all__ = ["FAMILIES", "ClassificationFamily", "Family", "MlmFamily", "NerFamily", "useful_tokens"]
