"""Scores that say nothing are told and left out of means, in every program that takes one; cells with long names;
tables of runs that are not alike."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import run
from helpers.schemas import assert_valid
from ml_collections import ConfigDict

import jaxprefit
from configs import objectives as objectives_config
from configs import study as study_config
from experiments import objectives, study, tables
from experiments.common import prefinetuning, run_tables, scoring
from experiments.common.tasks import MAIN_SCORE
from jaxprefit.downstream import cells
from jaxprefit.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def model(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> jaxprefit.Model:
    folder = tmp_path_factory.mktemp("start")
    prefinetuning.run(run.config(cache, {"strategy": "none"}), folder)
    return jaxprefit.load(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks: no_entity, one_label, and test_of_one, whose test rows alone have one label."""
    root = tmp_path_factory.mktemp("data")
    files = {
        "no_entity/train.conll": "Anna B-PER\nsings O\n\nBob B-PER\n",
        "no_entity/test.conll": "is O\n\nthe O\n",
        "one_label/train.csv": "text,label\ngood,pos\nfine,pos\n",
        "one_label/test.csv": "text,label\nbad,pos\n",
        "test_of_one/train.csv": "text,label\ngood,pos\nfine,pos\nbad,neg\nok,other\n",
        "test_of_one/test.csv": "text,label\nwell,pos\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    return root


def config(cache: Path, data: Path, **changes: object) -> ConfigDict:
    """The tasks of `data` that say nothing, with one generated task of each family that does."""
    tasks = {"downstream.ner": ("no_entity", run.TINY["downstream.ner"][0])}
    tasks["downstream.tc"] = ("one_label", run.TINY["downstream.tc"][0])
    return run.config(cache, {**tasks, "data.root": str(data), "downstream.mode": "probe", **changes})


WHY = {
    "no_entity": "no scored row has an entity, so F1 has nothing to find",
    "one_label": "'pos' is its only label, so any model is always right",
}


def test_scores_that_say_nothing_are_told_and_left_out_of_the_average(
    cache: Path, data: Path, model: jaxprefit.Model, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    c = config(cache, data, **{"downstream.seeds": (0, 1)})
    scoring.score_model(c, tmp_path, model, "start")
    content, shown = assert_valid(tmp_path / "scores.json", "scores"), capsys.readouterr().out
    by_name = {t["task"]: t for t in content["tasks"]}
    for name, why in WHY.items():
        assert not by_name[name]["averaged"] and by_name[name]["notes"][0] == why
        assert f"{name}: {why}" in shown
    for family, name in (("ner", "generated_ner"), ("tc", "generated_labelled")):
        assert by_name[name]["averaged"]
        assert content["average"][family] == by_name[name]["mean"][MAIN_SCORE[family]]
    alone = config(cache, data, **{"downstream.ner": ("no_entity",), "downstream.tc": ()})
    assert scoring.score_model(alone, tmp_path / "alone", model, "start")["average"] == {"ner": None, "tc": None}


def test_classes_without_a_row_and_a_test_of_one_label_are_told(
    cache: Path, data: Path, model: jaxprefit.Model, tmp_path: Path
) -> None:
    c = config(cache, data, **{"downstream.ner": (), "downstream.tc": ("test_of_one",), "downstream.limit": 1})
    (task,) = scoring.score_model(c, tmp_path, model, "start")["tasks"]
    first, second = task["notes"]
    assert first.startswith("2 of 3 labels are in none of the rows trained on: ") and task["averaged"]
    assert second == "every scored row has the label 'pos': to say always that is to be always right"


def test_objectives_leave_out_scores_that_say_nothing(cache: Path, data: Path, tmp_path: Path) -> None:
    c = config(cache, data, **{"data.held_out": 0, "downstream.seeds": (0, 1), "downstream.tc": ()})
    c.individual = objectives_config.get_config().individual
    c.individual.ner.update(steps=2, warmup_steps=1)
    objectives.run(c, tmp_path)
    content = assert_valid(tmp_path / "objectives.json", "objectives")
    assert content["left_out"] == {"no_entity": WHY["no_entity"]} and content["families"]["ner"]["tasks"] == 1
    assert [t["task"] for t in content["tasks"]] == ["generated_ner"]
    assert f"no_entity: {WHY['no_entity']}" in (tmp_path / "objectives.md").read_text()


def test_a_study_leaves_out_scores_that_say_nothing(cache: Path, data: Path, tmp_path: Path) -> None:
    c = config(cache, data, **{"data.held_out": 0, "downstream.ner": ()})
    c.study = study_config.get_config().study
    c.study.variants, c.study.modes, c.study.fractions, c.study.seeds = ("none",), ("probe",), (1.0,), (0,)
    study.run(c, tmp_path)
    content = assert_valid(tmp_path / "study.json", "study")
    assert content["left_out"] == {"one_label": WHY["one_label"]}
    assert content["cells"]["done"] == content["cells"]["all"] == 2
    (result,) = content["results"]
    (task,) = result["tasks"]
    assert task["task"] == "generated_labelled" and result["mean"] == pytest.approx(task["mean"])
    page = (tmp_path / "study.md").read_text()
    assert f"one_label is left out of every mean, difference and test: {WHY['one_label']}." in page


# Long names


def test_no_cell_is_lost_for_a_long_path(cache: Path, data: Path, model: jaxprefit.Model, tmp_path: Path) -> None:
    long = [tmp_path / ("ö" * 100) / ("b" * 200) / end for end in ("one", "two")]
    for folder in long:
        folder.mkdir(parents=True)
        for file in (data / "test_of_one").iterdir():
            (folder / file.name).write_text(file.read_text())
    c = config(cache, data, **{"downstream.ner": (), "downstream.tc": tuple(map(str, long))})
    content = scoring.score_model(c, tmp_path / "out", model, "start")
    files = [tmp_path / "out" / cell for t in content["tasks"] for cell in t["cells"]]
    assert [cells.read(f).task for f in files] == [str(folder) for folder in long]
    times = [f.stat().st_mtime_ns for f in files]
    assert scoring.score_model(c, tmp_path / "out", model, "start") == content
    assert [f.stat().st_mtime_ns for f in files] == times and not content["failed"]


def test_the_names_of_cells_are_bounded_and_short_ones_as_they_were() -> None:
    assert cells.file_name("ner/wnut17", 3, "0123456789ab") == "ner_wnut17-seed3-0123456789ab.json"
    names = {cells.file_name(f"{'ö/' * n}x", 2**32 - 1, "0" * 12) for n in range(400)}
    assert len(names) == 400 and max(len(name.encode()) for name in names) < 200


# Tables


def scored(strategy: str, tasks: dict[str, list[float]], **changes: Any) -> dict[str, Any]:
    """A scores.json of NER tasks with their F1 by seed, where `changes` are of the recipe."""
    entries = [
        {"task": name, "family": "ner", "train_rows": 9, "test_rows": 5, "averaged": True, "notes": [],
         "seeds": [{"seed": i, "f1": f1, "f1_lenient": f1} for i, f1 in enumerate(values)]}
        for name, values in tasks.items()
    ]  # fmt: skip
    means = [sum(values) / len(values) for values in tasks.values()]
    recipe = {"mode": "probe", "fraction": 1.0, "steps": 5, **changes}
    return {
        "schema": "jaxprefit.scores", "version": 2, "start": {"checkpoint": "x", "step": 1, "strategy": strategy},
        "downstream": recipe, "lora": {"rank": 4}, "tasks": entries, "failed": [],
        "average": {"ner": sum(means) / len(means), "tc": None},
    }  # fmt: skip


def of_runs(folder: Path, *contents: dict[str, Any]) -> list[str]:
    """Lines of the tables of runs, main scores alone."""
    for i, content in enumerate(contents):
        (folder / "runs" / str(i)).mkdir(parents=True)
        (folder / "runs" / str(i) / "scores.json").write_text(json.dumps(content))
    lines = tables.run(ConfigDict(), folder / "out", str(folder / "runs")).splitlines()
    beside = [i for i, line in enumerate(lines) if line == "**Beside it**"]
    return [line for i, line in enumerate(lines) if not any(b <= i < b + 5 for b in beside) and line]


def test_runs_of_other_tasks_have_no_mean_side_by_side(tmp_path: Path) -> None:
    both, one = scored("none", {"a": [0.5], "b": [0.7]}), scored("naive", {"a": [0.6]})
    _, header, _, first, second = of_runs(tmp_path, both, one)[:5]
    assert header == "| strategy | a F1 | b F1 | mean NER | mean TC |"
    assert first == "| none | 50.0 | 70.0 | 60.0 | - |" and second == "| naive | 60.0 | - | - | - |"


@pytest.mark.parametrize("changes", [{"mode": "full"}, {"fraction": 0.1}, {"steps": 9}])
def test_runs_of_other_settings_have_a_table_each(changes: dict, tmp_path: Path) -> None:
    lines = of_runs(tmp_path, scored("none", {"a": [0.5]}), scored("naive", {"a": [0.6]}, **changes))
    titles = [line for line in lines if line.startswith("**Downstream")]
    assert len(set(titles)) == 2 and lines.count("| strategy | a F1 | mean NER | mean TC |") == 2


def test_runs_of_other_seeds_have_a_table_each_and_missing_seeds_are_told(tmp_path: Path) -> None:
    other = scored("naive", {"a": [0.6, 0.6], "b": [0.4]})
    other["failed"], other["average"]["ner"] = [{"task": "b", "seed": 1, "reason": "nan"}], None
    lines = of_runs(tmp_path, scored("none", {"a": [0.5], "b": [0.3]}), other)
    assert [line.partition(" seeds ")[2] for line in lines if line.startswith("**Down")] == ["0**", "0, 1**"]
    assert "| naive | 60.0 (60.0 to 60.0) | 40.0, 1 of 2 seeds | - | - |" in lines


def test_runs_on_other_rows_and_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    first, other = scored("none", {"a": [0.5]}), scored("naive", {"a": [0.6]})
    other["tasks"][0]["test_rows"] = 6
    with pytest.raises(
        UserError, match=r"two runs have other rows of the task 'a' \(to train on and to score: 9 and 5"
    ):
        of_runs(tmp_path / "rows", first, other)
    broken = copy.deepcopy(first)
    del broken["average"]
    with pytest.raises(UserError, match=r"scores.json is no scores of this version \(KeyError: 'average'\)"):
        of_runs(tmp_path / "broken", broken)


def test_a_task_left_out_is_named_below_the_table(tmp_path: Path) -> None:
    content = scored("none", {"a": [0.0], "b": [0.5]})
    content["tasks"][0] |= {"averaged": False, "notes": ["nothing to find"]}
    assert "a is part of no mean: nothing to find." in of_runs(tmp_path, content)


def test_losses_of_runs_that_start_apart_have_each_their_start() -> None:
    def trained(strategy: str, start: float) -> dict[str, Any]:
        held_out = {"ner": {"start": {"loss": start}, "end": {"loss": 1.0}}}
        return {"strategy": strategy, "steps": 3, "trainable_parameters": 7, "held_out": held_out}

    alike = run_tables.losses([trained("naive", 2.0), trained("shared_lora", 2.0)])[4:-1]
    assert [line.split(" | ")[0] for line in alike] == ["| (start)", "| naive", "| shared_lora"]
    apart = run_tables.losses([trained("naive", 2.0), trained("shared_lora", 3.0)])[4:-1]
    assert [(line.split(" | ")[0][2:], line.split(" | ")[-1]) for line in apart] == [
        ("(start of naive)", "2.0000 |"), ("naive", "1.0000 |"),
        ("(start of shared_lora)", "3.0000 |"), ("shared_lora", "1.0000 |"),
    ]  # fmt: skip
