r"""What the data holds, and which rows of the pre-finetuning sources stand in a downstream test set.

python -m experiments.inspect_data --config=configs/inspect_data.py --workdir=runs/inspection --config.data.root=DIR

Over every source of data.*.sources and the test rows of every task of downstream.ner and downstream.tc: rows,
duplicates, lengths in tokens of model.path's tokenizer and what is beyond data.*.max_length or downstream.max_length,
entity types or labels, rendered examples, and the exact and near overlap of each source with each test
(jaxprefit/data/overlap.py says what counts). Writes WORKDIR/inspection.json and WORKDIR/inspection.md, which hold
counts and no text. `prefinetune` leaves the overlapping rows out with data.drop_overlap=exact or near.
"""

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.common import cli, family_data, start
from experiments.common.checks import check
from experiments.common.workdirs import owned
from jaxprefit.data import overlap
from jaxprefit.data.builders import Prepared
from jaxprefit.data.overlap import all_texts, records
from jaxprefit.data.statistics import Statistics
from jaxprefit.encoder.cuts import sentence
from jaxprefit.errors import UserError
from jaxprefit.families import FAMILIES
from jaxprefit.render.tables import markdown
from jaxprefit.runtime.files import write_json, write_text
from jaxprefit.runtime.terminal import plain, printable

INSPECTION_VERSION = 1
EXAMPLES = 2
SHOWN = 300  # characters of an example
TOP = 8  # types in a table
COMMAND = "python -m experiments.inspect_data --config=configs/inspect_data.py --workdir=WORKDIR --config.data.root=DIR"


@owned("inspect_data")
def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Looks at everything that the config names, and returns what inspection.json holds."""
    check(config)
    cache = family_data.cache_folder(config, workdir)
    given = {name: family_data.prepared_sources(config, name, cache) for name in FAMILIES}
    tests = family_data.test_sets(config, cache)
    if not any(given.values()) and not any(tests.values()):
        raise UserError("nothing to look at; name sources in data.ner.sources or tests in downstream.ner, say")
    tokenizer = start.start_tokenizer(config, cache)
    console = Console(width=140)
    index = overlap.Index({t.name: all_texts(t) for ts in tests.values() for t in ts})
    held = np.zeros(len(index.texts), np.uint8)  # the level at which any source holds a text of the tests
    entries: dict[str, list[dict[str, Any]]] = {"sources": [], "tests": [], "overlap": []}
    for family, prepared in given.items():
        for source in prepared:
            c = config.data[family]
            prefixes = {"a": c.prefix_a, "b": c.prefix_b, "negative": c.prefix_b} if source.kind == "pairs" else {}
            statistics = Statistics(tokenizer, c.max_length, prefixes)
            found = overlap.compare(statistics.watch(records(source)), index)
            held = np.maximum(held, found.tests)
            name = {"family": family, "source": source.name}
            counts = {"overlap": _levels(found.rows.max(1, initial=0))}
            entries["sources"].append({**name, "kind": source.kind, **statistics.report(), **counts})
            entries["overlap"] += [{**name, **pair} for pair in overlaps(found, index)]
            show(console, source, entries["sources"][-1])
    for family, prepared in tests.items():
        for test in prepared:
            statistics = Statistics(tokenizer, config.downstream.max_length)
            for _ in statistics.watch(records(test)):
                pass
            counts = {"overlap": _levels(held, index.member[:, index.names.index(test.name)])}
            name = {"family": family, "test": test.name, "kind": test.kind}
            entries["tests"].append({**name, **statistics.report(), **counts})
            show(console, test, entries["tests"][-1])
    content = {
        "schema": "jaxprefit.inspect_data", "version": INSPECTION_VERSION, "parameters": overlap.PARAMETERS, **entries
    }  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "inspection.json", content)
    text = "\n".join(tables(content))
    write_text(workdir / "inspection.md", text)
    print_overlap(console, content)
    return content


def overlaps(found: overlap.Overlap, index: overlap.Index) -> list[dict[str, Any]]:
    """One entry for each test that the source overlaps: rows of the source, and rows of the test."""
    return [
        {"test": test, "rows": _levels(found.rows[:, i]), "test_rows": _levels(found.tests, index.member[:, i])}
        for i, test in enumerate(index.names)
        if found.rows[:, i].any()
    ]


def _levels(levels: np.ndarray, weights: np.ndarray | None = None) -> dict[str, int]:
    """How many are EXACT, and how many NEAR or EXACT."""
    one = np.ones(len(levels), int) if weights is None else weights
    return {"exact": int(one[levels >= overlap.EXACT].sum()), "near": int(one[levels >= overlap.NEAR].sum())}


def show(console: Console, source: Prepared, entry: dict[str, Any]) -> None:
    """One source or test on the terminal, with examples."""
    p = entry["length_percentiles"]
    about = (
        f" ({source.kind}): {entry['rows']:,} rows, {entry['duplicates']:,} of them repeats, "
        f"{entry['tokens']:,} tokens; a text has {p['50']} (5 %: {p['5']}, 95 %: {p['95']}, longest: {p['100']})"
    )
    console.print(plain(source.name, "bold").append(about, "not bold"), highlight=False)
    if entry["cuts"]["cut_texts"]:
        longer = "windowed" if entry["kind"] == "text" else "cut"
        console.print(f"  {sentence(entry['cuts'])} {longer} at max_length, {entry['max_length']}", highlight=False)
    if entry["types"]:
        top = ", ".join(f"{t} {n:,}" for t, n in [*entry["top_types"].items()][:TOP])
        more = ", ..." * (entry["types"] > TOP)
        console.print(plain(f"  {entry['types']} types or labels: {top}{more}"), highlight=False)
    for i in range(0, len(source), max(1, len(source) // EXAMPLES))[:EXAMPLES]:
        console.print(Text("  ").append_text(render(source[i])), highlight=False)


def render(record: dict[str, Any]) -> Text:
    """A record in one line; entities are marked with their types."""
    text = Text()
    if "tokens" in record:
        tags = record["tags"]
        for i, (token, tag) in enumerate(zip(record["tokens"], tags)):
            text.append("" if i == 0 else " ").append(printable(token), "" if tag == "O" else "bold green")
            ends = i + 1 == len(tags) or not tags[i + 1].startswith("I-")
            text.append(printable(f" [{tag[2:]}]") if tag != "O" and ends else "", "dim")
    else:
        text.append(printable(" | ".join(overlap.texts_of(record)).replace("\n", " ")))
        text.append(printable(f" [{record['label']}]") if "label" in record else "", "dim")
    text.truncate(SHOWN, overflow="ellipsis")
    return text


def print_overlap(console: Console, content: dict[str, Any]) -> None:
    """The overlap table on the terminal."""
    table = Table("source", "test", "rows: exact", "near", "test rows: exact", "near", title="overlap with test sets")
    for o in content["overlap"]:
        numbers = (f"{o[side][level]:,}" for side in ("rows", "test_rows") for level in ("exact", "near"))
        table.add_row(plain(o["source"]), plain(o["test"]), *numbers)
    if content["overlap"]:
        console.print(table)
    elif content["tests"]:
        console.print("no row of any source stands in a test set")


def tables(content: dict[str, Any]) -> list[str]:
    """Lines of inspection.md, from inspection.json alone."""
    p = content["parameters"]
    found = 100 * (1 - (1 - p["threshold"] ** p["rows"]) ** p["bands"])
    lines = [
        "# Overlap of pre-finetuning sources with downstream test sets",
        "",
        f"    {COMMAND}",
        "",
        "*Exact*: equal letters and digits. *Near*: exact, or a Jaccard similarity of the sets of",
        f"{p['gram']}-byte grams of letters and digits of at least {p['threshold']}. MinHash ({p['bands']} bands of",
        f"{p['rows']} hashes) finds {found:.1f} % of the pairs at that similarity and more above it; each is then",
        "computed exactly. A row overlaps where any of its texts does. `prefinetune` leaves these rows out with",
        "`data.drop_overlap=exact` or `near`.",
        "",
    ]
    header = ["rows", "repeats", "median tokens", "95 %", "also {}: exact", "near", "near, %"]
    for key, where in (("source", "in a test"), ("test", "in a source")):
        rows = [[f"{e[key]} ({e['family']})", *_numbers(e)] for e in content[f"{key}s"]]
        lines += markdown(f"{key}s".title(), [key, *(h.format(where) for h in header)], rows)
    ordered = sorted(content["overlap"], key=lambda o: -o["rows"]["near"])
    rows = [[o["source"], o["test"], *_counts(o["rows"]), *_counts(o["test_rows"])] for o in ordered]
    header = ["source", "test", "rows: exact", "near", "test rows: exact", "near"]
    return lines + markdown("Source by test, where any row overlaps", header, rows)


def _numbers(entry: dict[str, Any]) -> list[str]:
    p, levels = entry["length_percentiles"], entry["overlap"]
    share = f"{100 * levels['near'] / max(entry['rows'], 1):.2f}"
    return [f"{entry['rows']:,}", f"{entry['duplicates']:,}", str(p["50"]), str(p["95"]), *_counts(levels), share]


def _counts(levels: dict[str, int]) -> list[str]:
    return [f"{levels['exact']:,}", f"{levels['near']:,}"]


if __name__ == "__main__":
    cli.run(run, __doc__ or "", config="configs/inspect_data.py")
