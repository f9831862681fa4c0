"""The mesh, and where things lie on it: rows of batches along `data` and `fsdp`, parameters by ordered rules.

    data     every device has all parameters
    fsdp     rows of a batch too, and each parameter in parts (ZeRO; Rajbhandari et al., 2020, arXiv 1910.02054)
    tensor   columns of a layer's first map and rows of its second (Megatron-LM; Shoeybi et al., 2019, arXiv 1909.08053)

One Auto mesh, made here and nowhere else; steps are `jax.jit` with shardings (what used to be called pjit). What is
computed does not depend on the mesh, but for rounding: XLA puts in what devices have to send each other.
"""

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxprefit.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that divide a batch

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("*/embeddings/word/embedding", ("tensor", "fsdp")),
    ("*/embeddings/*", ()),
    *((f"*/layer_*/{name}/kernel", ("fsdp", "tensor")) for name in ("query", "key", "value", "intermediate")),
    *((f"*/layer_*/{name}/kernel", ("tensor", "fsdp")) for name in ("attention_output", "output")),
    ("*/layer_*/bias", ()),
    ("*/layer_*/scale", ()),
    ("lora/*", ()),
    ("head/*", ()),
)
"""(pattern of a parameter's slash-joined path, axis of each of its dimensions). The first that fits counts."""


def make_mesh(devices: int = 0, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first `devices` devices, 0 for all; an axis of size -1 takes what the others leave.

    Raises UserError where there are fewer devices, where the axes do not make up their number, or where some are left
    out though several processes have them.
    """
    available = jax.devices()
    if devices < 0 or devices > len(available):
        raise UserError(f"devices is {devices}; there are {len(available)} ({available[0].platform})")
    chosen = available[: devices or len(available)]
    if len(chosen) < len(available) and jax.process_count() > 1:
        raise UserError(f"devices is {devices}; several processes use all {len(available)} together: set it to 0")
    sizes = [data, fsdp, tensor]
    rest = math.prod(n for n in sizes if n != -1)
    if len(chosen) % rest if -1 in sizes else rest != len(chosen):
        given = ", ".join(f"mesh.{axis} {n}" for axis, n in zip(AXES, sizes))
        raise UserError(f"{given} do not make up {len(chosen)} devices; set one axis to -1, or change the others")
    shape = [len(chosen) // rest if n == -1 else n for n in sizes]
    # Auto axes on purpose: Linen's nn.Embed fails on an Explicit mesh as soon as the ids are sharded.
    return Mesh(np.asarray(chosen).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of metrics, and of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """How the parameter at `path` is divided. An axis that does not divide its dimension leaves that whole: a
    vocabulary of 30,522 has no quarters. Raises KeyError for a path that no rule covers."""
    for pattern, axes in RULES:
        if fnmatch.fnmatchcase(path, pattern):
            used = [a if a and mesh.shape[a] > 1 and n % mesh.shape[a] == 0 else None for n, a in zip(shape, axes)]
            return PartitionSpec(*used) if any(used) else PartitionSpec()
    raise KeyError(f"no rule of jaxprefit/runtime/sharding.py says how the parameter {path} lies on a mesh")


def shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for each array of flat parameters or of a train state, whose moments lie as their parameters do and
    whose counts every device holds."""

    def of(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = getattr(keys[-1], "key", "") if keys else ""
        # What is kept by another name than a parameter's, such as a block's, is small.
        return NamedSharding(mesh, spec(mesh, path, leaf.shape)) if "/" in str(path) else replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, state)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A host batch onto the mesh, its leading axis split over `ROWS`. Of several processes each puts its rows."""
    return put(batch, dict.fromkeys(batch, NamedSharding(mesh, PartitionSpec(ROWS))))


def hidden_rows(mesh: Mesh) -> NamedSharding | None:
    """How hidden states lie where parameters are in parts: by rows, as the batch. Left alone, XLA's partitioner cuts
    them as it finds the kernels cut, and sends them around instead of gathering a kernel. None: nothing to say."""
    return NamedSharding(mesh, PartitionSpec(ROWS)) if mesh.shape["fsdp"] > 1 else None


def put_state(mesh: Mesh, state: Any) -> Any:
    """Flat parameters or a train state onto the mesh, by the rules."""
    return put(state, shardings(mesh, state))


def put(tree: Any, shardings: Any) -> Any:
    """A tree of host arrays, or of this process's arrays, laid out by a tree of shardings.

    Where these reach over several processes, each has the whole tree and puts on its devices what they are to hold.
    """
    if all(s.is_fully_addressable for s in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)

    # device_put would do it too, but have all processes compare each array first.
    def part(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(part, tree, shardings)


def row_devices(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are divided."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_rows(mesh: Mesh, rows: int, key: str) -> None:
    """Raises UserError where a batch's `rows`, the config value `key`, do not divide over the mesh."""
    size = row_devices(mesh)
    if rows < 1 or rows % size:
        raise UserError(f"{key} is {rows}; it must be a positive multiple of the {size} devices on the data axes")
