"""Every test runs on one CPU device, in full float32; tests of several devices start a process of their own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Much of the suite's time goes to compiling small programs that run once: less optimised code shortens that, and the
# tests that compare two programs bit by bit hold with it. To be set before jax is imported; processes inherit it.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS") or "--xla_backend_optimization_level=0"

import jax
from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)  # a landing must not hang on luck
settings.load_profile("ci" if os.environ.get("CI") else "local")

jax.config.update("jax_default_matmul_precision", "highest")
