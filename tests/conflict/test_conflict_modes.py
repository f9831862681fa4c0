"""experiments.conflict on a tiny run, mode after mode into one report; the ablation's cells; the advice in use."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run
from helpers.schemas import assert_valid

import jaxprefit
from experiments import conflict
from experiments.common import assembly, cli, family_data, prefinetuning
from experiments.conflict import ablate, comparison, trial
from jaxprefit import surgery
from jaxprefit.conflict.advice import placement
from jaxprefit.conflict.report import document as conflict_report
from jaxprefit.conflict.results import AblationSection, Advice, ProbeSection
from jaxprefit.encoder.lora import LoraSpec
from jaxprefit.errors import UserError
from jaxprefit.runtime import results

STEPS = 6
SMALL = {"texts": 60, "tokens": 40, "folds": 2, "fold_rows": 20}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


def config(cache: Path, mode: str = "probe", **changes: Any) -> Any:
    fixed = {"strategy": "naive", "optimizer.steps": STEPS, "conflict.mode": mode, "conflict.windows": 2}
    fixed |= {f"conflict.representations.{k}": n for k, n in SMALL.items()}
    fixed |= {"conflict.lookahead": 2, "data.held_out": 30}
    fixed |= {"conflict.ablation.steps": STEPS, "conflict.ablation.blocks": ("layer_0",)}
    return run.config(cache, {**fixed, "conflict.ablation.controls": False, **changes})


@pytest.fixture(scope="module")
def naive(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "naive"
    prefinetuning.run(config(cache), folder)
    return folder


@pytest.fixture(scope="module")
def report(naive: Path, cache: Path) -> Path:
    """The workdir of a report with every section."""
    folder = naive.parent / "report"
    for mode in ("probe", "online", "ablate", "represent", "advise"):
        conflict.run(config(cache, mode), folder, str(naive))
    return folder


def test_modes_gather_in_one_report(report: Path) -> None:
    content = assert_valid(report / "conflict.json", "conflict")
    assert all(content[s] for s in ("probe", "online", "ablation", "representations", "advice"))
    assert all(content["probe"][s] for s in ("transfer", "affinity", "curvature"))
    assert content["run"]["step"] == STEPS and content["online"]["steps"] == STEPS
    (pair,) = content["online"]["pairs"]
    assert [*pair["layer"]] == ["embeddings", "layer_0"]
    assert [(w["first_step"], w["last_step"]) for w in pair["layer"]["layer_0"]["windows"]] == [(1, 3), (4, 6)]
    page = (report / "conflict.html").read_text()
    assert page.count("<img") >= 8 and "Not measured." not in page and "http" not in page


def test_ablating_nothing_is_the_plain_run(report: Path, naive: Path) -> None:
    rows = json.loads((report / "conflict.json").read_text())["ablation"]["rows"]
    end = json.loads((naive / "summary.json").read_text())["held_out"]
    assert rows[0]["variant"] == "plain"
    (cell,) = (report / "ablation").glob("plain_0_*.json")
    for name, losses in json.loads(cell.read_text())["losses"].items():
        # Bit for bit: the same losses of the same weights on the same batches, their mean taken in float32.
        assert float(sum(map(np.float32, losses)) / len(losses)) == end[name]["end"]["loss"]
    assert {r["variant"] for r in rows[1:]} == {"stop_ner_layer_0", "stop_tc_layer_0"}
    for r in rows[1:]:
        assert r["loss"] != rows[0]["loss"] and r["effect"].keys() == {"ner", "tc"}


def test_same_seed_same_trend(report: Path, naive: Path, cache: Path, tmp_path: Path) -> None:
    conflict.run(config(cache, "online"), tmp_path / "out", str(naive))
    first, second = (json.loads((folder / "conflict.json").read_text()) for folder in (report, tmp_path / "out"))
    assert all(first[section] == second[section] for section in ("run", "online"))


@pytest.mark.parametrize("clip", ["families", "combined"])
def test_a_stopped_family_moves_nothing_in_its_block(clip: str, cache: Path, tmp_path: Path) -> None:
    c = config(cache)
    c.optimizer.clip = clip
    parts = assembly.make_run(c, tmp_path)
    streams = family_data.streams(parts.data, parts.setup.families, c, c.seed)
    batches = {name: next(stream).batch for name, stream in streams.items()}
    for stream in streams.values():
        stream.close()
    moved = {}
    for stopped in ({}, {"tc": ("layer_0",), "ner": ("layer_0",)}):
        variant = parts.__class__(**{**vars(parts), "setup": parts.setup._replace(stopped=stopped)})
        state, tx = assembly.fresh_state(variant)
        before = {path: np.asarray(p) for path, p in state.params.items()}
        state, metrics = assembly.make_step(variant, tx, c)(state, batches)
        moved[len(stopped)] = {path: np.asarray(p) - before[path] for path, p in state.params.items()}
        assert metrics["gradient_norm/tc"] > 0
    query, word = "backbone/layer_0/query/bias", "backbone/embeddings/word/embedding"
    # Adam's first step is the sign of the gradient; a bias is not decayed.
    assert not moved[2][query].any() and moved[0][query].any()
    np.testing.assert_array_equal(moved[2][word], moved[0][word])


def test_finished_cells_are_not_trained_again(report: Path, naive: Path, cache: Path) -> None:
    cells = sorted((report / "ablation").glob("*.json"))
    assert len(cells) == 3
    for cell in cells:
        assert_valid(cell, "ablation_cell")
    before = {c: (c.read_bytes(), c.stat().st_mtime_ns) for c in cells}
    cells[1].unlink()
    conflict.run(config(cache, "ablate"), report, str(naive))
    after = {c: (c.read_bytes(), c.stat().st_mtime_ns) for c in cells}
    assert {c: a[0] for c, a in after.items()} == {c: b[0] for c, b in before.items()}
    assert [c for c in cells if after[c] != before[c]] == [cells[1]]


def test_advice_is_a_fragment_for_prefinetune(report: Path, cache: Path, tmp_path: Path) -> None:
    fragment = json.loads((report / "advice.json").read_text())
    assert fragment == json.loads((report / "conflict.json").read_text())["advice"]["lora"]
    (tmp_path / "advice.json").write_text(json.dumps({**fragment, "layers": [0], "targets": ["key"], "rank": 3}))
    flags = [f for f in run.flags(cache, {"strategy": "task_primary", "optimizer.steps": 1}) if ".lora." not in f]
    done = run.call(
        "prefinetune", *flags, f"--config.lora=@{tmp_path / 'advice.json'}", "--config.lora.rank=2",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = jaxprefit.load(tmp_path / "run")
    assert {layer: [*maps] for layer, maps in model.adapters["ner"].items()} == {"layer_0": ["key"]}
    assert model.adapters["ner"]["layer_0"]["key"]["a"].shape[1] == 2, "a later setting goes before the file's"


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), ("[1]", "no JSON object"), ("{", "no JSON object")]
)
def test_a_fragment_that_is_none_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "f.json").write_text(content)
    with pytest.raises(UserError, match=says):
        cli._with_fragments(["x", f"--config.lora=@{tmp_path / 'f.json'}"], {"lora.rank": 1})


def test_names_of_the_registry_are_no_fragments() -> None:
    argv = ["x", "--config.data.ner.sources=@nuner", "--config.lora.rank=2"]
    assert cli._with_fragments(argv, {"data.ner.sources": (), "lora.rank": 1}) == argv


def test_compare_shows_runs_side_by_side(report: Path, naive: Path, cache: Path) -> None:
    workdir = naive.parent / "compared"
    both = f"{report},{naive / 'checkpoints' / str(STEPS)}"
    conflict.run(config(cache, "compare"), workdir, both)
    content = assert_valid(workdir / "conflict.json", "conflict")
    assert [c["name"] for c in content["compare"]] == ["report", f"naive_{STEPS}"]
    first, second = content["compare"]
    assert first["held_out"].keys() == {"ner", "tc"}
    # The second was probed anew: the same seed gives the same figures.
    again = json.loads((workdir / f"naive_{STEPS}" / "conflict.json").read_text())
    before = json.loads((report / "conflict.json").read_text())
    assert first["pairs"] == second["pairs"] and again["probe"] == before["probe"]
    text = (workdir / "conflict.html").read_text()
    assert "Runs side by side" in text and "Not measured" not in text
    with pytest.raises(UserError, match="two or more"):
        conflict.run(config(cache, "compare"), naive.parent / "one", str(report))


def test_compare_takes_no_probe_of_another_run_or_seed(naive: Path, tmp_path: Path) -> None:
    """Constructed: nothing is measured."""
    run_of = dict.fromkeys(("one", "two"), conflict.identify(str(naive)))
    paths = [f"{tmp_path / 'runs' / name}" for name in run_of]
    counts: dict[str, Any] = {key: {} for key in ("batch_tokens", "examples", "rows", "transfer")}
    counts |= dict.fromkeys(("adapters", "affinity", "curvature"))
    probe = ProbeSection(rounds=4, seed=1, pairs=(), repeated=(), **counts)
    for name, run_ in run_of.items():
        (tmp_path / name).mkdir()
        file = tmp_path / name / "conflict.json"
        results.write(file, conflict_report.content(run_, {"probe": probe}, file))
    probed: list[str] = []

    def compare(rounds: int) -> None:
        c = config(tmp_path, **{"conflict.rounds": rounds, "conflict.seed": 1})
        comparison.measure(
            c, tmp_path, paths, lambda *a, **k: probed.append(a[2]) or {}, lambda p: run_of[Path(p).name]
        )

    compare(4)
    assert not probed
    compare(6)
    assert probed == paths, "other settings: probed anew"
    run_of["two"] = dataclasses.replace(run_of["two"], fingerprint="another")
    with pytest.raises(UserError, match="another run or step"):
        compare(4)


def test_advice_goes_with_the_evidence(
    naive: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = AblationSection(steps=1, seeds=(), batches={}, batch_tokens={}, rows=())
    placed = placement(LoraSpec())
    counts: dict[str, Any] = dict.fromkeys(("parameters", "default_parameters"), 1)
    advised = Advice(decided=False, reason="none", lora=placed, default=placed, evidence=(), **counts)
    sections = {"ablation": ablation, "advice": advised}
    file = tmp_path / "conflict.json"
    results.write(file, conflict_report.content(conflict.identify(str(naive)), sections, file))
    (tmp_path / "advice.json").write_text("{}")
    monkeypatch.setattr(conflict, "_measure", lambda *_: {"ablation": None})
    assert conflict.run(config(cache, "ablate"), tmp_path, str(naive)).advice is None
    assert not (tmp_path / "advice.json").exists()


def test_only_weights_that_ignore_the_gram_matrix_are_ablated(naive: Path, cache: Path, tmp_path: Path) -> None:
    grams = [jnp.asarray(m) for m in ([[1.0, -0.5], [-0.5, 4.0]], [[1.0, 0.0], [0.0, 0.0]])]
    for name, method in surgery.METHODS.items():
        weights = []
        for gram in grams:
            state = method.init(2)
            for _ in range(3):
                w, state = method.weights(gram, jnp.asarray([1.0, 2.0]), state)
            weights.append(np.asarray(w))
        assert np.array_equal(*weights) == (not surgery.METHODS[name].reads_gram), name
    model = jaxprefit.load(naive)
    model.meta["config"]["aggregator"] = "pcgrad"
    with pytest.raises(UserError, match="aggregator 'pcgrad'.*aggregator=sum"):
        ablate.measure(config(cache, "ablate"), tmp_path / "out", model, [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "jaxprefit.ablation_cell", "version": 0, "losses": {}}'])
def test_a_cell_of_another_version_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text(content)
    with pytest.raises(UserError, match="is no cell of version 1; delete it"):
        ablate.read_cell(tmp_path / "cell.json")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conflict.mode": "prob"}, "conflict.mode is 'prob'"),
        ({"conflict.windows": 0}, "conflict.windows is 0"),
        ({"conflict.ablation.seeds": ()}, "conflict.ablation.seeds"),
        ({"conflict.mode": "ablate", "conflict.ablation.blocks": ("layer_7",)}, "share embeddings, layer_0"),
        ({"conflict.mode": "advise"}, "holds no probe"),
    ],
)
def test_setting_is_refused(changes: dict[str, Any], says: str, naive: Path, cache: Path, tmp_path: Path) -> None:
    c = config(cache)
    c.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=says):
        conflict.run(c, tmp_path / "out", str(naive))
    assert not (tmp_path / "out").exists()


def test_downstream_difference_of_a_trial_has_an_interval_or_is_undecided() -> None:
    default = trial.over_seeds([0.5, 0.6, 0.7])
    clear, vague = (trial.score_change(default, trial.over_seeds(x)) for x in ([0.6, 0.71, 0.8], [0.6, 0.5, 0.75]))
    assert clear.difference == pytest.approx(10.33, abs=0.01) and clear.interval[0] > 0
    assert trial._verdict(clear, higher=True) == "advised better"
    assert vague.interval[0] < 0 < vague.interval[1]
    assert trial._verdict(vague, higher=True) == "undecided"


def test_trial_of_the_advice(cache: Path, tmp_path: Path) -> None:
    advice = {"layers": [0], "last_layers": 1, "targets": ["key"], "rank": 3, "alpha": 6.0}
    (tmp_path / "advice.json").write_text(json.dumps(advice))
    c = config(cache, **{"conflict.ablation.seeds": (0, 1), "downstream.ner": (), "optimizer.steps": 3})
    trial.run(c, tmp_path / "trial", str(tmp_path / "advice.json"))
    content = assert_valid(tmp_path / "trial" / "trial.json", "trial")
    assert content["lora"]["advised"]["targets"] == ["key"] and content["lora"]["advised"]["layers"] == [0]
    ends = [json.loads((tmp_path / "trial" / f"advised_{s}" / "summary.json").read_text()) for s in (0, 1)]
    for family, entry in content["held_out"].items():
        assert len(entry["advised"]["seeds"]) == 2
        # The first seed's batches are the run's own, so its loss is the one of its summary.
        assert entry["advised"]["seeds"][0] == pytest.approx(ends[0]["held_out"][family]["end"]["loss"], rel=1e-6)
        found = entry["advised"]["mean"] - entry["default"]["mean"]
        assert entry["effect"]["difference"] == pytest.approx(found, abs=1e-6)
    for wrong, says in (({}, "already has"), ({"ranks": 3}, "'ranks', which is no setting"), ([], "no setting")):
        (tmp_path / "advice.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=says):
            trial.run(c, tmp_path / "other", str(tmp_path / "advice.json"))
