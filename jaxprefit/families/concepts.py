"""Entity types as concepts: readable names, one vocabulary over all sources, and the few that a batch is about.

A vocabulary may hold hundreds of thousands of names (NuNER has 200,000), so nothing here that runs for a batch
grows with it: sources keep sorted index arrays, and a batch carries `most` concepts at most.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np

from jaxprefit.data.builders import Prepared
from jaxprefit.errors import UserError

# What no rule can know. Keys are lower case.
ABBREVIATIONS = {
    "per": "person", "loc": "location", "org": "organization", "misc": "miscellaneous name", "gpe": "country or city",
    "fac": "facility", "veh": "vehicle", "grp": "group", "prod": "product", "ggp": "gene or gene product",
    "chebi": "chemical entity", "so": "sequence feature", "go": "biological process or cell component",
    "cl": "cell type", "taxon": "organism species",
}  # fmt: skip


def concept_name(label: str) -> str:
    """A readable name for an entity type: 'city_of_event' -> 'city of event', 'OtherPER' -> 'other person'."""
    words = re.sub(r"[_\-/]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)).lower().split()
    return " ".join(ABBREVIATIONS.get(w, w) for w in words)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The concepts of several sources."""

    names: tuple[str, ...]  # distinct and sorted; a concept's index is its place here
    index: Mapping[str, Mapping[str, int]]  # source -> label -> concept; two labels may share one
    annotated: Mapping[str, np.ndarray]  # source -> the concepts it annotates, sorted int32

    @classmethod
    def of(cls, sources: Sequence[Prepared]) -> Self:
        """Names from each source's own mapping (`Prepared.names`), else by the rule. Raises UserError for a label
        without a name, and for a source without entities."""
        by_source = {s.name: {t: s.names.get(t) or concept_name(t) for t in s.types} for s in sources}
        for source, labels in by_source.items():
            if not labels:
                raise UserError(f"NER source '{source}' has no entity in any of its rows; leave it out")
            for label, name in labels.items():
                if not name:
                    raise UserError(
                        f"NER source '{source}': no readable name can be made of its entity type '{label}'; "
                        f'write one into a JSON file, {{"{label}": "..."}}, and name it in the source: ?names=FILE'
                    )
        names = tuple(sorted({name for labels in by_source.values() for name in labels.values()}))
        place = {name: i for i, name in enumerate(names)}
        index = {s: {label: place[name] for label, name in labels.items()} for s, labels in by_source.items()}
        annotated = {s: np.unique(np.asarray([*labels.values()], np.int32)) for s, labels in index.items()}
        return cls(names, index, annotated)

    def choose(self, positives: np.ndarray, sources: Iterable[str], most: int) -> np.ndarray:
        """The concepts of one batch, [n <= most] int32, sorted.

        positives: the concept of every entity word, with repetitions; they come first, the commonest before others
        where there are more than `most`. Then come the concepts that the batch's sources annotate: all where they fit,
        else an equal share of the room for each source (small sources first, so that what they leave goes to the
        large), drawn by a generator seeded by `positives`, so that equal batches have equal concepts.
        """
        found, counts = np.unique(positives, return_counts=True)
        chosen = found[np.argsort(-counts, kind="stable")][:most].astype(np.int32)
        pools = sorted((self.annotated[s] for s in sorted(set(sources))), key=len)
        if len(pools[-1]) <= most:
            everything = np.unique(np.concatenate([chosen, *pools]))
            if len(everything) <= most:
                return everything
        rng = np.random.default_rng(zlib.crc32(positives.astype(np.int32).tobytes()))
        for i, pool in enumerate(pools):
            share = (most - len(chosen)) // (len(pools) - i)
            # As many more as could be there already, so that `share` new ones are left.
            drawn = rng.choice(pool, min(len(pool), share + len(chosen)), replace=False)
            chosen = np.concatenate([chosen, drawn[~np.isin(drawn, chosen)][:share]])
        if room := most - len(chosen):  # sources share concepts, so that a later one took what an earlier one left
            left = np.setdiff1d(np.concatenate(pools), chosen)
            chosen = np.concatenate([chosen, rng.choice(left, min(room, len(left)), replace=False)])
        return np.sort(chosen)

    def annotates(self, source: str, concepts: np.ndarray) -> np.ndarray:
        """Which of `concepts` the source annotates, bool of the same shape."""
        return contains(self.annotated[source], concepts)


def contains(pool: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of `values` are in the sorted, non-empty `pool`; in time len(values) * log(len(pool))."""
    return pool[np.minimum(np.searchsorted(pool, values), len(pool) - 1)] == values
