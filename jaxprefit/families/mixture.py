"""One family's stream of batches: its sources, shuffled and mixed by shares, in packed rows, through Grain."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from jaxprefit.data.packing import Layout, pack
from jaxprefit.data.rows import Rows
from jaxprefit.encoder.cuts import Cuts
from jaxprefit.errors import UserError
from jaxprefit.families.base import Family

PREFETCH = 4  # batches prepared ahead


def check_room(family: Family, layout: Layout) -> None:
    """Raises UserError where a batch may be too small for one example, which would then wait for room for ever, and
    whatever comes after it too."""
    texts, room, name = family.texts_per_example, layout.room(family.max_length), family.name
    if texts > room:
        raise UserError(
            f"data.{name}.rows is {layout.rows}, row_length {layout.length} and max_length {family.max_length}: a "
            f"batch has room for {room} texts of max_length, but an example of {name} has up to {texts}, which stand "
            f"in a batch together; take more rows or a larger row_length, or a smaller max_length"
        )


class Drawn(NamedTuple):
    """A batch, and what the stream has given up to and with it."""

    batch: dict[str, np.ndarray]
    examples: dict[str, int]  # by source
    useful: float  # share of all tokens that are not padding


def shares(sizes: Mapping[str, int], weights: Mapping[str, float], alpha: float, family: str) -> dict[str, float]:
    """Source -> its share of the examples, summing to 1.

    `weights` by source name (1 where a source is not named); without any, in proportion to size ** alpha, so that
    alpha = 1 follows the sizes and alpha = 0 takes from each source alike.
    """
    unknown = set(weights) - set(sizes)
    if unknown:
        raise UserError(f"data.{family}.weights names '{min(unknown)}', which is not a source ({', '.join(sizes)})")
    raw = {name: float(weights.get(name, 1.0) if weights else size**alpha) for name, size in sizes.items()}
    total = sum(raw.values())
    if not (min(raw.values()) >= 0 and 0 < total < math.inf):
        raise UserError(f"data.{family}.weights must be non-negative with a positive sum")
    return {name: value / total for name, value in raw.items()}


def mixture(
    family: Family,
    sources: Sequence[tuple[str, Rows]],
    requested: Mapping[str, float],
    layout: Layout,
    seed: int,
    exhaustion: str = "repeat",
) -> grain.DatasetIterator:
    """A deterministic stream of `family`'s batches, as `Drawn`; `get_state` and `set_state` resume it exactly.

    `requested` are the sources' shares of the examples (`shares`). Each source is shuffled. `exhaustion`: 'repeat'
    shuffles a source anew and goes on when it is used up, so that the stream is endless; 'stop' ends the stream before
    any row would be seen twice. Raises UserError for a source without rows and for batches too small for one example.
    """
    check_room(family, layout)
    parts: list[grain.MapDataset] = []
    for i, (name, rows) in enumerate(sources):
        if not len(rows):
            raise UserError(f"source '{name}' has no rows left for training; it needs more than data.held_out rows")

        def encode(record: dict, name: str = name) -> dict:
            return {**family.encode_record(record, name), "source": name}

        # Grain derives one seed per node from the seed of the source.
        part = grain.MapDataset.source(rows).seed(seed + i).shuffle()
        if exhaustion == "repeat":
            part = part.repeat()
        parts.append(part.map(encode).random_map(family.draw))
    kept = [(part, requested[name]) for part, (name, _) in zip(parts, sources) if requested[name] > 0]
    mixed = grain.MapDataset.mix([p for p, _ in kept], [s for _, s in kept]) if len(kept) > 1 else kept[0][0]
    names = [name for name, _ in sources]
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            Packed(mixed, family, layout, names), prefetch_buffer_size=PREFETCH
        )
    )


class Packed(grain.IterDataset[Drawn]):
    """Batches of packed rows from a random-access stream of encoded examples."""

    def __init__(self, examples: grain.MapDataset, family: Family, layout: Layout, names: Sequence[str]):
        super().__init__()
        self.examples, self.family, self.layout, self.names = examples, family, layout, names

    def __iter__(self) -> "PackedIterator":
        return PackedIterator(self)


class PackedIterator(grain.DatasetIterator[Drawn]):
    """Takes examples until their tokens would fill the batch; what then finds no room comes first in the next one."""

    def __init__(self, data: Packed):
        super().__init__()
        self.data = data
        self.next = 0  # index of the next example
        self.waiting: dict[int, Mapping[str, Any]] = {}  # by index: taken, but not yet given
        self.examples = dict.fromkeys(data.names, 0)
        self.cuts = dict.fromkeys(data.names, Cuts())  # of those examples
        self.batches = self.tokens = 0

    def __next__(self) -> Drawn:
        layout, taken = self.data.layout, dict(self.waiting)
        tokens = sum(map(_tokens, taken.values()))
        texts = sum(len(e["texts"]) for e in taken.values())
        number = self.next
        while tokens < layout.tokens and texts < layout.slots:
            if number >= len(self.data.examples):
                raise StopIteration
            example = self.data.examples[number]
            taken[number] = example
            tokens, texts, number = tokens + _tokens(example), texts + len(example["texts"]), number + 1
        # Those that wait go first, so that none waits for ever; then the largest.
        order = sorted(taken, key=lambda i: (i not in self.waiting, -_tokens(taken[i]), i))
        placed, batch = collate(self.data.family, [taken[i] for i in order], layout)
        chosen = {order[k] for k in placed}
        for i in chosen:
            source = taken[i]["source"]
            self.examples[source] += 1
            self.cuts[source] = self.cuts[source].plus(taken[i]["cuts"])
            self.tokens += _tokens(taken[i])
        self.batches += 1
        self.next, self.waiting = number, {i: taken[i] for i in sorted(taken) if i not in chosen}
        return Drawn(batch, dict(self.examples), self.tokens / (self.batches * layout.tokens))

    def get_state(self) -> dict[str, Any]:
        counts = {"examples": dict(self.examples), "batches": self.batches, "tokens": self.tokens}
        counts["cuts"] = {name: list(cuts) for name, cuts in self.cuts.items()}
        return {"next": self.next, "waiting": list(self.waiting), **counts}

    def set_state(self, state: dict[str, Any]) -> None:
        self.next, self.batches, self.tokens = state["next"], state["batches"], state["tokens"]
        self.examples = dict(state["examples"])
        # A state of before there were these counts goes on from none.
        self.cuts = {name: Cuts(*state.get("cuts", {}).get(name, ())) for name in self.examples}
        self.waiting = {i: self.data.examples[i] for i in state["waiting"]}


def _tokens(example: Mapping[str, Any]) -> int:
    return sum(map(len, example["texts"]))


def collate(
    family: Family, examples: Sequence[Mapping[str, Any]], layout: Layout
) -> tuple[list[int], dict[str, np.ndarray]]:
    """(indices of the examples that found room, taken in the order given; their batch).

    Raises UserError where none did: the family would be trained, or scored, on nothing.
    """
    sizes = [[len(t) for t in e["texts"]] for e in examples]
    placed, packing = pack(sizes, layout)
    if not placed:
        raise UserError(
            f"a batch of {family.name} is empty: an example with texts of {' + '.join(map(str, sizes[0]))} tokens does "
            f"not fit data.{family.name}.rows, {layout.rows}, of row_length {layout.length}; take more or longer rows"
        )
    return placed, family.collate([examples[k] for k in placed], packing)


def held_out_batches(
    family: Family, sources: Sequence[tuple[str, Rows]], layout: Layout, seed: int
) -> list[dict[str, np.ndarray]]:
    """The held-out rows of all sources in one fixed random order, as batches; the last one only if it is full."""
    check_room(family, layout)
    rows = [(name, i, part) for name, part in sources for i in range(len(part))]
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = []
    waiting: list[dict[str, Any]] = []
    for k in order:
        name, i, part = rows[k]
        waiting.append(family.draw(family.encode_record(part[i], name), np.random.default_rng((seed, k))))
        texts = sum(len(e["texts"]) for e in waiting)
        if sum(map(_tokens, waiting)) >= layout.tokens or texts >= layout.slots:
            placed, batch = collate(family, waiting, layout)
            batches.append(batch)
            waiting = [e for k, e in enumerate(waiting) if k not in set(placed)]
    if waiting and not batches:
        batches.append(collate(family, waiting, layout)[1])
    return batches
