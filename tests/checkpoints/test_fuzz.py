"""Hostile files: whatever bytes they hold, reading them ends soon, in a result or in one line; it writes nothing, runs
nothing and takes no memory to speak of."""

import contextlib
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from golden.formula import weights
from golden.model_files import VOCABULARY, tokenizer, write_model

import jaxprefit
from experiments.common import cli
from experiments.conflict import trial
from jaxprefit.checkpoints import checksums
from jaxprefit.data.names import read_names
from jaxprefit.data.records.readers import read
from jaxprefit.downstream import cells
from jaxprefit.encoder.huggingface import load_pretrained
from jaxprefit.errors import UserError
from jaxprefit.strategies import make
from jaxprefit.training.checkpoints import Checkpoints
from jaxprefit.training.train_step import TrainState

SHAPE = {
    "model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16, "type_vocab_size": 2,
}  # fmt: skip
SECONDS = 10.0  # a case may take; on a busy machine
MEMORY = 512 * 2**20  # bytes that all cases of a target may add


class Target(NamedTuple):
    """A file that is mutated, and who reads it."""

    file: Path
    call: Callable[[], object]


def rows(kind: str) -> list[dict[str, Any]]:
    return {
        "ner": [{"tokens": ["Ada", "met", "Bob"], "tags": ["B-PER", "O", "B-PER"]}, {"tokens": ["x"], "tags": ["O"]}],
        "pairs": [{"a": "one, two", "b": 'say "yes"'}, {"a": "caf\u00e9", "b": "z"}],
        "labelled": [{"text": "good film", "label": "pos"}, {"text": "bad", "label": "neg"}],
    }[kind] * 5


def reader(name: str, kind: str, content: str) -> Callable[[Path], Target]:
    def build(folder: Path) -> Target:
        file = folder / name
        data = content.encode()
        file.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(file.suffix, bytes)(data))
        return Target(file, lambda: [*read(file, kind)])

    return build


def jsonl(kind: str) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows(kind))


def table(separator: str) -> str:
    return (
        separator.join(("text", "label")) + "\n" + "".join(separator.join(r.values()) + "\n" for r in rows("labelled"))
    )


CONLL = "\n".join("".join(f"{t} {g}\n" for t, g in zip(r["tokens"], r["tags"])) for r in rows("ner"))


def encoder(name: str) -> Callable[[Path], Target]:
    def build(folder: Path) -> Target:
        write_model(folder, SHAPE, weights(SHAPE))
        return Target(folder / name, lambda: load_pretrained(folder))

    return build


def checkpoint(item: str) -> Callable[[Path], Target]:
    """A step without its list of checksums, which would tell of any change; they are what else would be on trust."""

    def build(folder: Path) -> Target:
        start = load_pretrained(write_model(folder / "start", SHAPE, weights(SHAPE)))
        params = {p: jnp.asarray(x) for p, x in flatten_dict({"backbone": start.params}, sep="/").items()}
        meta = {
            "config": {}, "encoder": vars(start.config), "families": {}, "data": {}, "tokenizer": "x",
            "strategy": "none", "touch_table": make("none", ()).table,
        }  # fmt: skip
        state = TrainState(jnp.asarray(1, jnp.int32), params, {"mu": jax.numpy.zeros(3)})
        Checkpoints(folder).save(state, {}, tokenizer().to_str(), meta)
        step = folder / "checkpoints" / "1"
        (step / checksums.NAME).unlink()
        return Target(step / item, lambda: jaxprefit.load(folder))

    return build


def checked(folder: Path) -> Target:
    """The list itself."""
    target = checkpoint("meta/metadata")(folder)
    checksums.write(target.file.parents[1])
    return Target(target.file.parents[1] / checksums.NAME, target.call)


def advice(folder: Path) -> Target:
    file = folder / "advice.json"
    file.write_text(json.dumps({"layers": [0, 1], "targets": ["query"], "rank": 8, "alpha": 16.0}))
    return Target(file, lambda: trial.read(str(file)))


def fragment(folder: Path) -> Target:
    """The same file as flags."""
    file, leaves = advice(folder).file, {"lora.layers": (), "lora.rank": 1}
    return Target(file, lambda: cli._with_fragments([f"--config.lora=@{file}"], leaves))


def names(folder: Path) -> Target:
    file = folder / "names.json"
    file.write_text(json.dumps({"GGP": "gene", "SO": "sequence"}))
    return Target(file, lambda: read_names(file, "craft", ["GGP", "SO", "Taxon"]))


def cell(folder: Path) -> Target:
    file = folder / "cell.json"
    found = cells.Cell("t", "tc", 0, 3, (), {"accuracy": 0.5}, ("a", "b"), [[0], [1]], [[1, 0], [0, 1]])
    cells.write(file, found)
    return Target(file, lambda: cells.read(file))


# Name -> how it is made, cases in the fast suite, cases in the slow one.
TARGETS: dict[str, tuple[Callable[[Path], Target], int, int]] = {
    "ner.jsonl": (reader("a.jsonl", "ner", jsonl("ner")), 100, 3000),
    "pairs.jsonl.gz": (reader("a.jsonl.gz", "pairs", jsonl("pairs")), 100, 2500),
    "pairs.jsonl.xz": (reader("a.jsonl.xz", "pairs", jsonl("pairs")), 100, 2500),
    "labelled.csv": (reader("a.csv", "labelled", table(",")), 100, 2500),
    "labelled.tsv": (reader("a.tsv", "labelled", table("\t")), 100, 2500),
    "ner.conll": (reader("a.conll", "ner", CONLL), 100, 2500),
    "cell.json": (cell, 100, 1500),
    "advice.json": (advice, 100, 1500),
    "fragment": (fragment, 100, 1500),
    "names.json": (names, 100, 1000),
    "config.json": (encoder("config.json"), 40, 800),
    "tokenizer.json": (encoder("tokenizer.json"), 20, 500),
    "model.safetensors": (encoder("model.safetensors"), 20, 500),
    "meta": (checkpoint("meta/metadata"), 20, 500),
    "tokenizer item": (checkpoint("tokenizer/metadata"), 10, 200),
    "array metadata": (checkpoint("backbone/_METADATA"), 10, 200),
    "SHA256SUMS": (checked, 10, 200),
}

NASTY = (
    b"\x00", b"\xff\xfe", b"\n", b"\r\n", b'"', b"'", b"\\", b"{", b"[" * 5000, b'{"a":' * 5000, b"}", b",", b":",
    b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"99999999999999999999", b"1" * 5000,
    b"../../../etc/passwd", b"/etc/passwd", b"__import__('os').system('true')", b"\xf0\x9f\x92\xa9", b"B-", b"I-PER",
    b"O", b"\t", b" " * 3000,
)  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, pieces cut, repeated, moved or replaced, numbers made large."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 2, 8, 64, 1024))
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = out[at : at + size] * rng.choice((1, 2, 50))
            case 3:
                out[at:at] = rng.randbytes(size)
            case 4:
                del out[at:]
            case 5:
                piece = out[at : at + size]
                del out[at : at + size]
                place = rng.randrange(len(out) + 1)
                out[place:place] = piece
            case 6:
                digits = [i for i, b in enumerate(out) if chr(b).isdigit()]
                if digits:
                    i = rng.choice(digits)
                    out[i : i + 1] = rng.choice((b"999999999", b"-7", b"0", b"1e30", b"2147483648"))
            case _:
                out[at : at + rng.choice((0, size))] = rng.choice(NASTY)
    return bytes(out)


class Watch:
    """Notes what is opened for writing outside a folder, what is run, and what is unpickled."""

    allowed = ""
    seen: list[str]

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.allowed:
            return
        if event == "open":
            path, mode, flags = args
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            writes = writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            inside = isinstance(path, int) or os.path.realpath(os.fsdecode(path)).startswith((self.allowed, "/dev/"))
            if writes and not inside:
                self.seen.append(f"writes {path!r}")
        elif event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            self.seen.append(event)


WATCH = Watch()
WATCH.seen = []


@pytest.fixture(scope="module")
def watch() -> Watch:
    if not getattr(sys, "_jaxprefit_fuzz", False):  # a hook stays for the life of a process
        sys.addaudithook(lambda event, args: WATCH.hook(event, args))
        sys._jaxprefit_fuzz = True  # type: ignore[attr-defined]
    return WATCH


class Hang(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name: str, cases: int, folder: Path, watch: Watch) -> dict[str, int]:
    """How many of the cases were read, and how many were refused."""
    target = TARGETS[name][0](folder)
    target.call()  # whole, it is read
    whole, rng, outcome = target.file.read_bytes(), random.Random(name), {"read": 0, "refused": 0}
    keep = shutil.copytree(folder, folder.with_name(folder.name + "-whole"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    watch.seen.clear()
    for number in range(cases):
        content = mutated(whole, rng)
        target.file.write_bytes(content)
        begin = time.monotonic()
        watch.allowed = str(folder.resolve())
        try:
            with at_most(SECONDS):
                target.call()
            outcome["read"] += 1
        except UserError as error:
            outcome["refused"] += 1
            assert "\n" not in str(error) and len(str(error)) < 2000, (name, number, str(error))
        except Hang:
            raise AssertionError(f"{name}, case {number}: over {SECONDS} s; {content[:200]!r}") from None
        except BaseException as error:
            raise AssertionError(
                f"{name}, case {number}: {type(error).__name__}: {str(error)[:300]}; {content[:300]!r}"
            ) from error
        finally:
            watch.allowed = ""
        assert not watch.seen, (name, number, watch.seen)
        assert time.monotonic() - begin < SECONDS
    target.file.write_bytes(whole)
    left = {p.relative_to(folder) for p in folder.rglob("*")} ^ {p.relative_to(keep) for p in keep.rglob("*")}
    assert not left, f"{name}: files appeared or went: {left}"
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert added < MEMORY, f"{name}: {added >> 20} MiB more"
    return outcome


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files(name: str, tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "case").mkdir()
    outcome = fuzz(name, TARGETS[name][1], tmp_path / "case", watch)
    assert sum(outcome.values()) == TARGETS[name][1] and outcome["refused"]


@pytest.mark.slow
def test_twenty_thousand_hostile_files(tmp_path: Path, watch: Watch, capsys: pytest.CaptureFixture) -> None:
    total, lines = 0, []
    for name, (_, _, cases) in TARGETS.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        outcome = fuzz(name, cases, folder, watch)
        total += sum(outcome.values())
        lines.append(f"{name}: {cases} cases, {outcome['read']} read, {outcome['refused']} refused in one line")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert total >= 20_000


def test_the_hook_sees_what_it_should(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "in").mkdir()
    watch.seen.clear()
    watch.allowed = str((tmp_path / "in").resolve())
    try:
        (tmp_path / "in" / "a").write_text("")
        assert not watch.seen
        (tmp_path / "b").write_text("")
    finally:
        watch.allowed = ""
    assert len(watch.seen) == 1 and "writes" in watch.seen[0]
    watch.seen.clear()
