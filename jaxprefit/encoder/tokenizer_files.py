"""Tokenizers in and out of Hugging Face's files, with the ids that transformers gives.

`tokenizer.json` holds all of a tokenizer; `vocab.txt` its entries alone, and the rest is settings of
`tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`. transformers follows the settings where the
two contradict each other, and takes its default for each one that is not there; here a contradiction is refused.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

from jaxprefit.encoder.tokenization import special_ends
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.errors import UserError, one_line
from jaxprefit.runtime.files import read_given_json

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")  # one algorithm under three names
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")  # what these do stands in tokenizer.json alone
_SWITCHES = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")
_SPECIAL = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
"""The special tokens as BERT writes them."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a directory, with the file's own padding and truncation switched off.

    Raises UserError for a file that cannot be read, and for a setting by name that cannot be followed.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        file = folder / "vocab.txt"
    if not file.is_file():
        raise UserError(f"{folder} holds neither tokenizer.json nor vocab.txt; add one of them")
    settings = _read_settings(folder)
    named = _class(folder, settings)
    if named in _GENERIC and file.name == "vocab.txt":
        raise UserError(f"{folder}: a {named} needs a tokenizer.json; add it")
    try:
        tokenizer = (
            tokenizers.Tokenizer.from_file(str(file)) if file.suffix == ".json" else _of_vocabulary(file, settings)
        )
    except Exception as e:  # the library raises bare Exception
        raise UserError(f"{file}: not a readable tokenizer ({one_line(e)})") from e
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if file.name == "tokenizer.json" and named not in _GENERIC:
        _compare(folder, tokenizer, settings, bert=named is not None)
    for number, token in _added_tokens(folder, settings):
        _add(folder, tokenizer, number, token)
    return tokenizer


def written_settings(tokenizer: tokenizers.Tokenizer, config: EncoderConfig) -> dict[str, Any]:
    """The content of `tokenizer_config.json` with which transformers gives the tokenizer's own ids."""
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    content: dict[str, Any] = {
        # Reads tokenizer.json as it is; a BertTokenizer would be made anew, of its vocabulary.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "model_input_names": inputs if config.type_vocab_size else [inputs[0], inputs[2]],
    }
    if isinstance(normalizer := tokenizer.normalizer, tokenizers.normalizers.BertNormalizer):
        values = (normalizer.lowercase, normalizer.handle_chinese_chars, normalizer.strip_accents)
        content |= dict(zip(_SWITCHES, values, strict=True))
    return content | special_tokens(tokenizer)


def special_tokens(tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
    """The special tokens by transformers' names for them ('pad_token', ...), as far as the tokenizer has them.

    [CLS] and [SEP] are what it puts around a text, however written; [PAD] and [MASK] are known by their letters.
    """
    encoding = tokenizer.encode("a")
    opening, closing = special_ends(encoding)
    tokens = {"unk_token": getattr(tokenizer.model, "unk_token", None)}
    tokens |= {"cls_token": encoding.tokens[0]} if opening else {}
    tokens |= {"sep_token": encoding.tokens[-1]} if closing else {}
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    for role in ("pad_token", "mask_token"):
        letters = role.removesuffix("_token")
        likely = (t for t in special if re.sub(r"[\W_]", "", t).lower() == letters)
        tokens[role] = next(likely, _SPECIAL[role])
    return {role: t for role, t in tokens.items() if t is not None and tokenizer.token_to_id(t) is not None}


def lower_cases(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer makes no difference between capital and small letters."""
    return _pieces(tokenizer, "A") == ["a"]


def _read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """Those of tokenizer_config.json, and special tokens that special_tokens_map.json alone names."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_given_json(folder / name)
    for name in _SWITCHES:
        if name in settings and not isinstance(settings[name], bool):
            if name == "strip_accents" and settings[name] is None:
                continue  # as lower case
            raise UserError(
                f"{folder / 'tokenizer_config.json'}: {name} is {json.dumps(settings[name])}; give true or false"
            )
    for name in _SPECIAL:
        if name in settings:
            settings[name] = _content(folder, settings[name])
    return settings


def _content(folder: pathlib.Path, token: Any) -> str | None:
    """The text of a special token, which files give as such or with its flags."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is None or isinstance(text, str):
        return text
    raise UserError(f"{folder}: a special token is {one_line(json.dumps(token))}; give its text")


def _class(folder: pathlib.Path, settings: Mapping[str, Any]) -> str | None:
    """The tokenizer class that the files name, without 'Fast'; None where they leave it to the model's kind."""
    file, name = "tokenizer_config.json", settings.get("tokenizer_class")
    if name is None and (folder / "config.json").is_file():
        file, name = "config.json", read_given_json(folder / "config.json").get("tokenizer_class")
    if settings.get("auto_map"):
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: auto_map names a tokenizer in code of its own; it is not run"
        )
    if name is None:
        return None
    plain = str(name).removesuffix("Fast")
    if plain not in _BERT + _GENERIC:
        raise UserError(
            f"{folder / file}: tokenizer_class {name} is not supported, only BERT's WordPiece ({', '.join(_BERT)}); if "
            "tokenizer.json does all that it does, name PreTrainedTokenizerFast instead"
        )
    return plain


def _of_vocabulary(file: pathlib.Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's WordPiece over the entries of a vocab.txt."""
    made = tokenizers.BertWordPieceTokenizer(
        str(file),
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        **{name: settings.get(name) or default for name, default in _SPECIAL.items()},
    )
    return tokenizers.Tokenizer.from_str(made.to_str())


def _compare(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], bert: bool) -> None:
    """Raises UserError where tokenizer.json does otherwise than the settings, or, with `bert`, than a BertTokenizer."""
    defaults = (
        {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None, **_SPECIAL} if bert else {}
    )
    wanted = {**defaults, **{n: settings[n] for n in _SWITCHES if n in settings}}
    wanted |= {n: settings[n] for n in ("cls_token", "sep_token") if settings.get(n)}
    does: dict[str, Any] = {
        "do_lower_case": lower_cases(tokenizer),
        "tokenize_chinese_chars": len(_pieces(tokenizer, "\u6771\u4eac")) == 2,
        "strip_accents": _pieces(tokenizer, "\u00e9") == ["e"],
        **{n: special_tokens(tokenizer).get(n) for n in ("cls_token", "sep_token")},
    }
    if "strip_accents" in wanted and wanted["strip_accents"] is None:
        wanted["strip_accents"] = wanted.get("do_lower_case", does["strip_accents"])
    for name, value in does.items():
        if name in wanted and wanted[name] != value:
            how = "" if name in settings else f" (the default of {settings.get('tokenizer_class', 'BertTokenizer')})"
            raise UserError(
                f"{folder}: tokenizer_config.json has {name} {json.dumps(wanted[name])}{how}, but tokenizer.json does "
                f"as with {json.dumps(value)}; give both what the encoder was trained with"
            )
    kinds = [type(x).__name__ for x in (tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer)]
    if bert and kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise UserError(
            f"{folder}: tokenizer_class is a BertTokenizer, but tokenizer.json has {', '.join(kinds)}; if that is "
            "right, name PreTrainedTokenizerFast in tokenizer_config.json"
        )


def _pieces(tokenizer: tokenizers.Tokenizer, text: str) -> list[str]:
    """What the tokenizer's vocabulary is asked for."""
    text = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    split = tokenizer.pre_tokenizer
    return [piece for piece, _ in split.pre_tokenize_str(text)] if split else [text]


def _added_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> list[tuple[int | None, tokenizers.AddedToken]]:
    """The tokens that the settings add to the vocabulary, with their ids where they say them."""
    file = folder / "added_tokens.json"
    extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    tokens: dict[str, tuple[int | None, tokenizers.AddedToken]] = {}
    try:
        texts = [_content(folder, t) for t in (extra.values() if isinstance(extra, Mapping) else extra)]
        special = {*texts, *(settings.get(role) for role in _SPECIAL)}
        for text, number in (read_given_json(file) if file.is_file() else {}).items():
            tokens[text] = (
                int(number),
                tokenizers.AddedToken(text, special=text in special, normalized=text not in special),
            )
        for number, entry in (settings.get("added_tokens_decoder") or {}).items():
            flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
            tokens[entry["content"]] = int(number), tokenizers.AddedToken(entry["content"], **flags)
        for content in filter(None, texts):
            tokens.setdefault(content, (None, tokenizers.AddedToken(content, special=True, normalized=False)))
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise UserError(f"{folder}: its added tokens cannot be read ({one_line(e) or type(e).__name__})") from e
    return sorted(tokens.values(), key=lambda pair: (pair[0] is None, pair[0] or 0))


def _add(
    folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, number: int | None, token: tokenizers.AddedToken
) -> None:
    """Adds a token where the tokenizer lacks it. Raises UserError where that gives it another id than `number`."""
    present = {t.content: t for t in tokenizer.get_added_tokens_decoder().values()}.get(token.content)
    if present is None:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    elif (present.normalized, present.single_word) != (token.normalized, token.single_word):
        raise UserError(
            f"{folder}: the added token {token.content!r} is normalized or a single_word in only one of the settings "
            "and tokenizer.json; make them agree"
        )
    if number is not None and (own := tokenizer.token_to_id(token.content)) != number:
        raise UserError(f"{folder}: the added token {token.content!r} has id {number} in the settings, but here {own}")
