"""A family's stream of packed batches: shares of its sources, determinism, exact resume, held-out rows."""

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.model_files import tokenizer
from hypothesis import given
from hypothesis import strategies as st

from jaxprefit.data.builders import Prepared, Source, prepare
from jaxprefit.data.packing import Layout
from jaxprefit.data.rows import Rows, split_held_out
from jaxprefit.errors import UserError
from jaxprefit.families import ClassificationFamily, Family, NerFamily
from jaxprefit.families.mixture import collate, held_out_batches, mixture, shares

LOWER = tokenizer()

# Three sources of pairs whose texts tell where they come from.

SIZES = {"small": 20, "middle": 60, "large": 120}
SHARES = dict.fromkeys(SIZES, 1 / 3)
LAYOUT = Layout.of(8, 32)


def record(name: str, row: int) -> dict[str, str]:
    """Each of tokens that no other row has: the vocabulary has the letters, but not the numbers."""
    number = f"{chr(97 + row // 26)} {chr(97 + row % 26)}"
    return {"a": f"{name} {number}", "b": f"hello {name} {number}"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    folder = tmp_path_factory.mktemp("pairs")
    made = {}
    for name, rows in SIZES.items():
        lines = [json.dumps(record(name, i)) + "\n" for i in range(rows)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        source = Source(name=name, kind="pairs", path=str(folder / f"{name}.jsonl"))
        made[name] = prepare(source, folder / "cache")
    return made


@pytest.fixture(scope="module")
def everything(prepared: dict[str, Prepared]) -> dict[str, Rows]:
    return {name: Rows(source, range(len(source))) for name, source in prepared.items()}


@pytest.fixture(scope="module")
def parts(everything: dict[str, Rows]) -> list[tuple[str, Rows]]:
    return [(name, split_held_out(rows, 6)[0]) for name, rows in everything.items()]


FAMILY = ClassificationFamily(LOWER, 24, 0.05)


def key_of(name: str, row: int) -> int:
    return FAMILY.encode_record(record(name, row), name)["keys"][0]


ORIGIN = {key_of(name, i): (name, i) for name, rows in SIZES.items() for i in range(rows)}


def rows_of(batch: dict) -> list[tuple[str, int]]:
    return [ORIGIN[int(key)] for key in batch["a_key"][batch["valid"]]]


def stream_of(parts: list[tuple[str, Rows]], weights: dict[str, float], seed: int, exhaustion: str = "repeat") -> Any:
    requested = shares({name: len(rows) for name, rows in parts}, weights, 1.0, "tc")
    return mixture(FAMILY, parts, requested, LAYOUT, seed, exhaustion)


def drawn(parts: list[tuple[str, Rows]], weights: dict[str, float], batches: int, seed: int = 0) -> list:
    with contextlib.closing(stream_of(parts, weights, seed)) as stream:
        return [row for d in itertools.islice(stream, batches) for row in rows_of(d.batch)]


def test_the_seed_decides_the_stream(parts: list[tuple[str, Rows]]) -> None:
    first = drawn(parts, {}, 20, seed=1)
    assert first == drawn(parts, {}, 20, seed=1)
    assert first != drawn(parts, {}, 20, seed=2)


@pytest.mark.parametrize(
    "weights, wanted",
    [
        ({}, {name: size / 186 for name, size in {"small": 18, "middle": 54, "large": 114}.items()}),
        ({"small": 3.0, "middle": 1.0, "large": 1.0}, {"small": 0.6, "middle": 0.2, "large": 0.2}),
        ({"small": 2.0}, {"small": 0.5, "middle": 0.25, "large": 0.25}),  # 1 where not named
        ({"small": 1.0, "middle": 0.0, "large": 0.0}, {"small": 1.0, "middle": 0.0, "large": 0.0}),
        ({"large": 0.0}, {"small": 0.5, "middle": 0.5, "large": 0.0}),
    ],
)
def test_sources_have_their_shares(
    weights: dict[str, float], wanted: dict[str, float], parts: list[tuple[str, Rows]]
) -> None:
    assert shares({name: len(rows) for name, rows in parts}, weights, 1.0, "tc") == pytest.approx(wanted)
    with contextlib.closing(stream_of(parts, weights, 0)) as stream:
        batches = list(itertools.islice(stream, 50))
    rows = [row for d in batches for row in rows_of(d.batch)]
    for name, share in wanted.items():
        error = np.sqrt(share * (1 - share) / len(rows))
        found = sum(n == name for n, _ in rows)
        assert abs(found / len(rows) - share) <= 3 * error, name
        assert batches[-1].examples[name] == found


@pytest.mark.parametrize("alpha, wanted", [(1.0, [0.1, 0.9]), (0.5, [0.25, 0.75]), (0.0, [0.5, 0.5])])
def test_shares_by_a_power_of_the_size(alpha: float, wanted: list[float]) -> None:
    assert list(shares({"a": 10, "b": 90}, {}, alpha, "tc").values()) == pytest.approx(wanted)


def test_an_epoch_shows_every_training_row_once_and_the_next_in_another_order(everything: dict[str, Rows]) -> None:
    part = Rows(everything["middle"].data, range(48))
    rows = [i for _, i in drawn([("middle", part)], {}, 14)]
    assert len(rows) >= 2 * 48
    # A row that found no room in its batch comes in the next, so that the border of epochs is a few rows wide.
    counts = np.bincount(rows, minlength=48)
    assert counts.min() >= len(rows) // 48 - 1 and counts.max() <= len(rows) // 48 + 2
    assert rows[:48] != sorted(rows[:48]) and rows[:48] != rows[48:96]


def test_a_stream_may_end_before_any_row_is_seen_twice(everything: dict[str, Rows]) -> None:
    parts = [(name, everything[name]) for name in ("small", "middle")]
    with contextlib.closing(stream_of(parts, {"small": 1.0, "middle": 1.0}, 0, "stop")) as stream:
        rows = [row for d in stream for row in rows_of(d.batch)]
    assert len(set(rows)) == len(rows)
    assert 10 < sum(name == "small" for name, _ in rows) <= 20  # the small source ends the stream, short of one batch


@pytest.mark.parametrize("weights", [{}, {"small": 5.0}])
def test_a_stream_resumes_exactly_from_its_state_as_json(
    weights: dict[str, float], parts: list[tuple[str, Rows]]
) -> None:
    stream = stream_of(parts, weights, 3)
    for _ in range(23):  # small sources are in their second epoch and further
        next(stream)
    state = json.dumps(stream.get_state())
    assert json.loads(state)["waiting"], "rows wait for room, so that the state has to know them"
    wanted = [next(stream) for _ in range(10)]

    other = stream_of(parts, weights, 3)
    next(other)
    other.set_state(json.loads(state))
    for d in wanted:
        found = next(other)
        assert found[1:] == d[1:] and set(found.batch) == set(d.batch)
        for name in d.batch:
            np.testing.assert_array_equal(found.batch[name], d.batch[name])
    stream.close()
    other.close()


@pytest.mark.parametrize(
    "weights, expected",
    [
        ({"smal": 1.0, "large": 2.0}, "data.tc.weights names 'smal', which is not a source (small, middle, large)"),
        ({"small": -1.0}, "must be non-negative with a positive sum"),
        ({"small": 0.0, "middle": 0.0, "large": 0.0}, "must be non-negative with a positive sum"),
    ],
)
def test_wrong_weights_are_named(weights: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError) as error:
        shares(SIZES, weights, 1.0, "tc")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_source_needs_rows(everything: dict[str, Rows]) -> None:
    with pytest.raises(UserError, match="'small' has no rows left"):
        mixture(FAMILY, [("small", Rows(everything["small"].data, []))], {"small": 1.0}, LAYOUT, 0)


def test_held_out_rows_are_never_trained_on(everything: dict[str, Rows], parts: list[tuple[str, Rows]]) -> None:
    held_out = [(name, split_held_out(rows, 6)[1]) for name, rows in everything.items()]
    assert [len(part) for _, part in held_out] == [2, 6, 6]  # at most a tenth
    for (_, train), (name, part) in zip(parts, held_out):
        assert sorted([*train.numbers, *part.numbers]) == [*range(SIZES[name])]
        assert [part[i] for i in range(len(part))] == [record(name, int(n)) for n in part.numbers]
    small = Layout.of(2, 32)
    batches = held_out_batches(FAMILY, held_out, small, seed=0)
    kept = [row for batch in batches for row in rows_of(batch)]
    assert len(batches) > 1 and len(set(kept)) == len(kept) <= 14
    assert not set(kept) & set(drawn(parts, {}, 60))
    again = held_out_batches(FAMILY, held_out, small, seed=0)
    assert [rows_of(b) for b in again] == [rows_of(b) for b in batches]
    # Where all rows together do not fill a batch, they are one.
    (only,) = held_out_batches(FAMILY, held_out, Layout.of(64, 32), seed=0)
    assert len(rows_of(only)) == 14


@given(
    data=st.data(), rows=st.integers(20, 400), held_out=st.integers(1, 60), seed=st.integers(0, 9), tail=st.booleans()
)
def test_held_out_rows_are_spread_over_the_file(data: Any, rows: int, held_out: int, seed: int, tail: bool) -> None:
    """Of any stretch of a file, as of a label that the file is sorted by, the held-out rows have its share."""
    numbers: Any = np.arange(rows) * 3 if tail else range(rows)
    train, held = split_held_out(Rows(None, numbers), held_out, seed)  # type: ignore[arg-type]
    number = min(held_out, rows // 10)
    assert len(held) == number and sorted([*train.numbers, *held.numbers]) == list(numbers)
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    inside = np.isin(held.numbers, np.asarray(numbers)[begin:end]).sum()
    assert abs(inside - number * (end - begin) / rows) < 2
    again = split_held_out(Rows(None, numbers), held_out, seed)[1]  # type: ignore[arg-type]
    assert again.numbers.tolist() == held.numbers.tolist()


def test_held_out_rows_have_every_label_whether_a_file_is_sorted_or_takes_turns() -> None:
    for labels in (["sad"] * 500 + ["glad"] * 500, ["sad", "glad"] * 500, (["sad"] * 9 + ["glad"]) * 100):
        _, held = split_held_out(Rows(None, range(1000)), 100)  # type: ignore[arg-type]
        found = [labels[i] for i in held.numbers].count("glad") / 100
        share = labels.count("glad") / 1000
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / 100)


def test_no_row_is_held_out_of_few_or_on_request(everything: dict[str, Rows]) -> None:
    for rows, held_out in ((Rows(everything["small"].data, range(9)), 6), (everything["small"], 0)):
        train, held = split_held_out(rows, held_out)
        assert train is rows and len(held) == 0


# Batches hold something


TRIPLES = ClassificationFamily(LOWER, 32, 0.05, negatives=True)


@pytest.mark.parametrize(
    "family, layout",
    [
        (TRIPLES, Layout.of(2, 32)),
        (TRIPLES, Layout.of(1, 64)),
        (ClassificationFamily(LOWER, 32, 0.05), Layout(1, 32, 4)),
    ],
)
def test_a_batch_that_may_be_too_small_for_one_example_is_refused(
    family: Family, layout: Layout, parts: list[tuple[str, Rows]]
) -> None:
    for begin in (
        lambda: mixture(family, parts, SHARES, layout, 0),
        lambda: held_out_batches(family, parts, layout, 0),
    ):
        with pytest.raises(UserError) as error:
            begin()
        message = str(error.value)
        assert f"data.tc.rows is {layout.rows}, row_length {layout.length} and max_length 32" in message
        assert f"room for {layout.rows * layout.length // 32} texts" in message and "\n" not in message
        assert f"up to {family.texts_per_example}" in message


def test_long_triples_among_short_ones_are_all_trained_on(tmp_path: Path) -> None:
    """With just the room that is asked for, no batch is empty and none waits for ever."""
    rows = [{f: f"{f} {i % 7} " * (40 if i % 20 == 3 else 1) for f in ("a", "b", "negative")} for i in range(60)]
    (tmp_path / "triples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = Source("triples", "pairs", str(tmp_path / "triples.jsonl"), columns=(("negative", "negative"),))
    everything = Rows(made := prepare(source, tmp_path / "cache"), range(len(made)))
    with contextlib.closing(mixture(TRIPLES, [("t", everything)], {"t": 1.0}, Layout.of(3, 32), 0)) as stream:
        batches = list(itertools.islice(stream, 40))
    assert all(d.batch["valid"].any() for d in batches)
    long = sum((np.bincount(row, minlength=2)[1:] == 32).any() for d in batches for row in d.batch["segments"])
    epochs = batches[-1].examples["t"] / 60
    assert epochs > 2 and long >= 3 * 3 * (epochs - 1), "three texts of each of three long triples an epoch"


def test_a_batch_without_any_example_is_an_error() -> None:
    example = {"texts": (np.ones(40, np.int32),), "keys": (1,)}
    with pytest.raises(UserError, match=r"a batch of tc is empty: an example with texts of 40 tokens does not fit"):
        collate(FAMILY, [example], LAYOUT)


def test_an_error_while_a_batch_is_made_ends_the_stream_that_is_read(parts: list[tuple[str, Rows]]) -> None:
    class Longer(ClassificationFamily):
        """Breaks the promise that a text has at most max_length tokens."""

        def encode_record(self, record: Any, source: str) -> dict[str, Any]:
            return {**super().encode_record(record, source), "texts": (np.ones(33, np.int32),) * 2}

    stream = mixture(Longer(LOWER, 16, 0.05), parts, SHARES, LAYOUT, 0)
    with contextlib.closing(stream), pytest.raises(UserError, match="a batch of tc is empty"):
        next(stream)


def test_batches_say_which_source_a_text_comes_from(tmp_path: Path) -> None:
    made = []
    for name, tag in (("one", "B-PER"), ("two", "B-LOC")):
        rows = [{"tokens": [name, str(i)], "tags": [tag, "O"]} for i in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        made.append(prepare(Source(name=name, kind="ner", path=str(tmp_path / f"{name}.jsonl")), tmp_path / "cache"))
    settings = {"max_length": 16, "loss": "sigmoid", "concept_encoder": "frozen", "max_concepts": 8}
    family: Family = NerFamily.create(settings, made, LOWER)
    layout = Layout.of(4, 32)
    stream = mixture(family, [(s.name, Rows(s, range(10))) for s in made], {"one": 0.5, "two": 0.5}, layout, 0)
    for d in itertools.islice(stream, 5):
        # Concepts are (location, person): each text's entity is of the one type that its source annotates.
        for row, segments in enumerate(d.batch["segments"]):
            for segment in range(1, segments.max() + 1):
                annotated = d.batch["annotated"][row, segment - 1]
                assert annotated.sum() == 1
                assert annotated.argmax() == d.batch["labels"][row][segments == segment].max()
    stream.close()
