"""jaxprefit: pre-finetune one lightweight encoder for NER and text classification, in pure JAX."""

from jaxprefit.errors import UserError
from jaxprefit.model import Encoded, Model, load

__all__ = ["Encoded", "Model", "UserError", "load"]
