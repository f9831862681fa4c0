"""All measures of `representations` and `layer_probes`, of several encoders on the same texts, as JSON.

A band is {"value", "low", "high"}, each one number per layer, layer 0 being the embeddings; None stands for undefined.
A difference of two encoders is a band with a "verdict" per layer: 'higher' or 'lower' (the second one) where the
interval excludes zero, else 'undecided'.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from jaxprefit.errors import UserError
from jaxprefit.representations import measures as rep
from jaxprefit.representations.hidden import View, hidden_states
from jaxprefit.representations.probes import SCORES, Probe, probe_scores
from jaxprefit.representations.texts import GROUPS, Sample

VERSION = 1
Band = dict[str, list]


def measure(
    views: Sequence[View],
    samples: Sequence[Sample],
    probes: Sequence[Probe],
    settings: Mapping[str, Any],
    seed: int = 0,
    on_step: Callable[[str], Any] = lambda _: None,
) -> dict[str, Any]:
    """What representations.json holds (see experiments/results/README.md); the first view is the one to compare with.

    `settings` is put at its beginning; `on_step` is told what comes next, `steps(...)` times.
    """
    if len({view.config.num_layers for view in views}) > 1:
        depths = ", ".join(f"{view.name}: {view.config.num_layers}" for view in views)
        raise UserError(f"encoders of one depth are compared layer by layer; these have {depths} layers")
    names = [view.name for view in views]
    pairs = list(itertools.combinations(range(len(names)), 2))
    texts = {sample.name: _of_texts(views, sample, pairs, seed, on_step) for sample in samples}
    probed, tasks = _of_probes(views, probes, pairs, on_step)
    differences = [
        {
            "first": names[i],
            "second": names[j],
            "texts": {sample: found[1][k] for sample, found in texts.items()},
            "probes": probed[1][k],
        }
        for k, (i, j) in enumerate(pairs)
    ]
    return {
        "schema": "jaxprefit.representations",
        "version": VERSION,
        **settings,
        "reference": names[0],
        "layers": views[0].config.num_layers,
        "seed": seed,
        "interval_level": rep.LEVEL,
        "samples": {sample.name: sample.describe() for sample in samples},
        "tasks": tasks,
        "measures": {
            name: {"texts": {s: found[0][k] for s, found in texts.items()}, "probes": probed[0][k]}
            for k, name in enumerate(names)
        },
        "differences": differences,
        "hypothesis": {d["second"]: hypothesis(d) for d in differences if d["first"] == names[0]},
    }


def steps(views: Sequence[View], samples: Sequence[Sample], probes: Sequence[Probe]) -> int:
    """How often `measure` calls `on_step`."""
    return len(views) * (len(samples) + len(probes)) + len(samples)


def hypothesis(difference: Mapping[str, Any]) -> dict[str, str | None]:
    """Does the last layer go with "tokens pulled toward their mean cost NER"? By the verdicts of one difference.

    `tokens`: of intra-sentence similarity on NER texts; `ner`: of the NER probes' mean. `verdict`: 'consistent' where
    tokens are nearer and NER is worse, 'opposite' where both are the other way round (the same relation), 'against'
    where they move otherwise, 'undecided' where either is. Two movements side by side are no proof of a cause.
    """
    tokens = difference["texts"].get("ner", {}).get("intra_sentence", {}).get("verdict", [None])[-1]
    ner = difference["probes"].get("ner", {}).get("verdict", [None])[-1]
    verdicts = {("higher", "lower"): "consistent", ("lower", "higher"): "opposite"}
    decided = {tokens, ner} <= {"higher", "lower"}
    return {"tokens": tokens, "ner": ner, "verdict": verdicts.get((tokens, ner), "against") if decided else "undecided"}


def _of_texts(
    views: Sequence[View],
    sample: Sample,
    pairs: Sequence[tuple[int, int]],
    seed: int,
    on_step: Callable[[str], Any],
) -> tuple[list[dict[str, Band]], list[dict[str, Band]]]:
    """(measures of each view, differences of each pair of views) on one sample."""
    text = sample.text_of_token
    tokens, sentences, together, mixed = [], [], [], []
    for view in views:
        on_step(f"{view.name} on {sample.name} texts")
        states = hidden_states(view, sample.texts, sample.keep)
        together.append([_by_record(rep.intra_sentence(layer, text), sample) for layer in states.tokens])
        mixed.append([_by_record(rep.mixed_sentences(layer, text, seed), sample) for layer in states.tokens])
        tokens.append(states.tokens[:, sample.scored])
        sentences.append(states.sentences)
    on_step(f"comparing on {sample.name} texts")
    values = np.asarray(together)  # [V, N + 1, records]
    above = values - np.asarray(mixed)

    of_token, of_text = sample.group[text[sample.scored]], sample.group
    of_pair = of_text[sample.pairs[:, 0]] if len(sample.pairs) else np.zeros(0, int)
    estimates: dict[str, list[rep.Estimate]] = {"effective_rank": [], "uniformity": []}  # by layer, of [V]
    if len(sample.pairs):
        estimates["alignment"] = []
    cka: list[rep.Estimate] = []  # by layer, of [V, V]
    for layer in range(values.shape[1]):
        at, means = [t[layer] for t in tokens], [s[layer] for s in sentences]
        statistics: dict[str, Callable[..., Any]] = {
            "cka": lambda g, at=at: rep.cka([x[g[of_token]] for x in at]),
            "effective_rank": lambda g, at=at: [rep.effective_rank(x[g[of_token]]) for x in at],
            "uniformity": lambda g, m=means: [rep.uniformity(x[g[of_text]]) for x in m],
            "alignment": lambda g, m=means: [rep.alignment(*(x[p[g[of_pair]]] for p in sample.pairs.T)) for x in m],
        }
        cka.append(rep.leave_groups_out(statistics["cka"], GROUPS))
        for name, by_layer in estimates.items():
            by_layer.append(rep.leave_groups_out(statistics[name], GROUPS))

    zero = np.zeros_like(values[0])
    measures = [
        {
            "intra_sentence": _compared(zero, values[v], seed),
            "intra_sentence_excess": _compared(zero, above[v], seed),
            **{name: _estimated([e[v] for e in by_layer]) for name, by_layer in estimates.items()},
        }
        for v in range(len(views))
    ]
    differences = [
        {
            "cka": _estimated([e[i, j] for e in cka], top=1.0),
            "intra_sentence": _with_verdict(_compared(values[i], values[j], seed)),
            "intra_sentence_excess": _with_verdict(_compared(above[i], above[j], seed)),
            **{name: _with_verdict(_estimated([e[j] - e[i] for e in found])) for name, found in estimates.items()},
        }
        for i, j in pairs
    ]
    return measures, differences


def _of_probes(
    views: Sequence[View], probes: Sequence[Probe], pairs: Sequence[tuple[int, int]], on_step: Callable[[str], Any]
) -> tuple[tuple[list[dict[str, Band]], list[dict[str, Band]]], list[dict[str, Any]]]:
    """((bands of each view, differences of each pair), what the tasks are); bands by task, and 'ner' and 'tc': the
    mean over the family's tasks."""
    scores: dict[str, np.ndarray] = {}  # [V, folds, N + 1]
    for probe in probes:
        found = []
        for view in views:
            on_step(f"probing {view.name} on {probe.name}")
            found.append(probe_scores(view, probe))
        scores[probe.name] = np.asarray(found)
    for family in SCORES:
        if of_family := [scores[p.name] for p in probes if p.family == family]:
            scores[family] = np.mean(of_family, 0)
    # A fold whose test texts have no entity has no score, whatever the encoder.
    scores = {name: s[:, np.isfinite(s).all((0, 2))] for name, s in scores.items()}
    measures = [{name: _folded(s[v]) for name, s in scores.items()} for v in range(len(views))]
    differences = [{name: _with_verdict(_folded(s[j] - s[i])) for name, s in scores.items()} for i, j in pairs]
    tasks = [
        {
            "task": p.name,
            "family": p.family,
            "score": SCORES[p.family],
            "classes": p.classes,
            "folds": scores[p.name].shape[1],
            "train_rows": len(p.folds[0][0].texts),
            "test_rows": len(p.folds[0][1].texts),
        }
        for p in probes
    ]
    return (measures, differences), tasks


def _by_record(values: np.ndarray, sample: Sample) -> np.ndarray:
    """[T] -> [records]: mean over the texts of a record, which are not independent."""
    return np.bincount(sample.record, values) / np.bincount(sample.record)


def _compared(first: np.ndarray, second: np.ndarray, seed: int) -> Band:
    """Values [N + 1, records] of two encoders -> band of their mean difference."""
    found = [rep.compare(a, b, seed) for a, b in zip(first, second)]
    return _band([c.difference for c in found], [c.low for c in found], [c.high for c in found])


def _estimated(by_layer: Sequence[rep.Estimate], top: float = np.inf) -> Band:
    low, high = zip(*(e.interval() for e in by_layer))
    return _band([e.value for e in by_layer], low, np.minimum(high, top))


def _folded(scores: np.ndarray) -> Band:
    """Scores [folds, N + 1] of independent folds -> band of their mean, by Student's t."""
    folds = len(scores)
    if folds < 2:
        nothing = np.full(scores.shape[1], np.nan)
        return _band(scores[0] if folds else nothing, nothing, nothing)
    half = scipy.stats.t.ppf((1 + rep.LEVEL) / 2, folds - 1) * scores.std(0, ddof=1) / np.sqrt(folds)
    return _band(scores.mean(0), scores.mean(0) - half, scores.mean(0) + half)


def _band(value: Any, low: Any, high: Any) -> Band:
    def numbers(values: Any) -> list[float | None]:
        return [round(float(x), 6) if np.isfinite(x) else None for x in values]

    return {"value": numbers(value), "low": numbers(low), "high": numbers(high)}


def _with_verdict(band: Band) -> Band:
    def verdict(low: float | None, high: float | None) -> str:
        if low is None or high is None:
            return "undecided"
        return "higher" if low > 0 else "lower" if high < 0 else "undecided"

    return {**band, "verdict": [verdict(*bounds) for bounds in zip(band["low"], band["high"])]}
