"""The benchmarks measure in turns, give a spread, and write what their schema says."""

import json
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from helpers import run
from helpers.paths import SCHEMAS

from configs import benchmark as benchmark_config
from experiments import benchmark
from experiments.benchmark import peer
from experiments.benchmark.timing import interleaved, ratios, spread
from jaxprefit.data.packing import Layout, pack
from jaxprefit.errors import UserError


def test_things_are_timed_in_turns_after_one_call_that_does_not_count() -> None:
    calls: list[str] = []
    things = {name: (lambda name=name: (calls.append(name), time.sleep(0.002 if name == "b" else 0))) for name in "ab"}
    seconds = interleaved(things, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3} and min(seconds["b"]) >= 0.002


def test_spread_is_median_and_quartiles() -> None:
    assert spread([3.0, 1.0, 5.0, 2.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert ratios([2.0, 9.0], [1.0, 3.0]) == {"median": 2.5, "low": 2.25, "high": 2.75}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"what": "gradcash"}, "what is 'gradcash'; choose from gradcache"),
        ({"repetitions": 1}, "repetitions is 1; it must be at least 2"),
        ({"data.tc.chunk_rows": 0}, "data.tc.chunk_rows is 0; give the number of rows in a chunk"),
        ({"what": "peer"}, "what=peer needs "),
    ],
)
def test_setting_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    config = benchmark_config.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        benchmark.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_loader_is_measured(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    config = benchmark_config.get_config()
    cache = tmp_path_factory.getbasetemp() / "cache"
    config.update_from_flattened_dict({**run.TINY, "data.cache": str(cache)})
    config.data.tc.chunk_rows = 0
    config.update({"what": "data", "repetitions": 2, "steps_per_repetition": 3})
    content = benchmark.run(config, tmp_path / "run")
    schema = json.loads((SCHEMAS / "benchmark_data.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    assert content["steps"] == 6 and content["compilations"] == 1, "every batch has one shape"
    assert min(content["useful_share"].values()) > 0.8


def test_gradcache_is_measured(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    config = benchmark_config.get_config()
    sizes = dict(zip(("layers", "hidden", "heads", "intermediate", "vocab"), (1, 32, 2, 64, 1000)))
    config.update_from_flattened_dict({f"model.{name}": value for name, value in sizes.items()})
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    config.update_from_flattened_dict({"data.cache": cache, "data.tc.rows": 8, "data.tc.chunk_rows": 4})
    config.gradcache.large_rows, config.repetitions = 8, 2  # the same, since each size costs two compilations
    config.data.tc.sources = ("generated:pairs?rows=300&seed=2",)
    content = benchmark.run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "benchmark_gradcache.json").read_text()) == content
    schema = json.loads((SCHEMAS / "benchmark_gradcache.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    assert content["temporary_bytes"]["cached"]["small"] < content["temporary_bytes"]["plain"]["small"]


@pytest.mark.parametrize("what", ["conflict", "lora"])
def test_steps_are_compared(what: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    config = benchmark_config.get_config()
    cache = tmp_path_factory.getbasetemp() / "cache"
    config.update_from_flattened_dict({**run.TINY, "data.cache": str(cache)})
    config.data.tc.chunk_rows = 0
    config.update({"what": what, "repetitions": 2})
    content = benchmark.run(config, tmp_path / "run")
    schema = json.loads((SCHEMAS / f"benchmark_{what}.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    assert [*content["batch_tokens"]] == ["ner", "tc"]
    if what == "conflict":
        assert content["families"] == ["ner", "tc"]
    else:
        assert content["finetuning"]["steps"] == 3


def test_the_first_step_is_waited_for(tmp_path: Path) -> None:
    config = benchmark_config.get_config()
    config.update_from_flattened_dict(run.TINY)
    config.data.tc.chunk_rows = 0
    config.update({"what": "first_step", "repetitions": 2})
    content = benchmark.run(config, tmp_path / "run")
    schema = json.loads((SCHEMAS / "benchmark_first_step.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    config.data.root = "nowhere"
    config.data.tc.sources = ("missing",)
    with pytest.raises(UserError, match="missing"):
        benchmark.run(config, tmp_path / "run")


def test_the_peer_gets_the_texts_of_the_packed_batch() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 99, n) for n in rng.integers(2, 17, 14)]
    order, packing = pack([[len(t)] for t in texts], Layout.of(6, 32))
    batch = {"ids": packing.lay([texts[i] for i in order]), "segments": packing.segments()}
    found = peer.unpacked(batch, "ids", packing.layout.per_row)
    assert len(order) == len(texts) and sorted(found) == sorted(packing.slot)
    for i, slot in zip(order, packing.slot):
        np.testing.assert_array_equal(found[int(slot)], texts[i])
