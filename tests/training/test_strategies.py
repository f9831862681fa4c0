"""Touch tables: every parameter has one owner row, and an uncovered one is an error."""

import numpy as np
import pytest

from jaxprefit import strategies
from jaxprefit.errors import UserError

FAMILIES = ("ner", "tc")
CONSTANTS = ("head/ner/concepts",)


def table(name):
    return dict(strategies.make(name, FAMILIES, CONSTANTS).table)


def test_the_tables_are_what_their_names_say():
    assert table("none") == {"backbone": ()}
    assert table("individual_tc") == {"backbone": ("tc",), "head/tc": ("tc",)}
    heads = {"head/ner/concepts": (), "head/ner": ("ner",), "head/tc": ("tc",)}
    assert table("naive") == {"backbone": FAMILIES, **heads}
    own = {"lora/*/scale": (), "lora/ner": ("ner",), "lora/tc": ("tc",)}
    assert table("task_primary") == {"backbone": FAMILIES, **own, **heads}
    assert table("frozen_lora") == {"backbone": (), **own, **heads}
    assert table("shared_lora") == {"lora/*/scale": (), "backbone": FAMILIES, "lora/shared": FAMILIES, **heads}


def test_the_first_row_that_names_a_parameter_owns_it():
    s = strategies.make("task_primary", FAMILIES, CONSTANTS)
    assert s.group_of("lora/ner/layer_2/query/scale") == "lora/*/scale"
    assert s.group_of("lora/ner/layer_2/query/a") == "lora/ner"
    assert s.group_of("head/ner/concepts") == "head/ner/concepts"
    assert s.touched_by("head/ner/bias") == ("ner",)


@pytest.mark.parametrize(
    "path", ["backbones/x", "lora/nerd/layer_0/query/a", "head", "lora/other/layer_0/query/b", "x"]
)
def test_a_parameter_that_no_row_names_is_an_error(path):
    with pytest.raises(KeyError, match=f"no row of the touch table names the parameter {path} "):
        strategies.make("task_primary", FAMILIES).group_of(path)


def test_a_family_runs_through_the_adapter_it_may_touch():
    assert strategies.make("naive", FAMILIES).adapter_of("ner") is None
    assert strategies.make("task_primary", FAMILIES).adapter_of("tc") == "tc"
    assert strategies.make("shared_lora", FAMILIES).adapter_of("tc") == "shared"
    assert strategies.make("individual_ner", FAMILIES).families == ("ner",)


def test_a_third_family_needs_no_new_code():
    s = strategies.make("task_primary", ("ner", "tc", "mlm"))
    assert dict(s.table)["backbone"] == ("ner", "tc", "mlm")
    assert s.adapter_of("mlm") == "mlm"
    assert strategies.make("individual_mlm", ("ner", "tc", "mlm")).families == ("mlm",)


def test_counts_follow_the_rows():
    params = {
        "backbone": {"w": np.zeros((3, 4))},
        "lora": {"ner": {"layer_0": {"query": {"a": np.zeros(5), "b": np.zeros(6), "scale": np.zeros(())}}}},
        "head": {"ner": {"concepts": np.zeros(100), "bias": np.zeros(())}},
    }
    counts = strategies.make("frozen_lora", FAMILIES, CONSTANTS).counts(params)
    assert counts["lora/ner"] == (11, ("ner",))
    assert strategies.trainable_and_total(counts) == (11 + 1, 12 + 11 + 1 + 101)


@pytest.mark.parametrize(
    ("name", "near"), [("naiv", "naive"), ("task-primary", "task_primary"), ("individual_tcc", "individual_tc")]
)
def test_an_unknown_strategy_names_the_nearest(name, near):
    with pytest.raises(UserError, match=f"did you mean '{near}'"):
        strategies.make(name, FAMILIES)
