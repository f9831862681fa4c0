"""Every test runs on one CPU device, in full float32; tests of several devices start a process of their own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_default_matmul_precision", "highest")
