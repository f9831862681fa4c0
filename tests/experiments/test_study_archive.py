"""The archive of cells: each score follows from the predictions saved with it, and the pages from these scores."""

import json
import pathlib
import tarfile

import numpy as np
import pytest
from helpers.paths import RESULTS

from experiments.common.tasks import MAIN_SCORE
from jaxprefit.downstream import cells

RECIPE = ("split", "limit", "shots", "steps", "batch_size", "head_lr", "lora_lr")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(RESULTS / "study_cells.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder


@pytest.mark.slow
def test_scores_follow_from_saved_predictions(archive: pathlib.Path) -> None:
    files = sorted(archive.rglob("cells/*.json"))
    assert len(files) > 3000
    for file in files:
        cell = cells.read(file)
        right, *wrong = np.sum(cell.counts, 0)
        score = 2 * right / max(2 * right + sum(wrong), 1) if cell.family == "ner" else right / (right + wrong[0])
        assert cell.scores[MAIN_SCORE[cell.family]] == pytest.approx(score, abs=1e-12), file
        assert len(cell.predictions) == len(cell.counts)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(file.name for file in RESULTS.glob("study*.json")))
def test_tables_follow_from_the_archive_s_scores(page: str, archive: pathlib.Path) -> None:
    """Each task's scores on a page are those of some encoder in the archive, from that start and by that recipe.

    In mode stacked an encoder without LoRA has the cells of mode adapter.
    """
    content = json.loads((RESULTS / page).read_text(encoding="utf-8"))
    known: set[tuple] = set()
    for file in archive.rglob("scores.json"):
        scores = json.loads(file.read_text(encoding="utf-8"))
        recipe = tuple(scores["downstream"].get(key) for key in ("mode", *RECIPE))
        start = file.relative_to(archive).parts[0]
        for t in scores["tasks"]:
            main = tuple(s[MAIN_SCORE[t["family"]]] for s in t["seeds"])
            known.add((start, *recipe, scores["downstream"]["fraction"], t["task"], main))
    for r in content["results"]:
        recipe = content["modes"][r["mode"]]
        modes = {recipe["mode"]} | ({"adapter"} if recipe["mode"] == "stacked" else set())
        settings = [recipe[key] for key in RECIPE]
        for t in r["tasks"]:
            for line in t["scores"]:
                found = ((r["start"], m, *settings, r["fraction"], t["task"], tuple(line)) in known for m in modes)
                assert any(found), (r["variant"], t["task"])
