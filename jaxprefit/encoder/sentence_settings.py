"""How an encoder makes one vector of a text, as the files of sentence-transformers say it.

`modules.json` lists the steps: the Transformer, a Pooling (its mode in `1_Pooling/config.json`), perhaps a Normalize.
`sentence_bert_config.json` may bound the length of texts. What cannot be followed is refused by name.
"""

import dataclasses
import json
import pathlib
from typing import Any

import tokenizers

from jaxprefit.encoder.tokenizer_files import lower_cases
from jaxprefit.encoder.transformer import POOLINGS
from jaxprefit.errors import UserError, one_line
from jaxprefit.runtime.files import read_given_json, read_given_json_value

FILES = (
    "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
)  # fmt: skip
_BARE = "remove modules.json to take the encoder alone, with the mean of its tokens"
_MODES = {  # of a Pooling's config.json, before `pooling_mode` held one of the values
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """How a vector is made of a text's last hidden states."""

    pooling: str = "mean"  # a key of encoder.POOLINGS
    normalize: bool = False  # whether vectors are scaled to length 1
    max_length: int | None = None  # tokens of a text, where fewer than the encoder has positions


MEAN_OF_TOKENS = SentenceSettings()


def transformer_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the encoder itself lies in a directory of sentence-transformers; any other is that place itself."""
    steps = _modules(folder)
    return folder / steps[0][1] if steps else folder


def read_sentence_settings(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> SentenceSettings:
    """The settings that a directory names; the mean of the tokens where it names none.

    Raises UserError for a step, a pooling or a setting that cannot be followed.
    """
    steps = _modules(folder)
    if kinds := [kind for kind, _ in steps[1:] if kind not in ("Pooling", "Normalize")]:
        raise UserError(f"{folder / 'modules.json'}: the module {kinds[0]} is not supported; {_BARE}")
    poolings = [_pooling(folder / path / "config.json") for kind, path in steps if kind == "Pooling"]
    if len(poolings) > 1:
        raise UserError(f"{folder / 'modules.json'}: more than one Pooling is not supported; {_BARE}")
    inner = transformer_folder(folder)
    file = inner / "sentence_bert_config.json"
    own = read_given_json(file) if file.is_file() else {}
    if own.get("do_lower_case") and not lower_cases(tokenizer):
        raise UserError(
            f"{file}: do_lower_case is true, but the tokenizer tells capital letters apart; set one of them right"
        )
    longest = own.get("max_seq_length")
    if longest is None and steps and (inner / "tokenizer_config.json").is_file():
        longest = read_given_json(inner / "tokenizer_config.json").get("model_max_length")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float) or longest < 4):
        raise UserError(f"{file}: max_seq_length is {json.dumps(longest)}; give a number of tokens from 4 up")
    normalize = "Normalize" in (kind for kind, _ in steps)
    return SentenceSettings(poolings[0] if poolings else "mean", normalize, None if longest is None else int(longest))


def default_prompt(folder: pathlib.Path) -> str:
    """What sentence-transformers puts before each text unless told otherwise; '' where nothing."""
    file = folder / "config_sentence_transformers.json"
    content = read_given_json(file) if file.is_file() else {}
    prompts = content.get("prompts")
    name = content.get("default_prompt_name")
    return str(prompts.get(name) or "") if isinstance(prompts, dict) and name is not None else ""


def write_sentence_settings(folder: pathlib.Path, settings: SentenceSettings, size: int) -> None:
    """Writes an encoder's settings, of vectors [size], into its directory; nothing where they are the default."""
    if settings == MEAN_OF_TOKENS:
        return
    package = "sentence_transformers.models"
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * settings.normalize
    modules = [{"idx": i, "name": str(i), "path": p, "type": f"{package}.{k}"} for i, (p, k) in enumerate(steps)]
    modes = {name: mode == settings.pooling for name, mode in _MODES.items()}
    contents: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": size, **modes},
        "sentence_bert_config.json": {"max_seq_length": settings.max_length, "do_lower_case": False},
    }
    for path, _ in steps[1:]:
        (folder / path).mkdir()
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _modules(folder: pathlib.Path) -> list[tuple[str, str]]:
    """(kind, path) of each step that modules.json lists, the Transformer first; [] without that file."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    content = read_given_json_value(file)
    try:
        steps = [(str(m["type"]).split(".")[-1], pathlib.PurePosixPath(m["path"])) for m in content]
    except (TypeError, KeyError) as e:
        raise UserError(f"{file}: not a list of modules ({one_line(e)}); {_BARE}") from e
    if not steps or steps[0][0] != "Transformer":
        raise UserError(f"{file}: the first module must be a Transformer; {_BARE}")
    if outside := [path for _, path in steps if path.is_absolute() or ".." in path.parts]:
        raise UserError(f"{file}: the path {one_line(outside[0])} leads out of the directory")
    return [(kind, str(path)) for kind, path in steps]


def _pooling(file: pathlib.Path) -> str:
    content = read_given_json(file)
    modes = content.get("pooling_mode", [mode for name, mode in _MODES.items() if content.get(name)] or ["mean"])
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"{file}: pooling {one_line(json.dumps(modes))} is not supported, only {' or '.join(POOLINGS)}; {_BARE}"
        )
    return modes[0]
