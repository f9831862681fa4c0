"""What steps do to held-out losses, tried rather than predicted, and the curvature they meet: parts of mode probe."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprefit.conflict import adam_metric, curvature, noise
from jaxprefit.conflict.blocks import interval, number
from jaxprefit.conflict.inner_products import expected
from jaxprefit.conflict.lookahead import look_ahead
from jaxprefit.conflict.probe import Grams
from jaxprefit.conflict.results import Affinity, CurvatureSection, IntervalEstimate, Matrix, TriadReport
from jaxprefit.gram import Flat
from jaxprefit.significance import mean_interval
from jaxprefit.training import optim, train_step

LARGEST_ITERATIONS = 10


Loss = Callable[[str, Flat, Any], jax.Array]


class Inputs(NamedTuple):
    """All of a probe that a look-ahead needs."""

    setup: train_step.Setup
    flat: dict[str, jax.Array]
    shared: Sequence[str]
    gradient: Callable[[str, Any], Flat]  # of a family, on a drawn batch
    streams: Mapping[str, Any]
    held: Mapping[str, Sequence[Any]]  # held-out batches by family
    metric: Flat  # Adam's
    factors: np.ndarray  # [F] of each family's gradient in the run's step
    optimizer: optim.OptimizerConfig
    whole: Grams  # of all shared parameters, in Adam's metric


def measure(given: Inputs, steps: int) -> tuple[Affinity, CurvatureSection] | None:
    """The parts 'affinity' and 'curvature' of a report; None where a family has no held-out batch.

    They are of `steps` updates a family, each from a batch of its own, at the peak learning rate of the run's backbone,
    without momentum.

    The tragic triad is in Adam's metric P, where that update is a plain gradient step: gradients P^1/2 g and Hessians
    P^1/2 H P^1/2 of the sum of the losses, each times its family's factor.
    """
    names, rate = list(given.setup.families), given.optimizer.backbone_lr
    if not all(given.held[name] for name in names):
        return None
    tried, bent, root = [], [], adam_metric.view(given.metric)
    factors = dict(zip(names, given.factors.tolist()))

    def loss(name: str, params: Flat, batch: Any) -> jax.Array:
        return train_step.family_loss(given.setup, name, params, batch, None)[0]

    products = {  # compiled once a family
        name: jax.jit(lambda p, v, batch, name=name: curvature.hessian_vector(lambda q: loss(name, q, batch), p, v))
        for name in names
    }

    def bends(batches: Mapping[str, Any], gradients: Mapping[str, Flat], updates: Mapping[str, Flat]) -> list[float]:
        """Curvature along each family's update; in Adam's metric along the joint one, and the largest."""
        of = {name: (lambda p, v, name=name: products[name](p, v, batches[name])) for name in names}

        def product(p: Flat, v: Flat) -> Flat:
            v = root(v)
            return root(_total(_times(factors[name], one(p, v)) for name, one in of.items()))

        g, u = root(_total(gradients.values())), _total(updates.values())
        own = [curvature.along(of[name], given.flat, updates[name]) for name in names]
        joint = curvature.multi_task_curvature(product, given.flat, u, g)
        return [float(x) for x in (*own, joint, curvature.largest(product, given.flat, g, LARGEST_ITERATIONS))]

    for _ in range(steps):
        drawn = {name: next(given.streams[name]) for name in names}
        gradients = {
            name: _times(factor, {p: g for p, g in given.gradient(name, drawn[name]).items() if p in set(given.shared)})
            for name, factor in factors.items()
        }
        updates = {name: adam_metric.update(g, given.metric, rate) for name, g in gradients.items()}
        found = look_ahead(loss, given.flat, updates, given.held)
        tried.append([np.nanmean(z, 0) for z in found])
        bent.append(bends({name: d.batch for name, d in drawn.items()}, gradients, updates))
    measured, first, second = (_matrix(np.asarray([t[k] for t in tried])) for k in range(3))
    held = {name: len(given.held[name]) for name in names}
    affinity = Affinity(
        steps=steps,
        held_out_batches=held,
        learning_rate=rate,
        measured=measured,
        first_order=first,
        second_order=second,
    )
    *along, joint, lipschitz = np.asarray(bent).T
    triads = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            pair = (expected(given.whole.groups) * np.outer(given.factors, given.factors))[np.ix_((i, j), (i, j))]
            _, *bounds = (float(x) for x in noise.corrected_cosine(given.whole.groups, i, j))
            triad = curvature.tragic_triad(pair, (bounds[0], bounds[1]), joint, lipschitz, rate)
            triads.append(TriadReport(families=(names[i], names[j]), **triad._asdict()))
    return affinity, CurvatureSection(
        steps=steps,
        metric="adam",
        along_update={name: _mean(x) for name, x in zip(names, along)},
        joint=_mean(joint),
        lipschitz=_mean(lipschitz),
        triads=tuple(triads),
    )


def _total(parts: Iterable[Flat]) -> dict[str, jax.Array]:
    """Sum of gradients, or of updates, of the same paths."""
    return jax.tree.map(lambda *x: sum(x[1:], start=x[0]), *map(dict, parts))


def _times(factor: float, parts: Flat) -> dict[str, jax.Array]:
    return {path: factor * x for path, x in parts.items()}


def _matrix(values: np.ndarray) -> Matrix:
    """[steps, F, F] -> [i][j] the mean with its interval over the steps."""
    return tuple(tuple(_mean(values[:, i, j]) for j in range(values.shape[2])) for i in range(values.shape[1]))


def _mean(values: np.ndarray) -> IntervalEstimate:
    """Mean over steps [n] with Student's t interval."""
    _, low, high, _ = mean_interval(values)
    return IntervalEstimate(value=number(np.mean(values), 9), interval=interval(low, high, 9))
