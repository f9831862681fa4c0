"""A warm start from text to an encoder that other runs start from, and mlm as a third family beside ner and tc."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jsonschema
import numpy as np
import pytest
from helpers import run
from helpers.paths import SCHEMAS
from ml_collections import ConfigDict

import jaxprefit
from configs import warmstart as settings
from experiments import conflict, warmstart
from experiments.common import assembly, prefinetuning
from jaxprefit.errors import UserError

TINY: dict[str, Any] = {
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.intermediate": 64,
    "model.max_positions": 40,
    "model.vocab": 500,
    "optimizer.steps": 6,
    "optimizer.warmup_steps": 1,
    "data.held_out": 30,
    "data.mlm.sources": ("generated:text?rows=300&seed=4", "generated:text?rows=100&seed=5"),
    "data.mlm.rows": 4,
    "data.mlm.row_length": 32,
    "data.mlm.max_length": 24,
    "run.checkpoint_every": 2,
    "run.eval_every": 3,
}
TEXT = {"data.mlm.sources": TINY["data.mlm.sources"], "data.mlm.rows": 4, "data.mlm.row_length": 32}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


def config(cache: Path, **changes: Any) -> ConfigDict:
    c = settings.get_config()
    c.update_from_flattened_dict({**TINY, "data.cache": str(cache), **changes})
    return c


@pytest.fixture(scope="module")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a warm start that nothing stopped."""
    workdir = tmp_path_factory.mktemp("warm") / "run"
    warmstart.run(config(cache), workdir)
    return workdir


def test_files_of_a_warm_start(made: Path) -> None:
    schema = json.loads((SCHEMAS / "warmstart.schema.json").read_text())
    content = json.loads((made / "warmstart.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    assert [point["step"] for point in content["curve"]] == [0, 3, 6]
    assert content["curve"][-1]["loss"] < content["curve"][0]["loss"]
    assert content["steps"] == 6 and content["encoder"]["vocab_size"] == 500
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert content["tokens"] == sum(line["tokens/mlm"] for line in lines)


def test_the_exported_encoder_is_the_trained_one_and_starts_other_runs(made: Path, cache: Path, tmp_path: Path) -> None:
    model, trained = jaxprefit.load(made / "encoder"), jaxprefit.load(made)
    jax.tree.map(np.testing.assert_array_equal, model.backbone, trained.backbone)
    assert model.encode(["Dinner on Friday?"], max_length=32).sentence.shape == (1, 32)
    changes = {"model.path": str(made / "encoder"), "strategy": "individual_ner"}
    start = assembly.make_run(run.config(cache, changes), tmp_path / "run").params["backbone"]
    jax.tree.map(np.testing.assert_array_equal, start, model.backbone)


@pytest.mark.slow
def test_two_processes_warm_start_like_one(made: Path, tmp_path: Path) -> None:
    """From an empty cache: text, vocabulary and encoder are each written by one of them."""
    settings = {**TINY, "data.cache": str(tmp_path / "cache")}
    flags = ["--config=configs/warmstart.py", *(f"--config.{key}={value}" for key, value in settings.items())]
    workdir = tmp_path / "run"
    processes = run.start_together("-m", "experiments.warmstart", *flags, f"--workdir={workdir}", devices=2)
    ends = run.end_together(processes)
    assert [status for status, _ in ends] == [0, 0], ends
    found, expected = (json.loads((folder / "warmstart.json").read_text()) for folder in (workdir, made))
    assert found["tokens"] == expected["tokens"] and found["device"] != expected["device"]
    np.testing.assert_allclose(*([p["loss"] for p in c["curve"]] for c in (found, expected)), rtol=1e-5)
    assert (workdir / "encoder/tokenizer.json").read_bytes() == (made / "encoder/tokenizer.json").read_bytes()
    assert jaxprefit.load(workdir / "encoder").config == jaxprefit.load(made).config


def test_a_warm_start_continues_and_ends_alike(made: Path, cache: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    shutil.copytree(made / "checkpoints" / "4", workdir / "checkpoints" / "4")
    for name in ("metrics.jsonl", "held_out.jsonl", "config.json"):
        shutil.copy(made / name, workdir / name)
    warmstart.run(config(cache), workdir)
    for name in ("held_out.jsonl", "encoder/model.safetensors", "encoder/tokenizer.json"):
        assert (workdir / name).read_bytes() == (made / name).read_bytes(), name
    found, expected = (json.loads((w / "warmstart.json").read_text()) for w in (workdir, made))
    assert {k: v for k, v in found.items() if k != "tokens_per_s"} == {
        k: v for k, v in expected.items() if k != "tokens_per_s"
    }


def test_an_encoder_is_continued_with_its_own_vocabulary(made: Path, cache: Path, tmp_path: Path) -> None:
    again = warmstart.run(config(cache, **{"model.path": str(made / "encoder")}), tmp_path / "run")
    assert again["start"] == str(made / "encoder")
    first = json.loads((made / "warmstart.json").read_text())["curve"]
    assert again["curve"][0]["loss"] < first[0]["loss"]  # the head is new, the encoder is not
    tokenizer = "encoder/tokenizer.json"
    assert (tmp_path / "run" / tokenizer).read_bytes() == (made / tokenizer).read_bytes()


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"strategy": "naive"}, ["strategy is 'naive'", "individual_mlm"]),
        ({"data.mlm.sources": ()}, ["data.mlm.sources is empty"]),
        ({"data.mlm.masking": "all"}, ["data.mlm.masking is 'all'", "uniform", "tfidf"]),
        ({"data.mlm.mask_share": 1.0}, ["data.mlm.mask_share is 1.0"]),
        ({"data.mlm.mask_share": 0.0}, ["data.mlm.mask_share is 0.0"]),
        ({"data.mlm.max_length": 41, "data.mlm.row_length": 64}, ["data.mlm.max_length is 41", "4 to 40"]),
        ({"model.vocab_path": "no/such"}, ["no/such holds neither tokenizer.json nor vocab.txt"]),
        ({"data.mlm.sources": ("generated:ner",)}, ["'ner' records where 'text' records"]),
        ({"optimizer.b2": 1.0}, ["optimizer.b2 is 1.0"]),
    ],
)
def test_settings(changes: dict, pieces: list[str], cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        warmstart.run(config(cache, **changes), tmp_path / "run")
    message = str(caught.value)
    assert all(piece in message for piece in pieces) and "\n" not in message
    assert not (tmp_path / "run").exists()


# A third family


def test_mlm_joins_a_strategy_when_it_has_sources(cache: Path, tmp_path: Path) -> None:
    changes = {**TEXT, "strategy": "naive", "data.mlm.max_length": 24, "optimizer.steps": 2}
    summary = prefinetuning.run(run.config(cache, changes), tmp_path / "run")
    assert set(summary["held_out"]) == {"ner", "tc", "mlm"}
    model = jaxprefit.load(tmp_path / "run")
    assert dict(model.strategy.table)["backbone"] == ("ner", "tc", "mlm")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert np.shape(line["gram/embeddings"]) == (3, 3)
    conflict.run(run.config(cache, changes), tmp_path / "out", str(tmp_path / "run"))
    found = json.loads((tmp_path / "out" / "conflict.json").read_text())
    assert [p["families"] for p in found["probe"]["pairs"]] == [["ner", "tc"], ["ner", "mlm"], ["tc", "mlm"]]


def test_the_families_of_a_run_are_those_with_sources(cache: Path) -> None:
    def families(strategy: str, **changes: Any) -> Any:
        return assembly.named_families(run.config(cache, {"strategy": strategy, **changes}))

    assert families("task_primary") == families("none") == families("individual_tc") == ("ner", "tc")
    assert families("naive", **TEXT, **{"data.tc.sources": ()}) == ("ner", "mlm")
    assert families("none", **{"data.ner.sources": (), "data.tc.sources": ()}) == ()
    for strategy, changes, says in (
        ("individual_mlm", {}, "strategy 'individual_mlm' trains 'mlm', but data.mlm.sources is empty"),
        ("naive", {"data.tc.sources": ()}, "strategy 'naive' trains several families, but data.tc.sources is empty"),
        ("individual_mml", TEXT, "did you mean 'individual_mlm'"),
    ):
        with pytest.raises(UserError, match=says):
            families(strategy, **changes)
