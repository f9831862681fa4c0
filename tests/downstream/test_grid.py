"""Grids of downstream cells: continued after a stop, not stopped by a failed cell, and the comparison made of them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import run
from helpers.schemas import assert_valid
from ml_collections import ConfigDict

import jaxprefit
from configs import objectives as objectives_config
from experiments import objectives
from experiments.common import prefinetuning, scoring
from jaxprefit.downstream import cells
from jaxprefit.errors import UserError
from jaxprefit.model import averaged


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


def config(cache: Path, **changes: object) -> ConfigDict:
    c = run.config(cache, {"downstream.seeds": (0, 1), "downstream.mode": "probe", **changes})
    c.individual = objectives_config.get_config().individual
    for family in ("ner", "tc"):
        c.individual[family].update(steps=2, warmup_steps=1)
    return c


@pytest.fixture(scope="module")
def model(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> jaxprefit.Model:
    folder = tmp_path_factory.mktemp("start")
    prefinetuning.run(config(cache, strategy="none"), folder)
    return jaxprefit.load(folder)


def test_a_stopped_grid_continues_to_the_same_scores(cache: Path, model: jaxprefit.Model, tmp_path: Path) -> None:
    whole = scoring.score_model(config(cache), tmp_path / "whole", model, "start")
    for entry in whole["tasks"]:
        for name in entry["cells"]:
            assert_valid(tmp_path / "whole" / name, "cell")
    # Stopped after the first task's first seed.
    first = config(cache)
    first.downstream.seeds, first.downstream.tc = (0,), ()
    scoring.score_model(first, tmp_path / "broken", model, "start")
    (done,) = (tmp_path / "broken" / "cells").iterdir()
    written = done.stat().st_mtime_ns
    again = scoring.score_model(config(cache), tmp_path / "broken", model, "start")
    assert again == whole and done.stat().st_mtime_ns == written
    assert len([*(tmp_path / "broken" / "cells").iterdir()]) == 4


def test_a_failed_cell_is_shown_and_the_rest_goes_on(
    cache: Path, model: jaxprefit.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make = cells.make

    def fails(data, seed, found):  # type: ignore[no-untyped-def]
        return UserError("the loss is nan") if (data.family, seed) == ("ner", 1) else make(data, seed, found)

    monkeypatch.setattr(cells, "make", fails)
    scoring.score_model(config(cache), tmp_path, model, "start")
    content = assert_valid(tmp_path / "scores.json", "scores")
    (failed,) = content["failed"]
    assert (failed["seed"], failed["reason"]) == (1, "the loss is nan")
    assert [len(t["seeds"]) for t in content["tasks"]] == [1, 2]
    assert content["average"]["ner"] is None and content["average"]["tc"] is not None
    shown = capsys.readouterr()
    assert "the loss is nan" in shown.out and "seed 1 failed: the loss is nan" in shown.err
    monkeypatch.undo()
    scoring.score_model(config(cache), tmp_path, model, "start")
    content = assert_valid(tmp_path / "scores.json", "scores")
    assert not content["failed"] and [len(t["seeds"]) for t in content["tasks"]] == [2, 2]


def test_a_task_whose_every_seed_fails_is_left_out(cache: Path, model: jaxprefit.Model, tmp_path: Path) -> None:
    ill = jax.tree.map(lambda x: x * np.nan, model.params)
    broken = jaxprefit.Model(model.config, ill, model.tokenizer, model.strategy, model.meta)
    content = scoring.score_model(config(cache), tmp_path, broken, "start")
    assert [c["seed"] for c in content["failed"]] == [0, 1, 0, 1] and content["tasks"] == []
    assert "lower the learning rates" in content["failed"][0]["reason"]
    assert_valid(tmp_path / "scores.json", "scores")


def test_objectives(cache: Path, tmp_path: Path) -> None:
    settings = {"data.held_out": 0}  # held-out losses are not what is tested here
    found = objectives.run(config(cache, **settings), tmp_path)
    content = assert_valid(tmp_path / "objectives.json", "objectives")
    assert content == json.loads(json.dumps(found))
    assert [(t["family"], t["score"]) for t in content["tasks"]] == [("ner", "f1"), ("tc", "accuracy")]
    for entry in content["tasks"]:
        strategy = f"individual_{entry['family']}"
        scored = [json.loads((tmp_path / s / "downstream" / "scores.json").read_text()) for s in ("none", strategy)]
        before, after = ({t["task"]: t for t in s["tasks"]}[entry["task"]]["mean"][entry["score"]] for s in scored)
        assert entry["none"]["mean"] == pytest.approx(before) and entry["individual"]["mean"] == pytest.approx(after)
        assert entry["difference"] == pytest.approx(after - before, abs=1e-9)
        assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
        total = content["families"][entry["family"]]
        assert (total["tasks"], total["wins"]) == (1, int(after > before))
        assert content["prefinetuning"][entry["family"]]["settings"]["steps"] == 2
        # What is scored for TC is the mean of the trained weights and the start's.
        assert scored[1]["start"]["strategy"] == {"ner": "individual_ner", "tc": "averaged"}[entry["family"]]
        # An individual encoder is scored on its own family's tasks, the start encoder on all.
        assert [len(s["tasks"]) for s in scored] == [2, 1]
        assert json.loads((tmp_path / strategy / "summary.json").read_text())["steps"] == 2
    text = (tmp_path / "objectives.md").read_text()
    assert f"individual_ner beats none on {content['families']['ner']['wins']} of 1 tasks" in text

    files = run.files(tmp_path)
    assert objectives.run(config(cache, **settings), tmp_path) == found and run.files(tmp_path) == files


def test_a_mean_of_weights_lies_between_its_parts(model: jaxprefit.Model) -> None:
    tuned = dataclasses.replace(model, params=jax.tree.map(lambda x: x + 4, model.params))
    between = averaged([model, tuned], [0.25, 0.75])
    jax.tree.map(lambda m, a: np.testing.assert_allclose(m, a + 3, atol=1e-5), between.backbone, model.backbone)
    assert between.strategy.name == "averaged" and between.adapters == {} and between.heads == {}
    elsewhere = dataclasses.replace(model.config, dtype="bfloat16", hidden_dropout=0.3)
    averaged([model, dataclasses.replace(model, config=elsewhere)])
    with pytest.raises(UserError, match="1 shares for 2 models"):
        averaged([model, tuned], [1.0])
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, num_layers=7))
    with pytest.raises(UserError, match="encoders of one shape"):
        averaged([model, other])


def test_the_share_of_the_start_is_scored_and_bounded(cache: Path, tmp_path: Path) -> None:
    bad = config(cache)
    bad.individual.tc.start_share = 1.0
    with pytest.raises(UserError, match="individual.tc.start_share is 1.0; it must be 0 or more and less than 1"):
        objectives.run(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_objectives_refuses_bad_settings_before_anything(cache: Path, tmp_path: Path) -> None:
    bad = config(cache)
    bad.individual.tc.warmup_steps = 3
    with pytest.raises(UserError, match="optimizer.warmup_steps is 3"):
        objectives.run(bad, tmp_path / "out")
    none = config(cache)
    none.downstream.ner = none.downstream.tc = ()
    with pytest.raises(UserError, match="no task to score"):
        objectives.run(none, tmp_path / "out")
    assert not (tmp_path / "out").exists()
