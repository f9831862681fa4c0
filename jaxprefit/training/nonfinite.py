"""Steps with a loss or a gradient that is not finite: what tells them, and what becomes of them.

By `stop` the run ends at the first. By `skip` the step changes nothing but the number of steps done (`train.make_step`
decides that on the device, so that the host need not wait), and the run ends after so many in a row.
"""

import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxprefit.errors import UserError
from jaxprefit.runtime.distributed import first

POLICIES = ("stop", "skip")
BATCHES = 20  # kept for inspection; more would tell no more
_TELLING = ("loss/", "gradient_norm/")  # the norm of a gradient is finite only where each of its numbers is


def all_finite(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Whether the losses and gradient norms among a step's metrics are finite. Traceable."""
    return jnp.all(jnp.stack([jnp.isfinite(v) for k, v in metrics.items() if k.startswith(_TELLING)]))


class Watch:
    """Looks at each step's metrics, keeps bad steps' batches in `folder`, and ends the run where `policy` says."""

    def __init__(self, folder: pathlib.Path, policy: str = "stop", limit: int = 10):
        self.folder, self.limit = folder, limit if policy == "skip" else 1
        self.row = 0  # bad steps up to now, without a good one between them

    def bad(self, number: int, values: Mapping[str, np.ndarray], batches: Mapping[str, Mapping]) -> list[str]:
        """The losses and gradient norms of step `number` that are not finite; none for a good step.

        Raises UserError where that is one bad step too many.
        """
        found = sorted(k for k, v in values.items() if k.startswith(_TELLING) and not np.isfinite(v))
        self.row = self.row + 1 if found else 0
        if found and first():
            self._keep(number, batches)
        if self.row == self.limit:
            times = f" in {self.row} steps in a row (run.nonfinite_limit)" if self.limit > 1 else ""
            raise UserError(
                f"step {number}: {', '.join(found)} is not finite{times}; earlier checkpoints are kept. "
                f"Lower the learning rate or look at the step's batch in {self.folder}"
            )
        return found

    def _keep(self, number: int, batches: Mapping[str, Mapping]) -> None:
        self.folder.mkdir(exist_ok=True)
        if len([*self.folder.glob("*.npz")]) < BATCHES:
            arrays = {f"{family}/{name}": array for family, batch in batches.items() for name, array in batch.items()}
            temporary = self.folder / f".step_{number}"
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(temporary, self.folder / f"step_{number}.npz")
