"""The conflict report from constructed gradients: what it says, and that it says no more."""

import dataclasses
import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.simulated import batches, from_batches

from experiments.conflict import probe as conflict_probe
from jaxprefit.conflict import advice
from jaxprefit.conflict.blocks import KINDS, pairs
from jaxprefit.conflict.probe import Grams
from jaxprefit.conflict.report import document, page, page_steps
from jaxprefit.conflict.report import verdicts as words
from jaxprefit.conflict.report.results import ConflictReport, ReportedRun
from jaxprefit.conflict.results import (
    AblationSection,
    Advice,
    Affinity,
    Blocks,
    ComparedRun,
    CurvatureSection,
    IntervalEstimate,
    Matrix,
    ProbeSection,
    TriadReport,
)
from jaxprefit.encoder.lora import LoraSpec
from jaxprefit.errors import UserError
from jaxprefit.render import tables
from jaxprefit.render.html import page as html_page
from jaxprefit.runtime import results

RUN = ReportedRun(
    checkpoint="runs/<b>",
    strategy="naive",
    aggregator="sum",
    step=3,
    seed=0,
    families=("ner", "tc"),
    fingerprint="0",
)
PROBE = ProbeSection(
    rounds=24,
    batch_tokens={"ner": 512, "tc": 1024},
    examples={"ner": 320, "tc": 640},
    rows={"ner": 10_000, "tc": 100},
    repeated=("tc",),
    seed=0,
    pairs=(),
    transfer={
        "gradient": (
            (None, IntervalEstimate(value=0.5, interval=(-0.1, 1.1))),
            (IntervalEstimate(value=-0.5, interval=(-0.6, -0.4)), None),
        )
    },
    adapters=None,
    affinity=None,
    curvature=None,
)
NOWHERE = Path("nowhere/conflict.json")
ADVICE = Advice(
    decided=False,
    reason="none",
    lora=advice.placement(LoraSpec()),
    parameters=1,
    default=advice.placement(LoraSpec()),
    default_parameters=1,
    evidence=(),
)
ABLATION = AblationSection(steps=1, seeds=(), batches={}, batch_tokens={}, rows=())
LAYERS = 11


@pytest.fixture(scope="module")
def grams() -> dict[str, Grams]:
    """11 layers: layer_9 in strong conflict, layer_10 pure noise, one module of it without gradient."""
    blocks = {}
    for n in reversed(range(LAYERS)):
        for j, kind in enumerate((*KINDS, "output_norm")):
            truth, snr = (-0.8, 1.0) if n == 9 else (0.0, 0.05) if n == 10 else (0.3, 1.0)
            blocks[f"layer_{n}/{kind}"] = from_batches(batches(truth, snr, 100 * n + j, dimensions=40))
    zero = blocks["layer_10/key"]
    blocks["layer_10/key"] = Grams(0 * zero.rounds, 0 * zero.groups)
    blocks["embeddings/word"] = from_batches(batches(0.5, 1.0, 7, dimensions=40))
    return blocks


@pytest.fixture(scope="module")
def result(grams: dict[str, Grams]) -> ConflictReport:
    return of_probe(grams)


def of_probe(grams: dict[str, Grams], families: tuple[str, ...] = ("ner", "tc")) -> ConflictReport:
    """A report that holds a probe alone."""
    counts = {k: {f: getattr(PROBE, k).get(f, 256) for f in families} for k in ("batch_tokens", "examples", "rows")}
    probe = dataclasses.replace(PROBE, **counts, pairs=pairs(grams, families))
    return document.content(dataclasses.replace(RUN, families=families), {"probe": probe}, NOWHERE)


def by_layer(result: ConflictReport) -> Blocks:
    return result.probe.pairs[0].blocks.layer


def with_whole(result: ConflictReport, **changes: Any) -> ConflictReport:
    """The same report with other measures of all shared parameters."""
    (pair,) = result.probe.pairs
    whole = {"whole": dataclasses.replace(pair.blocks.whole["whole"], **changes)}
    pair = dataclasses.replace(pair, blocks=dataclasses.replace(pair.blocks, whole=whole))
    return dataclasses.replace(result, probe=dataclasses.replace(result.probe, pairs=(pair,)))


def test_content_is_json(result: ConflictReport) -> None:
    content = json.loads(json.dumps(results.to_json(result), allow_nan=False))
    assert results.from_json(content, ConflictReport, "report") == result
    (pair,) = content["probe"]["pairs"]
    assert pair["families"] == ["ner", "tc"] and list(pair["blocks"]) == ["whole", "layer", "kind", "module"]


def test_layers_are_ordered_by_number(result: ConflictReport) -> None:
    names = ["embeddings", *(f"layer_{n}" for n in range(LAYERS))]
    blocks = result.probe.pairs[0].blocks
    assert list(blocks.layer) == names
    assert list(dict.fromkeys(b.split("/")[0] for b in blocks.module)) == names
    assert list(blocks.kind) == ["embeddings", *KINDS, "norm"]


def test_a_number_stands_beside_its_interval_decided_or_not(result: ConflictReport) -> None:
    for blocks in vars(result.probe.pairs[0].blocks).values():
        column = {row[0]: row[4] for row in document.rows(blocks)}
        for name, block in blocks.items():
            if block.corrected_cosine is None:
                assert column[name] == "refused", name
            else:
                interval = tables.bounds(block.corrected_interval, 2)
                near = ", near refusal" if block.near_refusal else ""
                assert column[name] == f"{block.corrected_cosine:+.2f} {interval}{near}", name
    layers = by_layer(result)
    assert layers["layer_9"].verdict == "conflict" and layers["layer_3"].verdict == "agreement"
    column = {row[0]: row[4] for row in document.rows(layers)}
    assert column["layer_9"].startswith("-0.") and column["layer_3"].startswith("+0.")
    zero = document.rows({"zero": result.probe.pairs[0].blocks.module["layer_10/key"]})[0]
    assert zero == ["zero", "- ", "- / -", "undecided", "refused", "-", "-"]


def test_one_exhausted_source_repeats_rows_however_large_the_others_are() -> None:
    rows = {"ner": {"small": 10, "large": 1_000}, "tc": {"one": 50}}
    assert conflict_probe.repeated_families({"ner": {"small": 11, "large": 5}, "tc": {"one": 50}}, rows) == ["ner"]
    assert conflict_probe.repeated_families({"ner": {"small": 10, "large": 5}, "tc": {"one": 51}}, rows) == ["tc"]


def test_verdicts_on_rows_drawn_twice_say_so(grams: dict[str, Grams]) -> None:
    for repeated, says in ((("tc",), "conflict (rows drawn)"), ((), "conflict")):
        measured = pairs(grams, ("ner", "tc"), None, repeated)
        probe = dataclasses.replace(PROBE, repeated=repeated, pairs=measured)
        found = document.content(RUN, {"probe": probe}, NOWHERE)
        table = {row[0]: row[3] for row in document.rows(by_layer(found))}
        assert table["layer_9"] == says and "undecided" in table.values()
        sentence = "of the gradient on the rows drawn, and void for other rows"
        assert (
            (sentence in document.explain(found)) == ("on the rows drawn" in words.verdict(found)[0]) == bool(repeated)
        )
        text = "".join(dict(page.sections(found))["Per layer"])
        assert says in text and ("rows drawn" in text) == bool(repeated)


def test_contributions_add_up_to_the_whole_cosine(result: ConflictReport) -> None:
    blocks = result.probe.pairs[0].blocks
    whole = blocks.whole["whole"].corrected_cosine
    for grouping in ("layer", "kind", "module"):
        total = sum(b.contribution for b in getattr(blocks, grouping).values())
        assert total == pytest.approx(whole, abs=1e-4), grouping


def test_tables_on_the_terminal(result: ConflictReport, capsys: pytest.CaptureFixture[str]) -> None:
    document.print_tables(result)
    out = capsys.readouterr().out
    for text in ("by layer", "by kind", "layer_10", "attention_output", "whole", "undecided", "conflict"):
        assert text in out
    assert "512 tokens of ner, 1,024 tokens of tc" in out and "24 rounds" in out
    assert "Rows of tc were drawn more than once" in out and "pulls the noise-corrected cosine toward 0" in out


def test_three_families_are_three_pairs() -> None:
    rng = np.random.default_rng(0)
    mean = np.asarray([[3.0, 0, 0], [-3, 0, 0], [-3, 3, 0]])[None, :, None]
    found = from_batches(mean + rng.normal(size=(24, 3, 2, 3)))
    result = of_probe({"layer_0/query": found}, ("ner", "tc", "mlm"))
    verdicts = {tuple(p.families): p.blocks.whole["whole"].verdict for p in result.probe.pairs}
    assert verdicts == {("ner", "tc"): "conflict", ("ner", "mlm"): "conflict", ("tc", "mlm"): "agreement"}
    assert html_page("Three", page.sections(result)).count("<img") == 6 + 1


# In words


def test_verdict_comes_first_and_claims_no_cause(result: ConflictReport) -> None:
    sections = page.sections(result)
    assert sections[0][0] == "Verdict" and sections[-1][0] == "Limits of the method"
    first = words.verdict(result)[0]
    assert "24 rounds" in first and "512 tokens of ner" in first and "in conflict: layer_9" in first
    assert any("not measured" in text for text in words.verdict(result)), "what it costs"
    conflict = with_whole(result, verdict="conflict")
    assert "consistent with" in words.verdict(conflict)[0]


def test_verdict_prints_no_cosine_without_interval(result: ConflictReport) -> None:
    measures = {"verdict": "conflict", "cosine": -0.1, "cosine_interval": (-0.12, -0.08)}
    measures |= {"corrected_cosine": -0.5, "corrected_interval": (-0.6, -0.4)}
    text = words.verdict(with_whole(result, **measures))[0]
    assert "noise-corrected cosine -0.50 [-0.60, -0.40]; raw -0.100 [-0.120, -0.080]" in text
    measures |= {"verdict": "undecided", "batches_for_sign": 527568.0, "batches_for_sought": 900.0}
    text = words.verdict(with_whole(result, **measures))[0]
    assert "to see a cosine of 0.1 takes about 900 batches" in text and "527,568" not in text
    assert "noise-corrected cosine -0.50 [-0.60, -0.40]" in text
    older = with_whole(result, **{**measures, "batches_for_sought": None})
    assert "batches a family" not in words.verdict(older)[0]


def test_batches_for_a_named_cosine_do_not_follow_the_estimate() -> None:
    blocks = {f"b{seed}": from_batches(batches(0.0, 1.0, seed, dimensions=40)) for seed in range(6)}
    found = [pairs({"layer_0/query": g}, ("ner", "tc"))[0].blocks.whole["whole"] for g in blocks.values()]
    sought, sign = ([getattr(b, key) for b in found] for key in ("batches_for_sought", "batches_for_sign"))
    assert max(sought) < 3 * min(sought) and max(sign) > 10 * min(sign)


def test_comparison_of_runs_has_a_verdict(result: ConflictReport) -> None:
    probe = result.probe
    runs = tuple(
        ComparedRun(
            name=name,
            strategy="naive",
            aggregator="sum",
            step=3,
            seed=0,
            held_out=None,
            rounds=probe.rounds,
            batch_tokens=probe.batch_tokens,
            pairs=probe.pairs,
        )
        for name in ("one", "two")
    )
    about = ReportedRun(**{**dict.fromkeys(vars(RUN)), "checkpoint": "one,two"})
    both = document.content(about, {"compare": runs}, NOWHERE)
    (text,) = words.verdict(both)
    assert "one (naive, sum, step 3) and two (naive, sum, step 3)" in text and "not tested" in text
    shown = "".join(dict(page.sections(both))["Runs side by side"])
    whole = probe.pairs[0].blocks.whole["whole"]
    assert f"{document.corrected(whole)} ({tables.signed(whole.cosine)} [" in shown


def test_sections_that_were_not_measured_say_how(result: ConflictReport) -> None:
    found = dict(page.sections(result))
    for title, mode in (("Over training", "online"), ("What stopping one family does", "ablate")):
        (text,) = found[title]
        assert "Not measured" in text and f"--config.conflict.mode={mode}" in text and "runs/&lt;b&gt;" in text


def test_steps_that_a_probe_did_not_try_name_a_command_that_does(result: ConflictReport) -> None:
    (text,) = dict(page.sections(result))["Curvature"]
    assert "--config.conflict.mode=probe --config.conflict.lookahead=4" in text
    start = dataclasses.replace(result, run=dataclasses.replace(result.run, step=0))
    (text,) = dict(page.sections(start))["The same, tried"]
    assert "second moments" in text and "--config" not in text


class Links(html.parser.HTMLParser):
    """All tags, and every attribute that names an address."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]


def test_page_needs_nothing_from_outside(result: ConflictReport) -> None:
    text = html_page("Conflict <of> layers", page.sections(result))
    links = Links()
    links.feed(text)
    assert not {"script", "link", "iframe", "object", "a"} & set(links.tags)
    assert len(links.addresses) == 3
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert "Conflict &lt;of&gt; layers" in text
    assert "undecided" in text and "layer_10" in text


def test_report_stands_where_nothing_can_be_decided() -> None:
    zero = Grams(np.zeros((4, 2, 2, 2, 2)), np.zeros((2, 8, 2, 8)))
    result = of_probe({f"layer_{n}/{kind}": zero for n in range(2) for kind in KINDS})
    assert {b.verdict for b in result.probe.pairs[0].blocks.module.values()} == {"undecided"}
    assert "too noisy" in words.verdict(result)[0]
    assert html_page("Nothing", page.sections(result))


def test_report_of_a_shared_adapter(grams: dict[str, Grams], capsys: pytest.CaptureFixture[str]) -> None:
    both = {**grams, **{f"lora/shared/{name}": g for name, g in grams.items() if name.startswith("layer_9")}}
    result = of_probe(both)
    assert [*by_layer(result)][-1] == "lora/shared"
    document.print_tables(result)
    assert html_page("Shared", page.sections(result))


# One file of many sections


def test_sections_gather_in_one_file(result: ConflictReport, tmp_path: Path) -> None:
    file = tmp_path / "conflict.json"
    results.write(file, result)
    both = document.content(dataclasses.replace(RUN, checkpoint="./runs/<b>"), {"online": None, "advice": ADVICE}, file)
    assert both.probe == result.probe and both.advice == ADVICE
    with pytest.raises(UserError, match="another run or step"):
        document.content(dataclasses.replace(RUN, step=4), {}, file)
    # Advice does not outlive what it was drawn from.
    results.write(file, both)
    assert document.content(RUN, {"probe": result.probe}, file).advice, "measured again, the same"
    for changed in ({"probe": dataclasses.replace(result.probe, seed=1)}, {"ablation": ABLATION}):
        assert document.content(RUN, changed, file).advice is None
        anew = dataclasses.replace(ADVICE, reason="anew")
        assert document.content(RUN, {**changed, "advice": anew}, file).advice == anew
    for damage in ("{", "[]", json.dumps({**results.to_json(result), "version": 2})):
        file.write_text(damage)
        with pytest.raises(UserError, match=r"conflict.json"):
            document.content(RUN, {}, file)


# Steps


def test_transfer_says_where_it_is_undecided(result: ConflictReport) -> None:
    text = "".join(dict(page.sections(result))["What a step does to other families"])
    assert "<td>+0.50 [-0.10, +1.10], undecided</td>" in text and "<td>-0.50 [-0.60, -0.40]</td>" in text


def affinity(matrix: Matrix) -> Affinity:
    """Steps tried, whose effect is as predicted."""
    return Affinity(
        steps=4,
        held_out_batches={"ner": 3, "tc": 2},
        learning_rate=5e-5,
        measured=matrix,
        first_order=matrix,
        second_order=matrix,
    )


def test_affinity_and_curvature_are_shown_with_intervals() -> None:
    entry = IntervalEstimate(value=0.002, interval=(0.001, 0.003))
    vague = IntervalEstimate(value=0.002, interval=(-0.001, 0.005))
    shown = affinity(((entry, vague), (vague, entry)))
    text = "".join(page_steps.affinity(shown, ["ner", "tc"]))
    assert "+0.2000 [+0.1000, +0.3000]" in text and "+0.2000 [-0.1000, +0.5000], undecided" in text
    assert "3 held-out batches of ner" in text and "4 Adam-scaled steps" in text
    triad = TriadReport(families=("ner", "tc"), conflict=True, curvature=None, step=False, flag=False)
    bent = CurvatureSection(
        steps=4, along_update={"ner": entry, "tc": vague}, joint=entry, lipschitz=entry, triads=(triad,)
    )
    text = "".join(page_steps.curvature(dataclasses.replace(bent, metric="adam")))
    assert "<td>yes</td><td>undecided</td><td>no</td><td>no</td>" in text and "along the joint update" in text
    older = "".join(page_steps.curvature(bent))
    assert older.count("<td>undecided</td>") == 4 and "along the joint gradient" in older and "anew" in older


def test_page_says_whether_the_prediction_held() -> None:
    def entry(low: float, high: float) -> IntervalEstimate:
        return IntervalEstimate(value=(low + high) / 2, interval=(low, high))

    unknown = IntervalEstimate(value=1.0, interval=(None, None))
    measured = ((entry(1, 3), entry(1, 3)), (entry(-1, 3), unknown))
    first = ((entry(0, 4), entry(4, 5)), (entry(0, 2), entry(0, 2)))
    text = page_steps.prediction(dataclasses.replace(affinity(measured), first_order=first), ["ner", "tc"])
    assert "held for ner on ner; did not hold for ner on tc; undecided for tc on ner, tc on tc." in text
