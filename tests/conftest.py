"""Every test runs on one CPU device, in full float32; tests of several devices start a process of their own."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Much of the suite's time goes to compiling small programs that run once: less optimised code shortens that, and the
# tests that compare two programs bit by bit hold with it. To be set before jax is imported; processes inherit it.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS") or "--xla_backend_optimization_level=0"

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    if hasattr(os, "sched_setaffinity"):
        # A core each: two workers whose threads share all cores get less done than two that keep to one.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
else:
    # What one test compiled the next one reads, in whichever process: many tests step the same tiny encoder.
    COMPILED = tempfile.TemporaryDirectory(prefix="jaxprefit-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import jax
from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)  # a landing must not hang on luck
settings.load_profile("ci" if os.environ.get("CI") else "local")

jax.config.update("jax_default_matmul_precision", "highest")
