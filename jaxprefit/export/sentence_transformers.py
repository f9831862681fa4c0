"""Export for sentence-transformers: `SentenceTransformer(DIR)`, and DIR/merged/NAME for an adapter.

Vectors are pooled and cut as the bundle says.
"""

import json
import pathlib

import numpy as np

from jaxprefit.export.bundle import Bundle, write_heads
from jaxprefit.export.huggingface import folders, torch_batch, write_encoder
from jaxprefit.export.parity import Opened, Vectors

_MODULES = ("Transformer", "Pooling", "Normalize")


def write(folder: pathlib.Path, bundle: Bundle, merged: bool = False) -> None:
    """Writes the backbone to `folder`, and with `merged` each adapter's model to `folder`/merged/NAME."""
    for name in bundle.variants if merged else (None,):
        place = folder if name is None else folder / "merged" / name
        write_encoder(place, bundle, name)
        _write_modules(place, bundle)
    write_heads(folder, bundle.heads)


def _write_modules(folder: pathlib.Path, bundle: Bundle) -> None:
    places = ["", "1_Pooling", *(["2_Normalize"] if bundle.normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{_MODULES[i]}"}
        for i, place in enumerate(places)
    ]
    mode = {"mean": "mean_tokens", "cls": "cls_token"}[bundle.pooling]
    pooling = {"word_embedding_dimension": bundle.config.hidden_size, f"pooling_mode_{mode}": True}
    general = {"prompts": dict(bundle.prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    for place in places[1:]:
        (folder / place).mkdir(exist_ok=True)
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", pooling)
    # Without the pooler, which the file does not hold: it would be made up at random, with a warning.
    model = {"model_args": {"add_pooling_layer": False}} if bundle.config.architecture == "bert" else {}
    transformer = {"max_seq_length": bundle.max_length, "do_lower_case": False, **model}
    _write(folder / "sentence_bert_config.json", transformer)
    _write(folder / "config_sentence_transformers.json", general)


def _write(file: pathlib.Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def open_sentence_transformers(folder: pathlib.Path, bundle: Bundle) -> Opened:
    """The export opened by sentence-transformers. Raises ImportError where it is not installed."""
    import sentence_transformers
    import torch

    places = folders(folder, bundle)
    models = {n: sentence_transformers.SentenceTransformer(str(place), device="cpu") for n, place in places.items()}

    def vectors(ids: np.ndarray, mask: np.ndarray, adapter: str | None) -> Vectors:
        with torch.no_grad():
            out = models[adapter].eval()(torch_batch(ids, mask))
        return out["token_embeddings"].numpy(), out["sentence_embedding"].numpy()

    library = f"sentence-transformers {sentence_transformers.__version__}"
    return Opened(library, tuple(models), vectors, lambda text: models[None].tokenize([text])["input_ids"][0])
