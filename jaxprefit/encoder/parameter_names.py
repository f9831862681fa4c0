"""Parameters of the backbone: their shapes, and what they are called and how they lie in Hugging Face's files."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxprefit.encoder.transformer import EncoderConfig, init_backbone

# Ours -> theirs, for what stands before `.weight` / `.bias`.
_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "norm": "LayerNorm",
}
_LAYERS = {
    "bert": {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    "distilbert": {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "intermediate": "ffn.lin1",
        "output": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
}
_STACK = {"bert": "encoder.layer", "distilbert": "transformer.layer"}


def tree_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every backbone parameter, by slash-joined path."""
    tree = jax.eval_shape(lambda: init_backbone(config, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def names_in_files(config: EncoderConfig) -> dict[str, str]:
    """Our path -> Hugging Face key, for every parameter."""
    names = {}
    for path in tree_shapes(config):
        block, module, leaf = path.split("/")
        ending = "bias" if leaf == "bias" else "weight"
        if block == "embeddings":
            names[path] = f"embeddings.{_EMBEDDINGS[module]}.{ending}"
        else:
            index = block.removeprefix("layer_")
            names[path] = f"{_STACK[config.architecture]}.{index}.{_LAYERS[config.architecture][module]}.{ending}"
    return names


def transposed(path: str, array: np.ndarray) -> np.ndarray:
    """Kernels are [in, out] here and [out, in] there; its own inverse."""
    return array.T if path.endswith("/kernel") else array
