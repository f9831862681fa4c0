"""What scores are worth: one count of spans whatever the types are called; seeds and tasks named twice; rows that are
both scored and trained on; files by their usual names."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import study as study_config
from experiments.common import tasks
from experiments.common.checks import MAX_SEED, check, check_study
from jaxprefit.data import sources
from jaxprefit.data.builders import Source, prepare
from jaxprefit.data.records.readers import read
from jaxprefit.downstream import cells
from jaxprefit.downstream.evaluate import ner_scores
from jaxprefit.errors import UserError
from jaxprefit.significance import span_counts

# Spans


def spans_by_trial(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Every (begin, end, type) for which each tag is what IOB2 asks: B-type, then I-type, and none after."""
    types = {tag[2:] for tag in tags if tag != "O"}
    return {
        (begin, end, t)
        for t in types
        for begin in range(len(tags))
        for end in range(begin + 1, len(tags) + 1)
        if tags[begin] == f"B-{t}"
        and all(tag == f"I-{t}" for tag in tags[begin + 1 : end])
        and (end == len(tags) or tags[end] != f"I-{t}")
    }


def tag_pairs(types: Sequence[str]) -> st.SearchStrategy[list[tuple[list[str], list[str]]]]:
    """Sentences as (gold tags, predicted tags); any tag may follow any."""
    tags = st.sampled_from(["O", *(f"{letter}-{t}" for t in types for letter in "BI")])
    pair = st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(tags, min_size=n, max_size=n)] * 2))
    return st.lists(pair, min_size=1, max_size=5)


@settings(max_examples=300)
@given(tag_pairs(["PER", "PER-", "-PER", "-", "--", "_", "geo-loc", "O"]))
def test_f1_is_that_of_all_spans_found_by_trial(pairs: list[tuple[list[str], list[str]]]) -> None:
    true, guessed = ([(i, *s) for i, p in enumerate(pairs) for s in spans_by_trial(p[side])] for side in (0, 1))
    right = len({*true} & {*guessed})
    gold, predicted = ([p[side] for p in pairs] for side in (0, 1))
    scores = ner_scores(gold, predicted)
    assert span_counts(gold, predicted).sum(0).tolist() == [right, len(guessed) - right, len(true) - right]
    assert scores["f1"] == pytest.approx(2 * right / max(len(true) + len(guessed), 1))
    assert scores["precision"] == pytest.approx(right / max(len(guessed), 1))
    assert scores["recall"] == pytest.approx(right / max(len(true), 1))


@pytest.mark.filterwarnings("ignore::seqeval.metrics.v1.UndefinedMetricWarning", "ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(tag_pairs(["PER", "geo-loc", "a_b"]))
def test_scores_are_those_of_seqeval_for_types_without_a_hyphen_at_an_end(
    pairs: list[tuple[list[str], list[str]]],
) -> None:
    import seqeval.metrics
    from seqeval.scheme import IOB2

    gold, predicted = ([p[side] for p in pairs] for side in (0, 1))
    scores, strict = ner_scores(gold, predicted), {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    for name in ("f1", "precision", "recall"):
        expected = getattr(seqeval.metrics, "f1_score" if name == "f1" else f"{name}_score")(gold, predicted, **strict)
        assert scores[name] == pytest.approx(expected)
    assert scores["f1_lenient"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted, zero_division=0))


def test_types_that_differ_by_a_hyphen_are_two() -> None:
    wrong = ner_scores([["B-PER", "I-PER", "O"]], [["B-PER-", "I-PER-", "O"]])
    assert (wrong["f1"], wrong["f1_lenient"]) == (0.0, 0.0)
    for name in ("PER-", "-", "--", "_", "geo-loc"):
        tags = [[f"B-{name}", f"I-{name}", "O"]]
        assert ner_scores(tags, tags)["f1"] == ner_scores(tags, tags)["f1_lenient"] == 1.0


@pytest.mark.parametrize("tag", ["B-", "I-", "B", "-", "B- ", ""])
def test_an_entity_type_without_a_name_is_refused(tag: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"tokens": ["x"], "tags": [tag]}))
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*"):
        [*read(tmp_path / "a.jsonl", "ner")]


def test_a_cell_of_an_older_version_has_the_scores_of_its_counts(tmp_path: Path) -> None:
    scores = {"f1": 1.0, "precision": 1.0, "recall": 1.0, "f1_lenient": 0.5, "ill_formed": 0.0}
    cell = cells.Cell("t", "ner", 0, 1, (), scores, ("O", "B-a", "B-a-"), [[1], [2]], [[1, 1, 1], [0, 1, 1]])
    cells.write(tmp_path / "a.json", cell)
    again = cells.read(tmp_path / "a.json").scores
    assert again == scores | {"f1": 2 / 6, "precision": 1 / 3, "recall": 1 / 3}


# Seeds


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 10**30])
@pytest.mark.parametrize("key", ["seed", "filter.seed", "conflict.seed", "conflict.representations.seed"])
def test_a_seed_that_jax_does_not_take_as_it_stands_is_refused(key: str, seed: int, tmp_path: Path) -> None:
    c = run.config(tmp_path)
    c.update_from_flattened_dict({key: seed})
    with pytest.raises(UserError, match=rf"^{key} is {seed}; it must be a whole number from 0 to 4,294,967,295$"):
        check(c)
    c.update_from_flattened_dict({key: MAX_SEED})
    check(c)


@pytest.mark.parametrize("seeds", [(-1,), (2**32,), (2**63,), (True,), (0.5,), ()])
def test_seeds_of_a_list_are_checked(seeds: tuple, tmp_path: Path) -> None:
    for key in ("downstream.seeds", "conflict.ablation.seeds"):
        c = run.config(tmp_path)
        node, _, leaf = key.rpartition(".")
        with c.ignore_type():
            c[node][leaf] = seeds
        with pytest.raises(UserError, match=f"{key} is .*; it must hold whole numbers from 0 to 4,294,967,295"):
            check(c)
    with pytest.raises(UserError, match=r"study.seeds is .*; it must hold whole numbers"):
        check_study(ConfigDict({"study": {**study_config.get_config().study.to_dict(), "seeds": seeds}}))


@pytest.mark.parametrize("key", ["downstream.seeds", "conflict.ablation.seeds"])
def test_a_seed_named_twice_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{key} is \(0, 1, 0\); it names the seed 0 twice"):
        check(run.config(tmp_path, {key: (0, 1, 0)}))


def test_a_seed_of_generated_text_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generated:ner\?rows=5&seed=4294967296': seed must be at most 4,294,967,295"):
        sources.prepare("generated:ner?rows=5&seed=4294967296", "ner", "", str(tmp_path))


# Tasks and their rows


def texts(*labels: str, begin: int = 0) -> str:
    return "text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(labels, start=begin))


def write_task(folder: Path, **files: str) -> Path:
    """A folder with a file for each name; 'test' stands for test.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.csv").write_text(content)
    return folder


@pytest.mark.parametrize("other", ["a/", "./a", "a/../a", "b/../a", "{data}/a", "link", "a?limit=3"])
def test_a_task_named_twice_is_refused_however_it_is_spelled(other: str, tmp_path: Path) -> None:
    data = write_task(tmp_path / "data" / "a", train=texts("x", "y"), test=texts("x", begin=5)).parent
    (data / "b").mkdir()
    (data / "link").symlink_to("a")
    spelled = other.format(data=data)
    c = run.config(tmp_path / "cache", {"data.root": str(data), "downstream.tc": ("a", spelled), "downstream.ner": ()})
    with pytest.raises(UserError, match="downstream.ner and downstream.tc name the task .* twice"):
        tasks.task_sources(c)
    c.data.tc.sources = ("a", spelled)
    with pytest.raises(UserError, match=r"data.tc.sources names the source .* twice"):
        sources.check_different("data.tc.sources names the source", c.data.tc.sources, c.data.root)
    c.downstream.tc = ("a", "b")
    assert len(tasks.task_sources(c)) == 2


def rows_of(folder: Path, tmp_path: Path, split: str = "test", name: str = "") -> tuple[int, int, list[str]]:
    """(number of rows trained on, number scored, what is told)."""
    c = run.config(tmp_path / "cache", {"data.root": str(folder.parent), "downstream.split": split})
    train, scored, notes = tasks.task_rows(name or folder.name, "labelled", c, str(tmp_path / "cache"))
    return len(train), len(scored), notes


def test_rows_that_are_trained_on_and_scored_are_refused_by_their_content(tmp_path: Path) -> None:
    own, other = texts(*"xyxyxy"), texts(*"xyx", begin=50)
    swapped = "\n".join([own.splitlines()[0], *reversed(own.splitlines()[1:])]) + "\n"
    same = write_task(tmp_path / "d" / "same", train=own, test=swapped)
    with pytest.raises(UserError, match="task 'same': its test rows are its training rows"):
        rows_of(same, tmp_path)
    with pytest.raises(UserError, match=r"task 'good/train.csv': its test rows are its training rows"):
        rows_of(write_task(tmp_path / "d" / "good", train=own, test=other), tmp_path, name="good/train.csv")
    with pytest.raises(UserError, match="task 'dev': its development rows are its test rows"):
        rows_of(write_task(tmp_path / "d" / "dev", train=own, test=other, valid=other), tmp_path, "dev")
    with pytest.raises(UserError, match="task 'old': its development rows are its training rows"):
        rows_of(write_task(tmp_path / "d" / "old", train=own, test=other, val=own), tmp_path, "dev")
    # Some rows in common are told, not refused.
    part = write_task(tmp_path / "d" / "part", train=own, test=texts(*"xyxy", begin=4))
    assert rows_of(part, tmp_path) == (6, 4, ["50% of its test rows stand among its training rows, too"])


@pytest.mark.parametrize(
    "name", ["dev", "Dev", "devel", "development", "valid", "VALID", "validation", "val", "testa", "eset"]
)
def test_development_rows_are_found_by_their_usual_names(name: str, tmp_path: Path) -> None:
    files = {"train": texts(*"xy" * 20), "test": texts(*"xy", begin=50), name: texts(*"xyx", begin=60)}
    assert rows_of(write_task(tmp_path / "d" / "task", **files), tmp_path, "dev") == (40, 3, [])


def test_a_split_s_own_name_goes_first_and_two_other_names_are_an_error(tmp_path: Path) -> None:
    files = {"train": texts(*"xy" * 20), "testb": texts(*"xy", begin=50), "valid": texts("x", begin=60)}
    folder = write_task(tmp_path / "d" / "task", **files)
    assert rows_of(folder, tmp_path)[:2] == (40, 2) and rows_of(folder, tmp_path, "dev")[:2] == (40, 1)
    write_task(folder, val=texts(*"xy", begin=70))
    with pytest.raises(UserError, match=r"holds val.csv and valid.csv; give the path of one of them"):
        rows_of(folder, tmp_path, "dev")
    write_task(folder, dev=texts(*"xyxy", begin=80))
    assert rows_of(folder, tmp_path, "dev")[:2] == (40, 4)
    with pytest.raises(UserError, match=r"no file test.jsonl.*nor is a file called testset, testb"):
        (folder / "testb.csv").unlink()
        prepare(Source(name="x", kind="labelled", path=str(folder), split="test"), tmp_path / "cache")


def test_development_rows_cut_from_the_training_rows_are_told(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "d" / "task", train=texts(*"xy" * 20), test=texts("x", begin=50))
    train, scored, (note,) = rows_of(folder, tmp_path, "dev")
    assert (train, scored) == (36, 4) and "no file called dev, devel, development, devset, valid" in note
