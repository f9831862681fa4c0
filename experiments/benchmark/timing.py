"""Times of several things that are to be compared, measured in turns, so that a slow minute falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

Spread = dict[str, float]
"""'median', and the quartiles 'low' and 'high'."""


def interleaved(things: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Name -> seconds of each repetition. A thing must return only when it is done; the first call is not counted."""
    for thing in things.values():
        thing()
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for i in range(repetitions):
        # In turns forwards and backwards, so that none profits from what ran before it.
        for name in list(things)[:: 1 if i % 2 == 0 else -1]:
            begin = time.perf_counter()
            things[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def spread(values: list[float]) -> Spread:
    """The median and the quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def ratios(numerators: list[float], denominators: list[float]) -> Spread:
    """Spread of the quotients of times that were measured in the same repetition."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])
