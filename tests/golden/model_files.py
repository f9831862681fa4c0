"""Small Hugging Face model directories for the tests, and the vocabulary of their tokenizer."""

import json
import string
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_WORDS = "the cat sat on hello world cafe Hello The café ##ing ##ed . , ! ? ' - é É 中 国 1 2 ##1"
_LISTED = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *_WORDS.split(),
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
]
VOCABULARY = _LISTED + [f"[unused{i}]" for i in range(97 - len(_LISTED))]

SENTENCES = [
    "the cat sat on the mat",
    "Hello, WORLD! The café isn't far - is it?",
    "caf\u00e9 and cafe\u0301 É é",
    "中国 in a sentence, 12 cats",
    "tabs\tand\nnew lines\u0000 and \u00a0 spaces",
    "unknown ☃ sign and " + "x" * 101,
    "",
]


def tokenizer(lower: bool = True) -> Tokenizer:
    """BERT's WordPiece tokenizer over VOCABULARY."""
    vocab = {token: i for i, token in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(VOCABULARY[:5])
    return made


def write_model(path: Path, config: dict, tensors: Mapping[str, np.ndarray], lower: bool = True) -> Path:
    """A directory of config.json, model.safetensors and tokenizer.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), path / "model.safetensors", metadata={"format": "pt"})
    tokenizer(lower).save(str(path / "tokenizer.json"))
    return path


def write_vocabulary(path: Path, lower: bool) -> None:
    """Replace tokenizer.json with the older vocab.txt and tokenizer_config.json."""
    (path / "tokenizer.json").unlink(missing_ok=True)
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), "utf-8")
    settings = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def prefixed(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
