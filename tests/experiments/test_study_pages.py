"""The study's pages in experiments/results: below its head, which is written by hand, each is what the program writes
from the JSON beside it, and each decimal figure of the head stands somewhere in its tables."""

import re

import pytest
from helpers.paths import RESULTS

from experiments.common.study_results import StudyResult
from experiments.study import page
from jaxprefit.runtime import results

PAGES = sorted(file.stem for file in RESULTS.glob("study*.json"))


def parts(lines: str) -> tuple[str, str]:
    """(head, tables) of a page."""
    head, start, tables = lines.partition("Scores in percent on test rows")
    return head, start + tables


def test_there_are_pages() -> None:
    assert "study" in PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_s_tables_are_written_from_its_json(name: str) -> None:
    content = results.read(RESULTS / f"{name}.json", StudyResult)
    _, tables = parts("\n".join(page.report(content)).replace("(study_", f"({name}_"))
    assert parts((RESULTS / f"{name}.md").read_text(encoding="utf-8"))[1].rstrip() == tables.rstrip()
    for picture in re.findall(r"\((\w+\.png)\)", tables):
        assert (RESULTS / picture).exists()


@pytest.mark.parametrize("name", PAGES)
def test_a_figure_of_a_page_s_head_stands_in_its_tables(name: str) -> None:
    # Whether it is said of the right thing, and with the right sign, is for the reader of a change.
    head, tables = parts((RESULTS / f"{name}.md").read_text(encoding="utf-8"))
    known = {figure.lstrip("+-") for figure in re.findall(r"[+-]?\d+\.\d+", tables)}
    assert {figure for figure in re.findall(r"(?<![\w.])\d+\.\d+(?!\.?\d)", head)} <= known
