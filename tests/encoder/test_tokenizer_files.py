"""Tokenizers of other programs' files give the ids of transformers, and transformers gives those of an export."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from golden.formula import weights
from golden.model_files import SENTENCES, VOCABULARY, tokenizer, write_model
from helpers.paths import GOLDEN_FILES
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from jaxprefit.encoder.huggingface import load_pretrained, save_pretrained
from jaxprefit.encoder.tokenizer_files import read_tokenizer, special_tokens
from jaxprefit.errors import UserError

CASES = json.loads((GOLDEN_FILES / "encoder.json").read_text())["cases"]
TOKENS = json.loads((GOLDEN_FILES / "tokens.json").read_text())


def write(folder: Path, settings: dict[str, Any] | None, made: Tokenizer | None = None, **more: Any) -> Path:
    """A folder with `made` as its tokenizer.json, or with a vocab.txt; `more` are JSON files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    if made is None:
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), "utf-8")
    else:
        made.save(str(folder / "tokenizer.json"))
    contents = more | ({} if settings is None else {"tokenizer_config": settings})
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def refusal(folder: Path) -> str:
    """The one-line message of the UserError that reading the folder's tokenizer raises."""
    with pytest.raises(UserError) as error:
        read_tokenizer(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def pieces(text: str, lower: bool, strip: bool | None, chinese: bool) -> list[str]:
    """BERT's tokens of a text of letters by its published algorithm: basic tokenizer, then longest match first."""
    if chinese:
        text = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c for c in text)
    if lower if strip is None else strip:
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    tokens = []
    for word in (text.lower() if lower else text).split():
        parts, begin = [], 0
        while begin < len(word):
            prefix = "##" if begin else ""
            ends = [e for e in range(len(word), begin, -1) if prefix + word[begin:e] in VOCABULARY]
            if not ends:
                parts = ["[UNK]"]
                break
            parts.append(prefix + word[begin : ends[0]])
            begin = ends[0]
        tokens += parts
    return ["[CLS]", *tokens, "[SEP]"]


@given(
    text=st.text(st.sampled_from("aeEéÉ 中国catHello café"), max_size=20),
    lower=st.booleans(),
    strip=st.sampled_from([True, False, None]),
    chinese=st.booleans(),
)
def test_settings_beside_a_vocabulary_are_followed(
    tmp_path_factory: pytest.TempPathFactory, text: str, lower: bool, strip: bool | None, chinese: bool
) -> None:
    settings = {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    folder = write(tmp_path_factory.getbasetemp() / f"{lower}{strip}{chinese}", settings)
    assert read_tokenizer(folder).encode(text).tokens == pieces(text, lower, strip, chinese)


def test_special_tokens_are_those_the_settings_name(tmp_path: Path) -> None:
    names = {"cls_token": "[SEP]", "sep_token": {"content": "[CLS]"}}
    made = read_tokenizer(write(tmp_path, {}, special_tokens_map=names))
    assert made.encode("the cat").tokens == ["[SEP]", "the", "cat", "[CLS]"]


@pytest.mark.parametrize("json_too", [True, False], ids=["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"added_tokens_decoder": {"97": {"content": "[E1]", "special": True, "normalized": False}}}, {}),
        ({"additional_special_tokens": ["[E1]"]}, {}),
        ({"extra_special_tokens": {"entity": {"content": "[E1]"}}}, {}),
        ({"additional_special_tokens": ["[E1]"]}, {"added_tokens": {"[E1]": 97}}),
    ],
)
def test_added_tokens_are_added(settings: dict, files: dict, json_too: bool, tmp_path: Path) -> None:
    folder = write(tmp_path, settings, tokenizer() if json_too else None, **files)
    encoding = read_tokenizer(folder).encode("the [E1] cat")
    assert encoding.tokens == ["[CLS]", "the", "[E1]", "cat", "[SEP]"] and encoding.ids[2] == 97


BIG = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


@pytest.mark.parametrize(
    ("settings", "files", "says"),
    [
        ({"do_lower_case": False}, {}, "do_lower_case"),
        ({"do_lower_case": "false"}, {}, "do_lower_case"),
        ({"strip_accents": False}, {}, "strip_accents"),
        ({"do_lower_case": True, "tokenize_chinese_chars": False}, {}, "tokenize_chinese_chars"),
        (BIG | {"cls_token": "[MASK]"}, {}, "cls_token"),
        ({}, {"special_tokens_map": {"sep_token": "[MASK]"}}, "sep_token"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, {}, "BertJapaneseTokenizer"),
        ({"tokenizer_class": "RobertaTokenizerFast"}, {}, "RobertaTokenizerFast"),
        ({}, {"config": {"tokenizer_class": "XLMRobertaTokenizer"}}, "XLMRobertaTokenizer"),
        ({"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, {}, "auto_map"),
        ({}, {"added_tokens": {"[E1]": 120}}, "[E1]"),
        ({"added_tokens_decoder": {"5": "the"}}, {}, "added tokens"),
        ({"added_tokens_decoder": {"4": {"content": "[MASK]", "normalized": True}}}, {}, "[MASK]"),
        ({"additional_special_tokens": 5}, {}, "added tokens"),
    ],
)
def test_settings_that_tokenizer_json_contradicts_are_refused(
    settings: dict, files: dict, says: str, tmp_path: Path
) -> None:
    assert says in refusal(write(tmp_path, settings, tokenizer(), **files))


def test_a_named_bert_tokenizer_has_its_defaults(tmp_path: Path) -> None:
    named = {"tokenizer_class": "BertTokenizerFast"}
    assert "do_lower_case" in refusal(write(tmp_path / "cased", named, tokenizer(lower=False)))
    made = tokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [("[CLS]", 2)])
    assert "sep_token" in refusal(write(tmp_path / "open", named, made))
    read_tokenizer(write(tmp_path / "right", named, tokenizer()))


def test_the_generic_class_is_its_tokenizer_json(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}  # which that class does not know
    made = read_tokenizer(write(tmp_path / "json", settings, tokenizer(lower=False)))
    assert [made.encode(s).ids for s in SENTENCES] == TOKENS["cased"]
    assert "tokenizer.json" in refusal(write(tmp_path / "vocabulary", settings))


def test_padding_and_truncation_of_the_file_are_switched_off(tmp_path: Path) -> None:
    made = tokenizer()
    made.enable_padding(length=12, pad_id=0, pad_token="[PAD]")
    made.enable_truncation(4)
    assert read_tokenizer(write(tmp_path, BIG, made)).encode("the cat sat on").tokens[1:-1] == [
        "the",
        "cat",
        "sat",
        "on",
    ]


# Exports


def renamed() -> Tokenizer:
    """A tokenizer whose special tokens have other names and ids than BERT's."""
    text = tokenizer(lower=False).to_str()
    for new, old in (("<s>", "[CLS]"), ("</s>", "[SEP]"), ("<pad>", "[PAD]"), ("<mask>", "[MASK]"), ("<unk>", "[UNK]")):
        text = text.replace(json.dumps(old), json.dumps(new))
    content = json.loads(text)
    for new, old in ((0, 4), (4, 0)):  # <pad> and <mask> change places
        content["added_tokens"][new] |= {"id": new, "content": ["<pad>", "<mask>"][old == 4]}
    content["model"]["vocab"] |= {"<pad>": 4, "<mask>": 0}
    return Tokenizer.from_str(json.dumps(content))


def unclosed() -> Tokenizer:
    """A tokenizer that puts nothing behind a text."""
    made = tokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [("[CLS]", 2)])
    return made


EXPORTED = {"lower": tokenizer(), "cased": tokenizer(lower=False), "renamed": renamed(), "unclosed": unclosed()}


def export(folder: Path, made: Tokenizer, architecture: str) -> Path:
    """What is written of a model of the golden cases with this tokenizer."""
    config = CASES[architecture]["config"]
    model = load_pretrained(write_model(folder / "given", config, weights(config)))
    save_pretrained(folder / "out", model.config, model.params, made)
    return folder / "out"


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_names_what_transformers_needs(name: str, architecture: str, tmp_path: Path) -> None:
    out = export(tmp_path, EXPORTED[name], architecture)
    config, settings = (json.loads((out / f).read_text()) for f in ("config.json", "tokenizer_config.json"))
    roles = {role: settings.get(role) for role in ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")}
    if name == "renamed":
        expected = ["<s>", "</s>", "<pad>", "<mask>", "<unk>"]
    else:
        expected = ["[CLS]", None if name == "unclosed" else "[SEP]", "[PAD]", "[MASK]", "[UNK]"]
    assert list(roles.values()) == expected
    assert config["pad_token_id"] == (4 if name == "renamed" else 0)
    assert settings["do_lower_case"] == (name in ("lower", "unclosed"))
    assert settings["strip_accents"] is None and settings["tokenize_chinese_chars"] is True
    assert settings["model_max_length"] == config["max_position_embeddings"]
    assert ("token_type_ids" in settings["model_input_names"]) == (architecture == "bert")
    made = load_pretrained(out).tokenizer
    assert [made.encode(s).ids for s in SENTENCES] == [EXPORTED[name].encode(s).ids for s in SENTENCES]
    assert special_tokens(made) == {role: token for role, token in roles.items() if token}


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
@pytest.mark.parametrize("name", EXPORTED)
def test_transformers_gives_the_ids_and_vectors_of_an_export(name: str, architecture: str, tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    out, made = export(tmp_path, EXPORTED[name], architecture), EXPORTED[name]
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    for sentence in filter(None, SENTENCES):
        assert theirs(sentence)["input_ids"] == made.encode(sentence).ids
    positions = CASES[architecture]["config"]["max_position_embeddings"]
    assert len(theirs("the " * 200, truncation=True)["input_ids"]) == positions
    model = transformers.AutoModel.from_pretrained(out).eval()
    with torch.no_grad():  # padding and all
        hidden = model(
            **theirs(["the cat", "Hello , the cat sat"], padding=True, return_tensors="pt")
        ).last_hidden_state
        alone = model(**theirs("the cat", return_tensors="pt")).last_hidden_state
    assert torch.allclose(hidden[0, : alone.shape[1]], alone[0], atol=1e-5)
