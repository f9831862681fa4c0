"""Gram matrices, conflict measures on simulated gradients with a known truth, the probe, the report."""

import html.parser
import json
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprefit.conflict import measures, report
from jaxprefit.conflict.gram import by_layer, by_module, gram, regroup
from jaxprefit.conflict.probe import Grams, probe
from jaxprefit.html import page

SHAPES = {
    "backbone/embeddings/word/embedding": (5, 3),
    "backbone/layer_0/query/kernel": (3, 4),
    "backbone/layer_0/query/bias": (4,),
    "backbone/layer_0/output/kernel": (4, 3),
    "backbone/layer_10/query/kernel": (3, 4),
}


def gradients(seed: int, count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{p: rng.normal(size=s).astype(np.float32) for p, s in SHAPES.items()} for _ in range(count)]


def on_device(flats: list[dict[str, np.ndarray]]) -> list[dict]:
    return [{p: jnp.asarray(g) for p, g in flat.items()} for flat in flats]


def by_numpy(flats: list[dict[str, np.ndarray]], paths: list[str]) -> np.ndarray:
    """The Gram matrix over these paths, from the definition, in float64."""
    rows = np.stack([np.concatenate([flat[p].ravel() for p in paths]) for flat in flats]).astype(np.float64)
    return rows @ rows.T


# Gram matrices


def test_gram_holds_the_inner_products_of_each_block() -> None:
    flats = gradients(0, 3)
    blocks = gram(on_device(flats), by_layer)
    assert set(blocks) == {"embeddings", "layer_0", "layer_10"}
    for block, m in blocks.items():
        paths = [p for p in SHAPES if p.split("/")[1] == block]
        np.testing.assert_allclose(m, by_numpy(flats, paths), rtol=1e-5, atol=1e-5)


def test_finest_blocks_add_up_to_layers() -> None:
    grads = on_device(gradients(1, 2))
    fine, coarse = gram(grads, by_module), gram(grads, by_layer)
    assert set(fine) == {"embeddings/word", "layer_0/query", "layer_0/output", "layer_10/query"}
    added = regroup(fine, lambda block: block.split("/")[0])
    assert set(added) == set(coarse)
    for block in coarse:
        np.testing.assert_allclose(added[block], coarse[block], rtol=1e-6)


def test_a_summed_gradient_has_no_gram_matrix() -> None:
    (summed,) = on_device(gradients(0, 1))
    with pytest.raises(TypeError, match="at least two separate gradients"):
        gram(summed, by_layer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least two separate gradients"):
        gram([summed], by_layer)


def test_only_parameters_in_all_gradients_count() -> None:
    flats = gradients(2, 2)
    flats[0]["lora/ner/layer_0/query/a"] = np.full((2, 2), 1e3, np.float32)
    del flats[1]["backbone/layer_0/output/kernel"]
    blocks = gram(on_device(flats), by_layer)
    assert set(blocks) == {"embeddings", "layer_0", "layer_10"}
    paths = ["backbone/layer_0/query/kernel", "backbone/layer_0/query/bias"]
    np.testing.assert_allclose(blocks["layer_0"], by_numpy(flats, paths), rtol=1e-5)


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    # In bfloat16 a running sum of ones stops at 256.
    ones = {"backbone/layer_0/query/kernel": jnp.ones((100, 100), jnp.bfloat16)}
    m = gram([ones, ones], by_layer)["layer_0"]
    assert m.dtype == jnp.float32
    np.testing.assert_array_equal(m, 10_000.0)


def test_blocks_are_named_after_layers_and_modules() -> None:
    path = "backbone/layer_3/query/kernel"
    assert (by_layer(path), by_module(path)) == ("layer_3", "layer_3/query")
    assert by_layer("backbone/embeddings/norm/scale") == "embeddings"
    assert by_layer("lora/shared/layer_3/query/a") == "lora/shared"


# Measures, on simulated gradients: family means of known cosine plus independent noise for each batch.

DIM, ROUNDS, GROUPS = 400, 24, 8
CASES = [(truth, snr) for truth in (-0.3, 0.0) for snr in (1.0, 0.3)]


def stacks(batches: np.ndarray, groups: int = GROUPS) -> tuple[np.ndarray, np.ndarray]:
    """(M, K) from the gradients of all batches [N, F, R, D], by definition."""
    means = np.stack([batches[k::groups].mean((0, 2)) for k in range(groups)], 1)  # [F, G, D]
    m = np.einsum("nfrd,ngsd->nfrgs", batches, batches)
    return m, np.einsum("fkd,gld->fkgl", means, means)


def simulated(truth: float, snr: float, seed: int, dim: int = DIM, rounds: int = ROUNDS) -> np.ndarray:
    """Gradients [N, 2, 2, D]: expected ones of norms 1 and 2 with cosine `truth`; signal to noise `snr` in a batch."""
    rng = np.random.default_rng(seed)
    mean = np.zeros((2, dim))
    mean[0, 0], mean[1, :2] = 1.0, [2 * truth, 2 * np.sqrt(1 - truth**2)]
    norms = np.asarray([1.0, 2.0])[:, None, None]
    return mean[:, None] + rng.normal(size=(rounds, 2, 2, dim)) * norms / (snr * np.sqrt(dim))


@pytest.mark.parametrize("truth, snr", CASES)
def test_corrected_cosine_finds_the_truth_that_noise_hides(truth: float, snr: float) -> None:
    found, raw, within = [], [], []
    for seed in range(20):
        m, k = stacks(simulated(truth, snr, seed))
        found.append(measures.corrected_cosine(k, 0, 1))
        raw.append(measures.cosine(m, 0, 1).mean())
        within.append(measures.cosine(m, 0, 0).mean())
    ceiling = snr**2 / (1 + snr**2)  # what noise leaves of a cosine of 1
    np.testing.assert_allclose(np.mean(found), truth, atol=0.04)
    np.testing.assert_allclose(np.mean(raw), truth * ceiling, atol=0.02)
    np.testing.assert_allclose(np.mean(within), ceiling, atol=0.02)


@pytest.mark.parametrize("truth, snr", CASES)
def test_jackknife_intervals_cover_the_truth(truth: float, snr: float) -> None:
    repeats = 200
    covered = np.zeros(2)
    for seed in range(repeats):
        _, k = stacks(simulated(truth, snr, 1000 + seed, dim=100))
        intervals = (
            measures.jackknife(k, lambda x: measures.inner(x, 0, 1)),
            measures.jackknife(k, lambda x: measures.corrected_cosine(x, 0, 1)),
        )
        covered += [low <= wanted <= high for (low, high), wanted in zip(intervals, (2 * truth, truth))]
    # 95 % promised; four standard errors of 200 repeats are 6 %.
    assert (covered / repeats > 0.88).all(), covered / repeats


@pytest.mark.parametrize("snr", [1.0, 0.3])
def test_verdict_tells_conflict_from_nothing(snr: float) -> None:
    def verdicts(truth: float) -> list[str]:
        return [measures.describe(*stacks(simulated(truth, snr, seed)), 0, 1)["verdict"] for seed in range(20)]

    assert verdicts(-0.3).count("conflict") >= 19
    assert verdicts(0.3).count("agreement") >= 19
    assert verdicts(0.0).count("undecided") >= 16


def test_inner_products_are_unbiased_by_noise() -> None:
    values = [
        [measures.inner(k, *ij) for ij in ((0, 0), (0, 1), (1, 1))]
        for _, k in (stacks(simulated(-0.3, 0.3, seed)) for seed in range(40))
    ]
    np.testing.assert_allclose(np.mean(values, 0), [1.0, -0.6, 4.0], atol=0.1)


def test_cosine_and_norm_ratio_by_hand() -> None:
    batches = np.asarray([[[[1.0, 0], [0, 1]], [[3, 0], [0, -3]]]])  # one round, two families, two batches
    m, _ = stacks(np.concatenate([batches, batches]), groups=2)
    np.testing.assert_allclose(measures.cosine(m, 0, 1), [0.0, 0.0], atol=1e-12)  # pairs: 1, 0, 0, -1
    np.testing.assert_allclose(measures.cosine(m, 0, 0), [0.0, 0.0], atol=1e-12)  # never a batch with itself
    assert measures.norm_ratio(m, 0, 1) == pytest.approx(1 / 3)


def test_zero_gradients_are_undefined_not_unrelated() -> None:
    batches = simulated(-0.3, 1.0, 0, dim=20)
    batches[:, 1] = 0.0
    found = measures.describe(*stacks(batches), 0, 1)
    for key in ("cosine", "corrected_cosine", "share_negative", "norm_ratio"):
        assert found[key] is None, key
    assert found["cosine_interval"] == found["corrected_interval"] == [None, None]
    assert found["cosine_within"][0] is not None and found["cosine_within"][1] is None
    assert found["verdict"] == "undecided"
    swapped = measures.describe(*stacks(batches[:, ::-1]), 0, 1)
    assert swapped["norm_ratio"] == 0.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rounds=st.integers(3, 9),
    snr=st.sampled_from([0.01, 1.0, 100.0]),
    scale=st.sampled_from([0.0, 1e-15, 1.0, 1e15]),
    zero_round=st.booleans(),
)
def test_described_blocks_are_json_without_nan(
    seed: int, rounds: int, snr: float, scale: float, zero_round: bool
) -> None:
    batches = simulated(0.0, snr, seed, dim=10, rounds=rounds) * np.asarray([1.0, scale])[:, None, None]
    if zero_round:
        batches[0, 0] = 0.0
    m, k = stacks(batches, min(GROUPS, rounds))
    found = measures.describe(m.astype(np.float32), k.astype(np.float32), 0, 1)
    json.dumps(found, allow_nan=False)
    assert found["verdict"] in ("conflict", "agreement", "undecided")
    low, high = found["corrected_interval"]
    assert low is None or high is None or -1 <= low <= high <= 1


# The probe


def toy_gradient(name: str, batch: np.ndarray) -> dict:
    """Two shared modules and one parameter of the family's own, all a function of the batch."""
    sign = {"ner": 1.0, "tc": -0.5}[name]
    return {
        "backbone/layer_0/query/kernel": jnp.asarray(sign * batch[:4].reshape(2, 2)),
        "backbone/layer_0/query/bias": jnp.asarray(batch[4:6] ** 2),
        "backbone/layer_1/key/kernel": jnp.asarray(batch[6:].reshape(1, -1) + sign),
        f"head/{name}/kernel": jnp.full((3,), 1e3),
    }


BLOCKS = {
    "layer_0/query": ["backbone/layer_0/query/kernel", "backbone/layer_0/query/bias"],
    "layer_1/key": ["backbone/layer_1/key/kernel"],
}


def stream(seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.normal(size=9).astype(np.float32)


@pytest.mark.parametrize("rounds", [2, 5, 8, 11])
def test_probe_equals_numpy(rounds: int) -> None:
    seen: list[int] = []
    shared = [path for paths in BLOCKS.values() for path in paths]
    found = probe(toy_gradient, {"ner": stream(1), "tc": stream(2)}, shared, rounds, seen.append)
    assert seen == list(range(1, rounds + 1))
    assert set(found) == set(BLOCKS)

    groups = min(8, rounds)
    for block, paths in BLOCKS.items():
        drawn = {"ner": stream(1), "tc": stream(2)}
        batches = np.asarray(
            [
                [
                    [np.concatenate([np.ravel(g[p]) for p in paths]) for g in (toy_gradient(n, next(s)) for _ in "ab")]
                    for n, s in drawn.items()
                ]
                for _ in range(rounds)
            ]
        )
        m, k = stacks(batches.astype(np.float64), groups)
        np.testing.assert_allclose(found[block].rounds, m, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[block].groups, k, rtol=1e-4, atol=1e-4)


def test_the_two_batches_of_a_round_differ() -> None:
    shared = ["backbone/layer_0/query/kernel"]

    def counting(name: str, batch: int) -> dict:
        return {shared[0]: jnp.full((1, 1), float(batch))}

    found = probe(counting, {"a": iter(range(1, 9)), "b": iter(range(11, 19))}, shared, 4)["layer_0/query"]
    norms = np.sqrt(np.einsum("nfrfr->nfr", found.rounds))
    np.testing.assert_allclose(norms[:, 0], [[1, 2], [3, 4], [5, 6], [7, 8]], rtol=1e-6)
    np.testing.assert_allclose(norms[:, 1], [[11, 12], [13, 14], [15, 16], [17, 18]], rtol=1e-6)


def test_grams_of_two_blocks_add_up() -> None:
    one, two = (Grams(np.full((2, 2, 2, 2, 2), x), np.full((2, 2, 2, 2), x)) for x in (1.0, 2.0))
    assert (one + two).rounds.max() == (one + two).groups.min() == 3.0


# The report

SETTINGS = {"checkpoint": "runs/<b>", "step": 3, "strategy": "naive", "rounds": ROUNDS, "seed": 0}
SETTINGS |= {
    "batch_tokens": {"ner": 512, "tc": 1024},
    "examples": {"ner": 320, "tc": 640},
    "rows": {"ner": 10_000, "tc": 100},
}
LAYERS = 11


@pytest.fixture(scope="module")
def result() -> dict:
    """A report over 11 layers: layer_9 in strong conflict, layer_10 pure noise, one module of it without gradient."""
    blocks = {}
    for n in reversed(range(LAYERS)):
        for j, kind in enumerate((*report.KINDS, "output_norm")):
            truth, snr = (-0.8, 1.0) if n == 9 else (0.0, 0.05) if n == 10 else (0.3, 1.0)
            blocks[f"layer_{n}/{kind}"] = Grams(*stacks(simulated(truth, snr, 100 * n + j, dim=40)))
    zero = blocks["layer_10/key"]
    blocks["layer_10/key"] = Grams(0 * zero.rounds, 0 * zero.groups)
    blocks["embeddings/word"] = Grams(*stacks(simulated(0.5, 1.0, 7, dim=40)))
    return report.content(blocks, ("ner", "tc"), SETTINGS)


def test_report_content_is_json(result: dict) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["schema"], result["families"], result["step"]) == ("jaxprefit.conflict", ["ner", "tc"], 3)
    assert list(result["blocks"]) == ["whole", "layer", "kind", "module"]


def test_report_orders_layers_by_number(result: dict) -> None:
    names = ["embeddings", *(f"layer_{n}" for n in range(LAYERS))]
    assert list(result["blocks"]["layer"]) == names
    assert list(dict.fromkeys(b.split("/")[0] for b in result["blocks"]["module"])) == names
    assert list(result["blocks"]["kind"]) == ["embeddings", *report.KINDS, "norm"]


def test_where_the_verdict_is_undecided_no_corrected_number_stands(result: dict) -> None:
    for blocks in result["blocks"].values():
        column = {row[0]: row[4] for row in report.rows(blocks)}
        for name, block in blocks.items():
            if block["verdict"] == "undecided":
                assert column[name] == "undecided", name
            else:
                assert column[name] == "undecided" or column[name].startswith(("+", "-")), name
    layers = result["blocks"]["layer"]
    assert layers["layer_9"]["verdict"] == "conflict"
    assert layers["layer_3"]["verdict"] == "agreement"
    column = {row[0]: row[4] for row in report.rows(layers)}
    assert column["layer_9"].startswith("-0.") and column["layer_3"].startswith("+0.")
    zero = report.rows({"zero": result["blocks"]["module"]["layer_10/key"]})[0]
    assert zero == ["zero", "- ", "- / -", "undecided", "undecided", "-", "-"]


def test_report_prints_tables(result: dict, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_tables(result)
    out = capsys.readouterr().out
    for text in ("by layer", "by kind", "layer_10", "attention_output", "whole", "undecided", "conflict"):
        assert text in out
    assert "batches of 512 tokens of ner, 1,024 tokens of tc" in out and "24 rounds" in out


class Links(html.parser.HTMLParser):
    """All tags, and every attribute that names an address."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]


def test_html_report_needs_nothing_from_outside(result: dict) -> None:
    text = page("Conflict <of> layers", report.html_parts(result))
    links = Links()
    links.feed(text)
    assert not {"script", "link", "iframe", "object", "a"} & set(links.tags)
    assert len(links.addresses) == 2
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert "Conflict &lt;of&gt; layers" in text
    assert "undecided" in text and "layer_10" in text


def test_report_stands_where_nothing_can_be_decided() -> None:
    zero = Grams(np.zeros((4, 2, 2, 2, 2)), np.zeros((2, 4, 2, 4)))
    blocks = {f"layer_{n}/{kind}": zero for n in range(2) for kind in report.KINDS}
    result = report.content(blocks, ("ner", "tc"), SETTINGS)
    assert {b["verdict"] for b in result["blocks"]["module"].values()} == {"undecided"}
    assert page("Nothing", report.html_parts(result))


def test_report_of_a_shared_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {f"lora/shared/layer_1/{kind}/{leaf}": (2, 2) for kind in report.KINDS for leaf in "ab"}
    shapes |= {f"backbone/layer_{n}/{kind}/kernel": (2, 2) for n in range(2) for kind in report.KINDS}

    def gradient(name: str, batch: np.ndarray) -> dict:
        return {path: jnp.full(shape, float(batch[0])) for path, shape in shapes.items()}

    blocks = probe(gradient, {"ner": stream(1), "tc": stream(2)}, list(shapes), 4)
    result = report.content(blocks, ("ner", "tc"), SETTINGS)
    report.print_tables(result)
    assert page("Shared", report.html_parts(result))
