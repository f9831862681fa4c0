"""What the names in a study's config stand for: settings of start encoders, variants and modes."""

import copy
import difflib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxprefit.downstream.finetune import MODES, MTEB
from jaxprefit.downstream.tasks import TASKS
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES
from jaxprefit.strategies import names

STRATEGIES = (*names(FAMILIES), "individual", "averaged")
"""Of a variant: those of pre-finetuning, and the two that serve each family with an encoder of its own, or with the
mean of these."""


def overridden(config: ConfigDict, axis: str, name: str, start: str = "") -> ConfigDict:
    """A copy of `config` with the settings that `study.AXIS.NAME` holds, if any, and those in it of the start encoder
    `start`; those of other start encoders, and of one family, are left out."""
    own = config.study[axis].get(name, ConfigDict()).to_dict()
    apart = {*TASKS, *config.study.start}
    c = updated(config, {k: v for k, v in own.items() if k not in apart}, f"study.{axis}.{name}")
    mine = own.get(start, {}) if start in config.study.start else {}
    return updated(c, mine, f"study.{axis}.{name}.{start}")


def updated(config: ConfigDict, changes: Mapping[str, Any], where: str) -> ConfigDict:
    """A copy of `config` with nested `changes`; for a number '*2' is twice what stands in `config`.

    Raises UserError for a setting that does not exist or does not fit.
    """
    c = copy.deepcopy(config)
    known = flatten_dict(without_study(config).to_dict(), sep=".")
    for key, value in flatten_dict(dict(changes), sep=".").items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {where}.{near[0]}?" if near else "see configs/default.py for all settings"
            raise UserError(f"{where}.{key} is not a setting; {hint}")
        before = known[key]
        try:
            if isinstance(before, int | float) and isinstance(value, str) and value.startswith("*"):
                value = type(before)(before * float(value[1:]))
            c.update_from_flattened_dict({key: value})
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}.{key} is {value!r}; {str(error).splitlines()[0]}") from None
    return c


def without_study(config: ConfigDict) -> ConfigDict:
    """A copy without the settings of the study itself: those of one run."""
    c = copy.deepcopy(config)
    with c.unlocked():  # the command line locks a config against typos
        if "study" in c:
            del c.study
    return c


def start_name(path: str) -> str:
    """A name for the start encoder of a study that names none."""
    return pathlib.Path(path).name or "random"


def strategy_of(config: ConfigDict, variant: str) -> str:
    """The strategy that a variant's settings name; else its own name, where that is one; else the config's."""
    own = config.study.variant.get(variant, ConfigDict())
    named = variant in STRATEGIES or variant not in config.study.variant
    return own.get("strategy", variant if named else config.strategy)


def mode_of(config: ConfigDict, mode: str) -> str:
    """Likewise the downstream.mode that a mode of the study is."""
    own = config.study.mode.get(mode, ConfigDict()).get("downstream", ConfigDict())
    named = mode in (*MODES, MTEB) or mode not in config.study.mode
    return own.get("mode", mode if named else config.downstream.mode)


def check(config: ConfigDict) -> None:
    """Raises UserError for what would be left out of account: settings of one family where an encoder serves both, of
    the cells in a variant, of one start in what is no variant, and of LoRA in a mode whose LoRA is the variant's."""
    s = config.study
    for axis, used in (("start", s.starts), ("variant", s.variants), ("mode", s.modes)):
        for name in used:
            where = f"study.{axis}.{name}"
            own = s[axis].get(name, ConfigDict())
            if not isinstance(own, ConfigDict):
                raise UserError(f"{where} is {own!r}; it must hold settings, as {{'optimizer': {{'steps': 100}}}}")
            apart = axis == "variant" and strategy_of(config, name) in ("individual", "averaged")
            if families := [f for f in TASKS if f in own and not apart]:
                raise UserError(f"{where}.{families[0]} is of no use; only a variant of the strategies individual and "
                                f"averaged has an encoder for each family")  # fmt: skip
            if axis != "variant" and (others := [start for start in s.start if start in own]):
                raise UserError(f"{where}.{others[0]} is of no use; only a variant may differ from start to start")
            if axis == "variant" and any("downstream" in block for block in (own, *(own.get(n, ()) for n in s.start))):
                raise UserError(f"{where}.downstream is of no use; the cells of all variants are scored alike, as "
                                f"study.mode.NAME.downstream says")  # fmt: skip
            if axis == "mode" and "lora" in own and mode_of(config, name) == "adapter":
                raise UserError(f"{where}.lora is of no use; in mode adapter the LoRA has the variant's shape")


def method(config: ConfigDict, variant: str) -> str:
    """What a variant is a setting of: its strategy, and the aggregator where it does more than add."""
    strategy = strategy_of(config, variant)
    aggregator = config.study.variant.get(variant, ConfigDict()).get("aggregator", config.aggregator)
    return strategy if aggregator == "sum" or strategy not in ("naive", "task_primary") else f"{strategy}+{aggregator}"


def settings_of(config: ConfigDict, axis: str, name: str) -> dict[str, Any]:
    """Dotted setting -> value that `name` changes, as JSON; of an encoder's path its last part."""
    own = flatten_dict(config.study[axis].get(name, ConfigDict()).to_dict(), sep=".")
    if "model.path" in own:  # where it lies on this machine says nothing elsewhere
        own["model.path"] = start_name(own["model.path"])
    return json.loads(json.dumps(own))
