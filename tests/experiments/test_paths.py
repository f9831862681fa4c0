"""Paths as users write them: ~ is their home, and an address of a bucket is refused before anything is done."""

import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.formula import weights
from golden.model_files import VOCABULARY, write_model
from helpers import run
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

import jaxprefit
from experiments import conflict, representations, tables
from experiments.common import prefinetuning, scoring
from experiments.common.checks import check
from experiments.conflict import trial
from jaxprefit.data import builders, sources
from jaxprefit.data.names import read_names
from jaxprefit.data.records.readers import read
from jaxprefit.encoder.huggingface import load_pretrained, save_pretrained
from jaxprefit.errors import UserError
from jaxprefit.families.teacher_cache import cached
from jaxprefit.runtime.paths import user_path
from jaxprefit.training.checkpoints import Checkpoints

SHAPE = {
    "model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16, "type_vocab_size": 2,
}  # fmt: skip
ADDRESSES = ("gs://bucket/x", "s3://bucket/x", "hf://datasets/x", "file:///tmp/x", "HTTPS://host/x")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert user_path("~/runs/a") == Path("/home/ada/runs/a") == user_path(Path("~/runs/a"))
    assert user_path("~") == Path("/home/ada")
    assert user_path("runs/~/a") == Path("runs/~/a") and user_path("a~") == Path("a~")
    assert user_path(b"runs/a") == Path("runs/a")


@pytest.mark.parametrize("address", [*ADDRESSES, Path("gs://bucket/x")], ids=str)
def test_addresses_are_refused(address: Any) -> None:
    with pytest.raises(UserError, match="is an address; only files and folders of this machine"):
        user_path(address)


@pytest.mark.parametrize(
    ("path", "says"),
    [("", "is empty"), ("  ", "is empty"), ("a\0b", "zero byte"), ("~nobody-of-that-name/x", "no such user"),
     (None, "None is no path"), (3, "3 is no path")],
)  # fmt: skip
def test_what_is_no_path(path: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        user_path(path)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_other_text_is_the_path_that_pathlib_makes_of_it(text: str) -> None:
    if text.strip() and not text.startswith("~") and not re.match(r"[A-Za-z][\w+.-]+://", text):
        assert user_path(text) == pathlib.Path(text)


# Every function that takes a path of a user, with that path last.
def _readers(tmp_path: Path) -> dict[str, Callable[[str], Any]]:
    config = ConfigDict()
    return {
        "load": jaxprefit.load,
        "load_pretrained": load_pretrained,
        "save_pretrained": lambda p: save_pretrained(p, None, {}, None),  # type: ignore[arg-type]
        "Checkpoints": lambda p: Checkpoints(p),  # type: ignore[arg-type]
        "read": lambda p: [*read(p, "ner")],
        "names": lambda p: read_names(p, "x", ()),
        "builders.prepare, source": lambda p: builders.prepare(builders.Source("x", "ner", path=p), tmp_path / "cache"),
        "sources.prepare, address": lambda p: sources.prepare(p, "ner", "", str(tmp_path / "cache")),
        "sources.prepare, hub": lambda p: sources.prepare(f"hub:{p}", "ner", "", str(tmp_path / "cache")),
        "sources.prepare, root": lambda p: sources.prepare("x", "ner", p, str(tmp_path / "cache")),
        "sources.prepare, cache": lambda p: sources.prepare("generated:ner?rows=3", "ner", "", p),
        "teacher_cache": lambda p: cached(_Teacher(), p, [], 8, lambda *_: np.zeros(0)),  # type: ignore[arg-type]
        "tables --runs": lambda p: tables.run(config, tmp_path / "out", p),
        "downstream --checkpoint": lambda p: scoring.run(run.config(tmp_path / "cache"), tmp_path / "out", p),
        "conflict --checkpoint": lambda p: conflict.run(run.config(tmp_path / "cache"), tmp_path / "out", p),
        "conflict compare": lambda p: conflict.run(
            run.config(tmp_path / "cache", {"conflict.mode": "compare"}), tmp_path / "out", f"{p}/a,{p}/b"
        ),
        "representations --checkpoints": lambda p: representations.run(
            run.config(tmp_path / "cache"), tmp_path / "out", f"a={p}"
        ),
        "conflict_trial --advice": lambda p: trial.run(run.config(tmp_path / "cache"), tmp_path / "out", p),
        "workdir": lambda p: prefinetuning.run(run.config(tmp_path / "cache"), p),  # type: ignore[arg-type]
    }


class _Teacher:
    fingerprint = "x"


@pytest.mark.parametrize("name", _readers(Path()))
def test_every_way_in_refuses_an_address(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^gs://bucket/x(/a)? is an address"):
        _readers(tmp_path)[name]("gs://bucket/x")
    assert not [p for p in tmp_path.rglob("*") if "gs" in p.name or p.is_file()]


@pytest.mark.parametrize(
    "key", ["model.path", "model.vocab_path", "data.root", "data.cache", "data.ner.teacher", "data.ner.teacher_cache"]
)
def test_settings_with_an_address_are_refused_before_all_else(key: str, tmp_path: Path) -> None:
    config = run.config(tmp_path / "cache", {key: "gs://bucket/x"})
    if "teacher" in key:
        config.data.ner.loss, config.data.ner.teacher = "distill", config.data.ner.teacher or "teacher"
    with pytest.raises(UserError, match=f"^{key}: gs://bucket/x is an address"):
        check(config)


@pytest.mark.parametrize("key", ["data.ner.sources", "data.tc.sources", "downstream.ner", "downstream.tc"])
def test_sources_with_an_address_are_refused_before_all_else(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{key}: s3://bucket/x.jsonl"):
        check(run.config(tmp_path / "cache", {key: ("s3://bucket/x.jsonl?limit=3",)}))


def test_names_of_data_sets_are_no_addresses(tmp_path: Path) -> None:
    named = ("tfds:conll2003?tags=ner", "hub:numind/NuNER?split=entity", "generated:ner?rows=4000")
    check(run.config(tmp_path / "cache", {"data.ner.sources": (*named, "here/ner.conll")}))


def test_files_of_the_home_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    encoder = write_model(tmp_path / "encoder", SHAPE, weights(SHAPE))
    assert jaxprefit.load("~/encoder").config == jaxprefit.load(encoder).config
    jaxprefit.load("~/encoder").export("~/out/exported")
    assert (tmp_path / "out" / "exported" / "config.json").is_file()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.conll").write_text("Ada B-PER\nsings O\n")
    (tmp_path / "names.json").write_text('{"PER": "person"}')
    for text, root in (("~/data", ""), ("~/data", "elsewhere"), ("data", "~"), ("~/data/train.conll", "~/data")):
        source = sources.prepare(f"{text}?names=~/names.json", "ner", root, "~/cache")
        assert (len(source), source.names) == (1, {"PER": "person"})
    assert [p.name for p in tmp_path.glob("*")].count("~") == 0 and (tmp_path / "cache").is_dir()


def test_flags_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lora.json").write_text('{"rank": 0}')
    (tmp_path / "config.py").write_text("from configs.quickstart import get_config\n")
    args = ["--config=~/config.py", "--config.lora=@~/lora.json", "--config.data.cache=~/cache", "--workdir=~/run"]
    done = run.call("prefinetune", *args)
    assert done.returncode == 2 and "rank" in done.stderr, done.stderr
    assert not Path("~").exists() and not (tmp_path / "run").exists()
