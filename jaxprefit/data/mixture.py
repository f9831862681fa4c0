"""One family's stream of batches: its sources, shuffled and mixed by named weights, through Grain."""

import math
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from jaxprefit.data.builders import Prepared
from jaxprefit.errors import UserError
from jaxprefit.families.base import Family


class Slice:
    """Rows [start, stop) of a data source."""

    def __init__(self, data: Prepared, start: int, stop: int):
        self.data, self.start, self.stop = data, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict:
        return self.data[self.start + index]


def split_held_out(source: Prepared, held_out: int) -> tuple[Slice, Slice]:
    """(training rows, the last `held_out` rows, at most a tenth of the source)."""
    cut = len(source) - min(held_out, len(source) // 10)
    return Slice(source, 0, cut), Slice(source, cut, len(source))


def mixture(
    family: Family,
    sources: Sequence[tuple[str, Slice]],
    weights: Mapping[str, float],
    batch_size: int,
    seed: int,
) -> grain.IterDataset:
    """An endless, deterministic stream of `family`'s batches.

    Each source is shuffled anew every epoch and repeated for ever, so none is exhausted; `weights` are shares by
    source name (1 where a source is not named), by default in proportion to size. The
    iterator's `get_state` / `set_state` resume it exactly.
    """
    if not sources:
        raise UserError(f"family '{family.name}' has no data source; name at least one in data.{family.name}.sources")
    unknown = set(weights) - {name for name, _ in sources}
    if unknown:
        known = ", ".join(name for name, _ in sources)
        raise UserError(f"data.{family.name}.weights names '{min(unknown)}', which is not a source ({known})")
    parts: list[grain.MapDataset] = []
    shares: list[float] = []
    for name, rows in sources:
        if not len(rows):
            raise UserError(f"source '{name}' has no rows left for training; it needs more than data.held_out rows")

        def encode(record: dict, name: str = name) -> dict:
            return family.encode_record(record, name)

        # Grain derives one seed per node from the seed of the source.
        parts.append(grain.MapDataset.source(rows).seed(seed + len(parts)).shuffle().repeat().map(encode))
        shares.append(float(weights.get(name, 1.0) if weights else len(rows)))
    if not (min(shares) >= 0 and 0 < sum(shares) < math.inf):
        raise UserError(f"data.{family.name}.weights must be non-negative with a positive sum")
    kept = [(p, s) for p, s in zip(parts, shares) if s > 0]
    mixed = grain.MapDataset.mix([p for p, _ in kept], [s for _, s in kept]) if len(kept) > 1 else kept[0][0]
    return mixed.batch(batch_size, batch_fn=family.collate).to_iter_dataset(
        grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    )


def held_out_batches(
    family: Family, sources: Sequence[tuple[str, Slice]], batch_size: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """The held-out rows of all sources in one fixed random order, as whole batches."""
    rows = [(name, i, part) for name, part in sources for i in range(len(part))]
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = []
    for start in range(0, len(rows) - batch_size + 1, batch_size):
        chosen = [rows[k] for k in order[start : start + batch_size]]
        batches.append(family.collate([family.encode_record(part[i], name) for name, i, part in chosen]))
    return batches
