"""The grid of a study, from one config: which encoders are trained, and which cells are scored with each.

Starts, variants and modes are names; a name stands for the settings under `study.start.NAME`, `study.variant.NAME` or
`study.mode.NAME`, which go before those of the config; '*2' for a number doubles what it would be. A variant whose
settings name no strategy is the strategy of its name, a mode likewise the downstream.mode.

A variant serves each family with some encoder: one for both, or for the variant `individual` one each, `individual_ner`
and `individual_tc`. `averaged` is the mean of these two backbones. Settings of these two under `ner` or `tc`, as in
`study.variant.individual.tc.optimizer.steps`, are of that family's encoder alone; settings under the name of a start
encoder, as in `study.variant.NAME.minilm.lora.last_layers`, are of that start alone. Variants that come to the same
settings share an encoder, and modes that come to the same share cells: stacked and adapter, for one without LoRA.

Where a strategy has several variants, these are scored on development rows too, as `study.choice` says, to choose
the one that stands for it.

A difference between two variants is taken at equal downstream capacity: in mode adapter, the encoders of `REFERENCES`
are scored with the LoRA shape of every variant that is compared with them.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from experiments.common.tasks import task_sources
from experiments.study.variant_settings import (
    check,
    method,
    mode_of,
    overridden,
    start_name,
    strategy_of,
    updated,
    without_study,
)
from jaxprefit.downstream.finetune import MTEB
from jaxprefit.downstream.tasks import TASKS
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES
from jaxprefit.strategies import make

REFERENCES = ("none", "individual", "naive")
"""The variants that every other one is compared with, where the study has them."""


Encoders = Mapping[str, "tuple[Run, ...]"]
"""Family -> the runs that serve it, one a pre-finetuning seed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One encoder: pre-finetuned by `config`, or the mean of the backbones of `parts`."""

    folder: str  # under the study's workdir
    config: ConfigDict
    parts: tuple["Run", ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """The cells of one run and recipe: the tasks of one family in `config.downstream`, with each seed there."""

    folder: str  # under the study's workdir
    run: Run
    config: ConfigDict

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of sources."""
        return tuple(name for _, name in task_sources(self.config))

    @property
    def cells(self) -> int:
        """Their number."""
        return len(self.tasks) * len(self.config.downstream.seeds)


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One place of the main table, with its scorings by pre-finetuning seed, and those it is compared with."""

    start: str
    mode: str
    fraction: float  # of the training labels
    variant: str
    family: str
    scorings: tuple[Scoring, ...]
    references: Mapping[str, tuple[Scoring, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """All of a study."""

    runs: tuple[Run, ...]  # the parts of an average before it
    scorings: tuple[Scoring, ...]
    entries: tuple[Entry, ...]
    encoders: Mapping[tuple[str, str], Encoders]  # by start and variant
    choices: Mapping[tuple[str, str], Mapping[str, tuple[Scoring, ...]]]  # likewise, by family: on development rows


def expand(config: ConfigDict) -> Grid:
    """The grid that `config` describes. Raises UserError for a name or setting that does not exist."""
    s = config.study
    for key in ("starts", "variants", "modes", "fractions", "seeds"):
        if len(set(s[key])) < len(s[key]) or not (s[key] or key == "starts"):
            raise UserError(f"study.{key} is {tuple(s[key])}; it must name something, each once")
    if unknown := [name for name in s.starts if name not in s.start]:
        raise UserError(f"study.starts has '{unknown[0]}', but there is no study.start.{unknown[0]}")
    if taken := [name for name in s.start if name in config or name in TASKS]:
        raise UserError(f"study.start.{taken[0]} has the name of a setting or family; give the start encoder another")
    check(config)
    families = tuple(dict.fromkeys(family for family, _ in task_sources(config)))
    if "tc" not in families and (texts := [mode for mode in s.modes if mode_of(config, mode) == MTEB]):
        raise UserError(f"study.modes has '{texts[0]}', which classifies texts alone; name some in downstream.tc")
    runs: dict[str, Run] = {}
    scorings: dict[str, Scoring] = {}
    encoders: dict[tuple[str, str], Encoders] = {}
    entries: list[Entry] = []
    choices: dict[tuple[str, str], dict[str, tuple[Scoring, ...]]] = {}
    for start in s.starts or (start_name(config.model.path),):
        base = overridden(config, "start", start)
        served: dict[str, Encoders] = {}
        for variant in s.variants:
            made = [variant_runs(base, start, variant, seed, families, runs) for seed in seeds(base, variant)]
            served[variant] = encoders[start, variant] = {f: tuple(m[f] for m in made) for f in families}
        for mode in s.modes:
            whole = _recipe(base, mode).downstream.shots > 0  # a number of rows, not a share
            for fraction in (1.0,) if whole else s.fractions:
                recipe = _recipe(base, mode, fraction)
                for family in (f for f in families if f == "tc" or recipe.downstream.mode != MTEB):
                    entries += _entries(start, mode, recipe, family, served, scorings)
        for variant in rivals(config):
            choices[start, variant] = _development(base, served[variant], scorings)
    return Grid(tuple(runs.values()), tuple(scorings.values()), tuple(entries), encoders, choices)


def _development(base: ConfigDict, encoders: Encoders, scorings: dict[str, Scoring]) -> dict[str, tuple[Scoring, ...]]:
    """By family, the scorings on development rows by which a variant is chosen; new ones are added."""
    choice = base.study.choice
    recipe = _recipe(base, choice.mode, choice.fraction)
    if recipe.downstream.mode == MTEB:
        raise UserError(f"study.choice.mode is '{choice.mode}', which classifies texts alone; choose another, as probe")
    recipe.downstream.split = "dev"
    return {
        family: tuple(
            scoring(run, recipe, f"{choice.mode}-{choice.fraction:g}-{family}", family, run.config.lora, scorings)
            for run in runs
        )
        for family, runs in encoders.items()
    }


def _recipe(base: ConfigDict, mode: str, fraction: float = 1.0) -> ConfigDict:
    """The settings of the cells of a mode and share of the labels."""
    recipe = without_study(overridden(base, "mode", mode))
    recipe.downstream.mode, recipe.downstream.fraction = mode_of(base, mode), fraction
    return recipe


def rivals(config: ConfigDict) -> tuple[str, ...]:
    """The variants of the study that are not the only one of their strategy."""
    methods = [method(config, v) for v in config.study.variants]
    return tuple(v for v, m in zip(config.study.variants, methods) if methods.count(m) > 1)


def _entries(
    start: str,
    mode: str,
    recipe: ConfigDict,
    family: str,
    served: Mapping[str, Encoders],
    scorings: dict[str, Scoring],
) -> list[Entry]:
    """Of every variant, for one family; new scorings are added."""
    fraction, out = recipe.downstream.fraction, []
    name = f"{mode}-{fraction:g}-{family}"
    for variant, encoders in served.items():
        shape = encoders[family][0].config.lora
        found = {
            v: tuple(scoring(run, recipe, name, family, shape, scorings) for run in e[family])
            for v, e in served.items()
            if v == variant or v in REFERENCES
        }
        mine = found.pop(variant)
        out.append(Entry(start, mode, fraction, variant, family, mine, found))
    return out


def variant_runs(
    base: ConfigDict, start: str, variant: str, seed: int, families: Iterable[str], runs: dict[str, Run]
) -> dict[str, Run]:
    """Family -> the run that serves it; new ones are added to `runs`, by what they are made of."""
    config = overridden(base, "variant", variant, start)
    own = base.study.variant.get(variant, ConfigDict()).to_dict()
    strategy = strategy_of(base, variant)
    config.seed = seed
    if strategy not in ("individual", "averaged"):
        run = _run(config, strategy, f"{start}/{variant}-seed{seed}", runs)
        return dict.fromkeys(families, run)
    name = variant if own.keys() - {"strategy"} else "individual"
    if name != variant:  # without settings of its own: the parts are the study's individual encoders
        own = base.study.variant.get(name, ConfigDict()).to_dict()
        config = overridden(base, "variant", name, start)
        config.seed = seed
    alone = {}
    for family in TASKS if strategy == "averaged" else families:
        c = updated(config, own.get(family, {}), f"study.variant.{name}.{family}")
        alone[family] = _run(c, f"individual_{family}", f"{start}/{name}_{family}-seed{seed}", runs)
    if strategy == "individual":
        return alone
    parts = tuple(alone.values())
    key = "mean of " + ", ".join(part.folder for part in parts)
    mean = runs.setdefault(key, Run(f"{start}/{variant}-seed{seed}", without_study(config), parts))
    return dict.fromkeys(families, mean)


def _run(config: ConfigDict, strategy: str, folder: str, runs: dict[str, Run]) -> Run:
    c = without_study(config)
    c.strategy = strategy
    key = folder.partition("/")[0] + c.to_json_best_effort(sort_keys=True)
    if key not in runs and any(run.folder == folder for run in runs.values()):
        raise UserError(f"two encoders of the study would both be {folder}; give one of the variants another name")
    return runs.setdefault(key, Run(folder, c))


def seeds(base: ConfigDict, variant: str) -> tuple[int, ...]:
    """Of pre-finetuning. What is not trained and not random has but one."""
    alike = variant == "none" and base.model.path
    return tuple(base.study.seeds[:1] if alike else base.study.seeds)


def adapter_of(run: Run, family: str) -> str | None:
    """The LoRA of the run's encoder that serves `family`, if it has one."""
    return None if run.parts else make(run.config.strategy, FAMILIES).adapter_of(family)


def scoring(
    run: Run, recipe: ConfigDict, name: str, family: str, shape: ConfigDict, scorings: dict[str, Scoring]
) -> Scoring:
    """The cells of `run` for one family, in mode adapter with a LoRA of `shape`; the folder tells where that is not the
    usual."""
    if recipe.downstream.mode == "stacked" and name.startswith("stacked-") and not adapter_of(run, family):
        # Nothing to put the fresh LoRA on top of: the cells of mode adapter.
        recipe, name, shape = copy.deepcopy(recipe), name.replace("stacked", "adapter", 1), recipe.lora
        recipe.downstream.mode = "adapter"
    other = recipe.downstream.mode == "adapter" and shape != recipe.lora
    if other:
        name += "-lora" + hashlib.sha256(shape.to_json_best_effort().encode()).hexdigest()[:6]
    split = "-dev" if recipe.downstream.split == "dev" else ""  # beside the test's, so that both are kept
    folder = f"{run.folder}/downstream/{name}{split}"
    c = copy.deepcopy(recipe)
    if other:
        c.lora = copy.deepcopy(shape)
    for unscored in (f for f in TASKS if f != family):
        c.downstream[unscored] = ()
    found = scorings.setdefault(folder, Scoring(folder, run, c))
    if found.config != c:
        raise UserError(f"two recipes would both have their cells in {folder}; give the mode another name")
    return found


def shard(grid: Grid, text: str) -> tuple[Run, ...]:
    """The runs of shard 'i/n', all for '', none for 'none'. An average is in the shard of its parts; the rest is dealt
    out in turn."""
    if not text:
        return grid.runs
    if text == "none":
        return ()
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UserError(f"--shard is '{text}'; write it as 1/4 for the first of four, or none")
    together: list[list[Run]] = []
    for run in grid.runs:
        joined = [group for group in together if any(part in group for part in run.parts)]
        for group in joined:
            together.remove(group)
        together.append([*(r for group in joined for r in group), run])
    return tuple(run for group in together[int(i) - 1 :: int(n)] for run in group)
