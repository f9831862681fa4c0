"""The consistency filter keeps the pairs whose partner is found again, and says how many."""

import json
import lzma
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from golden.formula import weights
from golden.model_files import write_model
from helpers import run
from helpers.paths import GOLDEN_FILES, SCHEMAS

from experiments import filter_pairs
from jaxprefit.data.pair_filter import consistent, partner_ranks
from jaxprefit.errors import UserError


def test_ranks_of_constructed_vectors() -> None:
    a = np.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    b = np.asarray([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
    others = np.asarray([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    same = np.zeros((3, 3), bool)
    assert partner_ranks(a, b, others, same).tolist() == [1, 3, 4]
    same[1, 2] = True  # a copy of b does not count against it
    assert partner_ranks(a, b, others, same).tolist() == [1, 2, 4]


ANGLES = [0, 30, 80, 120, 160, 200, 240, 280]


def pairs(wrong: dict[int, int]) -> list[dict[str, str]]:
    """Pair i has a and b in the same direction, but b of pair `wrong[i]` in its place."""
    return [{"a": f"a {x}", "b": f"b {ANGLES[wrong.get(i, i)]}"} for i, x in enumerate(ANGLES)]


def directions(texts: list[str]) -> np.ndarray:
    """The vector of 'a 30' or 'b 30', of some length."""
    angle = np.radians([float(t.split()[1]) for t in texts])
    return 3.0 * np.stack([np.cos(angle), np.sin(angle)], 1)


@pytest.mark.parametrize("block", [3, 100])
def test_what_is_found_again_is_kept(block: int) -> None:
    rows = pairs({1: 0, 5: 0})  # all b are in the sample
    kept = consistent(rows, directions, 1, 8, 0, block)
    # Pair 1's partner is 30 degrees off, but none is nearer; pair 5's is far off.
    assert [i for i in range(8) if not kept[i]] == [5]
    assert consistent(rows, directions, 8, 8, 0, block).all()


def test_the_sample_is_drawn_by_the_seed() -> None:
    rows = pairs({0: 4, 1: 5, 2: 6, 3: 7})
    kept = {seed: consistent(rows, directions, 1, 2, seed).tolist() for seed in range(6)}
    assert kept[0] == consistent(rows, directions, 1, 2, 0).tolist()
    assert len({tuple(k) for k in kept.values()}) > 1


CONFIG = json.loads((GOLDEN_FILES / "encoder.json").read_text())["cases"]["bert"]["config"]
CONFIG["num_hidden_layers"] = 1


def test_filtered_rows_are_a_source_and_the_share_is_reported(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIG, weights(CONFIG))
    letters = "abcdefghijklmnopqrst"
    right: list[dict[str, Any]] = [{"a": f"{x} cat {x}", "b": f"{x} cat {x}"} for x in letters[:10]]
    # The text of each a stands as another's b, so its own cannot rank first.
    wrong = [{"a": f"{x} cat {x}", "b": f"{y} cat {y}"} for x, y in zip(letters[10:], letters[11:] + letters[10])]
    (tmp_path / "data" / "my").mkdir(parents=True)
    text = "".join(json.dumps(r) + "\n" for r in [*right, *wrong])
    (tmp_path / "data" / "my" / "train.jsonl").write_text(text)
    changes: dict[str, Any] = {"data.root": str(tmp_path / "data"), "data.tc.sources": ("my",)}
    changes |= {"filter.top_k": 1, "filter.sample": 20, "data.tc.prefix_a": "the ", "data.tc.prefix_b": "the "}
    config = run.config(tmp_path / "cache", changes)
    content = filter_pairs.run(config, tmp_path / "out", str(model))
    assert json.loads((tmp_path / "out" / "filter.json").read_text()) == content
    schema = json.loads((SCHEMAS / "filter.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    assert content["sources"] == [{"source": "my", "folder": "my", "sample": 20, "rows": 20, "kept": 10, "share": 0.5}]
    with lzma.open(tmp_path / "out" / "my" / "train.jsonl.xz", "rt") as file:
        assert [json.loads(line) for line in file] == right
    config.data.tc.sources = ("my", "./my")
    with pytest.raises(UserError, match="two sources that would both be"):
        filter_pairs.run(config, tmp_path / "out", str(model))


def test_rows_of_any_source_stay_below_the_workdir() -> None:
    names = {"pairs/arxiv": "pairs/arxiv", "/data/../x.csv": "data/x.csv", "tfds:glue/mrpc": "tfds_glue/mrpc"}
    assert {name: filter_pairs.folder_name(name) for name in names} == names
