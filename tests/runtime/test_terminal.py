"""Text of users is shown as it is: no markup, no formula, no HTML, and nothing that a terminal would obey."""

import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import run
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from experiments import filter_pairs, inspect_data
from experiments.common import prefinetuning, scoring
from jaxprefit.render import html as pages
from jaxprefit.render.tables import markdown
from jaxprefit.representations import report
from jaxprefit.representations.figures import figures
from jaxprefit.runtime.progress import GridProgress
from jaxprefit.runtime.terminal import lines, plain, printable, text_column

HOSTILE = ("[/b]", "[red]dog[/red]", "[link=http://x]", ":smile:", "a\\", "[b\\", "$x_{$", "_first", "<b>|</b>")
OBEYED = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "back\b\b\b\b",
    "over\rwritten",
    "\x9b2J",
    "\u202edlrow",
    "\ud800",
    "\0",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_control_stays_as_it_is(text: str) -> None:
    assert printable(text) == text == plain(text).plain


@pytest.mark.parametrize("text", OBEYED)
def test_what_a_terminal_obeys_is_written_out(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and shown.encode("ascii").decode("unicode_escape") == text


@given(st.text())
def test_any_text_is_one_printable_line_and_letters_stay(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    shown.encode()
    if text.isprintable():
        assert shown == text
    assert lines(f"{text}\n{text}") == "\n".join([lines(text)] * 2)


def test_letters_of_all_scripts_stay() -> None:
    for text in ("naïve 日本語 हिन्दी עברית 👩‍👩‍👧", "e\u0301", "a\u200db"):
        assert printable(text) == text


@given(st.text(st.sampled_from("[]/ab\\:red smile=#@\x1b"), max_size=20))
def test_a_table_cell_and_a_bar_show_the_text_itself(text: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=400)
    console.print(plain(text), end="", soft_wrap=True)
    assert out.getvalue().rstrip() == printable(text).rstrip()
    out.truncate(0), out.seek(0)
    with Progress(text_column("{task.description}"), console=console, disable=True) as bar:
        bar.add_task(printable(text))
        assert bar.columns[0](bar.tasks[0]).plain == printable(text)  # type: ignore[operator,union-attr]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


def test_labels_types_and_folders_are_shown(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder, labels, entity types and texts that rich would take for markup."""
    task = tmp_path / "notes[" / "old]"
    task.mkdir(parents=True)
    labels = ("[/b]", "[red]", ":smile:", "\x1b[31m")
    rows = "".join(
        json.dumps({"text": f"{a} text {i} [/i] \x1b[0m", "label": a}) + "\n" for i in range(8) for a in labels
    )
    for split in ("train", "test"):
        (task / f"{split}.jsonl").write_text(rows)
    (tmp_path / "[ner].jsonl").write_text('{"tokens": ["[bold]", "\\u001b[2J"], "tags": ["B-[/x]", "O"]}\n' * 40)
    changes = {
        "downstream.tc": (str(task),),
        "downstream.ner": (),
        "data.ner.sources": (str(tmp_path / "[ner].jsonl"),),
    }
    inspect_data.run(run.config(cache, changes), tmp_path / "out")
    shown = "".join(capsys.readouterr().out.split())
    for text in (
        str(task),
        "[/b]8",
        "[red]8",
        ":smile:8",
        r"\x1b[31m8",
        "[/i]",
        "[bold][[/x]]",
        r"\x1b[2J",
        "[ner].jsonl",
    ):
        assert text in shown, text
    assert "\x1b" not in shown
    assert r"\x1b" in printable(labels[-1])


def test_scores_and_failures_of_a_task_with_brackets_are_shown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"accuracy": 0.5, "macro_f1": 0.25}
    tasks = [{"task": "notes[/old]", "family": "tc", "mean": scores, "trained_rows": 3, "test_rows": 4}]
    failed = [{"task": "[b]", "seed": 0, "reason": "label '[/b]' \x1b[31m"}]
    scoring.print_table({"start": {"strategy": "none", "checkpoint": "[/x]"}, "tasks": tasks, "failed": failed})
    source = {"rows": 1, "dropped": 0, "examples": 1, "requested": 1.0, "observed": 1.0}
    prefinetuning.print_data({"ner": {"useful_tokens": 1, "useful_share": 1.0, "sources": {"[/y]": source}}})
    filter_pairs.print_table(
        {"top_k": 1, "sample": 2, "sources": [{"source": "[/z]", "rows": 1, "kept": 1, "share": 1.0}]}
    )
    shown = capsys.readouterr().out
    for text in ("notes[/old]", "[b]", "'[/b]' \\x1b[31m", "none: [/x]", "[/y]", "[/z]"):
        assert text in shown, text
    with GridProgress(1) as progress:
        progress.begin("[/b]", 1, 1)
        progress.end()


def test_names_of_encoders_in_tables_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("start [/b] $x_{$", "_other $$")
    band = {"value": [0.5, 0.5], "low": [0.4, 0.4], "high": [0.6, 0.6]}
    parts = ("intra_sentence", "effective_rank", "alignment", "uniformity", "cka")
    texts = {"ner": {**dict.fromkeys(parts, band), "intra_sentence_excess": None}}
    content: dict[str, Any] = {
        "reference": names[0], "layers": 1, "tasks": [], "hypothesis": {},
        "samples": {"ner": {"texts": 2, "tokens": 3, "scored_tokens": 3, "pairs": 1}},
        "measures": {name: {"texts": texts, "probes": {}} for name in names},
        "differences": [{"first": names[0], "second": names[1], "texts": {"ner": {
            p: {**band, "verdict": ["undecided", "higher"]} for p in parts}}, "probes": {}}],
    }  # fmt: skip
    report.print_tables(content)
    assert "hidden states of start [/b] $x_{$, by layer" in capsys.readouterr().out
    for figure, _ in figures(content).values():
        assert pages.png(figure).startswith(b"\x89PNG")
        if figure.legends:
            assert [t.get_text() for t in figure.legends[0].get_texts()] == [r"start [/b] \$x_{\$", r" _other \$\$"]


def test_a_cell_of_a_markdown_table_is_one_cell_without_html() -> None:
    table = markdown("a|b\n<i>", ["x|y", "z"], [["1|2\n3", "<script>\x1b"]])
    assert table == [r"**a\|b\n&lt;i>**", "", r"| x\|y | z |", "| --- | --- |", r"| 1\|2\n3 | &lt;script>\x1b |", ""]


class _Texts(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_text_in_a_page_is_text(text: str) -> None:
    parser, plain_page = _Texts(), _Texts()
    for one, what in ((parser, text), (plain_page, "")):
        one.feed(pages.page(what, [(what, [pages.paragraph(what), pages.table([what], [[what]])])]))
        one.close()
    assert parser.tags == plain_page.tags and parser.text.count(text) >= (1 if text else 0)


def test_the_error_line_is_one_line_without_escapes(tmp_path: Path) -> None:
    done = run.call(
        "prefinetune", "--config=configs/quickstart.py", f"--workdir={tmp_path}/r", "--config.model.path=a\x1b[31m\nb"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and r"a\x1b[31m" in done.stderr
