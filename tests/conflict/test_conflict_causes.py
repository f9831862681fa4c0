"""Trends over training, effects of ablations, and the advice drawn from them, on constructed figures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import simulated

from jaxprefit.conflict import ablation, advice, online
from jaxprefit.conflict.results import AblationRow, BlockMeasures, Effect, Groupings, LossChange, PairReport
from jaxprefit.encoder import lora
from jaxprefit.encoder.transformer import LINEAR_MAPS, EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.runtime.results import to_json

# Over training


def logged(cosines: np.ndarray, families: int = 2) -> online.Logged:
    """One block 'layer_0' with these cosines [N] of the first two families at each step, of norms 1 and 2."""
    m = np.tile(np.diag([1.0, 4.0, 1.0][:families]), (len(cosines), 1, 1))
    m[:, 0, 1] = m[:, 1, 0] = 2 * cosines
    tokens = {f: np.full(len(cosines), 100) for f in ("ner", "tc", "mlm")[:families]}
    return online.Logged(np.arange(1, len(cosines) + 1), {"layer_0": m}, tokens)


def test_a_turn_from_agreement_to_conflict_is_seen() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0.05, 0.0, -0.05], 100)
    found = online.content(logged(truth + 0.05 * rng.normal(size=300)), ("ner", "tc"), 3)
    (pair,) = found.pairs
    block = pair.layer["layer_0"]
    windows = block.windows
    assert [w.verdict for w in windows] == ["agreement", "undecided", "conflict"]
    assert [(w.first_step, w.last_step, w.steps) for w in windows] == [
        (1, 100, 100), (101, 200, 100), (201, 300, 100)
    ]  # fmt: skip
    assert windows[0].noise == pytest.approx(0.05, rel=0.2) and windows[0].norm_ratio == 0.5
    low, high = block.change_interval
    assert low < -0.1 < high < 0 and block.change == pytest.approx(-0.1, abs=0.02)
    assert (found.steps, found.tokens_per_step) == (300, {"ner": 100.0, "tc": 100.0})


def test_windows_of_noise_are_rarely_decided() -> None:
    rng = np.random.default_rng(1)
    decided = 0
    for _ in range(40):
        (pair,) = online.content(logged(0.05 * rng.normal(size=100)), ("ner", "tc"), 5).pairs
        decided += any(w.verdict != "undecided" for w in pair.layer["layer_0"].windows)
    assert decided <= 6, "5 % of the runs are expected to show any"


def test_every_pair_of_three_families_has_its_trend() -> None:
    found = online.content(logged(np.full(8, -0.5) + np.linspace(0, 0.1, 8), 3), ("ner", "tc", "mlm"), 2)
    assert [p.families for p in found.pairs] == [("ner", "tc"), ("ner", "mlm"), ("tc", "mlm")]
    verdicts = [p.whole["whole"].windows[0].verdict for p in found.pairs]
    assert verdicts == ["conflict", "undecided", "undecided"]


def test_zero_gradients_are_undecided() -> None:
    one = logged(np.zeros(8))
    one.blocks["layer_0"][3] = 0.0
    found = online.content(one, ("ner", "tc"), 1)
    json.dumps(to_json(found), allow_nan=False)
    (window,) = found.pairs[0].layer["layer_0"].windows
    assert window.verdict == "undecided" and window.cosine is None


def test_a_log_without_gram_matrices_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="is not there"):
        online.read(file, ("ner", "tc"), 9)
    line = {"loss/ner": 1.0, "loss/tc": 1.0, "tokens/ner": 5, "tokens/tc": 5}
    file.write_text("".join(json.dumps({"step": n, **line}) + "\n" for n in range(1, 9)))
    with pytest.raises(UserError, match="Gram matrices of 0 steps"):
        online.read(file, ("ner", "tc"), 9)
    line["gram/layer_0"] = [[1, 0], [0, 1]]
    file.write_text("".join(json.dumps({"step": n, **line}) + "\n" for n in range(1, 9)))
    found = online.read(file, ("ner", "tc"), 6)
    assert found.steps.tolist() == [1, 2, 3, 4, 5, 6] and found.blocks["layer_0"].shape == (6, 2, 2)


# Ablation


def test_layers_are_grouped_and_variants_named() -> None:
    blocks = ["embeddings", "layer_0", "layer_1", "layer_2", "lora/shared"]
    groups = ablation.groups(blocks, 2)
    assert groups == {
        "embeddings": ("embeddings",), "lora/shared": ("lora/shared",),
        "layer_0-1": ("layer_0", "layer_1"), "layer_2": ("layer_2",),
    }  # fmt: skip
    found = ablation.variants(groups, ("ner", "tc"), controls=False)
    assert found[0].name == ablation.PLAIN and not found[0].stopped and len(found) == 1 + 2 * 4
    assert found[1].stopped == {"ner": ("embeddings",)}
    everything = ablation.variants(groups, ("ner", "tc"), controls=True)
    names = [v.name for v in everything]
    assert len(set(names)) == len(names) and all("/" not in n for n in names)
    strategies = {v.name: v.strategy for v in everything}
    assert strategies["alone_ner"] == "individual_ner" and strategies["steps_2"] == ""
    equal_compute = next(v for v in everything if v.name == "alone_tc_steps_2")
    assert equal_compute.factors == {"optimizer.steps": 2.0, "optimizer.warmup_steps": 2.0}


def losses(
    difference: float, seeds: int, batches: int, seed: int, noise: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Plain and changed losses [seeds, batches]; both seeds and batches differ in level and in the change."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(seeds, 1)) + rng.normal(size=(1, batches))
    change = difference + noise * (rng.normal(size=(seeds, 1)) + rng.normal(size=(1, batches)))
    return level, level + change + 0.5 * noise * rng.normal(size=(seeds, batches))


@pytest.mark.parametrize(("seeds", "batches"), [(3, 4), (5, 10), (2, 8)])
def test_intervals_of_effects_cover_the_truth(seeds: int, batches: int) -> None:
    covered = 0
    for seed in range(200):
        found = ablation.effect(*losses(-0.05, seeds, batches, seed))
        low, high = found.interval
        covered += low <= -0.05 <= high
    assert covered >= 0.9 * 200


def test_one_seed_and_one_batch_have_no_interval() -> None:
    assert ablation.effect(np.ones((1, 1)), np.zeros((1, 1))).interval == (None, None)
    low, high = ablation.effect(*losses(-0.5, 1, 6, 0)).interval
    assert low < -0.5 < high < 0
    same = ablation.effect(np.ones((2, 3)), np.ones((2, 3)))
    assert same.interval == (0.0, 0.0) and same.p_value == 1.0


def test_rows_compare_with_the_plain_run() -> None:
    order = ablation.variants({"layer_0": ("layer_0",)}, ("ner", "tc"), controls=True)
    alone = {f"alone_{f}{s}": f for f in ("ner", "tc") for s in ("", "_steps_2")}
    cells = {}
    for v in order:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            shift = -1.0 if v.name == "stop_tc_layer_0" else 0.0
            both = {"ner": (1 + shift + 0.01 * rng.normal(size=4)).tolist(), "tc": (2 + rng.normal(size=4)).tolist()}
            cells[v.name, seed] = {f: x for f, x in both.items() if alone.get(v.name, f) == f}
    rows = {r.variant: r for r in ablation.content(cells, order)}
    assert rows["plain"].effect == {} and rows["plain"].loss["ner"] == pytest.approx(1, abs=0.02)
    stopped = rows["stop_tc_layer_0"].effect
    assert stopped["ner"].verdict == "lower" and stopped["ner"].difference == pytest.approx(-1)
    assert stopped["tc"].verdict == "undecided"
    assert [*rows["alone_ner"].effect] == ["ner"]
    assert advice.ablated(rows["stop_tc_layer_0"]) == ("tc", "costs", ["ner"], "layer_0")
    assert advice.ablated(rows["alone_ner"]) is None


# Advice

ENCODER = EncoderConfig(vocab_size=50, hidden_size=16, num_layers=4, num_heads=2, intermediate_size=32)
DEFAULT = lora.LoraSpec(last_layers=2, rank=8, alpha=16.0)


def block(verdict: str = "undecided", contribution: float | None = None) -> BlockMeasures:
    interval = (None, None) if contribution is None else (contribution - 0.01, contribution + 0.01)
    return simulated.block(verdict=verdict, contribution=contribution, contribution_interval=interval)


def pair(conflicts: dict[int, float], kinds: tuple[str, ...] = LINEAR_MAPS) -> PairReport:
    """A probe's pair: these layers in conflict with these contributions, in these kinds of matrix; others undecided."""
    layer = {f"layer_{n}": block("conflict", conflicts[n]) if n in conflicts else block() for n in range(4)}
    module = {
        f"layer_{n}/{kind}": block("conflict" if n in conflicts and kind in kinds else "undecided")
        for n in range(4)
        for kind in LINEAR_MAPS
    }
    groupings = Groupings(whole={}, layer={"embeddings": block(), **layer}, kind={}, module=module)
    return PairReport(families=("ner", "tc"), blocks=groupings, preconditioned=None)


def stop(layer: int, family: str, verdict: Effect) -> AblationRow:
    """A row of an ablation: `family` stopped on the layer, and what that does to the other's loss."""
    unchanged = LossChange(difference=0.0, interval=(None, None), p_value=None)
    effect = {f: dataclasses.replace(unchanged, verdict=verdict) if f != family else unchanged for f in ("ner", "tc")}
    return AblationRow(variant="v", says="v", stopped={family: (f"layer_{layer}",)}, loss={}, effect=effect)


def test_layers_in_conflict_get_the_adapters() -> None:
    found = advice.advise([pair({0: -0.1, 1: -0.3, 3: -0.05})], None, DEFAULT, ENCODER)
    assert found.decided and found.lora.layers == (0, 1), "two, as many as the default has; the strongest"
    assert found.lora.targets == LINEAR_MAPS
    assert (found.lora.rank, found.lora.alpha) == (8, 16.0)
    assert found.parameters == found.default_parameters == lora.size(DEFAULT, ENCODER)
    assert "not measured" in found.reason and "-0.300 [-0.310, -0.290]" in found.reason
    assert found.evidence[1].contribution_interval == pytest.approx([-0.31, -0.29])
    two = advice.advise([pair({1: -0.3}), pair({1: -0.2})], None, DEFAULT, ENCODER)
    assert "contribution" not in two.reason, "the sum of two pairs has no interval"


def test_fewer_matrices_get_a_higher_rank_for_the_same_parameters() -> None:
    found = advice.advise([pair({1: -0.3}, ("query", "key"))], None, DEFAULT, ENCODER)
    c = found.lora
    assert (c.layers, c.targets) == ((1,), ("query", "key"))
    spec = lora.LoraSpec(c.last_layers, tuple(c.targets), c.rank, c.alpha, 0.0, tuple(c.layers))
    size, one_more = (lora.size(s, ENCODER) for s in (spec, lora.LoraSpec(**{**vars(spec), "rank": spec.rank + 1})))
    assert size == found.parameters <= found.default_parameters < one_more
    assert c.alpha / c.rank == DEFAULT.alpha / DEFAULT.rank


def test_undecided_keeps_the_default_and_says_so() -> None:
    found = advice.advise([pair({})], None, DEFAULT, ENCODER)
    assert not found.decided and found.lora == found.default == advice.placement(DEFAULT)
    assert "does not suffice" in found.reason and "undecided in 4 of 4 layers" in found.reason


def test_no_candidate_is_not_always_for_want_of_data() -> None:
    agreed = pair({0: -0.3})
    for n in (1, 2, 3):
        agreed.blocks.layer[f"layer_{n}"] = block("agreement", 0.2)
    found = advice.advise([agreed], [stop(0, "ner", "higher")], DEFAULT, ENCODER)
    assert not found.decided and "suffice" not in found.reason
    assert "Gradients agree: layers 1, 2, 3." in found.reason and "only raises" in found.reason


def test_ablation_goes_before_gradients() -> None:
    rows = [stop(2, "tc", "lower"), stop(0, "ner", "higher"), stop(1, "tc", "undecided")]
    found = advice.advise([pair({0: -0.9, 1: -0.1, 3: -0.05})], rows, DEFAULT, ENCODER)
    assert found.lora.layers == (1, 2), "layer 0 helps the other family; layer 2 costs it, whatever its gradients"
    assert [e.ablation for e in found.evidence] == ["helps", "undecided", "costs", None]


def test_default_with_few_matrices_is_not_exceeded() -> None:
    small = lora.LoraSpec(last_layers=1, targets=("query",), rank=1)
    found = advice.advise([pair({0: -0.9})], None, small, ENCODER)
    assert found.lora.targets == ("query",) and found.parameters == found.default_parameters
