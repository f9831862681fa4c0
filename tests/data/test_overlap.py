"""Overlap of training texts with test texts: what counts, what does not, and the filter that leaves rows out."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit.data import overlap, sources
from jaxprefit.data.overlap import OverlapFilter

WORDS = [a + b for a in ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu") for b in ("lan", "mer", "sot", "vik", "zu")]


def sentence(seed: int, length: int = 14) -> list[str]:
    return np.random.default_rng(seed).choice(WORDS, length).tolist()


def text(seed: int) -> str:
    return " ".join(sentence(seed))


def changed(seed: int) -> str:
    """The same with one word exchanged."""
    words = sentence(seed)
    return " ".join([*words[:5], "xylem", *words[6:]])


def reference_jaccard(a: str, b: str) -> float:
    def grams(s: str) -> set[bytes]:
        data = s.encode()
        return {data[i : i + overlap.GRAM] for i in range(len(data) - overlap.GRAM + 1)} or {data}

    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


@given(st.text(max_size=30), st.text(max_size=30))
def test_jaccard_is_that_of_the_sets_of_grams(a: str, b: str) -> None:
    a, b = overlap.normalise(a), overlap.normalise(b)
    if a and b:
        assert overlap.jaccard(a, b) == pytest.approx(reference_jaccard(a, b))
        assert overlap.jaccard(a, a) == 1


@pytest.mark.parametrize("shared", [1, 4, 8, 12])
def test_signatures_estimate_jaccard(shared: int) -> None:
    """Over 200 pairs the mean error is small, and single errors are those of 64 independent coins."""
    errors = []
    for seed in range(200):
        a = overlap.normalise(" ".join(sentence(seed)))
        b = overlap.normalise(" ".join(sentence(seed)[:shared] + sentence(seed + 1000)[shared:]))
        left, right = overlap.minhash([a, b])
        true = reference_jaccard(a, b)
        errors.append(((left == right).mean() - true) / np.sqrt(max(true * (1 - true), 1e-3) / len(left)))
    assert abs(np.mean(errors)) < 0.25 and 0.7 < np.std(errors) < 1.3


def test_signatures_do_not_depend_on_their_neighbours() -> None:
    texts = [overlap.normalise(text(i)) for i in range(30)] + ["a", "abcd", "abcde", "é"]
    together = overlap.minhash(texts)
    assert (together == np.concatenate([overlap.minhash([t]) for t in texts])).all()


@settings(max_examples=30)
@given(st.lists(st.sampled_from("aA b-.!É"), max_size=12).map("".join))
def test_case_spaces_and_punctuation_do_not_count(written: str) -> None:
    assert overlap.normalise(written) == overlap.normalise(" ".join(written.upper()))


def test_exact_near_and_unrelated() -> None:
    tests = {"one": [text(0), text(1), text(1)], "two": [changed(0), text(2)], "empty": []}
    index = overlap.Index(tests)
    rows = [
        {"tokens": [*text(0).upper().split(), "!"], "tags": ["O"] * 15},  # exact in one, near in two
        {"a": text(50), "b": changed(2)},  # its second text near in two
        {"text": text(60)},
        {"text": "..."},  # not a letter: never a duplicate
        {"text": text(1), "label": "x"},
    ]
    found = overlap.compare(rows, index)
    exact, near, none = overlap.EXACT, overlap.NEAR, overlap.NONE
    assert found.rows.tolist() == [[exact, near, 0], [none, near, 0], [0, 0, 0], [0, 0, 0], [exact, none, 0]]
    assert (found.tests * index.member[:, 0]).sum() == exact + 2 * exact  # row by row: the text that stands there twice
    assert [int(index.member[found.tests >= near, i].sum()) for i in range(3)] == [3, 2, 0]


def test_every_exact_and_nearly_every_near_duplicate_is_found_and_nothing_else() -> None:
    index = overlap.Index({"test": [text(i) for i in range(300)]})
    rows = [{"text": t} for i in range(300) for t in (text(i), changed(i), text(i + 10_000))]
    levels = overlap.compare(rows, index).rows[:, 0].reshape(300, 3)
    true = [reference_jaccard(overlap.normalise(text(i)), overlap.normalise(changed(i))) for i in range(300)]
    above = np.asarray(true) >= overlap.THRESHOLD
    assert above.sum() > 100
    assert (levels[:, 0] == overlap.EXACT).all() and (levels[:, 2] == overlap.NONE).all()
    assert (levels[~above, 1] == overlap.NONE).all()
    assert (levels[above, 1] == overlap.NEAR).mean() > 0.97


def test_no_tests_and_no_rows() -> None:
    assert overlap.compare([{"text": "a"}], overlap.Index({})).rows.shape == (1, 0)
    assert overlap.compare([{"text": "a"}], overlap.Index({"t": []})).rows.tolist() == [[0]]
    assert overlap.compare([], overlap.Index({"t": ["a"]})).rows.shape == (0, 1)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = {"t": [text(i) for i in range(0, 40, 3)]}
    rows = [{"a": text(i), "b": changed(i + 1)} for i in range(40)]
    whole = overlap.compare(rows, overlap.Index(tests))
    monkeypatch.setattr(overlap, "CHUNK", 7)
    parts = overlap.compare(rows, overlap.Index(tests))
    assert (whole.rows == parts.rows).all() and (whole.tests == parts.tests).all() and whole.rows.any()


# The filter


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": t, "label": "x"}) + "\n" for t in texts))
    return str(path)


def test_the_filter_keeps_what_stands_in_no_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"

    def prepared(name: str, texts: list[str]) -> sources.builders.Prepared:
        return sources.prepare(write(tmp_path / name, texts), "labelled", "", str(cache))

    test = prepared("test.jsonl", [text(0), text(1)])
    source = prepared("source.jsonl", [text(5), text(0), changed(1), text(6)])
    assert overlap.jaccard(*map(overlap.normalise, (text(1), changed(1)))) >= overlap.THRESHOLD
    kept = {level: OverlapFilter([test], level, cache).kept(source).tolist() for level in ("exact", "near")}
    assert kept == {"exact": [0, 2, 3], "near": [0, 3]}
    monkeypatch.setattr(overlap, "compare", None)  # the second time all comes from the cache
    assert OverlapFilter([test], "near", cache).kept(source).tolist() == [0, 3]
    assert all(file.suffix == ".npy" for file in (cache / "overlap").iterdir())
    with pytest.raises(TypeError):  # another test is another question
        OverlapFilter([prepared("other.jsonl", [text(5)])], "near", cache).kept(source)
