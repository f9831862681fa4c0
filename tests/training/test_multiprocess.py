"""Two processes of four (simulated) devices each compute what one process of eight does, end together where one of them
is told to, and leave a checkpoint that any number of processes continues."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import run

from experiments.common import assembly, prefinetuning
from experiments.common.cli import PREEMPTED_STATUS
from jaxprefit.checkpoints import reader
from jaxprefit.errors import UserError
from jaxprefit.runtime import distributed
from jaxprefit.training import checkpoints

STEPS = 60
SETTINGS = {
    "strategy": "naive",
    "mesh.data": 1,
    "mesh.fsdp": -1,  # so that no process has the whole of a parameter
    "optimizer.steps": STEPS,
    "run.checkpoint_every": 1000,
    "run.lost_after": 20,
}
COMPARED = 10  # steps; then rounding has grown


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of one process that ran to the end on eight devices."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = run.call("prefinetune", *run.flags(cache, SETTINGS), f"--workdir={workdir}", devices=8)
    assert done.returncode == 0, done.stderr
    return workdir


def begin(workdir: Path, cache: Path, **places: int) -> list[subprocess.Popen[str]]:
    """Two processes that have written some lines of metrics.jsonl."""
    command = "-m", "experiments.prefinetune", *run.flags(cache, SETTINGS), f"--workdir={workdir}"
    processes, file = run.start_together(*command, **places), workdir / "metrics.jsonl"
    end = time.monotonic() + 500
    while not (file.exists() and file.read_bytes().count(b"\n") > 2):
        if time.monotonic() > end or any(p.poll() is not None for p in processes):
            raise AssertionError(run.end_together(processes, 1))
        time.sleep(0.001)
    return processes


@pytest.fixture(scope="module")
def ended(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(workdir, last step) of two processes of four devices, the second of which got SIGTERM after some steps."""
    workdir = tmp_path_factory.mktemp("ended") / "run"
    processes = begin(workdir, cache)
    processes[1].send_signal(signal.SIGTERM)
    (first, told), (second, also_told) = run.end_together(processes)
    assert (first, second) == (PREEMPTED_STATUS, PREEMPTED_STATUS), told + also_told
    last = told.splitlines()[-1]  # a slow run shows its progress before
    match = re.fullmatch(r"error: step (\d+): ended by SIGTERM; the same command continues", last)
    assert match and also_told == last + "\n", told + also_told
    return workdir, int(match[1])


def metrics(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Two lines of metrics.jsonl: numbers of examples and tokens are equal, all others close."""
    assert found.keys() == expected.keys()
    for key in expected.keys() - {"seconds", "tokens_per_s"}:
        if key.startswith(("examples/", "useful/", "tokens/")):
            assert found[key] == expected[key], key
        else:  # an inner product may cancel: rounding is relative to the norms, which stand on the diagonal
            scale = np.max(np.abs(expected[key]))
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=tolerance * scale, err_msg=key)


def test_sigterm_to_one_process_ends_both_after_one_step(ended: tuple[Path, int]) -> None:
    workdir, last = ended
    assert 3 <= last < STEPS
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()] == [str(last)]
    assert [line["step"] for line in metrics(workdir)] == [*range(1, last + 1)]


def test_two_processes_train_like_one(ended: tuple[Path, int], whole: Path) -> None:
    """The loss of text pairs among them, whose negatives are all texts of the batch, of both processes."""
    for found, expected in zip(metrics(ended[0])[:COMPARED], metrics(whole)):
        assert_close(found, expected, 1e-5)


def test_one_process_restores_every_bit_of_what_two_wrote(ended: tuple[Path, int], cache: Path) -> None:
    workdir, last = ended
    folder = workdir / "checkpoints" / str(last)
    parts = [p.name for p in (folder / "backbone").glob("ocdbt.process_*")]
    assert sorted(parts) == ["ocdbt.process_0", "ocdbt.process_1"], "both wrote theirs"
    fresh, _ = assembly.fresh_state(assembly.make_run(run.config(cache, SETTINGS), workdir))
    state, _ = checkpoints.Checkpoints(workdir).restore(last, fresh, reader.read_meta(folder))
    expected = flatten_dict(reader.read(folder).params, sep="/")
    assert state.params.keys() == expected.keys() and int(state.step) == last
    for path, value in state.params.items():
        assert len(value.devices()) == 1
        np.testing.assert_array_equal(value, expected[path])
    moments = [np.asarray(leaf) for leaf in jax.tree.leaves(reader.read_optimizer(folder))]
    found = [np.asarray(leaf) for leaf in jax.tree.leaves(state.opt_state)]
    assert sorted(a.tobytes() for a in found) == sorted(a.tobytes() for a in moments)


def test_one_process_continues_what_two_began(
    ended: tuple[Path, int], whole: Path, cache: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(ended[0], tmp_path / "run")
    prefinetuning.run(run.config(cache, SETTINGS), workdir)
    assert metrics(workdir)[: ended[1]] == metrics(ended[0]), "the lines before were kept"
    assert len(metrics(workdir)) == STEPS
    after = slice(ended[1], ended[1] + COMPARED)
    for found, expected in zip(metrics(workdir)[after], metrics(whole)[after]):
        assert_close(found, expected, 1e-3)


SCRIPT = """
import json, sys
import jax, numpy as np
from jaxprefit.runtime import distributed, sharding
from jaxprefit.errors import UserError

def refused(f, *args):
    try:
        f(*args)
    except UserError as e:
        return str(e)

with distributed.joined(sys.argv[1].removeprefix("--distributed="), 60, 60):
    mesh, number = sharding.make_mesh(0, -1, 2), jax.process_index()
    batch = sharding.put_batch(mesh, {"rows": np.arange(16), "pairs": np.arange(64).reshape(32, 2)})
    agreed = distributed.Agreement(mesh)
    print(json.dumps({
        "rows": {name: [s.data.tolist() for s in a.addressable_shards] for name, a in batch.items()},
        "agreed": [agreed(number == 1 and step == 1) for step in range(4)],
        "alike": [refused(distributed.require_alike, content) for content in ("same", f"of {number}")],
        "devices": refused(sharding.make_mesh, 4),
    }), file=sys.stderr)
"""


def test_each_process_puts_its_rows_and_all_agree() -> None:
    ends = run.end_together(run.start_together("-c", SCRIPT))
    assert [status for status, _ in ends] == [0, 0], ends
    found = [json.loads(next(line for line in told.splitlines() if line.startswith("{"))) for _, told in ends]
    for name, rows in (("rows", np.arange(16)), ("pairs", np.arange(64).reshape(32, 2))):
        held = [np.concatenate(f["rows"][name]) for f in found]
        assert len(held[0]) == len(held[1]) == len(rows) // 2, "each holds half, so that none is held twice"
        np.testing.assert_array_equal(np.concatenate(held), rows)
    for f in found:
        assert f["agreed"] == [False, False, True, False], "told to one, known to both a call later"
        assert f["alike"][0] is None and f["alike"][1].startswith("process 1 has other settings or other data")
        assert f["devices"] == "devices is 4; several processes use all 8 together: set it to 0"


@pytest.mark.parametrize("spec", ["yes", "localhost,0,2", "localhost:1234,2,2", "localhost:1234,0", "localhost:x,0,2"])
def test_flag_that_names_no_process(spec: str) -> None:
    told = "^--distributed=.* names no process; write auto .*, as "
    with pytest.raises(UserError, match=told) as error, distributed.joined(spec, 1, 1):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other(lost: int, cache: Path, tmp_path: Path) -> None:
    processes = begin(tmp_path / "run", cache, devices=1)
    processes[lost].kill()
    ends = run.end_together(processes, timeout=60)
    assert ends[lost][0] == -signal.SIGKILL
    status, told = ends[1 - lost]
    assert status not in (0, None)
    assert "if a process was lost" in told or "another task died" in told, told


@pytest.mark.slow
def test_a_process_that_does_not_come(cache: Path, tmp_path: Path) -> None:
    command = (
        "-m",
        "experiments.prefinetune",
        *run.flags(cache, {"run.join_within": 5}),
        f"--workdir={tmp_path / 'run'}",
    )
    processes = run.start_together(*command)
    processes[0].kill()
    status, told = run.end_together(processes, timeout=120)[1]
    assert status not in (0, None) and told, "it waits no longer than it was told to"
