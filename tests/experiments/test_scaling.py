"""The cost of a step on many chips: collectives read from a program's text, a cell, the page."""

import json
from pathlib import Path

import jsonschema
import pytest
from helpers.paths import SCHEMAS

from configs import scaling as scaling_config
from experiments import scaling
from experiments.common import workdirs
from experiments.scaling import compiled_step
from jaxprefit.errors import UserError

PROGRAM = """
  %all-reduce.1 = f32[10,4]{1,0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %all-reduce.2 = (f32[], /*index=1*/bf16[6]{0}) all-reduce(%x, %y), replica_groups={}, to_apply=%add
  %all-gather-start.3 = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}
  %all-gather-done.3 = f32[8]{0} all-gather-done(%all-gather-start.3)
  %reduce-scatter.4 = f32[5]{0} reduce-scatter(%x), replica_groups=[4,2]<=[8], dimensions={0}
  %collective-permute.5 = s32[3]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %fusion = f32[10] fusion(%all-reduce.1), calls=%all-reduce.computation
"""


def test_collectives_are_read_from_the_text_of_a_program() -> None:
    found = compiled_step.collectives(PROGRAM, 8)
    assert found["all-reduce"] == {"count": 2, "bytes": 160 + 16, "sent": 2 * 3 / 4 * 160 + 2 * 7 / 8 * 16}
    assert found["all-gather"] == {"count": 1, "bytes": 32, "sent": 3 / 4 * 32}
    assert found["reduce-scatter"] == {"count": 1, "bytes": 40, "sent": 1 / 2 * 40}
    assert found["collective-permute"] == {"count": 1, "bytes": 12, "sent": 12}
    assert found["all-to-all"]["count"] == 0


def test_a_cell_is_measured_kept_and_shown(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    config = scaling_config.get_config()
    config.data.cache, config.model.vocab = str(tmp_path_factory.getbasetemp() / "cache"), 1000
    for name in ("MiniLM-L6", "BERT-base", "BERT-large"):
        del config.scaling.models[name], config.scaling.layouts[name]
    config.scaling.models.tiny, config.scaling.layouts.tiny = (1, 32, 2), {"1": (1, 1, 1), "8": (8, 1, 1)}
    config.lora.last_layers, config.scaling.vocab = 1, 1000
    workdirs.mark(tmp_path, "scaling")  # as the command does that starts the cells
    (tmp_path / "cells").mkdir()
    scaling.run(config, tmp_path, cell="tiny_1")
    content = scaling.collect(config, tmp_path, {"tiny_8": "no time"})
    schema = json.loads((SCHEMAS / "scaling.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    assert json.loads((tmp_path / "scaling.json").read_text()) == content
    (cell,) = content["cells"]
    assert cell["tokens"] == 24 * 128 and 1 < cell["flops"] / cell["model_flops"] < 3
    # Parameters with two moments each, but for the frozen concept vectors, and the batch.
    assert 12 < cell["memory"]["argument"] / cell["parameters"] < 14
    assert all(c["count"] == 0 for c in cell["collectives"].values())
    page = (tmp_path / "scaling.md").read_text()
    assert "| tiny | 1 | 1 x 1 x 1 |" in page and "- tiny_8: no time" in page
    config.scaling.tc_rows = 4
    assert scaling.done(config, tmp_path, "tiny_1") is None, "another batch is another cell"
    with pytest.raises(UserError, match="there is no cell 'tiny_2'; choose from tiny_1, tiny_8"):
        scaling.run(config, tmp_path, only="tiny_2")
