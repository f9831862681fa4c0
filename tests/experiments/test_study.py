"""The study: its grid and shards, continuing after a stop, failures, the claims, and equal capacity downstream."""

import copy
import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats
from flax.traverse_util import flatten_dict
from golden.formula import weights
from golden.model_files import VOCABULARY, write_model
from helpers import run
from helpers.schemas import assert_valid
from ml_collections import ConfigDict

import jaxprefit
from configs import study as study_config
from experiments import study
from experiments.common import assembly, prefinetuning
from experiments.common.results import Family
from experiments.common.study_results import CellCounts, ClaimResult, Result, TaskResult
from experiments.common.tasks import load_tasks
from experiments.study import claims as study_claims
from experiments.study import expansion, figures, fronts, page_tables, stars, sweeps, variant_settings
from jaxprefit.downstream import cells
from jaxprefit.downstream.finetune import start_params
from jaxprefit.errors import UserError
from jaxprefit.model import averaged
from jaxprefit.runtime.files import locked
from jaxprefit.significance import holm, paired_bootstrap

ALL = (
    "none", "individual", "naive", "task_primary", "shared_lora", "frozen_lora", "averaged", "naive_pcgrad",
    "task_primary_rank4",
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder as a Hugging Face directory, called random."""
    shape = {
        "model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2,
    }  # fmt: skip
    return str(write_model(tmp_path_factory.mktemp("start") / "random", shape, weights(shape)))


def config(cache: Path, **changes: object) -> ConfigDict:
    c = run.config(cache, {"downstream.seeds": (0, 1), "data.held_out": 0, "run.checkpoint_every": 100})
    c.study = study_config.get_config().study
    c.study.variants, c.study.modes, c.study.fractions = ("none", "individual", "averaged"), ("probe",), (0.5, 1.0)
    c.study.variant.task_primary_rank4 = {"strategy": "task_primary", "lora": {"rank": 2}}
    c.update_from_flattened_dict(changes)
    return c


# The grid


def test_variants_with_equal_settings_share_an_encoder(cache: Path) -> None:
    c = config(cache, **{"study.variants": (*ALL, "individual_double"), "study.seeds": (0, 3)})
    grid = expansion.expand(c)
    folders = [r.folder.removeprefix("random/") for r in grid.runs]
    names = [*(v for v in ALL if v != "individual"), "individual_ner", "individual_tc", "individual_double_ner"]
    assert sorted(folders) == sorted(f"{n}-seed{s}" for n in [*names, "individual_double_tc"] for s in (0, 3))
    by_name = dict(zip(folders, grid.runs))
    assert [p.folder for p in by_name["averaged-seed3"].parts] == [
        "random/individual_ner-seed3",
        "random/individual_tc-seed3",
    ]
    assert by_name["individual_double_tc-seed0"].config.optimizer.steps == 2 * c.optimizer.steps
    assert by_name["naive_pcgrad-seed3"].config.aggregator == "pcgrad"
    assert by_name["naive_pcgrad-seed3"].config.seed == 3
    assert all("study" not in r.config for r in grid.runs)
    # An average without settings of its own is of the individual encoders as they are set.
    c.study.variant.individual = {"tc": {"optimizer": {"steps": 5}}}
    grid = expansion.expand(c)
    by_name = {r.folder.removeprefix("random/"): r for r in grid.runs}
    assert [p.config.optimizer.steps for p in by_name["averaged-seed0"].parts] == [3, 5]
    served = grid.encoders["random", "individual"]
    assert [served[f][0] for f in ("ner", "tc")] == [*by_name["averaged-seed0"].parts]


def test_settings_of_a_strategy_or_mode_do_not_make_it_another(cache: Path) -> None:
    c = config(cache, **{"study.variants": ("none", "naive"), "study.modes": ("probe",), "strategy": "task_primary"})
    c.study.variant.naive, c.study.mode.probe = {"optimizer": {"steps": 5}}, {"downstream": {"head_lr": 0.5}}
    grid = expansion.expand(c)
    assert [(r.config.strategy, r.config.optimizer.steps) for r in grid.runs] == [("none", 3), ("naive", 5)]
    assert variant_settings.method(c, "naive") == "naive"
    assert {(s.config.downstream.mode, s.config.downstream.head_lr) for s in grid.scorings} == {("probe", 0.5)}
    c.study.variant.naive.strategy, c.study.mode.probe.downstream.mode = "shared_lora", "full"
    grid = expansion.expand(c)
    assert [r.config.strategy for r in grid.runs] == ["none", "shared_lora"]
    assert {s.config.downstream.mode for s in grid.scorings} == {"full"}


def test_the_grid_is_the_product_of_its_axes(cache: Path) -> None:
    c = config(cache, **{"study.variants": ALL, "study.modes": ("adapter", "probe", "mteb", "adapter_5shot")})
    c.study.starts, c.study.start = ("a", "b"), ConfigDict({"a": {}, "b": {"model": {"hidden": 64}}})
    grid = expansion.expand(c)
    places = [(e.start, e.mode, e.fraction, e.variant, e.family) for e in grid.entries]
    assert len(set(places)) == len(places)
    # Fractions do not apply to shots; MTEB classifies texts alone.
    per_variant = 2 * (2 * (2 * 2) + 1 + 2)
    assert len(places) == per_variant * len(ALL)
    assert all(s.cells == len(s.config.downstream.seeds) for s in grid.scorings)
    assert {s.cells for s in grid.scorings} == {2, 10}
    hidden = {r.folder.partition("/")[0]: r.config.model.hidden for r in grid.runs}
    assert hidden == {"a": 32, "b": 64}
    folders = [s.folder for s in grid.scorings]
    assert len(set(folders)) == len(folders)


def test_several_settings_of_a_strategy_are_scored_on_development_rows(cache: Path) -> None:
    variants = ("none", "individual", "faster_ner", "naive", "naive_pcgrad", "task_primary")
    c = config(cache, **{"study.variants": variants, "study.fractions": (1.0,)})
    c.study.variant.faster_ner = {"strategy": "individual", "ner": {"optimizer": {"backbone_lr": "*2"}}}
    grid = expansion.expand(c)
    assert set(grid.choices) == {("random", "individual"), ("random", "faster_ner")}
    plain, tuned = (grid.choices["random", v] for v in ("individual", "faster_ner"))
    assert plain["tc"] == tuned["tc"] and plain["ner"] != tuned["ner"]  # the same encoder of texts
    (one,) = tuned["ner"]
    assert one.folder == "random/faster_ner_ner-seed0/downstream/probe_tuned-0.1-ner-dev"
    d = one.config.downstream
    assert (d.split, d.mode, d.fraction, d.head_lr) == ("dev", "probe", 0.1, 2e-2)
    assert {s.config.downstream.split for e in grid.entries for s in e.scorings} == {"test"}
    with pytest.raises(UserError, match="study.choice.mode is 'mteb'"):
        c.study.choice.mode = "mteb"
        expansion.expand(c)


def test_settings_of_a_variant_for_one_start_encoder(cache: Path) -> None:
    c = config(cache, **{"study.variants": ("none", "deep"), "study.starts": ("a", "b")})
    c.study.start = ConfigDict({"a": {}, "b": {"model": {"layers": 2}}})
    own = {"strategy": "task_primary", "lora": {"rank": 2}, "b": {"lora": {"last_layers": 2}}}
    c.study.variant.deep = ConfigDict(own)
    lora = {r.folder: (r.config.lora.rank, r.config.lora.last_layers) for r in expansion.expand(c).runs}
    assert (lora["a/deep-seed0"], lora["b/deep-seed0"]) == ((2, 1), (2, 2))
    c.study.start = ConfigDict({"a": {}, "b": {}, "lora": {}})
    with pytest.raises(UserError, match="study.start.lora has the name of a setting"):
        expansion.expand(c)


def test_encoders_without_lora_have_the_same_cells_stacked_and_adapted(cache: Path) -> None:
    grid = expansion.expand(config(cache, **{"study.variants": ALL, "study.modes": ("adapter", "stacked")}))
    place = {(e.mode, e.variant, e.fraction, e.family): e for e in grid.entries}
    own = {"task_primary", "shared_lora", "frozen_lora", "task_primary_rank4"}
    for (mode, variant, *rest), entry in place.items():
        adapted = place["adapter", variant, *rest]
        if mode == "stacked":
            assert (entry.scorings == adapted.scorings) == (variant not in own)
            assert {s.config.downstream.mode for s in entry.scorings} == {mode if variant in own else "adapter"}
            # A fresh LoRA is of the study's shape, whatever that of the variant.
            assert all(s.config.lora.rank == grid.runs[0].config.lora.rank for s in entry.scorings)
            for reference, scorings in entry.references.items():
                assert scorings == place["adapter", reference, *rest].scorings


def test_shards_are_disjoint_and_complete_and_keep_an_average_with_its_parts(cache: Path) -> None:
    grid = expansion.expand(config(cache, **{"study.variants": ALL, "study.seeds": (0, 1, 2)}))
    assert expansion.shard(grid, "") == grid.runs
    for n in (1, 2, 3, 20):
        parts = [expansion.shard(grid, f"{i}/{n}") for i in range(1, n + 1)]
        folders = [r.folder for part in parts for r in part]
        assert sorted(folders) == sorted(r.folder for r in grid.runs)
        for part in parts:
            done: set[str] = set()
            for one in part:
                assert {p.folder for p in one.parts} <= done
                done.add(one.folder)
    for wrong in ("0/2", "3/2", "a/2", "2", "-1/2"):
        with pytest.raises(UserError, match="--shard is"):
            expansion.shard(grid, wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study.variants": ("none", "none")}, "study.variants is ('none', 'none'); it must name something, each once"),
        ({"study.modes": ()}, "study.modes is ()"),
        ({"study.starts": ("other",)}, "there is no study.start.other"),
        ({"study.variants": ("task_primry",)}, "did you mean 'task_primary'?"),
        ({"study.variants": ("../naive",)}, "a name has letters"),
        ({"study.modes": ("adaptr",)}, "downstream.mode is 'adaptr'"),
        ({"study.fractions": (0.0,)}, "study.fractions is (0.0,)"),
        ({"study.seeds": (-1,)}, "study.seeds is (-1,)"),
        ({"study.variant.naive_ner2.data.ner.loss_weight": -1.0}, "data.ner.loss_weight is -1.0"),
        ({"study.sweep.lora_rank": ("none", "rank2")}, "study.sweep.lora_rank has 'rank2', but there is no"),
        ({"downstream.ner": (), "downstream.tc": ()}, "no task to score"),
        (
            {"downstream.tc": (), "study.modes": ("probe", "mteb")},
            "study.modes has 'mteb', which classifies texts alone",
        ),
        ({"downstream.tc": ("my/a.csv?label=x", "my/a.csv?label=y")}, "name the task my/a.csv twice"),
        (
            {"study.variant": {"mine": "naive"}, "study.variants": ("mine",)},
            "study.variant.mine is 'naive'; it must hold",
        ),
        ({"study.variant": {"naive_ner2": {"strategy": "naive", "ner": {"seed": 1}}}}, "naive_ner2.ner is of no use"),
        ({"study.variant": {"naive_ner2": {"downstream": {"steps": 9}}}}, "naive_ner2.downstream is of no use"),
        (
            {"study.variant": {"naive_ner2": {"minilm": {"downstream": {"steps": 9}}}}},
            "naive_ner2.downstream is of no use",
        ),
        ({"study.mode": {"short": {"minilm": {"seed": 1}}}, "study.modes": ("short",)}, "short.minilm is of no use"),
        (
            {
                "study.mode": {"wide": {"downstream": {"mode": "adapter"}, "lora": {"rank": 2}}},
                "study.modes": ("wide",),
            },
            "study.mode.wide.lora is of no use",
        ),
        (
            {"study.mode": {"stacked": {"downstream": {"steps": 9}}}, "study.modes": ("adapter", "stacked")},
            "two recipes would both have their cells in random/none-seed0/downstream/adapter-0.5-ner",
        ),
        ({"model.path": "no/such/encoder"}, "no/such/encoder"),
    ],
)
def test_bad_settings_are_told_before_anything_is_trained(
    changes: dict, message: str, cache: Path, tmp_path: Path
) -> None:
    c = config(cache, **{k: v for k, v in changes.items() if not isinstance(v, dict)})
    for name in ("variant", "mode"):
        for key, settings in changes.get(f"study.{name}", {}).items():
            c.study[name][key] = settings
    if "study.variants" not in changes:
        c.study.variants = ("none", "naive_ner2")
    with pytest.raises(UserError) as refused:
        study.run(c, tmp_path / "out")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_setting_that_does_not_exist_is_named_with_its_variant(cache: Path) -> None:
    c = config(cache)
    c.study.variants, c.study.variant.mine = ("mine",), {"lora": {"rnk": 3}}
    with pytest.raises(UserError, match=r"study.variant.mine.lora.rnk is not a setting; did you mean .*lora.rank\?"):
        expansion.expand(c)
    for value in ("many", "*many", "*inf"):
        c.study.variant.mine = {"lora": {"rank": value}}
        with pytest.raises(UserError, match=re.escape(f"study.variant.mine.lora.rank is '{value}'")):
            expansion.expand(c)


def test_a_multiple_is_of_what_the_start_has(cache: Path) -> None:
    c = config(cache)
    c.study.start = {"one": {"optimizer": {"backbone_lr": 0.25, "steps": 6}}, "two": {}}
    c.study.variant.more = {"strategy": "naive", "optimizer": {"backbone_lr": "*2", "steps": "*1.5"}}
    c.study.starts, c.study.variants = ("one", "two"), ("more",)
    before = c.optimizer.backbone_lr, c.optimizer.steps
    one, two = (run.config.optimizer for run in expansion.expand(c).runs)
    assert (one.backbone_lr, one.steps) == (0.5, 9)
    assert (two.backbone_lr, two.steps) == (2 * before[0], int(1.5 * before[1]))


# Equal capacity


def test_the_page_names_an_encoder_and_not_where_it_lies(cache: Path) -> None:
    c = config(cache, **{"study.start.minilm.model.path": "/a/place/encoder"})
    assert variant_settings.settings_of(c, "start", "minilm")["model.path"] == "encoder"


def test_every_variant_is_compared_at_equal_capacity(cache: Path, encoder: str, tmp_path: Path) -> None:
    c = config(
        cache, **{"model.path": encoder, "study.variants": ALL, "study.modes": ("adapter",), "study.fractions": (1.0,)}
    )
    grid = expansion.expand(c)
    models: dict[str, jaxprefit.Model] = {}
    for one in grid.runs:
        if one.parts:
            models[one.folder] = averaged([models[p.folder] for p in one.parts])
        else:
            parts = assembly.make_run(one.config, tmp_path / "run")
            params = jax.tree.map(np.asarray, parts.params)
            models[one.folder] = jaxprefit.Model(
                parts.start.config, params, parts.start.tokenizer, parts.setup.strategy, {}
            )
    tasks = {t.family: t for t in load_tasks(c, tmp_path / "run", next(iter(models.values())))}

    def trained(scoring: expansion.Scoring, family: str) -> dict[str, tuple]:
        spec = assembly.lora_spec(scoring.config)
        key = jax.random.key(0)
        start = start_params(models[scoring.run.folder], tasks[family], spec, "adapter", key)
        return jax.tree.map(np.shape, {"lora": start["lora"], "head": start["head"]})

    compared = 0
    ranks = set()
    for e in grid.entries:
        (mine,) = e.scorings
        shapes = trained(mine, e.family)
        ranks.add(mine.config.lora.rank)
        for (other,) in e.references.values():
            assert trained(other, e.family) == shapes, (e.variant, other.folder)
            assert other.config.downstream == mine.config.downstream
            compared += 1
    assert compared == 2 * (3 * len(ALL) - 3) and ranks == {2, 4}


# Running it


@pytest.fixture(scope="module")
def runnable(cache: Path, encoder: str) -> ConfigDict:
    return config(cache, **{"model.path": encoder, "study.sweep.kind": ("individual", "averaged")})


@pytest.fixture(scope="module")
def whole(runnable: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("study")
    study.run(runnable, workdir)
    return workdir


def test_files_of_a_study(whole: Path, runnable: ConfigDict) -> None:
    content = assert_valid(whole / "study.json", "study")
    assert content["cells"] == {"all": 24, "done": 24, "failed": 0, "missing": 0} and not content["failed"]
    for r in content["results"]:
        assert r["mean"] is not None and set(r["versus"]) == {"none", "individual"} - {r["variant"]}
    # The means are those of the scores' files.
    (one,) = (r for r in content["results"] if (r["variant"], r["family"], r["fraction"]) == ("averaged", "tc", 0.5))
    scores = json.loads((whole / "random/averaged-seed0/downstream/probe-0.5-tc/scores.json").read_text())
    assert one["mean"] == pytest.approx(scores["average"]["tc"]) and scores["start"]["strategy"] == "averaged"
    changed = copy.deepcopy(runnable)
    changed.study.variant.individual = {"optimizer": {"backbone_lr": 1e-6}}
    for c, done in ((runnable, True), (changed, False)):
        one = expansion.expand(c).runs[1]
        assert (whole / one.folder / "summary.json").exists()
        assert bool(prefinetuning.finished(one.config, whole / one.folder)) == done
    # Tests by task follow from the cells' files, for the pairs that a claim is about.
    for r in content["results"]:
        assert all(set(t["versus"]) == ({"none"} if r["variant"] == "individual" else set()) for t in r["tasks"])
    (one,) = (r for r in content["results"] if (r["variant"], r["family"], r["fraction"]) == ("individual", "tc", 1.0))
    (task,), means = one["tasks"], {}
    for variant in ("individual_tc", "none"):
        scores = json.loads((whole / f"random/{variant}-seed0/downstream/probe-1-tc/scores.json").read_text())
        (means[variant],) = (t["mean"]["accuracy"] for t in scores["tasks"])
    found = task["versus"]["none"]
    assert found["difference"] == pytest.approx(means["individual_tc"] - means["none"])
    assert np.shape(found["mcnemar"]) == (1, 2) and found["p_holm"] == found["p_value"]
    costs = {c["variant"]: c for c in content["costs"]}
    assert [costs[v]["backbones"] for v in ("none", "individual", "averaged")] == [1, 2, 1]
    assert costs["individual"]["train_tokens"] == costs["averaged"]["train_tokens"] != {}
    parts = [jaxprefit.load(whole / f"random/individual_{f}-seed0").backbone for f in ("ner", "tc")]
    mean = averaged([jaxprefit.load(whole / f"random/individual_{f}-seed0") for f in ("ner", "tc")])
    jax.tree.map(lambda m, a, b: np.testing.assert_allclose(m, (a + b) / 2, atol=1e-7), mean.backbone, *parts)
    text = (whole / "study.md").read_text()
    for heading in ("Main table", "The paper's claims", "Fronts", "Sweeps", "Label fractions", "Costs", "Tasks"):
        assert f"## {heading}" in text
    assert "## Without a test row" not in text  # no held-out rows here, and one setting a strategy
    assert str(whole) not in text + (whole / "study.json").read_text()
    kinds = ("differences", "front", "sweeps", "fractions", "costs", "sizes", "tasks")
    plots = {f"study_{kind}.png" for kind in kinds}
    assert {file.name for file in whole.glob("*.png")} == plots
    assert all(text.count(f"({name})") == 1 for name in plots), "each plot stands on the page"


def test_a_study_that_is_stopped_continues_to_the_same_table(
    whole: Path, runnable: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "broken")
    rng, files = np.random.default_rng(0), sorted((tmp_path / "broken").rglob("cells/*.json"))
    for i in rng.choice(len(files), 9, replace=False):
        files[i].unlink()
    for file in [*(tmp_path / "broken").glob("study*"), *(tmp_path / "broken").rglob("scores.json")]:
        file.unlink()
    kept = {f: f.stat().st_mtime_ns for f in files if f.exists()}

    def never(*_: object) -> None:
        raise AssertionError("a finished encoder is trained again")

    monkeypatch.setattr(prefinetuning, "run", never)
    write, written = cells.write, []

    def stops(file: Path, cell: cells.Cell) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(file)
        write(file, cell)

    monkeypatch.setattr(cells, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        study.run(runnable, tmp_path / "broken")
    assert not (tmp_path / "broken" / "study.json").exists()
    kept |= {f: f.stat().st_mtime_ns for f in written}
    monkeypatch.setattr(cells, "write", write)
    study.run(runnable, tmp_path / "broken")
    for name in ("study.json", "study.md"):
        assert (tmp_path / "broken" / name).read_text() == (whole / name).read_text()
    assert all(f.stat().st_mtime_ns == time for f, time in kept.items())


def test_weights_are_not_needed_where_every_cell_is_there(whole: Path, runnable: ConfigDict, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "cells", ignore=shutil.ignore_patterns("checkpoints", "study*"))
    study.run(runnable, tmp_path / "cells")
    for name in ("study.json", "study.md"):
        assert (tmp_path / "cells" / name).read_text() == (whole / name).read_text()


def test_cells_that_are_there_count_where_the_weights_are_gone(
    whole: Path, runnable: ConfigDict, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "cells", ignore=shutil.ignore_patterns("checkpoints", "study*"))
    shutil.rmtree(tmp_path / "cells" / "random" / "individual_ner-seed0" / "downstream" / "probe-1-ner")
    with pytest.raises(UserError, match="2 cells failed"):  # these need the weights
        study.run(runnable, tmp_path / "cells")
    content = assert_valid(tmp_path / "cells" / "study.json", "study")
    assert content["cells"] == {"all": 24, "done": 22, "failed": 2, "missing": 0}
    (failure,) = content["failed"]
    assert (
        failure["folder"] == "random/individual_ner-seed0" and "is a run without its checkpoints/" in failure["reason"]
    )


def test_a_shard_does_its_part_and_collects_what_is_there(whole: Path, runnable: ConfigDict, tmp_path: Path) -> None:
    for folder in ("none-seed0", "averaged-seed0"):
        shutil.copytree(whole / "random" / folder, tmp_path / "random" / folder)
    content = study.run(runnable, tmp_path, shard="1/2")  # the shard of none
    # The average's cells count with its parts, which tell of what it is.
    assert content.cells == CellCounts(all=24, done=8, failed=0, missing=16)
    assert not (tmp_path / "random" / "individual_ner-seed0").exists()
    (one,) = (r for r in content.results if (r.variant, r.family, r.fraction) == ("individual", "tc", 1.0))
    assert one.mean is None and one.tasks == () and one.versus == {}
    assert_valid(tmp_path / "study.json", "study")
    assert "8 of 24 cells are done" in (tmp_path / "study.md").read_text()
    assert study.run(runnable, tmp_path, shard="none") == content  # nothing is run
    assert not (tmp_path / "random" / "individual_ner-seed0").exists()


def test_what_is_there_of_other_settings_does_not_count(whole: Path, runnable: ConfigDict, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    other = copy.deepcopy(runnable)
    other.optimizer.backbone_lr = 1e-6
    content = study.run(other, tmp_path / "out", shard="none")
    assert content.cells == CellCounts(all=24, done=0, failed=0, missing=24)
    assert all(h.losses == {} for h in content.held_out)
    assert all(c.train_tokens is None for c in content.costs)


def test_one_of_two_commands_in_a_workdir_is_refused(whole: Path, runnable: ConfigDict, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    with locked(tmp_path / "out"), pytest.raises(UserError, match="is in use by process"):
        study.run(runnable, tmp_path / "out")
    assert study.run(runnable, tmp_path / "out").cells.done == 24


@pytest.mark.parametrize("name", ["summary.json", "config.json", "downstream/probe-1-ner/scores.json"])
def test_a_damaged_result_file_is_named(name: str, whole: Path, runnable: ConfigDict, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    file = tmp_path / "out" / "random" / "none-seed0" / name
    file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match=re.escape(f"{file} is damaged (JSONDecodeError); delete it")):
        study.run(runnable, tmp_path / "out")


def test_failures_are_told_and_do_not_stop_the_rest(
    whole: Path, runnable: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "random" / "individual_tc-seed0")
    (tmp_path / "out" / "random" / "none-seed0" / "downstream" / "probe-1-ner" / "scores.json").unlink()
    for file in (tmp_path / "out" / "random" / "none-seed0" / "downstream" / "probe-1-ner").rglob("*seed1*"):
        file.unlink()
    make = cells.make

    def diverges(c: ConfigDict, workdir: Path) -> None:
        raise UserError(f"step 3: the loss of {c.strategy} is not finite")

    with monkeypatch.context() as m:
        m.setattr(prefinetuning, "run", diverges)
        m.setattr(cells, "make", lambda data, seed, found: UserError("nan") if seed else make(data, seed, found))
        with pytest.raises(UserError, match="13 cells failed"):
            study.run(runnable, tmp_path / "out")
    content = assert_valid(tmp_path / "out" / "study.json", "study")
    assert content["cells"] == {"all": 24, "done": 11, "failed": 13, "missing": 0}
    reasons = {cell["folder"].removeprefix("random/"): cell["reason"] for cell in content["failed"]}
    assert reasons == {
        "none-seed0/downstream/probe-1-ner": "nan",
        "individual_tc-seed0": "step 3: the loss of individual_tc is not finite",
        "averaged-seed0": "random/individual_tc-seed0, a part of it, failed: "
        "step 3: the loss of individual_tc is not finite",
    }
    assert "individual_tc-seed0 failed: step 3" in capsys.readouterr().err
    assert "## Failed" in (tmp_path / "out" / "study.md").read_text()
    # With the cause gone the same command completes the table.
    shutil.copytree(whole / "random" / "individual_tc-seed0", tmp_path / "out" / "random" / "individual_tc-seed0",
                    dirs_exist_ok=True)  # fmt: skip
    study.run(runnable, tmp_path / "out")
    assert (tmp_path / "out" / "study.json").read_text() == (whole / "study.json").read_text()


# Statistics


def judged(gain: float, spread: float) -> Iterator[ClaimResult]:
    """The lines of made scores in which individual beats none by `gain`, give or take `spread`, on nine tasks."""
    rng = np.random.default_rng(0)
    none = {f"t{i}": np.full((1, 3), 0.5) for i in range(9)}
    mine = {name: v + gain + spread * rng.normal(size=(1, 3)) for name, v in none.items()}
    entry = expansion.Entry("a", "adapter", 0.1, "individual", "ner", (), {"none": ()})
    stands = {"a": {"individual": "individual", "none": "none"}}
    yield from study_claims.judge(study_claims.measure([entry], {entry: mine}, lambda e, other: none, stands))


def test_a_task_can_stand_out_however_many_there_are() -> None:
    rng = np.random.default_rng(0)
    apart = [np.stack([right, 1 - right], -1)[None] for right in (np.ones(40, int), np.zeros(40, int))]  # [1, rows, 2]
    for tasks in (1, 12, 25, 26, 60):
        found = paired_bootstrap(*apart, draws=stars.draws(tasks))
        others = {f"{i}": float(p) for i, p in enumerate(rng.uniform(0.1, 1, tasks - 1))}
        assert holm({"one": found.p_value, **others})["one"] < 0.05


def test_claims_are_marked_by_the_statistics() -> None:
    for gain, spread, expected in (
        (0.02, 0.005, "holds"),
        (-0.02, 0.005, "does not hold"),
        (0.0, 0.02, "undecided"),
        (0.001, 0.05, "undecided"),
    ):
        (line,) = judged(gain, spread)
        assert line.claim == "individual > none" and line.verdict == expected, line
    assert study_claims.verdict(0.003, -0.005, 0.01) == "holds"
    assert study_claims.verdict(-0.015, -0.005, 0.01) == "does not hold"
    assert study_claims.verdict(0.1, 0.084, 0.2) == study_claims.verdict(0.1, 0.084, None) == "undecided"


def test_a_claim_is_adjusted_over_those_about_its_family() -> None:
    rng = np.random.default_rng(0)
    measured = []
    for family, claims in (("ner", study_claims.CLAIMS[:4]), ("tc", study_claims.CLAIMS[:2])):
        entry = expansion.Entry("a", "adapter", 0.1, "individual", family, (), {})
        for claim in claims:
            differences = {f"t{i}": rng.normal(0.01, 0.02, (1, 3)) for i in range(9)}
            measured.append(study_claims.Measured(claim, entry, "none", differences))
    lines = study_claims.judge(measured)
    for family, number in (("ner", 4), ("tc", 2)):
        mine = [line for line in lines if line.family == family]
        first = min(mine, key=lambda line: line.p_value)
        assert first.p_holm == pytest.approx(min(1, number * first.p_value))
        for m, line in zip([m for m in measured if m.entry.family == family], mine):
            over = [d.mean() - m.claim.margin for d in m.differences.values()]
            assert line.p_value == pytest.approx(scipy.stats.ttest_1samp(over, 0).pvalue, rel=1e-6)


def test_nine_tasks_of_which_one_disagrees_can_decide() -> None:
    gains = np.asarray([2.0, 1.5, 2.5, 3.0, 1.0, 2.0, 2.2, 1.8, -0.1])
    line = study_claims.over_tasks(gains[:, None, None] / 100)
    assert 5 * line.p_value < study_claims.LEVEL < 9 * scipy.stats.wilcoxon(gains).pvalue


def test_one_task_and_seed_have_no_interval_and_decide_nothing() -> None:
    line = study_claims.over_tasks(np.full((1, 1, 3), 0.02))
    assert line.difference == pytest.approx(0.02)
    assert (line.tasks, line.interval, line.p_value) == (1, (None, None), None)
    assert page_tables.with_interval(line) == "+2.0"


def test_a_claim_is_judged_by_the_variants_that_stand_for_the_strategies() -> None:
    scores = {f"t{i}": np.full((1, 3), 0.5) for i in range(9)}
    strategies = {"task_primary": "task_primary", "deep": "task_primary", "surgery": "task_primary+pcgrad",
                  "naive": "naive", "slow": "naive"}  # fmt: skip
    entries = [expansion.Entry("a", "adapter", 0.5, v, "tc", (), {}) for v in strategies]
    means = {"task_primary": {"ner": 0.3, "tc": 0.8}, "deep": {"ner": 0.4, "tc": 0.8}, "slow": {"ner": 0.1, "tc": 0.1}}
    chosen = fronts.chosen(means, strategies)
    assert chosen == {"task_primary": "deep", "task_primary+pcgrad": "surgery", "naive": "slow"}
    asked: list[tuple[str, str]] = []

    def reference(entry: expansion.Entry, other: str) -> dict[str, np.ndarray]:
        asked.append((entry.variant, other))
        return scores

    lines = study_claims.judge(study_claims.measure(entries, dict.fromkeys(entries, scores), reference, {"a": chosen}))
    assert asked == [("deep", "slow")]
    (line,) = lines
    assert (line.claim, line.first, line.second) == ("task_primary > naive", "deep", "slow")
    # Where the other was not scored at equal capacity, nothing is said.
    assert not study_claims.measure(entries, dict.fromkeys(entries, scores), lambda e, other: None, {"a": chosen})


def test_claims_are_judged_over_places_too() -> None:
    """Each task's difference is averaged over the places that have it, of one start and of all."""
    rng = np.random.default_rng(0)
    strategies = ("individual", "none")
    tables, entries = {}, []
    gains = {("a", 0.1): 0.03, ("a", 1.0): 0.01, ("b", 0.1): -0.05}
    for (start, fraction), gain in gains.items():
        for variant in strategies:
            e = expansion.Entry(start, "adapter", fraction, variant, "ner", (), {})
            tables[e] = {f"t{i}": np.full((1, 3), 0.5) + (variant == "individual") * gain for i in range(9)}
            entries.append(e)
    ragged = next(e for e in entries if (e.start, e.fraction, e.variant) == ("a", 1.0, "individual"))
    tables[ragged] = {name: v + rng.normal(size=(1, 3)) * 1e-3 for name, v in [*tables[ragged].items()][:8]}

    def reference(entry: expansion.Entry, other: str) -> dict[str, np.ndarray]:
        alike = (entry.start, entry.fraction, other)
        return next(tables[e] for e in entries if (e.start, e.fraction, e.variant) == alike)

    stands = {start: {s: s for s in strategies} for start in "ab"}
    measured = study_claims.measure(entries, tables, reference, stands)
    of_a, of_all = study_claims.average(measured)  # b has one place alone
    assert [(x.start, x.places, x.tasks) for x in (of_a, of_all)] == [("a", 2, 8), (None, 3, 8)]
    assert of_a.difference == pytest.approx((0.03 + 0.01) / 2, abs=1e-3) and of_a.verdict == "holds"
    assert of_all.difference == pytest.approx((0.03 + 0.01 - 0.05) / 3, abs=1e-3)
    assert of_all.verdict == "does not hold"
    # A place with other seeds, such as MTEB's ten draws, enters by its mean.
    measured[0] = dataclasses.replace(measured[0], differences={f"t{i}": np.full((1, 10), 0.06) for i in range(9)})
    of_a, _ = study_claims.average(measured)
    assert of_a.difference == pytest.approx((0.06 + 0.01) / 2, abs=1e-3)
    assert not study_claims.average(measured[:1])


def test_a_sweep_s_variants_stand_against_their_mean(cache: Path) -> None:
    grid = expansion.expand(config(cache, **{"study.variants": SWEPT, "study.fractions": (1.0,)}))
    results = [swept(*at) for at in itertools.product(("probe",), SWEPT, ("ner", "tc"))]
    (one,) = sweeps.measure(results, {"rank": SWEPT[::-1]}, grid)
    assert (one.sweep, one.start, one.mode, one.fraction) == ("rank", "random", "probe", 1.0)
    low, high = one.points
    assert (low.variant, high.variant) == SWEPT[::-1]
    assert low.settings == {"lora.rank": 2} and high.settings == {"lora.rank": 4}
    assert low.scores["ner"].mean == 0.4 and low.scores["ner"].difference == pytest.approx(-0.15)
    assert high.scores["ner"].difference == pytest.approx(0.15)
    assert high.scores["ner"].interval == pytest.approx([0.15, 0.15])  # all gain the same
    assert high.scores["tc"].difference == 0.0
    # Of two seeds of pre-finetuning the means differ; a variant with one stands beside each of the other's.
    for i, scores in ((0, ((0.6, 0.6), (0.8, 0.8))), (2, ((0.4, 0.4),))):
        tasks = tuple(dataclasses.replace(t, scores=scores) for t in results[i].tasks)
        results[i] = dataclasses.replace(results[i], tasks=tasks)
    (one,) = sweeps.measure(results, {"rank": SWEPT}, grid)
    expected = scipy.stats.ttest_1samp([0.1, 0.2], 0).confidence_interval(0.95)
    assert one.points[0].scores["ner"].interval == pytest.approx([*expected])


def test_a_sweep_leaves_out_what_cannot_be_compared(cache: Path) -> None:
    variants = (*SWEPT, "same", "naive")
    c = config(cache, **{"study.variants": variants, "study.fractions": (1.0,), "study.modes": ("adapter", "probe")})
    c.study.variant.same = {"strategy": "task_primary", "lora": {"rank": 4}}
    grid = expansion.expand(c)
    results = [swept(*at) for at in itertools.product(("adapter", "probe"), variants, ("ner", "tc"))]
    # In mode adapter another rank is another size of what an app trains.
    assert [s.mode for s in sweeps.measure(results, {"rank": SWEPT}, grid)] == ["probe"]
    assert len(sweeps.measure(results, {"kind": ("task_primary", "naive")}, grid)) == 2
    # The same encoder twice.
    assert not sweeps.measure(results, {"twice": ("task_primary", "same")}, grid)
    # Texts alone, as in mode mteb, can be drawn as well.
    texts = [r for r in results if r.mode == "probe" and r.family == "tc"]
    found = sweeps.measure(texts, {"rank": SWEPT}, grid)
    content: Any = SimpleNamespace(sweeps=found, modes={"probe": SimpleNamespace(shots=0)})
    (ax,) = figures.sweeps(content).axes
    assert len(ax.get_xticklabels()) == 2
    header = next(line for line in page_tables.sweeps(content) if line.startswith("| place"))
    assert "TC accuracy" in header and "NER" not in header
    # Not complete in one family.
    i = next(i for i, r in enumerate(results) if (r.mode, r.variant, r.family) == ("probe", SWEPT[1], "tc"))
    results[i] = dataclasses.replace(results[i], mean=None)
    assert not sweeps.measure(results, {"rank": SWEPT}, grid)


SWEPT = ("task_primary", "task_primary_rank4")


def swept(mode: str, variant: str, family: Family) -> Result:
    """A result on two tasks with two seeds."""
    score = {"ner": 0.4 if variant == SWEPT[1] else 0.7, "tc": 0.5}[family]
    tasks = tuple(
        TaskResult(task=f"t{i}", trained_rows=1, mean=score, scores=((score + i / 10, score - i / 10),), versus={})
        for i in range(2)
    )
    return Result(
        start="random", mode=mode, fraction=1.0, variant=variant, family=family, mean=score, deviation=None,
        tasks=tasks, versus={},
    )  # fmt: skip


@pytest.mark.parametrize("start", study_config.STARTS)
@pytest.mark.parametrize("sweep", study_config.SWEEPS)
def test_a_sweep_changes_one_setting(sweep: str, start: str) -> None:
    """Or two that are one: LoRA's alpha goes with its rank, what one family gets more of the other gets less."""
    c = study_config.get_config()
    variants = c.study.sweep[sweep]
    assert len({variant_settings.method(c, v) for v in variants}) == 1
    flat = [flatten_dict(variant_settings.overridden(c, "variant", v, start).to_dict(), sep=".") for v in variants]
    tied = {
        "backbone_rate": {"optimizer.backbone_lr"}, "rate": {"optimizer.backbone_lr"},
        "steps": {"optimizer.steps", "optimizer.warmup_steps"}, "depth": {"lora.last_layers"},
        "position": {"lora.layers"}, "rank": {"lora.rank", "lora.alpha"}, "rows": {"data.ner.rows", "data.tc.rows"},
        "weights": {"data.ner.loss_weight", "data.tc.loss_weight"},
    }  # fmt: skip
    changed = {key for key in flat[0] if any(f[key] != flat[0][key] for f in flat)} - {"strategy"}
    assert changed <= tied[next(kind for kind in tied if sweep.endswith(kind))] and changed
    if "lora.layers" not in changed:
        orders = [[f[key] for f in flat] for key in changed]
        assert all(values in (sorted(values), sorted(values, reverse=True)) for values in orders)


def test_variants_in_a_plot_can_be_told_apart() -> None:
    found = figures._colours(str(i) for i in range(40))
    assert len(set(found.values())) == 40


def test_fronts() -> None:
    points = {"a": (0.1, 0.2), "b": (0.2, 0.1), "c": (0.1, 0.1), "d": (-0.1, 0.4)}
    assert fronts.front(points) == ["b", "a", "d"]
    assert fronts.area([*points.values()]) == pytest.approx(0.2 * 0.1 + 0.1 * 0.1)
    assert fronts.area([(-0.1, 0.4)]) == 0.0
