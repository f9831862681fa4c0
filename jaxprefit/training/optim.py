"""A touch table -> one AdamW per group of parameters, each with a state of its own.

Everything is one `optax.partition` whose labels are the table's rows. A group's state advances only in a step that
trained it (`apply_gradients`): a zero gradient is not "no update", since momentum and decay would still move it.
Frozen groups hold no moments.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from jaxprefit.strategies import Strategy

Flat = dict[str, jax.Array]
"""Parameters or gradients by slash-joined path."""
CLIPS = ("auto", "families", "combined")
"""What is clipped: each family's gradients before they are combined, or the combined update (`combined_factors`). See
`OptimizerConfig.clipped`."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and linear decay to zero."""

    steps: int = 300
    warmup_steps: int = 30
    backbone_lr: float = 5e-5
    lora_lr: float = 5e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01  # on kernels and embedding tables only
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: str = "auto"  # one of CLIPS
    clip_norm: float = 1.0

    def clipped(self, reads_gram: bool) -> str:
        """'families' or 'combined', for an aggregator that reads the Gram matrix or one that does not.

        By itself 'combined' where it is read, since families clipped to one norm leave nothing to weigh (`surgery`),
        and else 'families', which gives each an equal say whatever the scale of its loss
        (experiments/results/clipping.md).
        """
        return self.clip if self.clip != "auto" else "combined" if reads_gram else "families"


def schedule(group: str, cfg: OptimizerConfig) -> optax.Schedule:
    """Learning rate of a group against the number of updates that group has had."""
    kind = "backbone" if group.endswith("/encoder") else group.split("/")[0]
    peak = {"backbone": cfg.backbone_lr, "lora": cfg.lora_lr, "head": cfg.head_lr}[kind]
    decay = optax.linear_schedule(peak, 0.0, max(cfg.steps - cfg.warmup_steps, 1))
    if not cfg.warmup_steps:
        return decay
    # The first update already moves: warm-up runs over 1/n, 2/n, ..., 1 of the peak.
    warmup = optax.linear_schedule(peak / cfg.warmup_steps, peak, max(cfg.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [cfg.warmup_steps])


def make_optimizer(strategy: Strategy, params: Flat, cfg: OptimizerConfig) -> optax.GradientTransformation:
    """The partitioned optimizer over flat `params`. Raises KeyError where no row names a parameter."""

    def adamw(group: str) -> optax.GradientTransformation:
        def decayed(tree: Flat) -> dict[str, bool]:
            return {path: path.endswith(("/kernel", "/embedding")) for path in tree}

        return optax.adamw(schedule(group, cfg), cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=decayed)

    transforms = {group: adamw(group) if touching else optax.set_to_zero() for group, touching in strategy.table}
    return optax.partition(transforms, {path: strategy.group_of(path) for path in params})


def clip(grads: Flat, max_norm: float) -> tuple[Flat, jax.Array, jax.Array]:
    """One family's gradients scaled to at most `max_norm`; their norm before, and the factor applied (float32)."""
    norm = optax.global_norm(grads)
    factor = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    return {path: g * factor for path, g in grads.items()}, norm, factor


def combined_factors(combined: Flat, gradients: Mapping[str, Collection[str]], max_norm: float) -> dict[str, jax.Array]:
    """Path -> the factor (float32 scalar) that clips the combined update there to at most `max_norm`.

    `gradients` names the paths that each family of the step has gradients of. Parameters moved by the same set of
    families are clipped together: the shared ones by one norm, and what a family alone touches by another. So one
    family's outlier does not shorten the step of parameters that it must not touch, and a family that trains alone is
    clipped over all that it touches, as in `clip`.
    """
    sets: dict[tuple[str, ...], Flat] = {}
    for path, g in combined.items():
        sets.setdefault(tuple(name for name, paths in gradients.items() if path in paths), {})[path] = g
    return {path: factor for part in sets.values() for factor in [clip(part, max_norm)[2]] for path in part}


def apply_gradients(
    tx: optax.GradientTransformation,
    strategy: Strategy,
    params: Flat,
    opt_state: optax.OptState,
    grads: Flat,
    present: Iterable[str],
) -> tuple[Flat, optax.OptState]:
    """One update of the groups that the families `present` touch; every other group and its state stay as they are.

    `grads` holds a combined gradient for each parameter of those groups and nothing else.
    """
    present = set(present)
    active = {group for group, touching in strategy.table if present & set(touching)}
    full = {path: grads[path] if path in grads else jnp.zeros_like(p) for path, p in params.items()}
    updates, new_state = tx.update(full, opt_state, params)
    inner: Mapping = opt_state.inner_states
    new_inner = {g: s if g in active else inner[g] for g, s in new_state.inner_states.items()}
    new_params = {
        path: p + updates[path].astype(p.dtype) if strategy.group_of(path) in active else p
        for path, p in params.items()
    }
    return new_params, new_state._replace(inner_states=new_inner)
