"""Ranges of the config's numbers, checked before anything is read, trained or written."""

import functools
import math
import operator
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.datasets import DATASETS
from jaxprefit.data.overlap import LEVELS
from jaxprefit.data.registry import resolve
from jaxprefit.data.sources import MAX_SEED
from jaxprefit.downstream.tasks import TASKS
from jaxprefit.encoder.transformer import REMAT, EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES
from jaxprefit.families.info_nce import MAX_SCALE
from jaxprefit.families.mlm import MASKINGS
from jaxprefit.runtime.paths import user_path
from jaxprefit.surgery import METHODS, SCOPES
from jaxprefit.training.nonfinite import POLICIES
from jaxprefit.training.optim import CLIPS

_NAME = set(string.ascii_letters + string.digits + "_-")  # of a study's parts, which name folders

PATHS = (
    "model.path", "model.vocab_path", "data.root", "data.cache", "data.ner.teacher", "data.ner.teacher_cache"
)  # fmt: skip
NO_PATHS = ("tfds:", "hub:", "generated:", "@")  # how a source begins that is none

EXHAUSTION = ("repeat", "stop")

AT_LEAST = {
    "devices": 0,
    "model.layers": 1,
    "model.hidden": 1,
    "model.heads": 1,
    "model.intermediate": 1,
    "model.max_positions": 4,
    "model.vocab": 100,
    "optimizer.steps": 1,
    "optimizer.warmup_steps": 0,
    "optimizer.backbone_lr": 0,
    "optimizer.lora_lr": 0,
    "optimizer.head_lr": 0,
    "optimizer.weight_decay": 0,
    "data.held_out": 0,
    "data.limit": 0,
    "data.ner.loss_weight": 0,
    "data.ner.alpha": 0,
    "data.ner.rows": 1,
    "data.ner.max_concepts": 1,
    "data.tc.loss_weight": 0,
    "data.tc.alpha": 0,
    "data.tc.rows": 1,
    "data.tc.chunk_rows": 0,
    "data.mlm.loss_weight": 0,
    "data.mlm.alpha": 0,
    "data.mlm.rows": 1,
    "filter.top_k": 1,
    "run.checkpoint_every": 1,
    "run.keep": 1,
    "run.log_every": 1,
    "run.eval_every": 0,
    "run.accumulate": 1,
    "run.profile": 0,
    "run.nonfinite_limit": 1,
    "run.join_within": 1,
    "run.lost_after": 1,
    "conflict.rounds": 4,  # an interval needs that many; 24 are better
    "conflict.lookahead": 0,
    "conflict.windows": 1,
    "conflict.ablation.steps": 1,
    "conflict.ablation.layers": 1,
    "conflict.representations.texts": 20,  # an interval needs that many
    "conflict.representations.tokens": 20,
    "conflict.representations.folds": 2,
    "conflict.representations.fold_rows": 2,
    "downstream.steps": 1,
    "downstream.batch_size": 1,
    "downstream.shots": 0,
    "downstream.limit": 0,
    "downstream.cache_mb": 0,
    "downstream.lora_lr": 0,
    "downstream.head_lr": 0,
    "downstream.backbone_lr": 0,
}
SEEDS = ("seed", "filter.seed", "conflict.seed", "conflict.representations.seed")
ABOVE_ZERO = ("optimizer.clip_norm", "data.tc.temperature", "data.mlm.mask_share", "lora.alpha", "downstream.fraction")
CHOICES = {
    "aggregator_scope": SCOPES,
    "optimizer.clip": CLIPS,
    "conflict.mode": ("probe", "online", "ablate", "represent", "advise", "compare"),
    "data.ner.loss": ("sigmoid", "softmax", "distill"),
    "data.ner.concept_encoder": ("frozen", "trained", "table"),
    "data.ner.exhaustion": EXHAUSTION,
    "data.tc.exhaustion": EXHAUSTION,
    "data.mlm.exhaustion": EXHAUSTION,
    "data.mlm.masking": MASKINGS,
    "run.nonfinite": POLICIES,
    "run.remat": tuple(REMAT),
    "downstream.split": ("test", "dev"),
}
BELOW_ONE = (
    "aggregator_decay", "model.hidden_dropout", "lora.dropout", "optimizer.b1", "optimizer.b2", "data.mlm.mask_share"
)  # fmt: skip


def check(config: ConfigDict) -> None:
    """Raises UserError naming the first setting out of range. What depends on data or encoder is checked with them."""
    for key, low in AT_LEAST.items():
        _require(config, key, functools.partial(operator.le, low), f"at least {low}")
    for key in SEEDS:
        if not is_seed(_get(config, key)):
            raise UserError(f"{key} is {_get(config, key)}; it must be a whole number from 0 to {MAX_SEED:,}")
    for key in ABOVE_ZERO:
        _require(config, key, lambda v: v > 0, "above 0")
    for key in BELOW_ONE:
        _require(config, key, lambda v: 0 <= v < 1, "in [0, 1)")
    _require(config, "downstream.fraction", lambda v: v <= 1, "at most 1")
    if config.optimizer.warmup_steps > config.optimizer.steps:
        raise UserError(
            f"optimizer.warmup_steps is {config.optimizer.warmup_steps}; "
            f"it must not exceed optimizer.steps, {config.optimizer.steps}"
        )
    for axis, size in config.mesh.items():
        if size < 1 and size != -1:
            raise UserError(f"mesh.{axis} is {size}; it must be at least 1, or -1 for what the other axes leave")
    if [*config.mesh.values()].count(-1) > 1:
        raise UserError(
            f"mesh.{' and mesh.'.join(k for k, v in config.mesh.items() if v == -1)} are -1; only one may be"
        )
    for key, choices in CHOICES.items():
        if _get(config, key) not in choices:
            raise UserError(f"{key} is '{_get(config, key)}'; use {', '.join(choices)}")
    if (config.data.ner.loss == "distill") != bool(config.data.ner.teacher):
        raise UserError(
            f"data.ner.loss is '{config.data.ner.loss}' and data.ner.teacher '{config.data.ner.teacher}'; "
            "the loss distill needs a teacher, a Hugging Face directory, and no other loss takes one"
        )
    if config.data.ner.teacher_cache and not config.data.ner.teacher:
        raise UserError(
            f"data.ner.teacher_cache is '{config.data.ner.teacher_cache}', but data.ner.teacher names no teacher"
        )
    if config.data.drop_overlap not in ("", *LEVELS):
        raise UserError(f"data.drop_overlap is '{config.data.drop_overlap}'; use {', '.join(LEVELS)}, or '' for none")
    if config.data.drop_overlap and not (config.downstream.ner or config.downstream.tc):
        raise UserError(
            f"data.drop_overlap is '{config.data.drop_overlap}', but downstream.ner and downstream.tc name no test; "
            "name some, as @suite21"
        )
    for key in ("data.ner.sources", "data.tc.sources", "data.mlm.sources", "downstream.ner", "downstream.tc"):
        if not all(isinstance(item, str) for item in _get(config, key)):
            raise UserError(f"{key} is {tuple(_get(config, key))}; it must hold names in quotes, as ('a','b')")
        _check_paths(key, [item for item in _get(config, key) if not item.startswith(NO_PATHS)])
    for key in PATHS:
        _check_paths(key, filter(None, [_get(config, key)]))
    _check_aggregator(config)
    _check_tc(config)
    if config.filter.sample <= config.filter.top_k:
        raise UserError(f"filter.sample is {config.filter.sample}; it must exceed filter.top_k, {config.filter.top_k}")
    for name, family in FAMILIES.items():  # a name that the registry lacks is told here
        settings = config.data[name]
        resolve(settings.sources, family.of(settings).kind, DATASETS)
    for name, task in TASKS.items():
        resolve(_get(config, f"downstream.{name}"), task.kind, DATASETS)
    for key in ("downstream.seeds", "conflict.ablation.seeds"):
        check_seeds(key, _get(config, key))


def _check_paths(key: str, paths: Iterable[str]) -> None:
    """Raises UserError for one that cannot be a path, before hours of work that would end at it."""
    for path in paths:
        try:
            user_path(path)
        except UserError as e:
            raise UserError(f"{key}: {e}") from None


def check_study(config: ConfigDict) -> None:
    """Raises UserError for seeds, fractions or names of a study; the settings of its runs are for `check`."""
    s = config.study
    check_seeds("study.seeds", s.seeds)
    if not all(isinstance(fraction, int | float) and 0 < fraction <= 1 for fraction in s.fractions):
        raise UserError(f"study.fractions is {tuple(s.fractions)}; each must be a number above 0 and at most 1")
    if not 0 < s.choice.fraction <= 1:
        raise UserError(f"study.choice.fraction is {s.choice.fraction}; it must be above 0 and at most 1")
    for key in ("starts", "variants", "modes"):
        names = s[key]
        if bad := [n for n in names if not (isinstance(n, str) and n and not set(n) - _NAME)]:
            raise UserError(f"study.{key} has {bad[0]!r}; a name has letters, digits, '_' and '-'")


def is_seed(value: Any) -> bool:
    """Whether the value is a whole number that JAX tells from every other: it wraps keys at 32 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED


def check_seeds(key: str, seeds: Sequence[Any]) -> None:
    """Raises UserError for no seed, for what is none, and for one named twice, which would count twice in a mean."""
    if not seeds or not all(map(is_seed, seeds)):
        raise UserError(f"{key} is {tuple(seeds)}; it must hold whole numbers from 0 to {MAX_SEED:,}, as (0,1)")
    if twice := [seed for seed in seeds if list(seeds).count(seed) > 1]:
        raise UserError(f"{key} is {tuple(seeds)}; it names the seed {twice[0]} twice, so name it once")


def check_machine(config: ConfigDict, encoder: EncoderConfig, devices: int) -> None:
    """Raises UserError for a setting that this encoder, or this number of devices on the data axes, does not
    allow."""
    c = config.data.tc
    if c.dims and max(c.dims) >= encoder.hidden_size:
        raise UserError(
            f"data.tc.dims has {max(c.dims)}; each must be below the encoder's {encoder.hidden_size} dimensions"
        )
    if c.chunk_rows % devices:
        raise UserError(f"data.tc.chunk_rows is {c.chunk_rows}; it must be a multiple of the {devices} devices")


def _check_aggregator(config: ConfigDict) -> None:
    if config.aggregator not in METHODS:
        return  # `surgery.get` says so
    reads_gram = METHODS[config.aggregator].reads_gram
    if reads_gram and config.optimizer.clip == "families":
        raise UserError(
            f"optimizer.clip is 'families' and aggregator '{config.aggregator}', which gives the direction of the plain"
            " sum where gradients have one norm; use optimizer.clip=combined"
        )
    if config.aggregator_decay and not reads_gram:
        raise UserError(
            f"aggregator_decay is {config.aggregator_decay}, but aggregator '{config.aggregator}' reads no Gram matrix"
            " that could be averaged; use aggregator_decay=0"
        )


def _check_tc(config: ConfigDict) -> None:
    c = config.data.tc
    if c.objective not in ("contrastive", "supervised"):
        raise UserError(f"data.tc.objective is '{c.objective}'; use contrastive (pairs) or supervised (labelled sets)")
    if c.learn_temperature and c.temperature < 1 / MAX_SCALE:
        raise UserError(
            f"data.tc.temperature is {c.temperature}; to be learned it must start at {1 / MAX_SCALE} or above"
        )
    if not all(isinstance(d, int) and d >= 1 for d in c.dims) or len(set(c.dims)) < len(c.dims):
        raise UserError(f"data.tc.dims is {tuple(c.dims)}; it must hold different whole numbers from 1, as (64,128)")
    if c.chunk_rows and c.rows % c.chunk_rows:
        raise UserError(f"data.tc.chunk_rows is {c.chunk_rows}; it must divide data.tc.rows, {c.rows}")


def _require(config: ConfigDict, key: str, holds: Callable[[float], bool], text: str) -> None:
    value = _get(config, key)
    if not (math.isfinite(value) and holds(value)):
        raise UserError(f"{key} is {value}; it must be {text}")


def _get(config: ConfigDict, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value
