"""What is clipped: angles of surgery read off logged Gram matrices, an older run's config, and the stored results."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run
from helpers import surgery_reference as reference
from helpers.paths import ROOT
from helpers.schemas import assert_valid
from ml_collections import ConfigDict

from configs import clipping as settings
from experiments import clipping
from experiments.common import prefinetuning
from experiments.conflict import probe
from jaxprefit.checkpoints import metadata
from jaxprefit.training.optim import OptimizerConfig

RESULTS = ROOT / "experiments" / "results"


def pair(lengths: tuple[float, float], cosine: float) -> np.ndarray:
    """Two gradients of these norms and this cosine."""
    return np.asarray([[lengths[0], 0.0], [lengths[1] * cosine, lengths[1] * np.sqrt(1 - cosine**2)]])


def write_metrics(file: Path, steps: list[np.ndarray], own: float) -> None:
    """Lines of a run whose shared gradients are `steps`, beside parts of norm `own` that each family has for itself."""
    lines = []
    for g in steps:
        norms = np.sqrt((g**2).sum(1) + own**2)
        halves = {f"gram/layer_{i}": (g @ g.T / 2).tolist() for i in range(2)}
        lines.append({**halves, "gradient_norm/ner": norms[0], "gradient_norm/tc": norms[1]})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


@pytest.mark.parametrize("clip", ["families", "combined"])
def test_angles_are_those_of_the_methods_on_vectors(clip: str, tmp_path: Path) -> None:
    steps = [pair((2.0, 5.0), -0.5), pair((3.0, 4.0), 0.3)]
    write_metrics(tmp_path / "metrics.jsonl", steps, own=0.0)
    config = settings.get_config()
    config.optimizer.clip = clip
    found = clipping.directions(tmp_path / "metrics.jsonl", config)
    assert found["clipped"] == 1.0 and found["norms"] == [2.5, 4.5] and found["cosine"] == pytest.approx(-0.1)
    for name in ("pcgrad", "mgda", "cagrad", "imtl_g", "aligned_mtl"):
        expected = []
        for g in steps:
            seen = g / np.linalg.norm(g, axis=1, keepdims=True) if clip == "families" else g
            expected.append(degrees(reference.direction(name, seen), seen.sum(0)))
        assert found["angle"]["0"][name]["mean"] == pytest.approx(np.mean(expected), abs=0.1), name
        assert (max(expected) < 0.1) == (clip == "families")


def test_an_older_runs_config_says_what_it_did() -> None:
    for aggregator, clip in (("sum", "auto"), ("famo", "auto"), ("pcgrad", "families")):
        config: dict[str, Any] = {"aggregator": aggregator, "optimizer": {"clip_norm": 1.0}}
        metadata.complete(config)
        assert config == {
            "aggregator": aggregator,
            "aggregator_decay": 0.0,
            "optimizer": {"clip_norm": 1.0, "clip": clip},
        }
        again = copy.deepcopy(config)
        metadata.complete(again)
        assert again == config
    assert OptimizerConfig(clip="auto").clipped(reads_gram=False) == "families"
    empty: dict[str, Any] = {}
    metadata.complete(empty)
    assert empty == {}


def test_a_run_of_before_there_was_a_choice_counts_as_finished(tmp_path: Path) -> None:
    config = run.config(tmp_path / "cache")
    then = json.loads(config.to_json_best_effort())
    del then["optimizer"]["clip"], then["aggregator_decay"]
    (tmp_path / "config.json").write_text(json.dumps(then))
    (tmp_path / "summary.json").write_text("{}")
    assert prefinetuning.finished(config, tmp_path) == {}
    other = ConfigDict(config)
    other.optimizer.clip = "combined"
    assert prefinetuning.finished(other, tmp_path) is None


def test_the_probes_factor_is_that_of_the_combined_update() -> None:
    rng, weights = np.random.default_rng(0), np.asarray([1.0, 2.0])
    g = 0.3 * rng.normal(size=(3, 2, 2, 5))  # round, family, batch
    rounds = np.einsum("niax,njbx->niajb", g, g)
    norms = np.linalg.norm(np.einsum("i,niax->nax", weights, g), axis=-1)
    expected = np.minimum(1, 1.0 / norms).mean()
    assert 0 < expected < 1
    assert probe._combined_factor(rounds, weights, 1.0) == pytest.approx(expected)


def test_the_stored_results_are_valid() -> None:
    content = assert_valid(RESULTS / "clipping.json", "clipping")
    # Clipped by family, surgery is the sum to within a few degrees on the same batches; on unclipped ones it is not.
    mean = {
        c: [a["angle"]["0"]["mgda"]["mean"] for a in content["angles"] if a["clip"] == c]
        for c in ("families", "combined")
    }
    assert max(mean["families"]) < 5 < min(mean["combined"])


def test_the_page_s_tables_are_the_stored_results() -> None:
    content, page = assert_valid(RESULTS / "clipping.json", "clipping"), (RESULTS / "clipping.md").read_text()
    for strategy in ("naive", "task_primary"):
        for clip in ("families", "combined"):
            runs = [r["held_out"] for r in content["runs"] if (r["strategy"], r["clip"]) == (strategy, clip)]
            cells = []
            for family in ("ner", "tc"):
                losses = [r[family] for r in runs]
                cells.append(f"{np.mean(losses):.3f} ({', '.join(f'{x:.3f}' for x in losses)})")
            assert f"| {strategy} | {clip} | {' | '.join(cells)} |" in page
    columns = (("pcgrad", "gradvac", "upgrad"), ("mgda",), ("cagrad",), ("imtl_g", "config", "nash_mtl", "aligned_mtl"))
    rows = [
        ("families", "0", "none"),
        ("combined", "0", "none"),
        ("combined", "0.9", "0.9"),
        ("combined", "0.99", "0.99"),
    ]
    for clip, decay, name in rows:
        row = next(line for line in page.splitlines() if line.startswith(f"| {clip} | {name} |"))
        for methods, cell in zip(columns, row.split(" | ")[2:]):
            values = [a["angle"][decay][m] for a in content["angles"] if a["clip"] == clip for m in methods]
            shown = [x.strip("()|") for x in cell.split()[:2]]
            for text, value in zip(shown, (np.mean([v["mean"] for v in values]), max(v["max"] for v in values))):
                half = 0.5 * 10.0 ** -len(text.partition(".")[2])  # of the last digit shown
                assert abs(float(text) - value) <= half + 1e-3, (clip, name, methods)
