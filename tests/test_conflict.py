"""Gram matrices, and the report."""

import html.parser
import json
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
import simulated

from jaxprefit.conflict import report
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


# The report


def stream(seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.normal(size=9).astype(np.float32)


SETTINGS = {"checkpoint": "runs/<b>", "step": 3, "strategy": "naive", "rounds": 24, "seed": 0}
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
            blocks[f"layer_{n}/{kind}"] = simulated.from_batches(
                simulated.batches(truth, snr, 100 * n + j, dimensions=40)
            )
    zero = blocks["layer_10/key"]
    blocks["layer_10/key"] = Grams(0 * zero.rounds, 0 * zero.groups)
    blocks["embeddings/word"] = simulated.from_batches(simulated.batches(0.5, 1.0, 7, dimensions=40))
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

    blocks = probe(gradient, {"ner": stream(1), "tc": stream(2)}, list(shapes), 4)["gradient"]
    result = report.content(blocks, ("ner", "tc"), SETTINGS)
    report.print_tables(result)
    assert page("Shared", report.html_parts(result))
