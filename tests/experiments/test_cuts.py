"""What is beyond max_length is counted, by source and task, and an entity there counts as missed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.model_files import tokenizer
from helpers import run
from helpers.schemas import assert_valid
from hypothesis import given
from hypothesis import strategies as st

import jaxprefit
from experiments import conflict, inspect_data
from experiments.common import assembly, prefinetuning, scoring
from jaxprefit.data.builders import Source, prepare
from jaxprefit.data.packing import Layout
from jaxprefit.data.rows import Rows
from jaxprefit.downstream import cells, notes
from jaxprefit.downstream.finetune import Finetuned, TaskData, cuts_of, encoded
from jaxprefit.downstream.tasks import TaggingTask
from jaxprefit.encoder.cuts import Cuts, sentence
from jaxprefit.encoder.tokenization import counted_text, counted_words, encode_text, encode_words
from jaxprefit.errors import UserError
from jaxprefit.families import ClassificationFamily, NerFamily
from jaxprefit.families.mixture import mixture
from jaxprefit.families.mlm import MlmFamily

TOKENIZER = tokenizer()
WORDS = ("the", "cat", "on", "world", "café", "caged", "x" * 7, "\u200b", "isn't")


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Words with IOB2 tags."""
    words, tags = [], []
    for kind, length in draw(st.lists(st.tuples(st.sampled_from(["", "PER", "LOC"]), st.integers(1, 3)), min_size=1)):
        tags += (["B-" + kind] + ["I-" + kind] * (length - 1)) if kind else ["O"] * length
        words += [draw(st.sampled_from(WORDS)) for _ in range(length)]
    return words, tags


@given(tagged(), st.integers(4, 24))
def test_counts_of_a_tagged_text(text: tuple[list[str], list[str]], max_length: int) -> None:
    """Against the sizes of the words one by one, and entities as sets of word numbers."""
    words, tags = text
    ids, first, cuts = counted_words(TOKENIZER, words, tags, max_length)
    same = encode_words(TOKENIZER, words, max_length)
    assert ids.tolist() == same[0].tolist() and first == same[1]
    sizes = [len(TOKENIZER.encode([w], is_pretokenized=True).ids) - 2 or 1 for w in words]
    begin = 1 + np.cumsum([0, *sizes])[:-1]
    out = {i for i in range(len(words)) if begin[i] > max_length - 2}
    entities: list[set[int]] = []
    for i, tag in enumerate(tags):
        if tag[0] == "B":
            entities.append({i})
        elif tag[0] == "I":
            entities[-1].add(i)
    lost = sum(bool(e & out) for e in entities)
    assert cuts == Cuts(1, int(sum(sizes) + 2 > max_length), len(words), len(out), len(entities), lost)


@given(st.lists(st.sampled_from([w for w in WORDS if w.isalpha()]), max_size=12), st.integers(4, 24))
def test_counts_of_a_running_text(words: list[str], max_length: int) -> None:
    """Against the sizes of the words one by one."""
    ids, cuts = counted_text(TOKENIZER, " ".join(words), max_length)
    assert ids.tolist() == encode_text(TOKENIZER, " ".join(words), max_length).tolist()
    sizes = [len(TOKENIZER.encode(w).ids) - 2 for w in words]
    begin = 1 + np.cumsum([0, *sizes])[:-1]
    whole = sum(sizes) + 2 <= max_length
    assert cuts == Cuts(1, int(not whole), len(words), int((begin > max_length - 2).sum()))


def test_counts_add_up_and_read_as_a_sentence() -> None:
    total = Cuts.total([Cuts(1, 1, 30, 20, 4, 1), Cuts(1, 0, 10, 0)])
    assert total == Cuts(2, 1, 40, 20, 4, 1) and Cuts.total([]) == Cuts()
    assert sentence(total.report()) == "1 of 2 texts (50.0 %), 20 of 40 words (50.0 %), 1 of 4 entities (25.0 %) were"
    assert sentence(Cuts(3, 0, 9).report()) == "0 of 3 texts (0.0 %), 0 of 9 words (0.0 %) were"


# Families and streams


def test_a_pair_counts_its_texts_with_their_prefixes() -> None:
    record = {"a": "the cat sat on", "b": "cat", "negative": "hello world the cat"}
    plain = ClassificationFamily(TOKENIZER, 6, 0.1, negatives=True)
    assert plain.encode_record(record, "")["cuts"] == Cuts(3, 0, 9, 0)
    prefixed = ClassificationFamily(TOKENIZER, 6, 0.1, prefixes=("on ", "on the "), negatives=True)
    assert prefixed.encode_record(record, "")["cuts"] == Cuts(3, 2, 14, 3), "sat on; the cat"


def test_a_window_of_a_text_counts_the_words_outside() -> None:
    family = MlmFamily(TOKENIZER, 6, 0.5, 4, np.arange(5, 97), None)
    rng = np.random.default_rng(0)
    for text, wanted in (("the cat sat on", Cuts(1, 0, 4, 0)), ("the cat sat on the cat on", Cuts(1, 1, 7, 3))):
        for _ in range(5):
            example = family.draw(family.encode_record({"text": text}, ""), rng)
            assert example["cuts"] == wanted and len(example["texts"][0]) <= 6
    assert family.windows and not NerFamily.windows


def test_a_stream_counts_what_it_gave_and_goes_on_counting(tmp_path: Path) -> None:
    rows = [{"a": "the cat " * (9 if i % 4 == 0 else 1), "b": "cat"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = prepare(Source("pairs", "pairs", str(tmp_path / "pairs.jsonl")), tmp_path / "cache")
    family = ClassificationFamily(TOKENIZER, 8, 0.1)
    settings: Any = (family, [("pairs", Rows(made, range(40)))], {"pairs": 1.0}, Layout.of(4, 32), 0)
    stream, other, older = (mixture(*settings) for _ in range(3))
    for _ in range(9):
        drawn = next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    cuts, examples = Cuts(*state["cuts"]["pairs"]), drawn.examples["pairs"]
    # A long text has 18 words, of which 6 begin within 8 tokens; a short one has 2, and each b has 1.
    long = cuts.cut_texts
    assert cuts == Cuts(2 * examples, long, 18 * long + 2 * (examples - long) + examples, 12 * long)
    assert examples // 40 * 10 - 10 <= long <= examples // 40 * 10 + 20
    other.set_state(state)
    before = {k: v for k, v in state.items() if k != "cuts"}  # of a version that did not count
    older.set_state(before)
    for s in (stream, other, older):
        next(s)
    assert other.get_state() == stream.get_state()
    of_one = Cuts(*older.get_state()["cuts"]["pairs"])
    assert of_one.plus(cuts) == Cuts(*stream.get_state()["cuts"]["pairs"])
    for s in (stream, other, older):
        s.close()


# Scores


def test_an_entity_beyond_max_length_is_missed_in_the_score(tmp_path: Path) -> None:
    """One is read right, one is cut in two and one is beyond: F1 of 1 right, 1 wrong, 2 missed."""
    record = {"tokens": ["cat", "the", "cat", "on", "world", "on"], "tags": ["B-x", "O", "B-x", "I-x", "O", "B-x"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(record) + "\n")
    rows = prepare(Source("test", "ner", str(tmp_path / "test.jsonl")), tmp_path / "cache")
    task = TaggingTask(TOKENIZER, 5, ("O", "B-x", "I-x"))
    data = TaskData("test", "ner", task, Rows(rows, range(1)), Rows(rows, range(1)))
    (example,) = encoded(task, data.test)
    assert example["first"].tolist() == [1, 2, 3] and example["cuts"] == Cuts(1, 1, 6, 3, 3, 2)
    best = [1, 0, 1, 0, 0, 0]  # what a perfect model says within, and O beyond
    cuts = {"train": Cuts(), "test": cuts_of([example])}
    cell = cells.make(data, 0, Finetuned({0: [best]}, 1, (), cuts))
    assert isinstance(cell, cells.Cell) and cell.counts == [[1, 1, 2]]
    assert cell.scores["recall"] == pytest.approx(1 / 3) and cell.scores["f1"] == pytest.approx(2 / (2 + 1 + 2))
    (note,) = notes.of_scores(data, cell, cell.scores)
    assert note.startswith("66.7 % of the entities, 2 of 3, are beyond downstream.max_length, 5, and count as missed")
    # A cell of a version that did not count is read, and the test counted anew.
    cells.write(tmp_path / "cell.json", cell)
    content = json.loads((tmp_path / "cell.json").read_text())
    assert content.pop("cuts")["test"] == example["cuts"].report()
    (tmp_path / "cell.json").write_text(json.dumps(content))
    old = cells.read(tmp_path / "cell.json")
    assert old.cuts is None and cells.cuts(data, old) == {"test": example["cuts"].report()}
    assert notes.of_scores(data, old, old.scores) == [note]


# Programs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NER task and source of long sentences, an entity at each end, and pairs of short texts."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "long").mkdir()
    for split, rows in (("train", 200), ("test", 40)):
        record = {"tokens": ["rome", *["the"] * 30, "paris"], "tags": ["B-city", *["O"] * 30, "B-city"]}
        (folder / "long" / f"{split}.jsonl").write_text((json.dumps(record) + "\n") * rows)
    return folder


def without(keys: tuple[str, ...], content: Any) -> Any:
    """The same content, keys left out at every depth."""
    if isinstance(content, dict):
        return {k: without(keys, v) for k, v in content.items() if k not in keys}
    return [without(keys, v) for v in content] if isinstance(content, list) else content


def test_every_program_counts_what_was_cut(
    root: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"data.root": str(root), "data.ner.sources": ("long",), "strategy": "naive", "downstream.ner": ("long",)}
    config = run.config(cache, {**changes, "downstream.mode": "probe", "data.ner.rows": 4})
    summary = prefinetuning.run(config, tmp_path / "run")
    assert_valid(tmp_path / "run" / "summary.json", "prefinetune")
    ner, tc = summary["data"]["ner"], summary["data"]["tc"]
    counted = ner["sources"]["long"]
    assert (ner["max_length"], ner["longer"], counted["cuts"]["texts"]) == (16, "cut", counted["examples"])
    assert counted["cuts"]["cut_texts"] == counted["cuts"]["cut_entities"] == counted["examples"]
    assert counted["cuts"]["entities"] == 2 * counted["examples"]
    assert [s["cuts"]["entities"] for s in tc["sources"].values()] == [0]
    shown = capsys.readouterr().out
    assert f"{counted['examples']:,} of {2 * counted['examples']:,} entities (50.0 %) were cut at data.ner" in shown

    scores = scoring.run(config, tmp_path / "scores", str(tmp_path / "run"))
    assert_valid(tmp_path / "scores" / "scores.json", "scores")
    of = {task["task"]: task for task in scores["tasks"]}
    assert (of["long"]["cuts"]["test"]["entities"], of["long"]["cuts"]["test"]["cut_entities"]) == (80, 40)
    assert of["long"]["cuts"]["train"]["texts"] == of["long"]["trained_rows"] == 200
    assert of["long"]["mean"]["recall"] <= 0.5
    shown = " ".join(capsys.readouterr().out.split())
    assert "long: 50.0 % of the entities, 40 of 80, are beyond downstream.max_length, 16, and count as missed" in shown

    conflict.run(config, tmp_path / "conflict", str(tmp_path / "run"), show=False)
    probe = assert_valid(tmp_path / "conflict" / "conflict.json", "conflict")["probe"]
    cuts = probe["cuts"]["ner"]["long"]
    assert cuts["texts"] == cuts["cut_texts"] == probe["examples"]["ner"]
    assert "entities (50.0 %) were cut" in capsys.readouterr().out

    # The same rows are held out again; where they are not, that is told.
    model = jaxprefit.load(tmp_path / "run")
    assembly.reopen(model, config, tmp_path / "again")
    assert capsys.readouterr().err == ""
    model.meta["data"]["ner"]["long"] = model.meta["data"]["ner"]["long"].rpartition("-")[0]
    assembly.reopen(model, config, tmp_path / "again")
    assert "held-out numbers may be of rows it has seen" in capsys.readouterr().err

    inspected = inspect_data.run(config, tmp_path / "inspection")
    (source,) = (s for s in inspected["sources"] if s["source"] == "long")
    (test,) = (t for t in inspected["tests"] if t["test"] == "long")
    assert (source["max_length"], source["cuts"]["cut_entities"], source["cuts"]["cut_texts"]) == (16, 200, 200)
    assert test["cuts"] == of["long"]["cuts"]["test"]
    assert "40 of 80 entities (50.0 %) were cut at max_length, 16" in " ".join(capsys.readouterr().out.split())

    # Files of before there were these counts are still valid.
    (tmp_path / "old.json").write_text(json.dumps(without(("cuts", "longer"), summary)))
    assert_valid(tmp_path / "old.json", "prefinetune")
    (tmp_path / "old.json").write_text(json.dumps(without(("cuts",), scores)))
    assert_valid(tmp_path / "old.json", "scores")


# Sources that nothing can be learned of


def test_text_that_the_tokenizer_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "strange.txt").write_text("☃☃ ☃\n" * 30)
    made = prepare(Source("strange", "text", str(tmp_path / "strange.txt")), tmp_path / "cache")
    settings = {"max_length": 16, "mask_share": 0.15, "masking": "uniform"}
    with pytest.raises(UserError, match=r"source 'strange': the tokenizer knows no word of 30 of its texts"):
        MlmFamily.create(settings, [made], TOKENIZER)


def test_a_source_of_which_every_row_stands_in_a_test_is_named(root: Path, cache: Path, tmp_path: Path) -> None:
    changes = {"data.root": str(root), "data.ner.sources": ("long",), "downstream.ner": ("long",)}
    with pytest.raises(UserError, match=r"source 'long': all of its 200 rows stand in a test set"):
        prefinetuning.run(run.config(cache, {**changes, "data.drop_overlap": "exact"}), tmp_path / "run")


def test_a_family_of_too_few_rows_for_a_held_out_one_is_told(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"data.tc.sources": ("generated:pairs?rows=9&seed=2",), "data.ner.sources": (), "strategy": "individual_tc"}
    summary = prefinetuning.run(run.config(cache, few), tmp_path / "run")
    assert summary["held_out"] == {} and "no source of tc has the 10 rows" in capsys.readouterr().err
