"""Write encoder.json and tokens.json: what the transformers library gives.

encoder.json holds hidden states for formula.py's weights, tokens.json the token ids of
model_files.py's sentences.

Needs torch and transformers, which are no dependency of jaxprefit: run it in an environment of
its own, and only when a case is added or changed.

    pip install torch transformers safetensors numpy
    python tests/golden/make_golden.py

For each case encoder.json holds the config.json given to transformers, the padded batch, the names
and shapes transformers lists for the encoder, and per hidden state (embeddings first) the mean,
standard deviation and largest magnitude over the real tokens, with single values as
[row, position, channel, value]. Weights are float32, the model is in eval mode, and attention is
the plain ('eager') one.
"""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from formula import noise, weights
from model_files import SENTENCES, write_vocabulary

BERT = {
    "model_type": "bert",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0,
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 97,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "sinusoidal_pos_embds": False,
    "pad_token_id": 0,
}
CASES = {
    "bert": BERT,
    # A large epsilon, so that an encoder which ignores layer_norm_eps fails.
    "bert_tanh": BERT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "distilbert": DISTILBERT,
}
LENGTHS = (17, 9, 2, 12)
PADDED = 18
CHANNELS = (0, 13, 31)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, mask and token types; rows 0 and 3 end with a segment of type 1."""
    shape = (len(LENGTHS), PADDED)
    mask = (np.arange(PADDED) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = (50 + 45 * noise("input_ids", shape)).astype(np.int64) * mask
    types = np.zeros(shape, np.int64)
    types[0, 8:17] = 1
    types[3, 5:12] = 1
    return ids, mask, types


def build(config: dict) -> torch.nn.Module:
    """The transformers model with formula.py's weights; a name or shape that differs raises."""
    settings = transformers.AutoConfig.for_model(**config)
    options = {"add_pooling_layer": False} if config["model_type"] == "bert" else {}
    kind = type(transformers.AutoModel.from_config(settings))
    settings._attn_implementation = "eager"
    model = kind(settings, **options).float().eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights(config).items()})
    return model


def summary(hidden: np.ndarray, mask: np.ndarray) -> dict:
    real = hidden[mask.astype(bool)].astype(np.float64)
    values = [
        [row, position, channel, float(hidden[row, position, channel])]
        for row, length in enumerate(LENGTHS)
        for position in (0, length - 1)
        for channel in CHANNELS
    ]
    return {
        "mean": float(real.mean()),
        "std": float(real.std()),
        "absmax": float(np.abs(real).max()),
        "values": values,
    }


def case(config: dict) -> dict:
    ids, mask, types = batch()
    model = build(config)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if config["model_type"] == "bert":
        inputs["token_type_ids"] = torch.from_numpy(types)
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    return {
        "config": config,
        "input_ids": ids.tolist(),
        "mask": mask.tolist(),
        "token_types": types.tolist() if config["model_type"] == "bert" else None,
        "tensors": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "hidden": [summary(state.numpy(), mask) for state in hidden],
    }


def tokens(lower: bool) -> list[list[int]]:
    """Ids that BertTokenizer gives for each sentence, special tokens included."""
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder), lower)
        tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    return [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]


def write(name: str, content: dict) -> None:
    """JSON with each innermost list on one line."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    text = json.dumps({"made_with": versions, **content}, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    Path(__file__).with_name(name).write_text(text + "\n")


def main() -> None:
    write("encoder.json", {"cases": {name: case(config) for name, config in CASES.items()}})
    write("tokens.json", {"lower": tokens(True), "cased": tokens(False)})


if __name__ == "__main__":
    main()
