"""Parts of the report's page about steps: transfer and affinity between families, and the curvature they meet."""

from collections.abc import Sequence

from jaxprefit.conflict.report import figures
from jaxprefit.conflict.report.document import estimate
from jaxprefit.conflict.results import Affinity, CurvatureSection, IntervalEstimate, Matrix, ProbeSection
from jaxprefit.render import html

_IN_ADAM = (
    "All three are in Adam's metric, at the run's own second moments, loss weights and clipping, where its step without"
    " momentum is the plain gradient step that the theorem is about. A condition is undecided where an interval (of the"
    " noise-corrected cosine; of curvature less its bound, over the batches) holds the threshold."
    " The largest curvature is known from below, so that the bound is, too: a 'no' is safer than a 'yes'."
)
_PLAIN = (
    "Left undecided here: this report took gradients and curvature in the plain metric and the step from Adam, which do"
    " not compare. Mode probe measures it anew, all in Adam's metric."
)


def transfer(section: ProbeSection, families: Sequence[str]) -> list[str]:
    """Predicted effects of a step on one family on the others, in the gradient's and in Adam's metric."""
    says = {
        "gradient": "Plain gradients: what a small gradient step on one family does to another's loss, as a share of"
        " what the other's own does for it. 1: as good as its own; below 0: it takes back so much of it.",
        "adam": "In the optimizer's eyes: the same with gradients divided by the run's own second moments, as Adam"
        " does, and weighted and clipped as in the run. Momentum is left out.",
    }
    out = []
    for view, matrix in section.transfer.items():
        cells = [[_shown(entry) for entry in row] for row in matrix]
        alt = f"Transfer between families, {view} metric"
        out += [
            html.paragraph(says[view] + f" From {section.rounds} rounds of two batches a family."),
            html.picture(figures.matrix(families, cells, "share of the own step's effect"), alt),
            html.table(["a step on", *(f"on {f} [95 %]" for f in families)], _rows(families, matrix, 2)),
        ]
    return out


def affinity(section: Affinity, families: Sequence[str]) -> list[str]:
    """Measured effects of tried steps, beside what gradients and curvature predict."""
    held = ", ".join(f"{n} held-out batches of {f}" for f, n in section.held_out_batches.items())
    out = [
        html.paragraph(
            f"Tried: {section.steps} Adam-scaled steps a family, each from one fresh batch, at learning rate"
            f" {section.learning_rate:g}, and the relative fall of every family's loss on {held} (above 0: the step"
            " helps; Fifty et al., 2021). Intervals are over the steps. Beside it what the gradients alone predict, and"
            " with the curvature. The matrices above rest on the gradients alone."
        ),
        html.paragraph(prediction(section, families)),
    ]
    titles = {"measured": "measured", "first_order": "predicted, gradient", "second_order": "predicted, with curvature"}
    for key, title in titles.items():
        scaled = tuple(tuple(entry and _scaled(entry, 100) for entry in row) for row in getattr(section, key))
        header = [f"{title}: a step on", *(f"fall of {f} loss, % [95 %]" for f in families)]
        out.append(html.table(header, _rows(families, scaled, 4)))
    return out


def prediction(section: Affinity, families: Sequence[str]) -> str:
    """Whether the gradients' prediction was met, for each pair of a step and a loss, in words."""
    found: dict[str, list[str]] = {"held": [], "did not hold": [], "undecided": []}
    for one, measured, predicted in zip(families, section.measured, section.first_order):
        for other, m, p in zip(families, measured, predicted):
            found[_met(m, p) if m and p else "undecided"].append(f"{one} on {other}")
    says = "; ".join(f"{word} for {', '.join(which)}" for word, which in found.items() if which)
    return (
        f"The prediction from gradients alone, of a step on one family and the loss of one: {says}. It held"
        " where it lies in a measured interval that excludes zero, and did not hold where the two intervals are apart."
    )


def _met(measured: IntervalEstimate, predicted: IntervalEstimate) -> str:
    (low, high), (predicted_low, predicted_high) = measured.interval, predicted.interval
    if low is None or high is None or predicted_low is None or predicted_high is None:
        return "undecided"
    if predicted_high < low or predicted_low > high:
        return "did not hold"
    within = predicted.value is not None and low <= predicted.value <= high
    return "held" if decided(measured) and within else "undecided"


def curvature(section: CurvatureSection) -> list[str]:
    """Curvatures, and whether the three conditions for harm hold together.

    Without `metric` the section is of an older version, whose conditions mixed plain curvature with Adam's rate.
    """
    adam = section.metric == "adam"
    at = "update, in Adam's metric" if adam else "gradient"
    lines = [[f"of {f}'s loss along its own update", _cell(e, 4)] for f, e in section.along_update.items()]
    lines += [
        [f"of the sum of losses along the joint {at}", _cell(section.joint, 4)],
        ["largest (at least), of the sum of losses" + ", in Adam's metric" * adam, _cell(section.lipschitz, 4)],
    ]
    names = {"conflict": "conflict for their sizes", "curvature": "high curvature", "step": "a step long enough"}
    triads = [
        [" and ".join(t.families), *(_condition(getattr(t, key) if adam else None) for key in (*names, "flag"))]
        for t in section.triads
    ]
    return [
        html.paragraph(
            f"Curvature per unit length, mean over {section.steps} batches. The tragic triad (Yu et al., 2020) asks"
            " for three things at once: gradients that conflict given how their sizes differ, curvature above a bound,"
            " and a step long enough to feel it. " + (_IN_ADAM if adam else _PLAIN)
        ),
        html.table(["curvature", "value [95 %]"], lines),
        html.table(["families", *names.values(), "all three"], triads),
    ]


def decided(entry: IntervalEstimate) -> bool:
    """Whether an estimate's interval is there and excludes zero."""
    low, high = entry.interval
    return entry.value is not None and low is not None and high is not None and low * high > 0


def _shown(entry: IntervalEstimate | None) -> figures.Cell | None:
    if entry is None:  # the diagonal
        return 1.0, (None, None), True
    return None if entry.value is None else (entry.value, entry.interval, decided(entry))


def _rows(families: Sequence[str], matrix: Matrix, digits: int) -> list[list[str]]:
    return [
        [name, *("1 (its own)" if entry is None else _cell(entry, digits) for entry in row)]
        for name, row in zip(families, matrix)
    ]


def _cell(entry: IntervalEstimate, digits: int) -> str:
    return estimate(entry.value, entry.interval, decided(entry), digits)


def _scaled(entry: IntervalEstimate, factor: float) -> IntervalEstimate:
    def times(x: float | None) -> float | None:
        return None if x is None else factor * x

    low, high = entry.interval
    return IntervalEstimate(value=times(entry.value), interval=(times(low), times(high)))


def _condition(holds: bool | None) -> str:
    return "undecided" if holds is None else "yes" if holds else "no"
