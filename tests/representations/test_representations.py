"""Measures of hidden states on constructed vectors, linear probes, and the report from tiny runs to its files."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import run
from helpers.schemas import assert_valid
from hypothesis import given
from hypothesis import strategies as st

import jaxprefit
from experiments import representations
from experiments.common import assembly, prefinetuning
from experiments.conflict.hidden_states import measure_models
from jaxprefit.errors import UserError
from jaxprefit.representations import figures, report
from jaxprefit.representations import measures as rep
from jaxprefit.representations.comparison import hypothesis
from jaxprefit.representations.hidden import hidden_states, ordinary_tokens, views
from jaxprefit.representations.probes import macro_f1, predict


def normal(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def rotation(seed: int, d: int) -> np.ndarray:
    return np.linalg.qr(normal(seed, d, d))[0]


# Linear CKA


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_cka_is_one_for_rotations_scalings_and_offsets(seed: int, scale: float) -> None:
    x = normal(seed, 60, 8) * np.arange(1, 9)
    moved = scale * x @ rotation(seed, 8) + 3.0
    np.testing.assert_allclose(rep.cka([x, moved]), 1.0, atol=1e-9)


def test_cka_of_independent_vectors_is_about_zero_even_for_few_of_them() -> None:
    found = [rep.cka([normal(seed, 60, 50), normal(seed + 100, 60, 50)])[0, 1] for seed in range(40)]
    assert abs(np.mean(found)) < 0.02  # the plain ratio is 0.45 there
    assert np.std(found) < 0.1


def test_cka_is_made_of_unbiased_hsic() -> None:
    """From the definition of Song et al. in n x n kernel matrices."""
    n = 30
    x = normal(0, n, 12)
    y = x[:, :5] + normal(1, n, 5)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        k, q = (m @ m.T - np.diag(np.sum(m * m, 1)) for m in (a, b))
        one = np.ones(n)
        cross = (one @ k @ one) * (one @ q @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ q) + cross - 2 / (n - 2) * one @ k @ q @ one) / (n * (n - 3))

    wanted = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    found = rep.cka([x, y])
    np.testing.assert_allclose(found, [[1.0, wanted], [wanted, 1.0]], rtol=1e-9)


def test_cka_of_constant_vectors_is_undefined() -> None:
    assert np.isnan(rep.cka([np.ones((10, 3)), normal(0, 10, 3)])[0, 1])


# Within a sentence


def test_identical_tokens_are_their_mean() -> None:
    text = np.repeat([0, 1, 2], [2, 5, 9])
    np.testing.assert_allclose(rep.intra_sentence(normal(0, 3, 7)[text], text), 1.0)


def test_intra_sentence_by_hand() -> None:
    tokens = np.asarray([[1.0, 0], [0, 1], [2, 0], [0, -4], [0, 4]])
    # (1, 0) and (0, 1) are 45 degrees from their mean; the others' mean is (2, 0) / 3, to which two are orthogonal.
    np.testing.assert_allclose(
        rep.intra_sentence(tokens, np.asarray([0, 0, 1, 1, 1])), [np.sqrt(0.5), 1 / 3], atol=1e-12
    )


def test_mixed_sentences_are_the_level_of_length_and_common_direction() -> None:
    text = np.repeat(np.arange(80), 10)
    common = normal(0, 800, 30) + 2.0  # one direction for all, nothing of the sentence
    own = normal(1, 80, 30)[text] * 2 + common
    for tokens, above in ((common, False), (own, True)):
        excess = rep.intra_sentence(tokens, text) - rep.mixed_sentences(tokens, text, 0)
        found = rep.compare(np.zeros(80), excess)
        assert (found.low > 0) == above, (found, above)
    assert rep.intra_sentence(common, text).mean() > 0.9


def test_compare_tells_pulled_tokens_from_unchanged_ones() -> None:
    text = np.repeat(np.arange(60), np.tile([3, 8, 15], 20))
    tokens = normal(0, len(text), 20)
    means = np.stack([tokens[text == t].mean(0) for t in range(60)])
    pulled = tokens + 0.3 * means[text]
    before, after = (rep.intra_sentence(t, text) for t in (tokens, pulled))
    found = rep.compare(before, after)
    assert 0 < found.low < found.difference < found.high
    assert found.difference == pytest.approx((after - before).mean())
    turned = rep.compare(before, rep.intra_sentence(tokens @ rotation(1, 20) * 5, text))
    assert abs(turned.difference) < 1e-12


def test_intervals_of_a_comparison_cover() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sentence = rng.normal(size=50)  # moves both encoders, and must cancel
        found = rep.compare(sentence + rng.normal(size=50) * 0.1, sentence + 0.05 + rng.normal(size=50) * 0.1, seed)
        covered += found.low <= 0.05 <= found.high
        assert found.high - found.low < 0.12
    assert covered / 200 > 0.88  # 95 % promised; the bootstrap of 50 falls a little short


# Spread


@given(rank=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_effective_rank_of_a_flat_spectrum_is_its_rank(rank: int, seed: int) -> None:
    columns = np.linalg.qr(np.c_[np.ones(40), normal(seed, 40, 8)])[0][:, 1 : rank + 1]  # orthonormal, of mean zero
    assert rep.effective_rank(3.0 * columns @ rotation(seed, 8)[:rank] + 1.0) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_known_spectra() -> None:
    columns = np.linalg.qr(np.c_[np.ones(40), normal(0, 40, 3)])[0][:, 1:]
    spectrum = np.asarray([4.0, 2.0, 2.0])
    p = spectrum / 8
    for x in (columns * spectrum, (columns * spectrum) @ rotation(1, 60)[:3]):  # more rows, more columns
        assert rep.effective_rank(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert np.isnan(rep.effective_rank(np.ones((5, 3))))


def test_alignment_and_uniformity_of_constructed_points() -> None:
    e = np.eye(3)
    assert rep.alignment(e, 7 * e) == pytest.approx(0.0)
    assert rep.alignment(e, e[[1, 2, 0]]) == pytest.approx(2.0)
    assert rep.alignment(e, -e) == pytest.approx(4.0)
    assert rep.uniformity(np.ones((4, 3))) == pytest.approx(0.0)
    assert rep.uniformity(e * [[1], [5], [9]]) == pytest.approx(-4.0)  # all pairs at squared distance 2
    even = rep.uniformity(normal(0, 500, 64))
    assert even == pytest.approx(-3.87, abs=0.02)  # of the sphere in 64 dimensions
    assert even < rep.uniformity(normal(0, 500, 64) + 1.0)


def test_jackknife_intervals_cover() -> None:
    group = np.arange(60) % 10
    covered = 0
    for seed in range(200):
        x = normal(seed, 60, 1)[:, 0] + 1.0
        low, high = rep.leave_groups_out(lambda g, x=x: x[g[group]].mean(), 10).interval()
        covered += low <= 1.0 <= high
    assert 0.9 < covered / 200 < 0.995


def test_differences_of_estimates_are_paired() -> None:
    group, x = np.arange(60) % 10, normal(0, 60, 1)[:, 0]
    both = rep.leave_groups_out(lambda g: np.asarray([x[g[group]].mean(), x[g[group]].mean() + 2.0]), 10)
    change = both[1] - both[0]
    np.testing.assert_allclose([change.value, *change.interval()], 2.0)


# Probes


def test_probes_separate_what_is_separable() -> None:
    means = 3 * rotation(0, 20)[:3]
    labels = np.arange(300) % 3
    vectors = normal(1, 300, 20) + means[labels]
    named = np.asarray(["O", "person", "place"])[labels]
    assert np.mean(predict(vectors[:200], named[:200], vectors[200:]) == named[200:]) > 0.95
    noise = normal(2, 300, 20)
    assert np.mean(predict(noise[:200], named[:200], noise[200:]) == named[200:]) < 0.6
    # A rare class counts like the others.
    rare = np.r_[np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:8]]
    known = labels < 2
    assert macro_f1(named[known], predict(vectors[rare], named[rare], vectors[known])) > 0.9
    assert (predict(vectors[:9:3], named[:9:3], vectors) == "O").all()  # one class only


def test_macro_f1_leaves_out_what_is_no_entity() -> None:
    true = np.asarray(["O", "O", "O", "a", "a", "b"])
    assert macro_f1(true, np.asarray(["O", "O", "O", "a", "a", "O"])) == pytest.approx(0.5)
    assert np.isnan(macro_f1(true[:3], true[:3]))


# The hypothesis


@pytest.mark.parametrize(
    "tokens, ner, verdict",
    [
        ("higher", "lower", "consistent"),
        ("lower", "higher", "opposite"),
        ("higher", "higher", "against"),
        ("lower", "lower", "against"),
        ("undecided", "lower", "undecided"),
        ("higher", "undecided", "undecided"),
        ("higher", None, "undecided"),
    ],
)
def test_hypothesis(tokens: str, ner: str | None, verdict: str) -> None:
    difference: dict[str, Any] = {
        "texts": {"ner": {"intra_sentence": {"verdict": ["higher", tokens]}}},
        "probes": {} if ner is None else {"ner": {"verdict": ["lower", ner]}},
    }
    assert hypothesis(difference) == {"tokens": tokens, "ner": ner, "verdict": verdict}


# From runs to files

SMALL = {"texts": 60, "tokens": 150, "folds": 2, "fold_rows": 20}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


def disturbed(params: Any, scale: float) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x + scale * rng.normal(size=x.shape), np.float32), params)


@pytest.fixture(scope="module")
def models(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, jaxprefit.Model]:
    """A start encoder, the same once more, and a run with other weights and adapters."""
    folder = tmp_path_factory.mktemp("represented")
    made = {}
    for name, strategy in (("start", "none"), ("same", "none"), ("tp", "task_primary")):
        config = run.config(cache, {"strategy": strategy})
        parts = assembly.make_run(config, folder)
        meta = {
            "config": assembly.saved_config(config),
            "families": {f: family.describe() for f, family in parts.setup.families.items()},
            "step": 0,
        }
        params = disturbed(parts.params, 0.0 if strategy == "none" else 0.02)
        made[name] = jaxprefit.Model(parts.start.config, params, parts.start.tokenizer, parts.setup.strategy, meta)
    return made


def settings(cache: Path, changes: dict[str, Any] | None = None) -> Any:
    small = {f"conflict.representations.{key}": value for key, value in SMALL.items()}
    return run.config(cache, {**small, **(changes or {})})


@pytest.fixture(scope="module")
def content(cache: Path, models: dict[str, jaxprefit.Model], tmp_path_factory: pytest.TempPathFactory) -> dict:
    return measure_models(settings(cache), tmp_path_factory.mktemp("out"), models)


def test_files_of_a_run(cache: Path, tmp_path: Path) -> None:
    prefinetuning.run(run.config(cache, {"strategy": "none"}), tmp_path / "none")
    jaxprefit.load(tmp_path / "none").export(tmp_path / "plain")
    checkpoints = f"plain={tmp_path / 'plain'},none={tmp_path / 'none'}"
    found = representations.run(settings(cache), tmp_path / "out", checkpoints, show=False)
    content = assert_valid(tmp_path / "out" / "representations.json", "representations")
    assert content == json.loads(json.dumps(found))
    assert [(m["strategy"], m["step"]) for m in content["models"]] == [("none", None), ("none", 0)]
    page = (tmp_path / "out" / "representations.html").read_text()
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # which may hold any four letters
    assert page.count("<img") == 3 and "http" not in text
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == {"together", "geometry", "probes"}

    # Without a run the texts are the config's; without pairs or tasks nothing is made up.
    nothing = settings(cache, {"data.tc.sources": (), "downstream.tc": (), "downstream.ner": ()})
    nothing.data.held_out = 30
    found = representations.run(nothing, tmp_path / "alone", f"plain={tmp_path / 'plain'}")
    assert assert_valid(tmp_path / "alone" / "representations.json", "representations")["samples"].keys() == {"ner"}
    assert found["differences"] == [] and found["tasks"] == [] and found["hypothesis"] == {}
    assert set(figures.figures(found)) == {"together", "geometry"}


def test_result_of_runs(content: dict[str, Any]) -> None:
    assert [m["name"] for m in content["models"]] == ["start", "same", "tp", "tp+ner", "tp+tc"]
    assert [m["adapter"] for m in content["models"]] == [None, None, None, "ner", "tc"]
    assert (content["reference"], content["layers"], len(content["differences"])) == ("start", 1, 10)
    assert set(figures.figures(content)) == {"together", "geometry", "probes", "cka"}
    ner, tc = content["samples"]["ner"], content["samples"]["tc"]
    assert len(ner["origins"]) == len(tc["origins"]) == 2  # held-out rows of the run, test rows of the task
    assert (ner["pairs"], tc["pairs"] > 0) == (0, True)
    assert ner["scored_tokens"] == 150 < ner["tokens"]
    for entry in content["measures"].values():
        assert set(entry["probes"]) == {"ner", "tc", *(t["task"] for t in content["tasks"])}
        assert "alignment" in entry["texts"]["tc"] and "alignment" not in entry["texts"]["ner"]
        for bands in (*entry["texts"].values(), entry["probes"]):
            for band in bands.values():
                assert all(low <= x <= high for low, x, high in zip(band["low"], band["value"], band["high"]))


def test_the_same_encoder_does_not_differ(content: dict[str, Any]) -> None:
    (same,) = (d for d in content["differences"] if (d["first"], d["second"]) == ("start", "same"))
    for bands in (*same["texts"].values(), same["probes"]):
        for name, band in bands.items():
            np.testing.assert_allclose(band["value"], 1.0 if name == "cka" else 0.0, atol=1e-5)
    assert content["hypothesis"]["same"]["verdict"] == "undecided"


def test_adapters_change_only_what_is_above_them(content: dict[str, Any]) -> None:
    found = {(d["first"], d["second"]): d["texts"]["ner"]["cka"]["value"] for d in content["differences"]}
    embeddings, last = found["tp", "tp+ner"]
    assert embeddings == pytest.approx(1.0, abs=1e-6) and last < 1 - 1e-6
    assert found["start", "tp"][0] < 1 - 1e-6


def test_undecided_differences_say_so(content: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    wide = copy.deepcopy(content)
    band = wide["differences"][0]["texts"]["ner"]["effective_rank"]
    band.update(value=[0.5, 0.5], low=[-1.0, 0.25], high=[2.0, 0.75], verdict=["undecided", "higher"])
    column = report.header(wide).index("effective rank ner")
    table = report.rows(wide)
    assert [row[column] for row in table[:2]] == ["+0.500 [-1.000, +2.000], undecided", "+0.500 [+0.250, +0.750]"]
    assert len(table) == 4 * 2
    report.print_tables(wide)
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "undecided" in out
        and f"{content['samples']['ner']['texts']} NER texts" in out
        and "same against start, last layer" in out
    )


def test_hidden_states_are_those_of_each_text_alone(models: dict[str, jaxprefit.Model]) -> None:
    model = models["tp"]
    bare, ner, _ = views("tp", model)
    assert (bare.name, ner.name) == ("tp", "tp+ner")
    texts = ["hi", "book a table in Paris", "what is the weather like in Rome tomorrow evening?"]
    ids = [np.asarray(model.tokenizer.encode(t).ids, np.int32) for t in texts]
    keep = [ordinary_tokens(model.tokenizer, t) for t in ids]
    assert [k.tolist() for k in keep] == [[*range(1, len(t) - 1)] for t in ids]
    found = hidden_states(ner, ids, keep)
    wanted = model.encode(texts, adapter="ner")
    np.testing.assert_allclose(found.sentences[-1], wanted.sentence, atol=1e-5)
    np.testing.assert_allclose(found.tokens[-1], np.concatenate([t[k] for t, k in zip(wanted.tokens, keep)]), atol=1e-5)
    assert found.tokens.shape[0] == model.config.num_layers + 1


@pytest.mark.parametrize(
    "checkpoints, message",
    [
        ("", "--checkpoints is missing"),
        ("runs/naive", "--checkpoints has 'runs/naive'; write it as name=path"),
        ("a=x,a=y", "has the name 'a'"),
        ("a+b=x", "without [+]"),
    ],
)
def test_refuses_malformed_checkpoints(checkpoints: str, message: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        representations.run(settings(cache), tmp_path / "out", checkpoints)
    assert not (tmp_path / "out").exists()


def test_refuses_what_cannot_be_compared(cache: Path, models: dict[str, jaxprefit.Model], tmp_path: Path) -> None:
    meta = copy.deepcopy(models["tp"].meta)
    meta["config"]["data"]["held_out"] = 9
    other = dataclasses.replace(models["tp"], meta=meta)
    with pytest.raises(UserError, match="'other' was trained with other data.held_out than 'start'"):
        measure_models(settings(cache), tmp_path, {"start": models["start"], "other": other})
    few = settings(cache, {"conflict.representations.fold_rows": 2, "conflict.representations.folds": 150})
    with pytest.raises(UserError, match="150 folds of probes need 300 or more"):
        measure_models(few, tmp_path, {"start": models["start"]})
