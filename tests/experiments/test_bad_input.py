"""Every mistake of a user ends in one line that says what and where, and leaves nothing half-written behind."""

import json
import lzma
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run

import jaxprefit
from experiments import conflict
from experiments.common import prefinetuning, scoring
from jaxprefit.encoder.huggingface import load_pretrained
from jaxprefit.errors import UserError

PAIRS = "".join(json.dumps({"a": f"question {i}", "b": f"answer {i}"}) + "\n" for i in range(40))
NER = json.dumps({"tokens": ["Ada", "waits"], "tags": ["B-PER", "O"]}) + "\n"
TEXT = json.dumps({"text": "play a song", "label": "music"}) + "\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run of task_primary."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    prefinetuning.run(run.config(cache, {"optimizer.steps": 1}), workdir)
    return workdir


@pytest.fixture(scope="module")
def plain(finished: Path) -> Path:
    """A Hugging Face directory."""
    jaxprefit.load(finished).export(finished.parent / "plain")
    return finished.parent / "plain"


def refusal(action: Callable[[], Any]) -> str:
    """The one line of the UserError that `action` raises."""
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert message and "\n" not in message
    return message


def assert_clean(cache: Path, workdir: Path) -> None:
    """No checkpoint, no result, no part of a cached dataset."""
    assert not [*workdir.glob("checkpoints/*")]
    assert not [p for p in workdir.glob("*") if p.suffix in (".json", ".html", ".npz")]
    folders = [p for p in cache.glob("*") if p.is_dir()]
    assert all((p / "meta.json").is_file() and not p.name.startswith(".") for p in folders), folders


# Settings


SETTINGS = {
    "unknown strategy": ({"strategy": "task_primry"}, "strategy 'task_primry'", "did you mean 'task_primary'?"),
    "unknown aggregator": ({"aggregator": "pcgrd"}, "aggregator 'pcgrd'", "did you mean 'pcgrad'?"),
    "unknown scope": ({"aggregator_scope": "layer"}, "aggregator_scope is 'layer'", "whole, block"),
    "no LoRA": ({"lora.rank": 0}, "lora.rank is 0", "at least 1"),
    "too many layers": ({"lora.last_layers": 2}, "lora.last_layers is 2", "1 to 1"),
    "unknown target": ({"lora.targets": ("quary",)}, "lora.targets", "quary", "query"),
    "all dropped": ({"lora.dropout": 1.0}, "lora.dropout is 1.0", "[0, 1)"),
    "all hidden dropped": ({"model.hidden_dropout": 1.5}, "model.hidden_dropout is 1.5"),
    "no batch": ({"data.ner.rows": 0}, "data.ner.rows is 0", "at least 1"),
    "short rows": ({"data.ner.row_length": 15}, "data.ner.row_length is 15", "max_length, 16"),
    "strange exhaustion": ({"data.tc.exhaustion": "end"}, "data.tc.exhaustion is 'end'", "repeat"),
    "no steps": ({"optimizer.steps": 0}, "optimizer.steps"),
    "unknown clip": ({"optimizer.clip": "family"}, "optimizer.clip is 'family'", "families, combined"),
    "surgery on clipped": ({"optimizer.clip": "families", "aggregator": "mgda"}, "aggregator 'mgda'", "clip=combined"),
    "no average": ({"aggregator": "pcgrad", "aggregator_decay": 1.0}, "aggregator_decay is 1.0", "[0, 1)"),
    "nothing to average": ({"aggregator_decay": 0.9}, "aggregator_decay is 0.9", "'sum' reads no Gram matrix"),
    "long warm-up": ({"optimizer.warmup_steps": 4}, "optimizer.warmup_steps"),
    "no heads": ({"model.heads": 0}, "model.heads is 0"),
    "no width": ({"model.hidden": 0}, "model.hidden is 0"),
    "too few devices": ({"devices": 9}, "devices is 9"),
    "axes that do not fit": ({"mesh.fsdp": 3}, "mesh.fsdp 3", "1 devices"),
    "no axis": ({"mesh.tensor": 0}, "mesh.tensor is 0", "at least 1"),
    "two axes to fill": ({"mesh.fsdp": -1}, "mesh.data and mesh.fsdp are -1"),
    "too long": ({"data.tc.max_length": 1000}, "data.tc.max_length is 1000", "4 to 128"),
    "negative held-out": ({"data.held_out": -1}, "data.held_out is -1"),
    "negative seed": ({"seed": -1}, "seed is -1"),
    "never saved": ({"run.checkpoint_every": 0}, "run.checkpoint_every is 0"),
    "no labels": ({"downstream.fraction": 0.0}, "downstream.fraction is 0.0"),
    "more than all labels": ({"downstream.fraction": 1.1}, "downstream.fraction is 1.1"),
    "no downstream steps": ({"downstream.steps": 0}, "downstream.steps is 0"),
    "no downstream batch": ({"downstream.batch_size": 0}, "downstream.batch_size is 0"),
    "never logged": ({"run.log_every": 0}, "run.log_every is 0"),
    "strange word for non-finite": ({"run.nonfinite": "ignore"}, "run.nonfinite is 'ignore'", "stop, skip"),
    "uneven micro-batches": ({"run.accumulate": 3}, "run.accumulate is 3; data.ner.rows, 8, must be a multiple"),
    "contrast in parts": ({"run.accumulate": 2}, "run.accumulate is 2", "set data.tc.chunk_rows", "such as 4"),
    "no limit": ({"run.nonfinite_limit": 0}, "run.nonfinite_limit is 0", "at least 1"),
    "weight of no source": ({"data.tc.weights": "pairs=1"}, "data.tc.weights names 'pairs'", "generated_pairs"),
    "weight that is no number": ({"data.tc.weights": "generated_pairs_300_2"}, "data.tc.weights", "name=number"),
    "weight nan": ({"data.tc.weights": "generated_pairs_300_2=nan"}, "data.tc.weights"),
    "loss weight nan": ({"data.tc.loss_weight": float("nan")}, "loss_weight"),
    "no sources": ({"data.ner.sources": ()}, "data.ner.sources is empty"),
    "unknown NER loss": ({"data.ner.loss": "softmx"}, "data.ner.loss is 'softmx'", "softmax"),
    "unknown concept encoder": ({"data.ner.concept_encoder": "none"}, "data.ner.concept_encoder is 'none'", "frozen"),
    "no concepts": ({"data.ner.max_concepts": 0}, "data.ner.max_concepts is 0"),
    "distill without a teacher": ({"data.ner.loss": "distill"}, "data.ner.teacher ''", "needs a teacher"),
    "a teacher of nobody": ({"data.ner.teacher": "some/folder"}, "data.ner.loss is 'sigmoid'", "some/folder"),
    "teacher that is not there": (
        {"data.ner.loss": "distill", "data.ner.teacher": "no/such/folder"},
        "no/such/folder",
        "no such directory",
    ),
    "same source twice": ({"data.tc.sources": ("generated:pairs?rows=9",) * 2}, "data.tc.sources"),
    "source of another kind": ({"data.tc.sources": ("generated:ner",)}, "generated:ner", "'pairs'"),
    "unknown option": ({"data.tc.sources": ("generated:pairs?row=9",)}, "'row'", "did you mean 'rows'?"),
    "model that is not there": ({"model.path": "no/such/folder"}, "no/such/folder", "no such directory"),
}


@pytest.mark.parametrize(("changes", "pieces"), [(c, p) for c, *p in SETTINGS.values()], ids=SETTINGS)
def test_setting(changes: dict, pieces: list[str], cache: Path, tmp_path: Path) -> None:
    message = refusal(lambda: prefinetuning.run(run.config(cache, changes), tmp_path / "run"))
    assert [piece for piece in pieces if piece not in message] == [], message
    assert_clean(cache, tmp_path / "run")


@pytest.mark.parametrize("key", ["workdir", "data.cache"])
def test_folder_that_is_a_file(key: str, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    config = run.config(file if key == "data.cache" else cache)
    assert str(file) in refusal(lambda: prefinetuning.run(config, file if key == "workdir" else tmp_path / "run"))
    assert file.read_text() == "mine"


# Sources


SOURCES = {
    "wrong path": ("pairs.jsonl", PAIRS.encode(), "pair.jsonl", "pair.jsonl", "did you mean", "pairs.jsonl"),
    "folder without split": ("my/test.jsonl", PAIRS.encode(), "my", "my", "train.jsonl", "test.jsonl"),
    "wrong column": ("p.csv", b"question,answer\nx,y\n", "p.csv?a=question&b=answr", "p.csv:2", "'answer'"),
    "row without field": ("p.jsonl", (PAIRS + '{"a": "x"}\n').encode(), "p.jsonl", "p.jsonl:41", "'b'"),
    "empty": ("p.jsonl", b"", "p.jsonl", "p.jsonl", "no records"),
    "truncated": ("p.jsonl.xz", lzma.compress((PAIRS * 50).encode())[:-60], "p.jsonl.xz", "p.jsonl.xz:", "whole"),
    "no xz at all": ("p.jsonl.xz", PAIRS.encode(), "p.jsonl.xz", "p.jsonl.xz:1", "suffix"),
    "unknown suffix": ("p.parquet", b"PAR1", "p.parquet", "p.parquet", ".jsonl"),
}


@pytest.mark.parametrize(
    ("name", "content", "source", "pieces"), [(n, c, s, p) for n, c, s, *p in SOURCES.values()], ids=SOURCES
)
def test_source(name: str, content: bytes, source: str, pieces: list[str], cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "data" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    before = sorted(cache.glob("*"))
    changes = {"data.root": str(tmp_path / "data"), "data.tc.sources": (source,)}
    message = refusal(lambda: prefinetuning.run(run.config(cache, changes), tmp_path / "run"))
    assert [piece for piece in pieces if piece not in message] == [], message
    assert_clean(cache, tmp_path / "run")
    assert not before or sorted(cache.glob("*")) == before


def test_tag_outside_the_scheme(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.conll").write_text("Ada B-PER\nwaits O\n\nBob E-PER\n")
    changes = {"data.root": str(tmp_path), "data.ner.sources": ("notes.conll",)}
    message = refusal(lambda: prefinetuning.run(run.config(cache, changes), tmp_path / "run"))
    assert "notes.conll:4: " in message and "'E-PER'" in message and "scheme" in message
    assert_clean(cache, tmp_path / "run")


def test_ner_source_without_entities(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "flat.jsonl").write_text(NER.replace("B-PER", "O") * 20)
    changes = {"data.root": str(tmp_path), "data.ner.sources": ("flat.jsonl",)}
    assert "'flat.jsonl'" in refusal(lambda: prefinetuning.run(run.config(cache, changes), tmp_path / "run"))
    assert_clean(cache, tmp_path / "run")


# Checkpoints


@pytest.mark.parametrize("item", ["lora.ner", "backbone", "optimizer", "meta"])
def test_checkpoint_with_a_missing_item(item: str, finished: Path, cache: Path, tmp_path: Path) -> None:
    damaged, config = shutil.copytree(finished, tmp_path / "run"), run.config(cache, {"optimizer.steps": 1})
    shutil.rmtree(damaged / "checkpoints" / "1" / item)
    before = run.files(damaged)
    for action in (
        lambda: jaxprefit.load(damaged),
        lambda: conflict.run(config, tmp_path / "out", str(damaged)),
        lambda: scoring.run(config, tmp_path / "out", str(damaged)),
        lambda: prefinetuning.run(config, damaged),
    ):
        message = refusal(action)
        assert f"'{item}'" in message and str(damaged / "checkpoints" / "1") in message
    assert run.files(damaged) == before
    assert not (tmp_path / "out").exists()


def test_load_of_what_is_no_model(finished: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in refusal(lambda: jaxprefit.load(tmp_path / "nothing"))
    assert str(tmp_path) in refusal(lambda: jaxprefit.load(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert "no complete checkpoint" in refusal(lambda: jaxprefit.load(tmp_path))


def test_a_run_is_found_by_a_link_to_its_step_and_by_its_checkpoints(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(finished / "checkpoints" / "1")
    (tmp_path / "run").symlink_to(finished)
    for path in (tmp_path / "latest", tmp_path / "run", finished / "checkpoints"):
        assert jaxprefit.load(path).meta["step"] == 1


def test_a_run_is_no_start_encoder(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(finished / "checkpoints" / "1")
    for path in (finished, finished / "checkpoints", finished / "checkpoints" / "1", tmp_path / "latest"):
        message = refusal(lambda: load_pretrained(path))  # noqa: B023 (called at once)
        assert str(path) in message and "export" in message


def test_unknown_adapter(finished: Path, plain: Path, tmp_path: Path) -> None:
    model = jaxprefit.load(finished)
    message = refusal(lambda: model.encode(["a text"], adapter="tagging"))
    assert "'tagging'" in message and "ner, tc" in message
    assert "none" in refusal(lambda: jaxprefit.load(plain).encode(["a text"], adapter="ner"))
    refusal(lambda: model.export(tmp_path / "out", adapter="tagging"))
    assert not (tmp_path / "out").exists()


def test_conflict_needs_two_families_that_share(plain: Path, cache: Path, tmp_path: Path) -> None:
    config = run.config(cache, {"strategy": "individual_tc", "optimizer.steps": 1})
    prefinetuning.run(config, tmp_path / "run")
    message = refusal(lambda: conflict.run(config, tmp_path / "out", str(tmp_path / "run")))
    assert "'individual_tc'" in message
    message = refusal(lambda: conflict.run(config, tmp_path / "out", str(plain)))
    assert str(plain) in message and "plain encoder" in message
    assert "--checkpoint" in refusal(lambda: conflict.run(config, tmp_path / "out", ""))
    assert not (tmp_path / "out").exists()


def test_conflict_settings(finished: Path, cache: Path, tmp_path: Path) -> None:
    config = run.config(cache, {"conflict.rounds": 3})
    assert "conflict.rounds is 3" in refusal(lambda: conflict.run(config, tmp_path / "out", str(finished)))
    assert not (tmp_path / "out").exists()


# Downstream


@pytest.mark.parametrize(
    ("key", "train", "test", "unseen"),
    [("ner", NER, NER.replace("B-PER", "B-LOC"), "LOC"), ("tc", TEXT, TEXT.replace("music", "weather"), "weather")],
)
def test_label_never_seen_in_training(
    key: str, train: str, test: str, unseen: str, plain: Path, cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "task"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(train * 4)
    (folder / "test.jsonl").write_text(train + test)
    only = {"downstream.ner": (), "downstream.tc": (), f"downstream.{key}": ("task",)}
    changes = {"data.root": str(folder.parent), **only}
    message = refusal(lambda: scoring.run(run.config(cache, changes), tmp_path / "out", str(plain)))
    assert "'task'" in message and unseen in message and "never seen in training" in message
    assert_clean(cache, tmp_path / "out")


def test_a_task_that_cannot_be_read_does_not_stop_the_others(plain: Path, cache: Path, tmp_path: Path) -> None:
    for name, test in (("good", TEXT), ("bad", TEXT.replace("music", "weather"))):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "train.jsonl").write_text(TEXT * 4)
        (tmp_path / "data" / name / "test.jsonl").write_text(test)
    tasks = {"downstream.ner": (), "downstream.tc": ("bad", "good", "absent"), "downstream.seeds": (0, 1)}
    c = run.config(cache, {"data.root": str(tmp_path / "data"), **tasks})
    assert "4 cells failed" in refusal(lambda: scoring.run(c, tmp_path / "out", str(plain)))
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [t["task"] for t in content["tasks"]] == ["good"] and content["average"]["tc"] is None
    failed = {(cell["task"], cell["seed"]): cell["reason"] for cell in content["failed"]}
    assert set(failed) == {(name, seed) for name in ("bad", "absent") for seed in (0, 1)}
    assert "weather" in failed["bad", 1] and "absent" in failed["absent", 0]


DOWNSTREAM = {
    "mode": ({"downstream.mode": "adaptr"}, "downstream.mode is 'adaptr'", "adapter"),
    "fraction": ({"downstream.fraction": 0.0}, "downstream.fraction is 0.0"),
    "batch": ({"downstream.batch_size": 0}, "downstream.batch_size"),
    "length": ({"downstream.max_length": 1000}, "downstream.max_length is 1000", "4 to 128"),
    "seeds": ({"downstream.seeds": ()}, "downstream.seeds"),
    "rank": ({"lora.rank": 0}, "lora.rank is 0"),
    "no task": ({"downstream.ner": (), "downstream.tc": ()}, "downstream.ner"),
}


@pytest.mark.parametrize(("changes", "pieces"), [(c, p) for c, *p in DOWNSTREAM.values()], ids=DOWNSTREAM)
def test_downstream_setting(changes: dict, pieces: list[str], plain: Path, cache: Path, tmp_path: Path) -> None:
    message = refusal(lambda: scoring.run(run.config(cache, changes), tmp_path / "out", str(plain)))
    assert [piece for piece in pieces if piece not in message] == [], message
    assert_clean(cache, tmp_path / "out")


# Losses that are not finite


def test_non_finite_loss_stops_and_the_checkpoints_before_it_load(cache: Path, tmp_path: Path) -> None:
    # The rate grows with every step until weights overflow in the encoder: some checkpoints are good by then.
    changes = {
        "strategy": "individual_tc", "optimizer.steps": 60, "optimizer.warmup_steps": 60, "optimizer.clip_norm": 1e30,
        "optimizer.backbone_lr": 1e10, "run.checkpoint_every": 1, "run.keep": 60,
    }  # fmt: skip
    message = refusal(lambda: prefinetuning.run(run.config(cache, changes), tmp_path / "run"))
    step = int(re.match(r"step (\d+): ", message)[1])  # type: ignore[index]
    assert "loss/tc" in message and "not finite" in message
    with np.load(tmp_path / "run" / "nonfinite" / f"step_{step}.npz") as batch:
        assert all(name.startswith("tc/") for name in batch)
    steps = sorted(int(p.name) for p in tmp_path.glob("run/checkpoints/*"))
    assert steps == [*range(1, step)] and step > 2
    assert jaxprefit.load(tmp_path / "run").meta["step"] == step - 1
    good = jaxprefit.load(tmp_path / "run" / "checkpoints" / "1")
    assert np.isfinite(good.encode(["a text"]).sentence).all()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_weights_that_overflow_in_the_last_step(cache: Path, tmp_path: Path) -> None:
    # The loss of the only step is finite, what it made is not: the held-out loss tells.
    changes = {
        "strategy": "individual_tc", "optimizer.steps": 1, "optimizer.warmup_steps": 0,
        "optimizer.backbone_lr": 1e30, "optimizer.clip_norm": 1e30,
    }  # fmt: skip
    assert "not finite" in refusal(lambda: prefinetuning.run(run.config(cache, changes), tmp_path / "run"))


# The command line


def assert_refused(done: Any, *pieces: str) -> None:
    """A status that is not 0, and one line on standard error."""
    assert done.returncode not in (0, None)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert [piece for piece in pieces if piece not in done.stderr] == [], done.stderr


COMMANDS = {
    "no workdir": (["--config=configs/quickstart.py"], "--workdir is missing"),
    "no config": (["--workdir=WORKDIR"], "--config is missing"),
    "no such config": (["--config=configs/quickstrt.py", "--workdir=WORKDIR"], "configs/quickstrt.py"),
    "unknown key": (
        ["--config=configs/quickstart.py", "--workdir=WORKDIR", "--config.optimizer.step=3"],
        "--config.optimizer.step ", "did you mean --config.optimizer.steps?",
    ),
    "wrong type": (
        ["--config=configs/quickstart.py", "--workdir=WORKDIR", "--config.optimizer.steps=many"],
        "--config.optimizer.steps=many",
    ),
    "sources that are no texts": (
        ["--config=configs/quickstart.py", "--workdir=WORKDIR", "--config.data.ner.sources=(3,)"],
        "data.ner.sources",
    ),
    "stray argument": (["--config=configs/quickstart.py", "--workdir=WORKDIR", "steps=3"], "'steps=3'", "--config.key"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "pieces"), [(a, p) for a, *p in COMMANDS.values()], ids=COMMANDS)
def test_command(args: list[str], pieces: list[str], tmp_path: Path) -> None:
    given = [a.replace("WORKDIR", str(tmp_path / "run")) for a in args]
    assert_refused(run.call("prefinetune", *given), *pieces)
    assert not (tmp_path / "run").exists()


def test_status_and_line_of_a_setting_and_a_source(cache: Path, tmp_path: Path) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    assert_refused(run.call("prefinetune", *run.flags(cache, {"lora.rank": 0}), workdir), "lora.rank is 0")
    changes = {"data.tc.sources": ("no/such.jsonl",)}
    assert_refused(run.call("prefinetune", *run.flags(cache, changes), workdir), "no/such.jsonl")
    assert_clean(cache, tmp_path / "run")


def test_out_of_memory_is_one_line(tmp_path: Path) -> None:
    code = (
        "import jax; from experiments.common import cli\n"
        "def main(config, workdir): jax.numpy.zeros((1 << 20, 1 << 24)).block_until_ready()\n"
        "cli.run(main, '', config='configs/quickstart.py')"
    )
    done = run.code(code, f"--workdir={tmp_path / 'run'}")
    assert_refused(done, "out of memory (RESOURCE_EXHAUSTED", "data.*.rows")


def test_status_and_line_of_a_damaged_checkpoint(finished: Path, cache: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(damaged / "checkpoints" / "1" / "lora.ner")
    for experiment in ("conflict", "downstream"):
        args = f"--checkpoint={damaged}", f"--workdir={tmp_path / 'out'}"
        assert_refused(run.call(experiment, *run.flags(cache), *args), "'lora.ner'", str(damaged))
    assert not (tmp_path / "out").exists()
