"""A study whose process is killed at random moments, five times, ends with the table of the unbroken one."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import run
from helpers.schemas import assert_valid

CONFIG = """
from configs import study

def get_config():
    c = study.get_config()
    c.update_from_flattened_dict({settings!r})
    c.study.variants, c.study.modes, c.study.fractions = {variants!r}, ("stacked", "probe"), (0.5, 1.0)
    return c
"""
VARIANTS = ("none", "individual", "naive", "naive_lr2", "task_primary", "averaged")
KILLS = 5


@pytest.mark.slow
def test_a_study_killed_five_times_ends_with_the_unbroken_table(tmp_path: Path) -> None:
    settings = {
        **run.TINY,
        "data.cache": str(tmp_path / "cache"),
        "data.tc.chunk_rows": 0,
        "optimizer.steps": 12,
        "run.checkpoint_every": 2,
        "downstream.seeds": (0, 1, 2),
    }
    file = tmp_path / "my_study.py"
    file.write_text(CONFIG.format(settings=settings, variants=VARIANTS))
    args = ["study", f"--config={file}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run.call(*args, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    all_files = len(run.files(whole))

    rng = np.random.default_rng(0)
    for moment in np.sort(rng.uniform(0.05, 0.9, KILLS)):
        process = run.start(*args, f"--workdir={broken}", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(process, broken, moment * all_files)
            time.sleep(rng.uniform(0, 0.3))
            assert process.poll() is None, "it ended before it was killed"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (broken / "study.json").exists()
    done = run.call(*args, f"--workdir={broken}")
    assert done.returncode == 0, done.stderr

    content = assert_valid(broken / "study.json", "study")
    assert content["cells"]["missing"] == content["cells"]["failed"] == 0
    assert {h["variant"] for h in content["held_out"] if h["losses"]} == set(VARIANTS) - {"none", "averaged"}
    for name in ("study.json", "study.md"):
        assert (broken / name).read_text() == (whole / name).read_text()


def until(process: subprocess.Popen, folder: Path, files: float) -> None:
    """Waits until the folder has so many files."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if sum(len(names) for _, _, names in os.walk(folder)) >= files:
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} did not come to {files:.0f} files")
