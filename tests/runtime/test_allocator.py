"""The C library keeps what a step frees."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jaxprefit.runtime.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from jaxprefit.runtime.allocator import keep_freed_memory

print(keep_freed_memory())

@jax.jit
def step(x):  # its temporary memory holds a product, 36 MB
    return jnp.tanh(x @ x).sum()

x = jnp.ones((3072, 3072)) / 3072
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


# Another arena would be that of some threads to come, and has no room for a large block.
ARENAS = """
import ctypes, sys
from experiments import benchmark, conflict, downstream, prefinetune, quickstart, representations, study, warmstart

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def faults(**environment: str) -> tuple[bool, int]:
    """(whether memory is kept, pages that the last step touched for the first time) in a new process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept, *counts = done.stdout.split()
    return kept == "True", int(counts[-1])


def test_a_step_finds_the_memory_of_the_one_before() -> None:
    kept, count = faults()
    assert kept
    assert count * os.sysconf("SC_PAGE_SIZE") < 2**20


def test_a_step_does_not_where_the_user_has_set_the_allocator() -> None:
    kept, count = faults(MALLOC_ARENA_MAX="2")
    assert not kept
    assert count * os.sysconf("SC_PAGE_SIZE") >= 2**25  # so the test above can fail


def test_imports_of_the_commands_start_no_thread_that_allocates(tmp_path: Path) -> None:
    report = tmp_path / "malloc.xml"
    subprocess.run([sys.executable, "-c", ARENAS, str(report)], check=True, timeout=120)
    assert report.read_text().count("<heap nr") == 1


def test_tunables_are_the_users_settings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert not keep_freed_memory()
