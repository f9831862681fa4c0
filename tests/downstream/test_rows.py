"""Which rows a task is trained and scored on: shots, MTEB's draws, development rows."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.common import tasks
from experiments.common.checks import check
from jaxprefit.data import sources
from jaxprefit.downstream import sampling
from jaxprefit.errors import UserError

TAGS = st.lists(st.sampled_from(["O", "B-x", "B-y", "B-z"]), min_size=1, max_size=5).map(lambda tags: {"tags": tags})
LABELS = st.sampled_from("abc").map(lambda label: {"label": label})


@settings(max_examples=60)
@given(st.lists(TAGS, max_size=60), st.integers(1, 5))
def test_shots_of_entities_stay_between_k_and_2k(records: list[dict], k: int) -> None:
    chosen = sampling.shots(records, k)
    assert len({*chosen.tolist()}) == len(chosen)
    taken = [sampling.classes(records[i]) for i in chosen]
    found = sum(taken, Counter())
    assert all(taken) and all(n <= 2 * k for n in found.values())  # no sentence without an entity
    for i in {*range(len(records))} - {*chosen.tolist()}:
        # None is left that would have helped a type below K and hurt none.
        held = sampling.classes(records[i])
        helps = any(found[c] < k for c in held)
        assert not (helps and all(found[c] + n <= 2 * k for c, n in held.items()))


@settings(max_examples=40)
@given(st.lists(LABELS, max_size=60), st.integers(1, 5))
def test_shots_of_labels_are_k_or_all_there_are(records: list[dict], k: int) -> None:
    there = Counter(r["label"] for r in records)
    assert Counter(records[i]["label"] for i in sampling.shots(records, k)) == {c: min(k, n) for c, n in there.items()}


def test_draws_are_those_of_mteb() -> None:
    """Against the loop of AbsTaskClassification, which shuffles one list again and again with the same seed."""
    labels = [str(n) for n in np.random.default_rng(0).integers(0, 4, 50)]
    indices = list(range(len(labels)))
    for draw in range(3):
        np.random.RandomState(42).shuffle(indices)
        seen, expected = Counter(), []
        for i in indices:
            if seen[labels[i]] < 3:
                expected.append(i)
            seen[labels[i]] += 1
        assert sampling.mteb_draw(labels, 3, draw).tolist() == expected


def test_development_rows_are_cut_from_training_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "own"
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(40)]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(lines))
    config = run.config(tmp_path / "cache", {"data.root": str(folder.parent), "downstream.split": "dev"})
    train, dev, _ = tasks.task_rows("own", "labelled", config, str(tmp_path / "cache"))
    texts = [{r[i]["text"] for i in range(len(r))} for r in (train, dev)]
    assert [len(t) for t in texts] == [36, 4] and not texts[0] & texts[1]
    assert train.fingerprint != dev.fingerprint
    *again, _ = tasks.task_rows("own", "labelled", config, str(tmp_path / "cache"))
    assert [r.fingerprint for r in again] == [train.fingerprint, dev.fingerprint]
    # A file of development rows goes before; then no training row is left out.
    (folder / "dev.jsonl").write_text("".join(lines[:3]))
    train, dev, _ = tasks.task_rows("own", "labelled", config, str(tmp_path / "cache"))
    assert (len(train), len(dev)) == (40, 3)
    assert sources.has_development_rows("generated:labelled", "labelled", "")
    assert not sources.has_development_rows("tfds:ag_news_subset", "labelled", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downstream.split": "train"}, "downstream.split is 'train'; use test, dev"),
        ({"downstream.shots": -1}, "downstream.shots is -1"),
        ({"downstream.mode": "mteb"}, "downstream.shots is 0; downstream.mode=mteb"),
        ({"downstream.shots": 5, "downstream.fraction": 0.5}, "downstream.fraction must be 1"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str, tmp_path: Path) -> None:
    config = run.config(tmp_path, changes)
    with pytest.raises(UserError, match=message):
        check(config)
        tasks.recipe(config)
