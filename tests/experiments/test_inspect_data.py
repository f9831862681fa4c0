"""What inspect_data reports, and training without the rows that stand in a test set, on generated text."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import run
from helpers.paths import SCHEMAS

from experiments import inspect_data
from experiments.common import assembly, family_data, prefinetuning, start
from jaxprefit.data import synthetic
from jaxprefit.data.overlap import texts_of
from jaxprefit.errors import UserError

SCHEMA = json.loads((SCHEMAS / "inspect_data.schema.json").read_text())


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources and tests that share two sentences, a text of a pair, and a text but for a letter."""
    root = tmp_path_factory.mktemp("data")
    ner, pairs = synthetic.ner_records(300, 1), synthetic.pairs(300, 2)
    labelled = synthetic.labelled_records(40, 3, held_out=True)
    long = max(labelled, key=lambda r: len(r["text"]))["text"]
    write(root / "my_ner/train.jsonl", [*ner, ner[0]])
    write(root / "my_pairs/train.jsonl", [*pairs[:-1], {"a": pairs[-1]["a"], "b": f"{long} s"}])
    write(root / "task_ner/test.jsonl", [*synthetic.ner_records(30, 9, held_out=True), ner[0], ner[5]])
    write(root / "task_tc/test.jsonl", [*labelled, {"text": pairs[7]["b"].upper() + " !", "label": "x"}])
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


def config(root: Path, cache: Path, changes: dict[str, Any] | None = None) -> Any:
    named = {
        "data.root": str(root),
        "data.ner.sources": ("my_ner",),
        "data.tc.sources": ("my_pairs",),
        "downstream.ner": ("task_ner",),
        "downstream.tc": ("task_tc",),
    }
    return run.config(cache, {**named, **(changes or {})})


def entry(content: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    (found,) = [e for e in content[key] if name in (e.get("source"), e.get("test"))]
    return found


def test_the_report(root: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = inspect_data.run(config(root, cache), tmp_path / "out")
    assert json.loads((tmp_path / "out/inspection.json").read_text()) == content
    jsonschema.validate(content, SCHEMA)
    ner, pairs = entry(content, "sources", "my_ner"), entry(content, "sources", "my_pairs")
    records = synthetic.ner_records(300, 1)
    assert (ner["rows"], ner["texts"], pairs["rows"], pairs["texts"]) == (301, 301, 300, 600)
    assert ner["duplicates"] == 301 - len({"".join(r["tokens"]).lower() for r in records})
    entities = [tag[2:] for r in [*records, records[0]] for tag in r["tags"] if tag.startswith("B-")]
    assert ner["types"] == len(set(entities)) and sum(ner["top_types"].values()) == len(entities)
    p = ner["length_percentiles"]
    assert 3 <= p["5"] <= p["50"] <= p["95"] <= p["99"] <= p["100"] <= ner["tokens"]
    assert ner["overlap"]["exact"] >= 3 and pairs["overlap"]["exact"] >= 1  # the first sentence stands there twice
    shared = {(o["source"], o["test"]): o for o in content["overlap"]}
    assert shared["my_ner", "task_ner"]["test_rows"]["exact"] == 2
    found = shared["my_pairs", "task_tc"]
    assert found["test_rows"]["exact"] >= 1 and found["rows"]["near"] > found["rows"]["exact"]
    assert entry(content, "tests", "task_ner")["overlap"]["exact"] == 2
    for level in ("exact", "near"):
        assert max(o["rows"][level] for o in content["overlap"]) <= ner["overlap"][level] + pairs["overlap"][level]
    shown = capsys.readouterr().out
    assert ("my_ner" in shown and "[" + records[0]["tags"][0][2:] in shown) or "301 rows" in shown
    written = "".join((tmp_path / "out" / f).read_text() for f in ("inspection.json", "inspection.md"))
    longest = max((" ".join(r["tokens"]) for r in records), key=len)
    assert longest not in written and "| my_pairs | task_tc |" in written


def test_an_example_marks_its_entities() -> None:
    record = {"tokens": ["Ada", "Lovelace", "met", "Bob"], "tags": ["B-PER", "I-PER", "O", "B-PER"]}
    text = inspect_data.render(record)
    assert text.plain == "Ada Lovelace [PER] met Bob [PER]"
    assert inspect_data.render({"a": "one\ntwo", "b": "three"}).plain == "one two | three"
    assert inspect_data.render({"text": "fine", "label": "good"}).plain == "fine [good]"
    assert len(inspect_data.render({"text": "word " * 900}).plain) <= inspect_data.SHOWN


def test_nothing_to_look_at(root: Path, cache: Path, tmp_path: Path) -> None:
    none = {"data.ner.sources": (), "data.tc.sources": (), "downstream.ner": (), "downstream.tc": ()}
    with pytest.raises(UserError, match="nothing to look at"):
        inspect_data.run(config(root, cache, none), tmp_path / "out")


def test_training_leaves_the_rows_out_and_says_so(
    root: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    near = config(root, cache, {"data.drop_overlap": "near"})
    data = family_data.load(near, start.start_tokenizer(near, cache), cache)
    inspected = inspect_data.run(near, tmp_path / "out")
    for family, name in (("ner", "my_ner"), ("tc", "my_pairs")):
        assert data[family].dropped[name] == entry(inspected, "sources", name)["overlap"]["near"] > 0
    parts = [rows for _, rows in (*data["ner"].train, *data["ner"].held_out)]
    records = [rows[i] for rows in parts for i in range(len(rows))]
    assert len(records) == 301 - data["ner"].dropped["my_ner"]
    shared = {text for i in (0, 5) for text in texts_of(synthetic.ner_records(300, 1)[i])}
    assert not shared & {text for record in records for text in texts_of(record)}
    # What a run says at its end.
    capsys.readouterr()
    (stream,) = family_data.streams(data, ["tc"], near, 0).values()
    report = {"tc": prefinetuning.data_report(near, data["tc"], stream.get_state())}
    stream.close()
    assert report["tc"]["sources"]["my_pairs"]["dropped"] == data["tc"].dropped["my_pairs"]
    prefinetuning.print_data(report)
    assert "left out" in capsys.readouterr().out
    # The tests decide what is trained on, so a continuation has to name the same.
    assert assembly.saved_config(near)["downstream"] == {"ner": ["task_ner"], "tc": ["task_tc"]}
    assert "downstream" not in assembly.saved_config(config(root, cache))


def test_exact_leaves_out_less_than_near(root: Path, cache: Path) -> None:
    dropped = {}
    for level in ("", "exact", "near"):
        c = config(root, cache, {"data.drop_overlap": level})
        data = family_data.load(c, start.start_tokenizer(c, cache), cache)
        dropped[level] = data["tc"].dropped["my_pairs"]
    assert 0 == dropped[""] < dropped["exact"] < dropped["near"]


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"data.drop_overlap": "nearly"}, ("data.drop_overlap is 'nearly'", "exact, near")),
        ({"data.drop_overlap": "near", "downstream.ner": (), "downstream.tc": ()}, ("name no test", "@suite21")),
        ({"data.ner.sources": ("@sute21",)}, ("'@sute21'", "did you mean '@suite21'?")),
        ({"data.tc.sources": ("@suite21",)}, ("'@suite21'", "'pairs' records are needed")),
    ],
)
def test_mistakes(changes: dict, pieces: tuple[str, ...], root: Path, cache: Path, tmp_path: Path) -> None:
    for action in (inspect_data.run, prefinetuning.run):
        with pytest.raises(UserError) as error:
            action(config(root, cache, changes), tmp_path / "out")
        assert [piece for piece in pieces if piece not in str(error.value)] == [] and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
