"""The main path from the config to the result files, with every strategy, on tiny models."""

import ast
import contextlib
import functools
import io
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden.formula import weights
from golden.model_files import VOCABULARY, write_model
from helpers import run
from helpers.paths import ROOT, SCHEMAS
from helpers.schemas import assert_valid
from ml_collections import ConfigDict

import jaxprefit
from experiments import conflict, tables
from experiments.common import assembly, family_data, prefinetuning, scoring
from jaxprefit.errors import UserError
from jaxprefit.runtime import results
from jaxprefit.training import train_step

DOCUMENT = ROOT / "experiments" / "results" / "README.md"
EXPERIMENTS = sorted(
    [p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text()]
    + [p.parent.name for p in (ROOT / "experiments").glob("*/__main__.py")]
)
ADAPTERS = {
    "none": (), "individual_ner": (), "individual_tc": (), "naive": (),
    "task_primary": ("ner", "tc"), "shared_lora": ("ner", "tc"), "frozen_lora": ("ner", "tc"),
}  # fmt: skip
TEXTS = ["book a table in Paris", "hi", "what is the weather like in Rome tomorrow evening?"]


class Trained(NamedTuple):
    """One tiny run of a strategy."""

    workdir: Path
    start: dict[str, np.ndarray]  # its parameters before the first step, by path
    model: jaxprefit.Model
    printed: str  # by the run, then logged by load


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Strategy -> its run, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def make(strategy: str) -> Trained:
        config, printed = run.config(cache, {"strategy": strategy}), io.StringIO()
        start = jax.tree.map(np.asarray, assembly.make_run(config, folder / strategy).params)
        handler, log = logging.StreamHandler(printed), logging.getLogger("jaxprefit")
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        with contextlib.redirect_stdout(printed):
            prefinetuning.run(config, folder / strategy)
            model = jaxprefit.load(folder / strategy)
        log.removeHandler(handler)
        return Trained(folder / strategy, flatten_dict(start, sep="/"), model, printed.getvalue())

    return make


# Every strategy


@pytest.mark.parametrize("strategy", ADAPTERS)
def test_run_of_a_strategy(strategy: str, trained: Callable[[str], Trained]) -> None:
    made = trained(strategy)
    content = assert_valid(made.workdir / "summary.json", "prefinetune")
    steps = 0 if strategy == "none" else run.TINY["optimizer.steps"]
    assert (content["strategy"], content["steps"]) == (strategy, steps)
    assert set(content["held_out"]) == set(made.model.strategy.families)
    assert json.loads((made.workdir / "config.json").read_text())["strategy"] == strategy
    if steps:
        lines = [json.loads(line) for line in (made.workdir / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [*range(1, steps + 1)]

    folder = made.workdir / "checkpoints" / str(steps)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    jax.tree.map(np.testing.assert_array_equal, jaxprefit.load(folder).params, made.model.params)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(made.model.params))


@pytest.mark.parametrize("strategy", ADAPTERS)
def test_adapters(strategy: str, trained: Callable[[str], Trained]) -> None:
    adapters = trained(strategy).model.adapters
    assert tuple(adapters) == ADAPTERS[strategy]
    if adapters:
        same = jax.tree.map(np.array_equal, adapters["ner"], adapters["tc"])
        assert all(jax.tree.leaves(same)) == (strategy == "shared_lora")
        assert trained(strategy).model.encode(TEXTS, adapter="tc").sentence.shape == (3, 32)


@pytest.mark.parametrize("strategy", ADAPTERS)
def test_printed_counts_are_what_trained(strategy: str, trained: Callable[[str], Trained]) -> None:
    made = trained(strategy)
    end = flatten_dict(made.model.params, sep="/")
    assert end.keys() == made.start.keys()
    moved = {path for path in end if not np.array_equal(end[path], made.start[path])}
    assert moved == {path for path in end if made.model.strategy.touched_by(path)}
    counts = sum(end[path].size for path in moved), sum(leaf.size for leaf in end.values())
    told = re.findall(r"([\d,]+) of ([\d,]+) parameters trainable", made.printed)
    assert [tuple(int(n.replace(",", "")) for n in line) for line in told] == [counts, counts]
    summary = json.loads((made.workdir / "summary.json").read_text())
    assert (summary["trainable_parameters"], summary["total_parameters"]) == counts


# Use


def test_encode(trained: Callable[[str], Trained]) -> None:
    model = trained("task_primary").model
    lengths = [len(model.tokenizer.encode(text).ids) for text in TEXTS]
    for adapter in (None, "ner", "tc"):
        out = model.encode(TEXTS, adapter=adapter)
        assert (out.tokens.shape, out.tokens.dtype) == ((3, max(lengths), 32), np.float32)
        assert (out.sentence.shape, out.sentence.dtype) == ((3, 32), np.float32)
        assert out.mask.dtype == bool and out.mask.sum(1).tolist() == lengths
        means = [tokens[mask].mean(0) for tokens, mask in zip(out.tokens, out.mask)]
        np.testing.assert_allclose(out.sentence, means, atol=1e-6)
        alone = model.encode(TEXTS[1:2], adapter=adapter)
        np.testing.assert_allclose(alone.sentence[0], out.sentence[1], atol=1e-5)
    assert model.encode(TEXTS, max_length=6).tokens.shape == (3, 6, 32)


def test_adapter_none_is_the_backbone(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    model = trained("task_primary").model
    model.export(tmp_path / "bare")
    bare = jaxprefit.load(tmp_path / "bare")
    jax.tree.map(np.testing.assert_array_equal, bare.backbone, model.backbone)
    assert not bare.adapters and not bare.heads
    vectors = {adapter: model.encode(TEXTS, adapter=adapter).sentence for adapter in (None, "ner", "tc")}
    np.testing.assert_array_equal(vectors[None], bare.encode(TEXTS).sentence)
    for a, b in ((None, "ner"), (None, "tc"), ("ner", "tc")):
        assert np.abs(vectors[a] - vectors[b]).max() > 1e-4


@pytest.mark.parametrize(("strategy", "adapter"), [("task_primary", "ner"), ("frozen_lora", "tc"), ("naive", None)])
def test_export_with_the_adapter_merged(
    strategy: str, adapter: str | None, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    model = trained(strategy).model
    model.export(tmp_path / "out", adapter)
    assert {*run.files(tmp_path / "out")} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again = jaxprefit.load(tmp_path / "out")
    np.testing.assert_allclose(
        again.encode(TEXTS).sentence, model.encode(TEXTS, adapter=adapter).sentence, rtol=0, atol=1e-5
    )


# Result files


def test_conflict_of_a_shared_adapter(trained: Callable[[str], Trained], cache: Path, tmp_path: Path) -> None:
    conflict.run(run.config(cache), tmp_path / "out", str(trained("shared_lora").workdir))
    (pair,) = assert_valid(tmp_path / "out" / "conflict.json", "conflict")["probe"]["pairs"]
    blocks = pair["blocks"]
    assert [*blocks["layer"]] == ["embeddings", "layer_0", "lora/shared"]
    # One block under two names; only the correction for the number of blocks depends on its neighbours.
    found = blocks["kind"]["lora"], blocks["layer"]["lora/shared"]
    kind, layer = ({k: v for k, v in block.items() if k != "p_holm"} for block in found)
    assert kind == layer
    assert "lora/shared/layer_0/query" in blocks["module"]


def test_conflict_files(trained: Callable[[str], Trained], cache: Path, tmp_path: Path) -> None:
    checkpoint = trained("naive").workdir
    conflict.run(run.config(cache), tmp_path / "out", str(checkpoint))
    content = assert_valid(tmp_path / "out" / "conflict.json", "conflict")
    assert (content["run"]["strategy"], content["run"]["step"], content["probe"]["rounds"]) == ("naive", 3, 4)
    (pair,) = content["probe"]["pairs"]
    assert [*pair["blocks"]["layer"]] == ["embeddings", "layer_0"]
    assert "<img" in (tmp_path / "out" / "conflict.html").read_text()
    grams = np.load(tmp_path / "out" / "grams.npz")
    views, tensors, _ = zip(*(name.split(":") for name in grams))
    assert {*views} == {"gradient", "adam"} and {t.rpartition("/")[0] for t in tensors} == {*pair["blocks"]["module"]}
    assert grams["gradient:layer_0/query/kernel:rounds"].shape == (4, 2, 2, 2, 2)
    assert grams["adam:layer_0/query/kernel:groups"].shape == (2, 8, 2, 8)
    again = conflict.run(run.config(cache), tmp_path / "again", str(checkpoint / "checkpoints" / "3"))
    assert results.to_json(again)["probe"] == content["probe"]


def test_downstream_files(trained: Callable[[str], Trained], cache: Path, tmp_path: Path) -> None:
    checkpoint = trained("task_primary").workdir
    scoring.run(run.config(cache), tmp_path / "out", str(checkpoint))
    content = assert_valid(tmp_path / "out" / "scores.json", "scores")
    assert content["start"] == {"checkpoint": str(checkpoint), "step": 3, "strategy": "task_primary"}
    assert [t["family"] for t in content["tasks"]] == ["ner", "tc"]
    before = run.files(tmp_path / "out")
    scoring.run(run.config(cache), tmp_path / "out", str(checkpoint))
    assert run.files(tmp_path / "out") == before and len([*(tmp_path / "out" / "cells").iterdir()]) == 2


def test_downstream_of_a_plain_encoder(trained: Callable[[str], Trained], cache: Path, tmp_path: Path) -> None:
    trained("naive").model.export(tmp_path / "plain")
    scoring.run(run.config(cache, {"downstream.ner": ()}), tmp_path / "out", str(tmp_path / "plain"))
    content = assert_valid(tmp_path / "out" / "scores.json", "scores")
    assert content["start"]["step"] is None and content["average"]["ner"] is None


def test_tables_of_several_runs(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    for name in ("naive", "individual_tc"):
        shutil.copytree(trained(name).workdir, tmp_path / "runs" / name)
    summary = json.loads((tmp_path / "runs" / "naive" / "summary.json").read_text())
    (tmp_path / "runs" / "warm").mkdir()
    (tmp_path / "runs" / "warm" / "summary.json").write_text(json.dumps({**summary, "strategy": "individual_mlm"}))
    text = tables.run(ConfigDict(), tmp_path / "out", str(tmp_path / "runs"))
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert [r for r in rows if r[:3] not in ("str", "---")] == ["(start)", "individual_tc", "individual_mlm", "naive"]
    assert (tmp_path / "out" / "tables.md").read_text() == text
    shutil.copytree(trained("naive").workdir, tmp_path / "runs" / "again")
    with pytest.raises(UserError, match=r"two results that would both be summary_naive.json; give a folder without"):
        tables.run(ConfigDict(), tmp_path / "out", str(tmp_path / "runs"))


def test_quickstart(cache: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    args = [flag for flag in run.flags(cache) if not flag.startswith("--config=")]  # it has its own config
    done = run.call("quickstart", *args, f"--workdir={workdir}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    content = assert_valid(workdir / "summary.json", "quickstart")
    assert "downstream after 3 steps" in done.stdout and "gradient conflict ner vs tc" in done.stdout
    for name in content["strategies"]:
        assert_valid(workdir / name / "summary.json", "prefinetune")
        assert_valid(workdir / name / "downstream" / "scores.json", "scores")
    assert_valid(workdir / "conflict" / "conflict.json", "conflict")
    page = (workdir / "report.html").read_text()
    assert page.count("<img") == 3 and "http" not in page and all(name in page for name in content["strategies"])
    pictures = sorted(workdir.glob("*.png"))
    assert [p.name for p in pictures] == ["layers.png", "modules.png", "scores.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


@pytest.mark.parametrize("file", sorted(SCHEMAS.glob("*.json")), ids=lambda p: p.name.partition(".")[0])
def test_document_names_every_field(file: Path) -> None:
    schema, document = json.loads(file.read_text()), DOCUMENT.read_text()

    def names(part: Any) -> set[str]:
        if isinstance(part, list):
            return set().union(*map(names, part))
        if not isinstance(part, dict):
            return set()
        return set(part.get("properties", ())).union(*map(names, part.values()))

    documented = set(re.findall(r"[\w/]+", " ".join(re.findall(r"`([^`]+)`", document))))
    assert names(schema) - documented == set()
    top = schema["properties"]
    assert f"`{top['schema']['const']}` | {top['version']['const']} |" in document


# Every module and config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help(experiment: str) -> None:
    folder = ROOT / "experiments"
    file = (
        folder / f"{experiment}.py" if (folder / f"{experiment}.py").exists() else folder / experiment / "__init__.py"
    )
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    done = run.call(experiment, "--help")
    assert done.returncode == 0 and not done.stderr
    assert " ".join(doc.split()) in " ".join(done.stdout.split())
    assert ("--output" if experiment == "export" else "--workdir") in done.stdout


def test_help_lists_the_settings_of_the_config() -> None:
    for experiment, *args in (("quickstart",), ("prefinetune", "--config=configs/quickstart.py")):
        assert "--config.optimizer.steps=300" in run.call(experiment, *args, "--help").stdout, experiment


CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py") if "def get_config" in p.read_text())


@pytest.mark.parametrize("file", CONFIGS)
def test_shapes_of_a_step_of_every_config(file: str, cache: Path, tmp_path: Path) -> None:
    config = __import__(f"configs.{file}", fromlist=["get_config"]).get_config()
    config.data.cache = str(cache)
    tiny = {"ner": run.TINY["data.ner.sources"], "tc": run.TINY["data.tc.sources"], "mlm": ("generated:text?rows=300",)}
    for family, sources in tiny.items():
        if config.data[family].sources or family != "mlm":
            config.data[family].sources, config.data[family].weights = sources, ""
    if file == "minilm":
        shape = {
            "model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 24, "num_hidden_layers": 6,
            "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "type_vocab_size": 2,
        }  # fmt: skip
        config.model.path = str(write_model(tmp_path / "encoder", shape, weights(shape)))
    config.data.drop_overlap = ""  # the config's own tests are not here
    parts = assembly.make_run(config, tmp_path / "run")
    state, tx = assembly.fresh_state(parts)
    streams = family_data.streams(parts.data, parts.setup.families, config, config.seed)
    step = train_step.make_step(parts.setup, tx, parts.optimizer, parts.aggregate, parts.mesh, jax.random.key(0))
    after, metrics = jax.eval_shape(step, state, {name: next(stream).batch for name, stream in streams.items()})
    assert jax.tree.structure(after) == jax.tree.structure(state)
    described = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(s)] for s in (state, after)]
    assert described[0] == described[1]
    families = ("mlm",) if config.strategy == "individual_mlm" else ("ner", "tc")
    assert all(metrics[f"loss/{family}"].shape == () for family in families)
    assert len(families) == 1 or metrics["gram/embeddings"].shape == (2, 2)
