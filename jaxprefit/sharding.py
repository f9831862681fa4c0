"""The mesh, and where things lie on it: batches along `data`, the train state on every device.

One Auto mesh, made here and nowhere else; steps are `jax.jit` with shardings (what used to be called pjit). The axes
`fsdp` and `tensor` are there, of size 1.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxprefit.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(devices: int = 0) -> Mesh:
    """A mesh over the first `devices` devices, 0 for all. Raises UserError where there are fewer."""
    available = jax.devices()
    if devices < 0 or devices > len(available):
        raise UserError(f"devices is {devices}; this machine shows {len(available)} ({available[0].platform})")
    chosen = available[: devices or len(available)]
    # Auto axes on purpose: Linen's nn.Embed fails on an Explicit mesh as soon as the ids are sharded.
    return Mesh(np.asarray(chosen).reshape(-1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of the train state and of metrics."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A host batch onto the mesh, its leading axis split over `data`."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.device_put(array, sharding) for name, array in batch.items()}


def put_state(mesh: Mesh, state: Any) -> Any:
    """A train state onto the mesh, the same on every device."""
    return jax.device_put(state, replicated(mesh))


def check_rows(mesh: Mesh, rows: int, key: str) -> None:
    """Raises UserError where a batch's `rows`, the config value `key`, do not divide over the mesh."""
    size = mesh.shape["data"]
    if rows < 1 or rows % size:
        raise UserError(f"{key} is {rows}; it must be a positive multiple of the {size} devices on the data axis")
