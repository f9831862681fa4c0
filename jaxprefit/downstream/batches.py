"""Which rows make a batch, and how their texts are packed: few shapes, so that tasks share what is compiled.

A batch is the same set of rows whatever the layout; packing only leaves out padding, so scores are those of padded
batches up to rounding.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxprefit.data.packing import Layout, Placed, pack

TEST_ROWS = 32  # of a packed batch of predictions


def epochs(rows: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Indices of each step's rows: one shuffled pass after another, batches crossing their ends."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < batch_size:
            order.extend(rng.permutation(rows).tolist())
        yield order[:batch_size]
        del order[:batch_size]


def fit(batches: Sequence[Sequence[int]], sizes: Sequence[int], length: int) -> list[Placed]:
    """Each batch of texts whole, all in one layout with the fewest rows that hold them, out of few row counts."""
    orders = [sorted(texts, key=lambda i: -sizes[i]) for texts in batches]
    rows = 0
    while True:
        rows += 4 if rows < 16 else 8
        if any(sum(sizes[i] for i in texts) > rows * length for texts in batches):
            continue
        placed = [pack([[sizes[i]] for i in order], Layout.of(rows, length)) for order in orders]
        if all(len(done) == len(order) for (done, _), order in zip(placed, orders)):
            return [(order, packing) for order, (_, packing) in zip(orders, placed)]
