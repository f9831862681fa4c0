"""Strategies as touch tables: which family's loss may touch which group of parameters.

A strategy is an ordered tuple of rows (group, families). A parameter belongs to the first row that names it, by its
slash-joined path. Optimizer masks and states, the gradients that are taken, the adapter a family runs through, the
checkpoint items, the printed counts and the tests all derive from this one table. A parameter that no row names is
an error. A row with no families is frozen; a row with several is shared, and an aggregator combines their gradients
(`surgery`).

    task_primary for (ner, tc):        lora/*/scale   -
                                       head/ner/concepts   -
                                       backbone       ner, tc
                                       lora/ner       ner
                                       lora/tc        tc
                                       head/ner       ner
                                       head/tc        tc
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Mapping

from flax.traverse_util import flatten_dict

from jaxprefit.errors import UserError

Table = tuple[tuple[str, tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A named touch table."""

    name: str
    table: Table

    def group_of(self, path: str) -> str:
        """The row a parameter belongs to. Raises KeyError for a path that no row names."""
        for group, _ in self.table:
            # A row names a whole subtree, or with '*' every path of that form.
            if path == group or path.startswith(group + "/") or fnmatch.fnmatchcase(path, group):
                return group
        rows = ", ".join(group for group, _ in self.table)
        raise KeyError(f"strategy '{self.name}': no row of the touch table names the parameter {path} (rows: {rows})")

    def touched_by(self, path: str) -> tuple[str, ...]:
        """The families whose loss may touch the parameter at `path`."""
        return dict(self.table)[self.group_of(path)]

    @property
    def families(self) -> tuple[str, ...]:
        """The families that are trained at all, in table order."""
        return tuple(dict.fromkeys(f for _, touching in self.table for f in touching))

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA groups."""
        return tuple(g.removeprefix("lora/") for g, _ in self.table if g.startswith("lora/") and "*" not in g)

    def adapter_of(self, family: str) -> str | None:
        """The adapter through which `family`'s batches run: the one it may touch. None: the bare backbone."""
        for group, touching in self.table:
            if group.startswith("lora/") and family in touching:
                return group.removeprefix("lora/")
        return None

    def counts(self, params: Mapping) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Group -> (number of entries, families that train it)."""
        sizes = dict.fromkeys((group for group, _ in self.table), 0)
        for path, leaf in flatten_dict(params, sep="/").items():
            sizes[self.group_of(path)] += leaf.size
        return {group: (sizes[group], touching) for group, touching in self.table}


def trainable_and_total(counts: Mapping[str, tuple[int, tuple[str, ...]]]) -> tuple[int, int]:
    """Trainable and all parameters of `Strategy.counts`; constants count in the total only."""
    return sum(n for n, touching in counts.values() if touching), sum(n for n, _ in counts.values())


def make(name: str, families: Iterable[str], constants: Iterable[str] = (), encoders: Iterable[str] = ()) -> Strategy:
    """The strategy `name` over `families`; `constants` are paths of head leaves that are never trained, `encoders` of
    subtrees of a head that get a row of their own ('.../encoder'), so that they are trained as a backbone is.

    Raises UserError for an unknown name.
    """
    families = tuple(families)
    adapters: dict[str, tuple[str, ...]] = {}
    trained, backbone = families, families
    if name == "none":
        trained = backbone = ()
    elif name in (f"individual_{f}" for f in families):
        trained = backbone = (name.removeprefix("individual_"),)
    elif name == "task_primary":
        adapters = {f: (f,) for f in families}
    elif name == "shared_lora":
        adapters = {"shared": families}
    elif name == "frozen_lora":
        adapters, backbone = {f: (f,) for f in families}, ()
    elif name != "naive":
        known = names(families)
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise UserError(f"strategy '{name}' is unknown; {hint}")
    rows: list[tuple[str, tuple[str, ...]]] = [("lora/*/scale", ())] if adapters else []
    rows += [(c, ()) for c in constants if c.split("/")[1] in trained]
    rows += [(e, (e.split("/")[1],)) for e in encoders if e.split("/")[1] in trained]
    rows += [("backbone", backbone)]
    rows += [(f"lora/{adapter}", touching) for adapter, touching in adapters.items()]
    rows += [(f"head/{f}", (f,)) for f in trained]
    return Strategy(name, tuple(rows))


def names(families: Iterable[str]) -> list[str]:
    """All strategy names over `families`."""
    return [
        "none", *(f"individual_{f}" for f in families), "naive", "task_primary", "shared_lora", "frozen_lora"
    ]  # fmt: skip
