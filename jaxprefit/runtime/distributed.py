"""Several processes that train one model together, one on each machine or one for each device.

Every process runs the same program with the same settings and draws the same batches, and hands its devices only their
rows (`sharding.put`): what is computed depends on the devices and not on who holds them, and the position in the data
is one for all, so that a run may go on in another number of processes. The price is that each machine packs and
tokenises the whole batch, and not only its part of it.

Process 0 alone writes result files, shows progress and prints; a checkpoint is written by all, each its parts, so that
they need one workdir that all of them see. A process that says nothing for a while counts as lost and ends the others.
"""

import contextlib
import faulthandler
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprefit.errors import UserError, out_of_memory

FLAG = "Several processes: auto (Slurm, Open MPI, TPU pods, Kubernetes), or ADDRESS:PORT,NUMBER,COUNT."
_FAREWELL = 10  # seconds in which processes that end for the same reason do
_PATIENCE = 24 * 3600  # seconds that processes may prepare data; a lost one is noticed long before


@contextlib.contextmanager
def joined(spec: str, join_within: int, lost_after: int) -> Iterator[None]:
    """While the context is open, this process belongs to those that `spec` names; an empty one means it is alone.

    `spec` is 'auto', where a scheduler's variables say who they are, or 'ADDRESS:PORT,NUMBER,COUNT': where process 0
    listens, which process this is, from 0, and how many there are. Opened before anything is asked of JAX. In all
    processes but the first nothing is printed to stdout.

    Raises UserError where `spec` is none of that or no scheduler is found, and where something that the processes do
    together fails, as when another one ends. JAX itself aborts a process, with a message, that waits more than
    `join_within` seconds for process 0, or when one says nothing for `lost_after` seconds, as on a machine that lost
    its network.
    """
    if not spec:
        yield
        return
    arguments = _arguments(spec)
    faulthandler.disable()  # a stack of each thread would hide why JAX aborts
    jax.config.update("jax_enable_preemption_service", False)  # its handler of SIGTERM would replace ours
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=join_within,
            heartbeat_timeout_seconds=lost_after,
            shutdown_timeout_seconds=lost_after,
        )
        number, count = jax.process_index(), jax.process_count()
    except Exception as e:  # no scheduler, a port in use, a process that does not come: each raises its own
        alone = spec == "auto" and "coordinator_address" in str(e)  # what JAX asks for where it finds no scheduler
        reason = "no scheduler is found here" if alone else _line(e)
        raise UserError(f"--distributed={spec}: the processes cannot be joined ({reason}); {_ADVICE}") from e
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if number else sys.stdout):
            yield
    except jax.errors.JaxRuntimeError as e:
        if out_of_memory(e):  # started again it would run out of memory again
            raise
        raise UserError(
            f"process {number} of {count}: what all compute together failed ({_line(e)}); if a process was lost, see "
            "its own message, and start the same command again in all of them: it continues from the last checkpoint"
        ) from e


_ADVICE = "write auto under a scheduler, or ADDRESS:PORT,NUMBER,COUNT with NUMBER from 0 to COUNT - 1, alike in all"


def _arguments(spec: str) -> dict[str, Any]:
    """Those of `jax.distributed.initialize` that say who the processes are."""
    if spec == "auto":
        return {}
    match = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", spec)
    if not match or int(match[2]) >= int(match[3]):
        raise UserError(f"--distributed={spec} names no process; {_ADVICE}, as 10.0.0.1:1234,0,2")
    return {
        "coordinator_address": match[1],
        "process_id": int(match[2]),
        "num_processes": int(match[3]),
        "cluster_detection_method": "deactivate",
    }


def first() -> bool:
    """Whether this is process 0, or the only one. Starts no device."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Process 0 goes through the context before the others, which then find what it made, such as prepared data; all
    leave it together, since what they compute together waits for a process half a minute at most on the CPU.

    `name` may be used once. The others follow even where process 0 fails, to fail for the same reason.
    """
    if not first():
        _meet(name, _PATIENCE)
    try:
        yield
    finally:
        if first():
            _meet(name, _PATIENCE)
    _meet(f"{name} is there", _PATIENCE)


def leave(status: int, interrupted: bool = False) -> NoReturn:
    """Ends this process after a fault. Where the others do not end too it goes without notice, so that they find it
    lost: JAX's way out would wait for them, and then abort. So does a process that is alone, if `interrupted`: a
    computation may still run, and JAX's way out can crash under it."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        _meet("the end", _FAREWELL)
    except Exception:  # whatever a barrier raises when someone does not come
        os._exit(status)
    if interrupted and not jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)


def _meet(name: str, within: int) -> None:
    """Returns when all processes have called it with `name`, which may be used once; raises after so many seconds."""
    if jax.distributed.is_initialized():
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * within)


def require_alike(content: Any) -> None:
    """Raises UserError, in all processes, where `content` (as JSON) is not the same in each of them."""
    if jax.process_count() == 1:
        return
    text = json.dumps(content, sort_keys=True)
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    if other := np.flatnonzero(found != found[0]).tolist():
        raise UserError(
            f"process {other[0]} has other settings or other data than process 0; give all the same command and files"
        )


class Agreement:
    """Whether any process says yes, in all of them alike, and without waiting for a device: a call asks, and returns
    the answer to the call before. A single process answers itself, at once."""

    def __init__(self, mesh: Mesh):
        self._words = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None

    def __call__(self, yes: bool) -> bool:
        if jax.process_count() == 1:
            return yes
        size = self._words.mesh.size
        words = jax.make_array_from_callback((size,), self._words, lambda _: np.asarray([yes]))
        before, self._asked = self._asked, self._any(words)
        return before is not None and bool(before)


def _line(e: Exception) -> str:
    """The beginning of an exception's message, in one line."""
    return " ".join(str(e).split())[:200]
