"""The cache of prepared sources: what is built, when it is built again, and how it fails."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.paths import ROOT

from jaxprefit.data import backends, builders
from jaxprefit.data.builders import Prepared, Source, prepare
from jaxprefit.data.records import KINDS
from jaxprefit.errors import UserError

NER = [
    {"tokens": ["Ada", "met", "\u4e16\u754c"], "tags": ["B-PER", "O", "B-LOC"]},
    {"tokens": ["Hi"], "tags": ["O"]},
]
LABELLED = [{"text": f"text {i} caf\u00e9", "label": "odd" if i % 2 else "even"} for i in range(50)]
PAIRS = [{"a": "one\0two", "b": "x" * 5000}, {"a": " b ", "b": "\n."}]


class ToyTags(tfds.core.GeneratorBasedBuilder):
    """A TFDS dataset as its own builders make them, with class indices for the tags."""

    VERSION = tfds.core.Version("1.2.3")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "words": tfds.features.Sequence(tfds.features.Text()),
            "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "I-PER", "B-LOC", "I-LOC"])),
            "topic": tfds.features.ClassLabel(names=["people", "places"]),
            "stars": tfds.features.Scalar(np.int64),
            "title": tfds.features.Text(),
            "picture": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

    def _generate_examples(self, count: int) -> Any:  # type: ignore[override]
        for i in range(count):
            yield (
                i,
                {
                    "words": ["Zo\u00eb", str(i)],
                    "ner": ["I-PER", "O"],
                    "topic": i % 2,
                    "stars": i,
                    "title": f"title {i}",
                    "picture": [0.0, 1.0],
                },
            )


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "my" / "a cache [of] {mine}"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = jsonl(tmp_path / "labelled.jsonl", LABELLED)
    return Source(name="toy", kind="labelled", path=str(path))


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def entries(cache: Path) -> list[str]:
    return sorted(os.listdir(cache)) if cache.exists() else []


@pytest.mark.parametrize(
    ("kind", "rows", "types"),
    [
        ("ner", NER, ("LOC", "PER")),
        ("pairs", PAIRS, ()),
        ("labelled", LABELLED, ("even", "odd")),
    ],
)
def test_what_goes_in_comes_out(
    tmp_path: Path,
    cache: Path,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    rows: list[Any],
    types: tuple[str, ...],
) -> None:
    path = jsonl(tmp_path / "data.jsonl", rows)
    data = prepare(Source(name="my set/1", kind=kind, path=str(path)), cache)
    assert isinstance(data, Prepared)
    assert [data[i] for i in range(len(data))] == rows == list(data)  # type: ignore[call-overload]
    assert data[-1] == rows[-1] and data.rows == len(rows)
    assert (data.name, data.kind, data.types) == ("my set/1", kind, types)
    with pytest.raises(IndexError):
        data[len(rows)]
    [folder] = entries(cache)
    assert folder.startswith("my_set_1-") and len(folder) == len("my_set_1-") + 16
    assert capfd.readouterr() == ("", "")


def test_it_feeds_grain_and_pickles(source: Source, cache: Path) -> None:
    data = prepare(source, cache)
    data[0]  # opens the file, which must not go into the pickle
    copy = pickle.loads(pickle.dumps(data))
    assert copy[3] == data[3] and repr(copy) == repr(data) and len(pickle.dumps(data)) < 1000
    dataset = grain.MapDataset.source(data).shuffle(seed=1).batch(10)  # type: ignore[arg-type]
    seen = [text for batch in dataset for text in batch["text"]]
    assert sorted(seen) == sorted(row["text"] for row in LABELLED)
    assert len(list(dataset.to_iter_dataset())) == 5  # threads read it


def test_no_tensorflow(source: Source, cache: Path) -> None:
    code = f"""
import sys
from jaxprefit.data.builders import Source, prepare
assert prepare({source!r}, {str(cache)!r})[0]["label"] == "even"
assert "tensorflow" not in sys.modules
"""
    assert start(code).wait() == 0


def test_built_once_and_again_only_when_something_changed(source: Source, cache: Path) -> None:
    calls: list[int] = []

    def count(done: int, total: int) -> None:
        calls.append(total)

    prepare(source, cache, count)
    assert calls == [50]
    prepare(source, cache, count)
    copy = Path(source.path).rename(Path(source.path).with_name("moved.jsonl"))
    prepare(replace(source, path=str(copy)), cache, count)
    assert calls == [50] and len(entries(cache)) == 1
    prepare(replace(source, path=str(copy), limit=7), cache, count)
    jsonl(copy, LABELLED[1:])
    prepare(replace(source, path=str(copy)), cache, count)
    swapped = (("text", "label"), ("label", "text"))
    prepare(replace(source, path=str(copy), columns=swapped), cache, count)
    assert calls == [50, 7, 49, 49] and len(entries(cache)) == 4


def test_a_huge_source_becomes_several_parts(source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "PART_BYTES", 300)  # about three rows
    data = prepare(source, cache)
    assert len(list(data.directory.glob("*array_record*"))) > 10
    assert list(data) == LABELLED  # type: ignore[call-overload]


# ---- failures ------------------------------------------------------------------------------


def test_a_bad_row_is_a_user_error_and_leaves_nothing(source: Source, cache: Path) -> None:
    with Path(source.path).open("a") as file:
        file.write('{"text": "", "label": "x"}')
    with pytest.raises(UserError, match=r"labelled.jsonl:51: 'text' is blank; fill it in"):
        prepare(source, cache)
    assert entries(cache) == []


def test_a_build_that_dies_leaves_nothing_in_use(source: Source, cache: Path) -> None:
    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, cache, die)
    assert entries(cache) == []

    # A killed process cleans up nothing.
    code = f"""
import os
from jaxprefit.data.builders import Source, prepare
prepare({source!r}, {str(cache)!r}, lambda done, total: os._exit(9))
"""
    assert start(code).wait() == 9
    [left] = entries(cache)
    assert left.startswith(".toy-")
    data = prepare(source, cache)
    assert list(data) == LABELLED and len(entries(cache)) == 2  # type: ignore[call-overload]

    # Once it is too old to belong to a running process, the next build of the same sweeps it.
    os.rename(data.directory, cache / "elsewhere")
    long_ago = time.time() - 2 * builders.STALE_SECONDS
    os.utime(cache / left, (long_ago, long_ago))
    assert prepare(source, cache).directory == data.directory
    assert left not in entries(cache)


def test_data_that_shrinks_between_the_passes(source: Source, cache: Path) -> None:
    path, first = Path(source.path), LABELLED * 200

    def shrink(done: int, total: int) -> None:
        jsonl(path, LABELLED[:1])

    jsonl(path, first)
    with pytest.raises(UserError):  # too few rows, or half a row: as the buffers fall
        prepare(source, cache, shrink)
    assert entries(cache) == []


def test_the_second_of_two_builds_throws_its_copy_away(source: Source, cache: Path) -> None:
    inner: list[Prepared] = []

    def meanwhile(done: int, total: int) -> None:
        inner.append(prepare(source, cache))

    data = prepare(source, cache, meanwhile)
    assert len(inner) == 1 and inner[0].directory == data.directory
    assert list(data) == list(inner[0]) == LABELLED  # type: ignore[call-overload]
    assert entries(cache) == [data.directory.name]


def test_processes_that_build_the_same_at_once(tmp_path: Path, cache: Path) -> None:
    path = jsonl(tmp_path / "data.jsonl", LABELLED * 40)
    source = Source(name="toy", kind="labelled", path=str(path))
    code = f"""
from jaxprefit.data.builders import Source, prepare
data = prepare({source!r}, {str(cache)!r})
assert len(data) == 2000 and data[1999]["label"] == "odd"
"""
    running = [start(code) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "dataset_info.json").write_text("{"),
        lambda folder: next(folder.glob("*array_record*")).unlink(),
        lambda folder: next(folder.glob("*array_record*")).write_bytes(b""),
        lambda folder: next(folder.glob("*array_record*")).write_bytes(b"x" * 100_000),
    ],
)
def test_a_damaged_cache_is_told(source: Source, cache: Path, damage: Callable[[Path], Any]) -> None:
    damage(prepare(source, cache).directory)
    with pytest.raises(UserError, match=r"cache.*delete") as caught:
        prepare(source, cache)[0]
    assert "\n" not in str(caught.value)


def test_a_cache_folder_that_cannot_be(source: Source) -> None:
    with pytest.raises(UserError, match="choose another cache folder"):
        prepare(source, source.path)


# ---- where the data is ---------------------------------------------------------------------


def test_a_folder_of_splits(tmp_path: Path, cache: Path) -> None:
    jsonl(tmp_path / "train.jsonl", LABELLED)
    (tmp_path / "test.csv").write_text("text,label\na,b\n")
    source = Source(name="toy", kind="labelled", path=str(tmp_path))
    assert len(prepare(source, cache)) == 50
    assert prepare(replace(source, split="test"), cache)[0] == {"text": "a", "label": "b"}
    with pytest.raises(UserError, match=r"no file dev.jsonl.*holds my, test.csv, train.jsonl"):
        prepare(replace(source, split="dev"), cache)
    (tmp_path / "train.tsv").write_text("")
    with pytest.raises(UserError, match="train.jsonl and train.tsv; give the path of one"):
        prepare(source, cache)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with toy_tags prepared as ArrayRecord, in TFDS's own layout."""
    root = tmp_path_factory.mktemp("tfds")
    ToyTags(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root


NER_COLUMNS = (("tokens", "words"), ("tags", "ner"))


def test_tfds_by_name(tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = Source("toy", "ner", str(tmp_path), tfds="toy_tags", columns=NER_COLUMNS)
    with pytest.raises(UserError, match="does not continue.*set the scheme"):
        prepare(source, cache)
    source = replace(source, scheme="iob1")
    data = prepare(source, cache)
    assert len(data) == 20 and data.types == ("PER",)
    assert data[0]["tokens"][0] == "Zo\u00eb" and data[0]["tags"] == ["B-PER", "O"]
    assert len(prepare(replace(source, split="train[:5]"), cache)) == 5
    assert len(prepare(replace(source, split="train+test", limit=21), cache)) == 21
    assert capfd.readouterr() == ("", "")


def test_tfds_own_datasets_are_found_without_tensorflow(tmp_path: Path) -> None:
    for name, found in [("conll2003", "conll2003/conll2003/1.0.0"), ("glue/sst2", "glue/sst2/")]:
        source = Source("own", "ner", str(tmp_path), tfds=name)
        content, _, _ = backends.locate(source, KINDS["ner"], quiet=True)  # downloads nothing
        assert content.startswith(found)


@pytest.mark.parametrize("below", [".", "toy_tags", "toy_tags/1.2.3"])
def test_a_folder_that_tfds_prepared(tfds_dir: Path, cache: Path, below: str) -> None:
    columns = (("text", "title"), ("label", "topic"))
    source = Source("toy", "labelled", str(tfds_dir / below), split="test", columns=columns)
    if below == ".":
        with pytest.raises(UserError, match="no file test.jsonl.*holds .*toy_tags"):
            prepare(source, cache)
        return
    data = prepare(source, cache)
    assert len(data) == 3 and data.types == ("people", "places")
    assert {data[i]["text"] for i in range(3)} == {"title 0", "title 1", "title 2"}
    stars = prepare(replace(source, columns=(("text", "title"), ("label", "stars"))), cache)
    assert stars.types == ("0", "1", "2")


def test_text_of_tfds_from_several_columns_without_blank_rows(tfds_dir: Path, cache: Path) -> None:
    source = Source("toy", "text", str(tfds_dir / "toy_tags"), split="test", columns=(("text", "words,title"),))
    data = prepare(source, cache)
    assert {data[i]["text"] for i in range(3)} == {f"Zo\u00eb {i} title {i}" for i in range(3)}
    assert prepare(replace(source, limit=2, blank="skip"), cache).rows == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": "dev"}, "dev"),
        ({"columns": (("text", "titel"), ("label", "topic"))}, "did you mean 'title'"),
        ({"columns": (("text", "picture"), ("label", "topic"))}, "of type list, not text"),
        ({"tfds": "toy_tag"}, "toy_tag"),
        ({"tfds": "toy_tags:9.9.9"}, "9.9.9"),
        ({"split": "train[:0]"}, "array_record"),
        ({"limit": -1}, "the limit is -1"),
        ({"kind": "poem"}, "unknown kind"),
        ({"scheme": "bio"}, "unknown scheme"),
        ({"tfds": "", "path": ""}, "neither path nor tfds"),
        ({"tfds": "", "path": "no/such/file.csv"}, "does not exist"),
    ],
)
def test_wrong_sources(tfds_dir: Path, cache: Path, change: dict[str, Any], says: str) -> None:
    columns = (("text", "title"), ("label", "topic"))
    source = Source("toy", "labelled", str(tfds_dir), tfds="toy_tags", columns=columns)
    with pytest.raises(UserError) as caught:
        prepare(replace(source, **change), cache)
    message = str(caught.value)
    assert says in message and "\n" not in message and "; " in message and len(message) < 600
    assert entries(cache) == []


def test_tfrecord_is_told(tmp_path: Path, tfds_dir: Path, cache: Path) -> None:
    folder = Path(shutil.copytree(tfds_dir / "toy_tags" / "1.2.3", tmp_path / "copy"))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    for record in folder.glob("*array_record*"):
        record.rename(folder / record.name.replace("array_record", "tfrecord"))
    source = Source("toy", "ner", str(folder), columns=NER_COLUMNS, scheme="iob1")
    with pytest.raises(UserError, match="tfrecord.*the data is array_record"):
        prepare(source, cache)
